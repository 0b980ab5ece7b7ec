//! A model directory with random weights.

use std::io::IsTerminal;
use std::path::Path;

use clap::ValueEnum;
use indicatif::ProgressBar;
use serde_json::{Map, json};

use super::super::CliError;
use super::tokenizer::{CHAT_TEMPLATE, SPECIALS, VOCABULARY_MIN, tokenizer};
use super::writer::{self, Tensor};
use super::{new_dir, write_json};
use crate::dtype::Dtype;
use crate::model::{ModelConfig, sites};
use crate::site::SiteKind;

/// Bytes of one weight file, as most repositories on the Hub have them.
pub const SHARD_BYTES_MAX: u64 = 4 << 30;

/// The architecture of a synthetic model.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Family {
    /// `LlamaForCausalLM`.
    Llama,
    /// `MistralForCausalLM`.
    Mistral,
    /// `Qwen2ForCausalLM`.
    Qwen2,
    /// `Qwen3ForCausalLM`.
    Qwen3,
}

/// What a model measures.
#[derive(Clone, Debug)]
pub struct ModelShape {
    /// Architecture.
    pub family: Family,
    /// Decoder layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens.
    pub vocabulary: usize,
    /// Width of the weights.
    pub dtype: Dtype,
    /// The head is the embedding.
    pub tied: bool,
    /// Equal seeds give equal weights.
    pub seed: u64,
    /// Above it the weights are several files with an index. A larger tensor has one to itself.
    pub shard_bytes_max: u64,
}

/// Writes a model into the new directory `dir`: matrices with standard deviation `1 / √in`, norms
/// near 1, biases near 0. `config.json` comes last, so that half a model is none.
///
/// # Errors
/// [`CliError::Usage`] for a shape that cannot be or a directory in use, else
/// [`CliError::General`].
pub fn synth_model(dir: &Path, shape: &ModelShape) -> Result<(), CliError> {
    if shape.vocabulary < VOCABULARY_MIN {
        return Err(CliError::Usage(format!(
            "a vocabulary of {} is too small: the bytes and the special tokens need \
             {VOCABULARY_MIN}",
            shape.vocabulary
        )));
    }
    let config = config(shape);
    let parsed = ModelConfig::parse(config.to_string().as_bytes());
    let parsed = parsed.map_err(|e| CliError::Usage(format!("no model has this shape: {e}")))?;
    new_dir(dir)?;
    weights(dir, shape, &tensors(&parsed))?;
    write_json(&dir.join("tokenizer.json"), &tokenizer(shape.vocabulary))?;
    write_json(
        &dir.join("tokenizer_config.json"),
        &json!({
            "bos_token": SPECIALS[0],
            "eos_token": SPECIALS[1],
            "pad_token": SPECIALS[2],
            "chat_template": CHAT_TEMPLATE,
            "model_max_length": POSITIONS,
            "tokenizer_class": "PreTrainedTokenizerFast",
        }),
    )?;
    let generation = json!({ "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2 });
    write_json(&dir.join("generation_config.json"), &generation)?;
    write_json(&dir.join("config.json"), &config)
}

/// Trained context that the config claims, in tokens.
const POSITIONS: usize = 8192;

fn config(shape: &ModelShape) -> serde_json::Value {
    let (architecture, model_type) = match shape.family {
        Family::Llama => ("LlamaForCausalLM", "llama"),
        Family::Mistral => ("MistralForCausalLM", "mistral"),
        Family::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Family::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let dtype = match shape.dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
    };
    json!({
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "max_position_embeddings": POSITIONS,
        "sliding_window": null,
        "tie_word_embeddings": shape.tied,
        "torch_dtype": dtype,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    })
}

fn tensors(config: &ModelConfig) -> Vec<Tensor> {
    let mut tensors = Vec::new();
    for (_, site) in sites(config).iter() {
        if site.name == "lm_head" && config.tied {
            continue;
        }
        let (mean, std) = match site.kind {
            SiteKind::Linear => (0.0, 1.0 / (site.in_features as f32).sqrt()),
            SiteKind::Embedding => (0.0, 1.0 / (site.out_features as f32).sqrt()),
            SiteKind::Norm => (1.0, 0.05),
        };
        let name = format!("{}.weight", site.name);
        tensors.push(Tensor::random(name, site.weight_shape(), mean, std));
        if site.has_bias {
            let name = format!("{}.bias", site.name);
            tensors.push(Tensor::random(name, vec![site.out_features], 0.0, 0.02));
        }
    }
    tensors
}

/// One file, or several with an index.
fn weights(dir: &Path, shape: &ModelShape, tensors: &[Tensor]) -> Result<(), CliError> {
    let total: u64 = tensors.iter().map(|tensor| tensor.bytes(shape.dtype)).sum();
    let bar = match std::io::stderr().is_terminal() {
        true => ProgressBar::new(total),
        false => ProgressBar::hidden(),
    };
    let mut shards = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, tensor) in tensors.iter().enumerate() {
        let more = tensor.bytes(shape.dtype);
        if bytes + more > shape.shard_bytes_max && i > start {
            shards.push(&tensors[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += more;
    }
    shards.push(&tensors[start..]);
    if let [all] = shards[..] {
        let path = dir.join("model.safetensors");
        writer::write(&path, all, shape.dtype, shape.seed, &bar)?;
    } else {
        let mut map = Map::new();
        for (i, shard) in shards.iter().enumerate() {
            let file = format!("model-{:05}-of-{:05}.safetensors", i + 1, shards.len());
            writer::write(&dir.join(&file), shard, shape.dtype, shape.seed, &bar)?;
            map.extend(shard.iter().map(|tensor| (tensor.name.clone(), file.clone().into())));
        }
        let index = json!({ "metadata": { "total_size": total }, "weight_map": map });
        write_json(&dir.join("model.safetensors.index.json"), &index)?;
    }
    bar.finish_and_clear();
    Ok(())
}
