//! A decoder in f64, every weight dense: the textbook, one row at a time.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use crate::Rng;
use crate::files::{Raw, read_tensors, tensor_bytes};

/// The numbers of one small model.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub architecture: &'static str,
    pub vocabulary: usize,
    pub hidden: usize,
    pub inner: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub tied: bool,
}

impl Shape {
    pub fn qkv_bias(&self) -> bool {
        self.architecture != "Qwen3ForCausalLM"
    }

    pub fn other_bias(&self) -> bool {
        self.architecture == "LlamaForCausalLM"
    }

    fn qk_norm(&self) -> bool {
        self.architecture == "Qwen3ForCausalLM"
    }

    /// Every linear: name, out, in, and whether it has a bias. The head is last.
    pub fn linears(&self) -> Vec<(String, usize, usize, bool)> {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let (h, inner) = (self.hidden, self.inner);
        let (a, b) = (self.qkv_bias(), self.other_bias());
        let leaves = [
            ("self_attn.q_proj", q, h, a),
            ("self_attn.k_proj", kv, h, a),
            ("self_attn.v_proj", kv, h, a),
            ("self_attn.o_proj", h, q, b),
            ("mlp.gate_proj", inner, h, b),
            ("mlp.up_proj", inner, h, b),
            ("mlp.down_proj", h, inner, b),
        ];
        let mut all = Vec::new();
        for i in 0..self.layers {
            let name = |leaf: &str| format!("model.layers.{i}.{leaf}");
            all.extend(leaves.map(|(leaf, o, i, bias)| (name(leaf), o, i, bias)));
        }
        all.push(("lm_head".into(), self.vocabulary, h, false));
        all
    }

    /// Every norm and its width.
    pub fn norms(&self) -> Vec<(String, usize)> {
        let mut all = vec![("model.norm".to_owned(), self.hidden)];
        for i in 0..self.layers {
            for leaf in ["input_layernorm", "post_attention_layernorm"] {
                all.push((format!("model.layers.{i}.{leaf}"), self.hidden));
            }
            for leaf in ["q_norm", "k_norm"].iter().filter(|_| self.qk_norm()) {
                all.push((format!("model.layers.{i}.self_attn.{leaf}"), self.head_dim));
            }
        }
        all
    }

    /// Writes a model of this shape with random weights.
    pub fn write(&self, dir: &Path, rng: &mut Rng) {
        let mut tensors = BTreeMap::new();
        let mut add = |name: String, shape: &[usize], centre: f32, width: f32| {
            let data = rng.vec(shape.iter().product());
            let data: Vec<f32> = data.into_iter().map(|x| centre + width * x).collect();
            tensors.insert(name, Raw::f32(shape, &data));
        };
        let table = "model.embed_tokens.weight".to_owned();
        add(table, &[self.vocabulary, self.hidden], 0.0, 1.0);
        for (name, o, i, bias) in self.linears() {
            if name != "lm_head" || !self.tied {
                add(format!("{name}.weight"), &[o, i], 0.0, 1.8 / (i as f32).sqrt());
            }
            if bias {
                add(format!("{name}.bias"), &[o], 0.1, 0.5);
            }
        }
        for (name, width) in self.norms() {
            add(format!("{name}.weight"), &[width], 1.0, 0.4);
        }
        let config = json!({
            "architectures": [self.architecture],
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "attention_bias": self.other_bias(),
            "mlp_bias": self.other_bias(),
            "rms_norm_eps": EPS,
            "rope_theta": THETA,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": 512,
            "torch_dtype": "float32",
        });
        std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
        std::fs::write(dir.join("model.safetensors"), tensor_bytes(&tensors)).unwrap();
    }
}

const EPS: f64 = 1e-5;
const THETA: f64 = 700.0;

/// `y = W (s ⊙ x) + bias`.
#[derive(Clone)]
pub struct Linear {
    pub out: usize,
    pub width: usize,
    pub weight: Vec<f64>,
    pub bias: Vec<f64>,
    pub input_scale: Vec<f64>,
}

/// `y = x / rms(x) ⊙ w + shift`.
#[derive(Clone)]
pub struct Norm {
    pub weight: Vec<f64>,
    pub shift: Vec<f64>,
}

/// A whole model; an adapter is applied by changing what stands here.
#[derive(Clone)]
pub struct Dense {
    pub shape: Shape,
    /// `[vocabulary, hidden]`.
    pub table: Vec<f64>,
    pub linears: BTreeMap<String, Linear>,
    pub norms: BTreeMap<String, Norm>,
}

pub fn widen(data: &[f32]) -> Vec<f64> {
    data.iter().map(|&x| f64::from(x)).collect()
}

