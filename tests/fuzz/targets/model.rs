//! A model's config and the header of its weight file. Of what is taken, every weight can be read
//! and has the size that the config says.

use std::fs;
use std::path::PathBuf;

use tessera::model::{Checkpoint, ModelConfig};

use super::adapter::{halves, with_data};
use super::{Run, Target, same};
use crate::harness::golden_dir;
use crate::mutate::joined;

/// More than the golden model has.
const WEIGHTS_BYTES_MAX: usize = 2 << 20;

fn folder(model: &str) -> PathBuf {
    golden_dir().join(model)
}

fn read(model: &str, name: &str) -> Vec<u8> {
    fs::read(folder(model).join(name)).expect("a golden model")
}

/// All of a checkpoint.
fn weights(checkpoint: &Checkpoint) -> Result<usize, String> {
    let mut bytes = 0;
    for (id, site) in checkpoint.sites.iter() {
        let weight = checkpoint.weight(id).map_err(|e| e.to_string())?;
        let expected: usize = site.weight_shape().iter().product();
        if weight.values.len() != expected || weight.rows * weight.cols != expected {
            return Err(format!("{} numbers where {expected} are expected", weight.values.len()));
        }
        let bias = checkpoint.bias(id).map_err(|e| e.to_string())?;
        if bias.is_some_and(|bias| bias.len() != site.out_features) {
            return Err("a bias of another length".to_owned());
        }
        bytes += weight.values.bytes();
    }
    Ok(bytes)
}

fn check(config: &[u8], file: &[u8], dir: &tempfile::TempDir) -> Result<String, String> {
    let parsed = ModelConfig::parse(config);
    same(&ModelConfig::parse(config), &parsed, "a config")?;
    if let Ok(parsed) = &parsed {
        let dims = parsed.ropes.iter().map(|rope| rope.frequencies().len()).max();
        if dims.is_some_and(|dims| 2 * dims > parsed.head_dim) {
            return Err("more frequencies than a head has places".to_owned());
        }
    }
    for (name, bytes) in [("config.json", config), ("model.safetensors", file)] {
        fs::write(dir.path().join(name), bytes).expect("a file of a model");
    }
    match Checkpoint::open(dir.path(), None) {
        Ok(checkpoint) => {
            let bytes = weights(&checkpoint)?;
            let (name, notes) = (&checkpoint.config.architecture, checkpoint.notes.join("; "));
            Ok(format!("{name} with {bytes} bytes; {notes}"))
        }
        Err(error) => Ok(error.to_string()),
    }
}

/// A config and a header, with the golden weights' numbers. A third part is a whole file instead.
pub const MODEL: Target = Target {
    name: "model",
    seeds: || {
        let names = ["llama", "llama3", "llama-bias", "mistral", "qwen2", "qwen3"];
        let seed = |model: &str| {
            let weights = read(model, "model.safetensors");
            joined(&[&read(model, "config.json"), halves(&weights).0])
        };
        names.map(seed).into()
    },
    words: &[
        "architectures",
        "LlamaForCausalLM",
        "MistralForCausalLM",
        "Qwen2ForCausalLM",
        "Qwen3ForCausalLM",
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
        "rms_norm_eps",
        "max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_type",
        "type",
        "factor",
        "llama3",
        "linear",
        "dynamic",
        "yarn",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
        "partial_rotary_factor",
        "sliding_window",
        "layer_types",
        "full_attention",
        "sliding_attention",
        "use_sliding_window",
        "max_window_layers",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "hidden_act",
        "silu",
        "torch_dtype",
        "dtype",
        "bfloat16",
        "float16",
        "float32",
        "quantization_config",
        "auto",
        "eos_token_id",
        "model.",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "model.norm.weight",
        "model.layers.0.self_attn.q_proj.weight",
        ".bias",
        "rotary_emb.inv_freq",
        "v_head.",
        "shape",
        "data_offsets",
        "F32",
        "F16",
        "BF16",
        "F64",
        "I64",
        "U8",
        "__metadata__",
    ],
    start: || -> Run {
        let own = read("llama", "model.safetensors");
        let dir = tempfile::tempdir().expect("a folder");
        Box::new(move |parts| {
            let part = |at: usize| parts.get(at).copied().unwrap_or_default();
            let file = match parts.get(2) {
                Some(whole) => whole.to_vec(),
                None => with_data(part(1), halves(&own).1, WEIGHTS_BYTES_MAX),
            };
            check(part(0), &file, &dir)
        })
    },
    slice: 150,
    heap_bytes_max: 64 << 20,
};
