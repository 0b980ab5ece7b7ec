//! Each method twice: a random adapter as its library writes it, and what its definition makes of
//! a dense model.

use serde_json::json;

use super::dense::{Dense, Linear, Shape, widen};
use crate::Rng;
use crate::files::{Draft, Raw};

const PREFIX: &str = "base_model.model.";

/// One adapter and the model it stands for.
pub struct Made {
    pub name: String,
    pub draft: Draft,
    pub dense: Dense,
}

/// What making an adapter needs.
pub struct Maker<'a> {
    pub rng: &'a mut Rng,
    pub base: &'a Dense,
}

/// A random tensor in `centre ± width`, put into the draft; its values come back in f64.
fn random(
    rng: &mut Rng,
    draft: &mut Draft,
    name: &str,
    shape: &[usize],
    (centre, width): (f32, f32),
) -> Vec<f64> {
    let data = rng.vec(shape.iter().product());
    let data: Vec<f32> = data.into_iter().map(|x| centre + width * x).collect();
    let prefix = if name.starts_with("mos.") { "" } else { PREFIX };
    draft.insert(&format!("{prefix}{name}"), Raw::f32(shape, &data));
    widen(&data)
}

/// W += s·B A.
fn add_product(linear: &mut Linear, a: &[f64], b: &[f64], rank: usize, s: f64) {
    for o in 0..linear.out {
        for i in 0..linear.width {
            let sum: f64 = (0..rank).map(|r| b[o * rank + r] * a[r * linear.width + i]).sum();
            linear.weight[o * linear.width + i] += s * sum;
        }
    }
}

/// W = diag(l) W, and the bias with it.
fn scale_output(linear: &mut Linear, l: &[f64]) {
    for o in 0..linear.out {
        linear.weight[o * linear.width..][..linear.width].iter_mut().for_each(|w| *w *= l[o]);
        linear.bias[o] *= l[o];
    }
}

fn leaf(name: &str) -> &str {
    name.rsplit('.').next().unwrap()
}

