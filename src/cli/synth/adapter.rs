//! An adapter directory with random tensors, in the layout of each method.

use std::collections::BTreeMap;
use std::path::Path;

use clap::ValueEnum;
use indicatif::ProgressBar;
use serde_json::{Value, json};

use super::super::CliError;
use super::writer::{self, Fill, Tensor};
use super::{new_dir, write_json};
use crate::adapter::Base;
use crate::dtype::Dtype;
use crate::ids::ModuleId;
use crate::site::{Module, SiteKind};

/// Method of a synthetic adapter.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum AdapterKind {
    /// LoRA.
    Lora,
    /// LoRA scaled by `alpha / √r`.
    #[value(name = "rslora")]
    RsLora,
    /// LoRA with a magnitude.
    Dora,
    /// Mixture of shards, each pool stored once.
    Mos,
    /// Scale and shift.
    Ssf,
    /// (IA)³.
    Ia3,
}

/// What an adapter measures.
#[derive(Clone, Debug)]
pub struct AdapterShape {
    /// Method.
    pub kind: AdapterKind,
    /// Rank, where the method has one.
    pub rank: usize,
    /// Modules by the last part of their names, or by the whole; `None` is the method's own
    /// widest: every linear of a layer, with SSF the norms too, with IA³ k, v and down.
    pub targets: Option<Vec<String>>,
    /// MoS: shards in a row.
    pub shards: usize,
    /// Width of the tensors.
    pub dtype: Dtype,
    /// Equal seeds give equal tensors.
    pub seed: u64,
}

const LINEARS: &[&str] =
    &["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
const NORMS: &[&str] = &["input_layernorm", "post_attention_layernorm", "norm"];
const IA3: &[&str] = &["k_proj", "v_proj", "down_proj"];
/// `lora_alpha`. Only its ratio to the rank has a meaning, and B is drawn to undo that.
const ALPHA: f32 = 16.0;
/// How strongly an adapter changes an output of standard deviation 1: visible in the logits, yet
/// nowhere near overflow in f16.
const STRENGTH: f32 = 0.1;

/// Writes an adapter for `base` into the new directory `dir`. DoRA's magnitudes are the norms of
/// the base's own rows, give or take a few percent.
///
/// # Errors
/// [`CliError::Usage`] for a shape that cannot be or a directory in use, else
/// [`CliError::General`].
pub fn synth_adapter(dir: &Path, shape: &AdapterShape, base: &dyn Base) -> Result<(), CliError> {
    if shape.rank == 0 || shape.shards == 0 {
        return Err(CliError::Usage("rank and shards must be at least 1".into()));
    }
    let names = shape.targets.clone().unwrap_or_else(|| {
        let names: &[&[&str]] = match shape.kind {
            AdapterKind::Ssf => &[LINEARS, NORMS],
            AdapterKind::Ia3 => &[IA3],
            _ => &[LINEARS],
        };
        names.concat().into_iter().map(str::to_owned).collect()
    });
    let synth = Synth { shape, base };
    let modules = synth.modules(&names)?;
    let (own, tensors) = match shape.kind {
        AdapterKind::Lora | AdapterKind::RsLora | AdapterKind::Dora => synth.lora(&modules)?,
        AdapterKind::Mos => synth.mos(&modules)?,
        AdapterKind::Ssf => (json!({ "peft_type": "SSF" }), synth.ssf(&modules)),
        AdapterKind::Ia3 => synth.ia3(&modules, &names)?,
    };
    let mut config = json!({
        "base_model_name_or_path": null,
        "inference_mode": true,
        "target_modules": names,
        "task_type": "CAUSAL_LM",
    });
    if let (Value::Object(config), Value::Object(own)) = (&mut config, own) {
        config.extend(own);
    }
    new_dir(dir)?;
    let path = dir.join("adapter_model.safetensors");
    writer::write(&path, &tensors, shape.dtype, shape.seed, &ProgressBar::hidden())?;
    write_json(&dir.join("adapter_config.json"), &config)
}

struct Synth<'a> {
    shape: &'a AdapterShape,
    base: &'a dyn Base,
}

type Modules<'a> = Vec<(ModuleId, &'a Module)>;

fn only(module: &Module, kinds: &[SiteKind], method: &str) -> Result<(), CliError> {
    match kinds.contains(&module.kind) {
        true => Ok(()),
        false => Err(CliError::Usage(format!("{method} cannot change {}", module.name))),
    }
}

fn random(module: &Module, suffix: &str, shape: &[usize], mean: f32, std: f32) -> Tensor {
    let name = format!("base_model.model.{}.{suffix}", module.name);
    Tensor::random(name, shape.to_vec(), mean, std)
}