impl Dense {
    pub fn read(shape: Shape, dir: &Path) -> Self {
        let tensors = read_tensors(&dir.join("model.safetensors"));
        let get = |name: String| widen(&tensors[&name].floats());
        let table = get("model.embed_tokens.weight".into());
        let linear = |(name, out, width, has_bias): (String, usize, usize, bool)| {
            let own = name != "lm_head" || !shape.tied;
            let weight = if own { get(format!("{name}.weight")) } else { table.clone() };
            let bias = if has_bias { get(format!("{name}.bias")) } else { vec![0.0; out] };
            (name, Linear { out, width, weight, bias, input_scale: vec![1.0; width] })
        };
        let norm = |(name, width): (String, usize)| {
            let weight = get(format!("{name}.weight"));
            (name, Norm { weight, shift: vec![0.0; width] })
        };
        let linears = shape.linears().into_iter().map(linear).collect();
        let norms = shape.norms().into_iter().map(norm).collect();
        Self { shape, table, linears, norms }
    }

    fn linear(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let Linear { width, weight, bias, input_scale, .. } = &self.linears[name];
        assert_eq!(x.len(), *width);
        let x: Vec<f64> = x.iter().zip(input_scale).map(|(x, s)| x * s).collect();
        let dot = |row: &[f64]| row.iter().zip(&x).map(|(w, x)| w * x).sum::<f64>();
        weight.chunks_exact(*width).zip(bias).map(|(row, b)| dot(row) + b).collect()
    }

    fn norm(&self, name: &str, x: &[f64]) -> Vec<f64> {
        let Norm { weight, shift } = &self.norms[name];
        let group = |x: &[f64]| {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
            let scale = 1.0 / (mean + EPS).sqrt();
            let each = x.iter().zip(weight).zip(shift);
            each.map(|((x, w), s)| x * scale * w + s).collect::<Vec<_>>()
        };
        x.chunks_exact(weight.len()).flat_map(group).collect()
    }

    fn rotate(&self, x: &mut [f64], position: usize) {
        let dim = self.shape.head_dim;
        for head in x.chunks_exact_mut(dim) {
            for i in 0..dim / 2 {
                let angle = position as f64 * THETA.powf(-2.0 * i as f64 / dim as f64);
                let (a, b) = (head[i], head[i + dim / 2]);
                head[i] = a * angle.cos() - b * angle.sin();
                head[i + dim / 2] = b * angle.cos() + a * angle.sin();
            }
        }
    }

    fn attend(&self, q: &[f64], keys: &[Vec<f64>], values: &[Vec<f64>]) -> Vec<f64> {
        let Shape { heads, kv_heads, head_dim, .. } = self.shape;
        let mut out = Vec::new();
        for (h, q) in q.chunks_exact(head_dim).enumerate() {
            let at = h / (heads / kv_heads) * head_dim;
            let dot = |k: &[f64]| q.iter().zip(k).map(|(q, k)| q * k).sum::<f64>();
            let score = |k: &Vec<f64>| dot(&k[at..at + head_dim]) / (head_dim as f64).sqrt();
            let scores: Vec<f64> = keys.iter().map(score).collect();
            let top = scores.iter().copied().fold(f64::MIN, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - top).exp()).collect();
            let sum: f64 = weights.iter().sum();
            let pairs = || weights.iter().zip(values);
            let mixed = |i: usize| pairs().map(|(w, v)| w / sum * v[at + i]).sum::<f64>();
            out.extend((0..head_dim).map(mixed));
        }
        out
    }

    /// Logits at every position.
    pub fn forward(&self, tokens: &[u32]) -> Vec<Vec<f64>> {
        let hidden = self.shape.hidden;
        let row = |&t: &u32| self.table[t as usize * hidden..][..hidden].to_vec();
        let mut stream: Vec<Vec<f64>> = tokens.iter().map(row).collect();
        for layer in 0..self.shape.layers {
            let name = |leaf: &str| format!("model.layers.{layer}.{leaf}");
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for (position, x) in stream.iter_mut().enumerate() {
                let h = self.norm(&name("input_layernorm"), x);
                let mut q = self.linear(&name("self_attn.q_proj"), &h);
                let mut k = self.linear(&name("self_attn.k_proj"), &h);
                if self.shape.qk_norm() {
                    q = self.norm(&name("self_attn.q_norm"), &q);
                    k = self.norm(&name("self_attn.k_norm"), &k);
                }
                self.rotate(&mut q, position);
                self.rotate(&mut k, position);
                keys.push(k);
                values.push(self.linear(&name("self_attn.v_proj"), &h));
                let h = self.attend(&q, &keys, &values);
                let h = self.linear(&name("self_attn.o_proj"), &h);
                x.iter_mut().zip(h).for_each(|(x, h)| *x += h);

                let h = self.norm(&name("post_attention_layernorm"), x);
                let gate = self.linear(&name("mlp.gate_proj"), &h);
                let up = self.linear(&name("mlp.up_proj"), &h);
                let silu = |g: f64| g / (1.0 + (-g).exp());
                let h: Vec<f64> = gate.iter().zip(&up).map(|(&g, u)| silu(g) * u).collect();
                let h = self.linear(&name("mlp.down_proj"), &h);
                x.iter_mut().zip(h).for_each(|(x, h)| *x += h);
            }
        }
        let head = |x: &Vec<f64>| self.linear("lm_head", &self.norm("model.norm", x));
        stream.iter().map(head).collect()
    }
}