impl Maker<'_> {
    fn shape(&self) -> Shape {
        self.base.shape
    }

    /// LoRA or DoRA on every linear, the head included, each of its own odd rank.
    pub fn lora(&mut self, root: bool, with_bias: bool, dora: bool, saved_bias: &str) -> Made {
        let mut dense = self.base.clone();
        let alpha = 1.5 + self.rng.below(20) as f64 / 4.0;
        let mut config = json!({
            "peft_type": "LORA", "r": 3, "lora_alpha": alpha, "use_rslora": root,
            "lora_bias": with_bias, "use_dora": dora, "bias": saved_bias,
            "target_modules": [
                "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
                "lm_head"
            ],
        });
        let mut ranks = serde_json::Map::new();
        let mut draft = Draft::new(json!({}));
        for (name, out, width, has_bias) in self.shape().linears() {
            let rank = [1, 2, 3, 5, 7, 9][self.rng.below(6)];
            ranks.insert(format!("^{}", name.replace('.', r"\.")), rank.into());
            let mut put = |suffix: &str, shape: &[usize], range| {
                random(self.rng, &mut draft, &format!("{name}.{suffix}"), shape, range)
            };
            let a = put("lora_A.weight", &[rank, width], (0.0, 0.4));
            let b = put("lora_B.weight", &[out, rank], (0.0, 0.4));
            let s = if root { alpha / (rank as f64).sqrt() } else { alpha / rank as f64 };
            let linear = dense.linears.get_mut(&name).unwrap();
            add_product(linear, &a, &b, rank, s);
            if saved_bias != "none" && has_bias {
                linear.bias = put("base_layer.bias", &[out], (0.3, 0.6));
            }
            if with_bias {
                let shift = put("lora_B.bias", &[out], (0.1, 0.4));
                linear.bias.iter_mut().zip(shift).for_each(|(b, c)| *b += s * c);
            }
            if dora {
                let m = put("lora_magnitude_vector", &[out], (0.8, 1.2));
                for (row, m) in linear.weight.chunks_exact_mut(width).zip(m) {
                    let norm = row.iter().map(|w| w * w).sum::<f64>().sqrt();
                    row.iter_mut().for_each(|w| *w *= m / norm);
                }
            }
        }
        config["rank_pattern"] = ranks.into();
        draft.config = Draft::new(config).config;
        let name = format!("LORA root={root} bias={with_bias}/{saved_bias} dora={dora}");
        Made { name, draft, dense }
    }

    /// LoRA or DoRA on the embedding.
    pub fn embedding(&mut self, dora: bool) -> Made {
        let Shape { vocabulary, hidden, .. } = self.shape();
        let mut dense = self.base.clone();
        let mut draft = Draft::new(json!({
            "peft_type": "LORA", "r": 5, "lora_alpha": 3, "use_dora": dora,
            "target_modules": ["embed_tokens"],
        }));
        let mut put = |suffix: &str, shape: &[usize], range| {
            random(self.rng, &mut draft, &format!("model.embed_tokens.{suffix}"), shape, range)
        };
        let a = put("lora_embedding_A", &[5, vocabulary], (0.0, 0.5));
        let b = put("lora_embedding_B", &[hidden, 5], (0.0, 0.5));
        for t in 0..vocabulary {
            for i in 0..hidden {
                let sum: f64 = (0..5).map(|r| b[i * 5 + r] * a[r * vocabulary + t]).sum();
                dense.table[t * hidden + i] += 3.0 / 5.0 * sum;
            }
        }
        if dora {
            let m = put("lora_magnitude_vector", &[hidden], (2.0, 1.0));
            for i in 0..hidden {
                let column = |t: usize| t * hidden + i;
                let squares = (0..vocabulary).map(|t| dense.table[column(t)].powi(2));
                let norm = squares.sum::<f64>().sqrt();
                (0..vocabulary).for_each(|t| dense.table[column(t)] *= m[i] / norm);
            }
        }
        Made { name: format!("LORA of the embedding, dora={dora}"), draft, dense }
    }

    /// LoRA on q with whole modules beside it.
    pub fn saved(&mut self) -> Made {
        let Shape { vocabulary, hidden, tied, .. } = self.shape();
        let mut made = self.lora(false, false, false, "none");
        made.name = "LORA with saved modules".into();
        let mut modules = vec!["model.norm", "post_attention_layernorm", "lm_head", "o_proj"];
        if !tied {
            modules.push("embed_tokens");
        }
        for (name, norm) in &mut made.dense.norms {
            if modules.iter().any(|m| name.ends_with(m)) {
                let (key, range) = (format!("{name}.weight"), (1.0, 0.5));
                norm.weight = random(self.rng, &mut made.draft, &key, &[hidden], range);
            }
        }
        for (name, linear) in &mut made.dense.linears {
            if modules.contains(&leaf(name)) {
                let lora = |key: &String| key.contains(&format!("{name}.lora_"));
                made.draft.tensors.retain(|key, _| !lora(key));
                let (key, shape) = (format!("{name}.weight"), [linear.out, linear.width]);
                linear.weight = random(self.rng, &mut made.draft, &key, &shape, (0.0, 0.4));
                if leaf(name) == "o_proj" && self.base.shape.other_bias() {
                    let (key, shape) = (format!("{name}.bias"), [linear.out]);
                    linear.bias = random(self.rng, &mut made.draft, &key, &shape, (0.2, 0.4));
                }
            }
        }
        if !tied {
            let (key, shape) = ("model.embed_tokens.weight", [vocabulary, hidden]);
            made.dense.table = random(self.rng, &mut made.draft, key, &shape, (0.0, 0.9));
        }
        made.draft.set("modules_to_save", modules);
        made
    }

    /// MoS on all seven linears: `shards` a row, pools of an odd number of shards.
    pub fn mos(&mut self, shards: usize, rank: usize, repeated: bool) -> Made {
        let mut dense = self.base.clone();
        let alpha = 2.5;
        let kind = if repeated { "LORA" } else { "MOS" };
        let mut draft = Draft::new(json!({
            "peft_type": kind, "r": rank, "lora_alpha": alpha, "num_chunk_per_vec": shards,
            "target_modules": "all-linear",
        }));
        let layers = self.shape().layers;
        for (first, out, width, _) in self.shape().linears().into_iter().take(7) {
            let n = rank * shards + 1 + self.rng.below(5);
            let (shard_in, shard_out) = (width / shards, out / shards);
            let leaf = leaf(&first);
            let mut scratch = Draft::new(json!({}));
            let mut put = |name: &str, shape: &[usize]| {
                random(self.rng, &mut scratch, &format!("mos.{leaf}.{name}"), shape, (0.0, 0.5))
            };
            let (pool_a, pool_b) = (put("pool_A", &[n, shard_in]), put("pool_B", &[n, shard_out]));
            let mut draw = || (0..layers * rank * shards).map(|_| self.rng.below(n)).collect();
            let (index_a, index_b): (Vec<usize>, Vec<usize>) = (draw(), draw());
            for layer in 0..layers {
                let name = first.replace("layers.0.", &format!("layers.{layer}."));
                let own =
                    |index: &[usize]| index[layer * rank * shards..][..rank * shards].to_vec();
                let (ia, ib) = (own(&index_a), own(&index_b));
                let mut a = vec![0.0; rank * width];
                let mut b = vec![0.0; out * rank];
                for j in 0..rank {
                    for c in 0..width {
                        let shard = ia[j * shards + c / shard_in];
                        a[j * width + c] = pool_a[shard * shard_in + c % shard_in];
                    }
                    for c in 0..out {
                        let shard = ib[j * shards + c / shard_out];
                        b[c * rank + j] = pool_b[shard * shard_out + c % shard_out];
                    }
                }
                let linear = dense.linears.get_mut(&name).unwrap();
                add_product(linear, &a, &b, rank, alpha / rank as f64);
                if repeated {
                    repeat_pools(&mut draft, &name, &scratch, (leaf, n, shard_out), (&ia, &ib));
                }
            }
            if !repeated {
                let shape = [layers, rank, shards];
                for (side, index) in [("A", &index_a), ("B", &index_b)] {
                    let index: Vec<i32> = index.iter().map(|&i| i as i32).collect();
                    draft.insert(&format!("mos.{leaf}.index_{side}"), Raw::i32(&shape, &index));
                }
                draft.tensors.extend(scratch.tensors);
            }
        }
        let name = format!("MOS of {shards} shards, rank {rank}, repeated={repeated}");
        Made { name, draft, dense }
    }

    /// SSF on every linear and every norm.
    pub fn ssf(&mut self) -> Made {
        let mut dense = self.base.clone();
        let names = dense.linears.keys().chain(dense.norms.keys()).cloned().collect::<Vec<_>>();
        let mut draft = Draft::new(json!({"peft_type": "SSF", "target_modules": names}));
        let mut pair = |name: &str, width: usize| {
            let mut put = |suffix: &str, range| {
                random(self.rng, &mut draft, &format!("{name}.{suffix}"), &[width], range)
            };
            (put("ssf_scale", (0.9, 0.6)), put("ssf_shift", (0.0, 0.4)))
        };
        for (name, linear) in &mut dense.linears {
            let (scale, shift) = pair(name, linear.out);
            scale_output(linear, &scale);
            linear.bias.iter_mut().zip(shift).for_each(|(b, s)| *b += s);
        }
        for (name, norm) in &mut dense.norms {
            let (scale, shift) = pair(name, norm.weight.len());
            norm.weight.iter_mut().zip(scale).for_each(|(w, s)| *w *= s);
            norm.shift = shift;
        }
        Made { name: "SSF".into(), draft, dense }
    }

    /// (IA)³ on all seven linears, down_proj by its input; with `saved`, up_proj saved whole.
    pub fn ia3(&mut self, saved: bool) -> Made {
        let mut dense = self.base.clone();
        let mut draft = Draft::new(json!({
            "peft_type": "IA3", "feedforward_modules": ["down_proj"],
            "target_modules": [
                "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
            ],
        }));
        if saved {
            draft.set("modules_to_save", json!(["up_proj"]));
        }
        for (name, linear) in &mut dense.linears {
            let Linear { out, width, .. } = *linear;
            let mut put = |suffix: &str, shape: &[usize], range| {
                random(self.rng, &mut draft, &format!("{name}.{suffix}"), shape, range)
            };
            match leaf(name) {
                "lm_head" => {}
                "down_proj" => linear.input_scale = put("ia3_l", &[1, width], (0.8, 0.9)),
                "up_proj" if saved => {
                    linear.weight = put("weight", &[out, width], (0.0, 0.4));
                    if self.base.shape.other_bias() {
                        linear.bias = put("bias", &[out], (0.2, 0.6));
                    }
                }
                _ => scale_output(linear, &put("ia3_l", &[out, 1], (0.8, 0.9))),
            }
        }
        Made { name: format!("IA3 saved={saved}"), draft, dense }
    }
}