impl<'a> Synth<'a> {
    /// The modules that `names` mean; each name must mean one.
    fn modules(&self, names: &[String]) -> Result<Modules<'a>, CliError> {
        let means = |module: &Module, name: &str| module.leaf() == name || module.name == name;
        let all = self.base.modules();
        if let Some(name) = names.iter().find(|name| !all.iter().any(|(_, s)| means(s, name))) {
            let known: std::collections::BTreeSet<_> = all.iter().map(|(_, s)| s.leaf()).collect();
            let known = known.into_iter().collect::<Vec<_>>().join(", ");
            return Err(CliError::Usage(format!(
                "the model has no module '{name}'; it has {known}"
            )));
        }
        Ok(all.iter().filter(|(_, s)| names.iter().any(|name| means(s, name))).collect())
    }

    fn lora(&self, sites: &Modules<'_>) -> Result<(Value, Vec<Tensor>), CliError> {
        let rank = self.shape.rank;
        let root = self.shape.kind == AdapterKind::RsLora;
        let dora = self.shape.kind == AdapterKind::Dora;
        let scaling = ALPHA / if root { (rank as f32).sqrt() } else { rank as f32 };
        let b_std = STRENGTH / (scaling * (rank as f32).sqrt());
        let mut tensors = Vec::new();
        for &(id, site) in sites {
            only(site, &[SiteKind::Linear, SiteKind::Embedding], "LoRA")?;
            let (wide, out) = (site.in_features, site.out_features);
            if site.kind == SiteKind::Linear {
                let a_std = 1.0 / (wide as f32).sqrt();
                tensors.push(random(site, "lora_A.weight", &[rank, wide], 0.0, a_std));
                tensors.push(random(site, "lora_B.weight", &[out, rank], 0.0, b_std));
            } else {
                // x is one-hot here, and the rows of the table are of length 1.
                let b_std = b_std / (out as f32).sqrt();
                tensors.push(random(site, "lora_embedding_A", &[rank, wide], 0.0, 1.0));
                tensors.push(random(site, "lora_embedding_B", &[out, rank], 0.0, b_std));
            }
            if dora {
                let name = format!("base_model.model.{}.lora_magnitude_vector", site.name);
                let fill = Fill::Given(self.norms(id, site)?);
                tensors.push(Tensor { name, shape: vec![out], fill });
            }
        }
        let config = json!({
            "peft_type": "LORA", "r": rank, "lora_alpha": ALPHA, "lora_dropout": 0.0,
            "bias": "none", "use_rslora": root, "use_dora": dora, "init_lora_weights": true,
            "fan_in_fan_out": false,
        });
        Ok((config, tensors))
    }

    /// The norm of each output's weights, alternately 3 % more and less.
    fn norms(&self, id: ModuleId, site: &Module) -> Result<Vec<f32>, CliError> {
        let weight = self.base.weight(id)?;
        let (wide, out) = (site.in_features, site.out_features);
        // An embedding's table is [vocabulary, hidden].
        let embedding = site.kind == SiteKind::Embedding;
        let (over_out, over_in) = if embedding { (1, out) } else { (wide, 1) };
        let norm = |o: usize| {
            let each = (0..wide).map(|i| f64::from(weight[o * over_out + i * over_in]));
            each.map(|w| w * w).sum::<f64>().sqrt() as f32
        };
        Ok((0..out).map(|o| norm(o) * if o % 2 == 0 { 1.03 } else { 0.97 }).collect())
    }

    fn mos(&self, sites: &Modules<'_>) -> Result<(Value, Vec<Tensor>), CliError> {
        let (rank, l) = (self.shape.rank, self.shape.shards);
        let mut types: BTreeMap<&str, Modules<'_>> = BTreeMap::new();
        for &(id, site) in sites {
            only(site, &[SiteKind::Linear], "MoS")?;
            types.entry(site.leaf()).or_default().push((id, site));
        }
        // The paper's budget: pools as large as a LoRA of a quarter of the rank.
        let budget = rank.div_ceil(4);
        let b_std = STRENGTH / (ALPHA / rank as f32 * (rank as f32).sqrt());
        let mut tensors = Vec::new();
        for (leaf, sites) in types {
            let (layers, site) = (sites.len(), sites[0].1);
            let (wide, out) = (site.in_features, site.out_features);
            if !site.name.contains(".layers.") {
                return Err(CliError::Usage(format!("MoS cannot change {}", site.name)));
            }
            if !wide.is_multiple_of(l) || !out.is_multiple_of(l) {
                return Err(CliError::Usage(format!(
                    "{l} shards do not divide {leaf}'s {wide} inputs and {out} outputs; choose \
                     --shards to divide both"
                )));
            }
            let n = layers * budget * l;
            let name = |suffix: &str| format!("mos.{leaf}.{suffix}");
            let a_std = 1.0 / (wide as f32).sqrt();
            tensors.push(Tensor::random(name("pool_A"), vec![n, wide / l], 0.0, a_std));
            tensors.push(Tensor::random(name("pool_B"), vec![n, out / l], 0.0, b_std));
            for side in ["index_A", "index_B"] {
                let fill = Fill::Indices { below: n };
                tensors.push(Tensor { name: name(side), shape: vec![layers, rank, l], fill });
            }
        }
        let config = json!({
            "peft_type": "MOS", "r": rank, "lora_alpha": ALPHA, "lora_dropout": 0.0,
            "bias": "none", "num_chunk_per_vec": l, "valid_param_lora_r": budget,
            "ft_mode": "mos",
        });
        Ok((config, tensors))
    }

    fn ssf(&self, sites: &Modules<'_>) -> Vec<Tensor> {
        let both = |&(_, site): &(ModuleId, &Module)| {
            let shape = [site.out_features];
            [
                random(site, "ssf_scale", &shape, 1.0, STRENGTH),
                random(site, "ssf_shift", &shape, 0.0, STRENGTH / 10.0),
            ]
        };
        sites.iter().flat_map(both).collect()
    }

    fn ia3(&self, sites: &Modules<'_>, names: &[String]) -> Result<(Value, Vec<Tensor>), CliError> {
        let feed_forward = |name: &str| name.ends_with("down_proj");
        let mut tensors = Vec::new();
        for (_, site) in sites {
            only(site, &[SiteKind::Linear], "IA3")?;
            let shape = match feed_forward(&site.name) {
                true => [1, site.in_features],
                false => [site.out_features, 1],
            };
            tensors.push(random(site, "ia3_l", &shape, 1.0, STRENGTH));
        }
        let fed: Vec<_> = names.iter().filter(|name| feed_forward(name)).collect();
        Ok((json!({ "peft_type": "IA3", "feedforward_modules": fed }), tensors))
    }
}