/// One layer's part of the layout that the MoS authors' trainer saves.
fn repeat_pools(
    draft: &mut Draft,
    name: &str,
    pools: &Draft,
    (leaf, n, shard_out): (&str, usize, usize),
    (index_a, index_b): (&[usize], &[usize]),
) {
    let key = |suffix: &str| format!("{PREFIX}{name}.{suffix}");
    draft.insert(&key("lora_A.weight"), pools.tensors[&format!("mos.{leaf}.pool_A")].clone());
    let b = pools.tensors[&format!("mos.{leaf}.pool_B")].floats();
    let across = |c: usize| (0..n).map(move |row| (row, c));
    let b: Vec<f32> =
        (0..shard_out).flat_map(across).map(|(row, c)| b[row * shard_out + c]).collect();
    draft.insert(&key("lora_B.weight"), Raw::f32(&[shard_out, n], &b));
    let index = |index: &[usize]| {
        let index: Vec<i64> = index.iter().map(|&i| i as i64).collect();
        Raw::i64(&[index.len()], &index)
    };
    draft.insert(&key("lora_pair_mask"), index(index_a));
    draft.insert(&key("lora_pair_mask_B"), index(index_b));
    let rank = pools_rank(draft);
    draft.insert(&key("lora_A_vec"), Raw::f32(&[rank], &vec![1.0; rank]));
    draft.insert(&key("lora_A_anti_vec"), Raw::f32(&[rank], &vec![1.0; rank]));
}

fn pools_rank(draft: &Draft) -> usize {
    draft.config["r"].as_u64().unwrap() as usize
}
