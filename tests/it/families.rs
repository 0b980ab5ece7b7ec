//! Every family against candle-transformers, an independent implementation, on bf16 weights.
//!
//! The golden models are rounded to bf16 on disk. candle widens those weights and computes in f32;
//! so do we, in f32 accumulators over bf16 weights. Computing candle in bf16 instead would round
//! every activation and drown any mistake below about 0.1; this way both sides see the same
//! numbers, and what is left is the order of the sums (with f32 KV) or one rounding of keys and
//! values (with the bf16 KV that a bf16 model is served with).

use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::{Activation, VarBuilder};
use candle_transformers::models::{llama, mistral, qwen2, qwen3};
use safetensors::Dtype as FileDtype;
use serde_json::Value;
use tessera::backend::{Device as _, cpu::Cpu};
use tessera::dtype::Dtype;
use tessera::ids::TokenId;
use tessera::model::Model;
use tessera::recipe::Recipe;

use crate::Rng;
use crate::files::{read_tensors, tensor_bytes};
use crate::harness::{BLOCK_TOKENS, Golden, distance, golden_dir, prompts_as_rows};

const F32_KV_TOLERANCE: f32 = 1e-3;
/// Keys and values with 8 bits: 2⁻⁹ of each, on logits of about 5.
const BF16_KV_TOLERANCE: f32 = 5e-2;

/// Long prompts reach the positions that llama3 scaling stretches (its original context is 64).
const PROMPT_TOKENS: &[usize] = &[1, 9, 33, 150, 300];

/// Copies a golden model into `dir` with all its tensors in bf16.
fn write_rounded(name: &str, dir: &Path) -> Value {
    let from = golden_dir().join(name);
    let mut tensors = read_tensors(&from.join("model.safetensors"));
    tensors.values_mut().for_each(|raw| raw.narrow(FileDtype::BF16));
    std::fs::write(dir.join("model.safetensors"), tensor_bytes(&tensors)).unwrap();
    let config = std::fs::read(from.join("config.json")).unwrap();
    std::fs::write(dir.join("config.json"), &config).unwrap();
    serde_json::from_slice(&config).unwrap()
}

fn count(config: &Value, key: &str) -> usize {
    config[key].as_u64().unwrap_or_else(|| panic!("{key}")) as usize
}

fn rope_theta(config: &Value) -> f64 {
    config["rope_parameters"]["rope_theta"].as_f64().unwrap()
}

fn rope_scaling(config: &Value) -> Option<llama::Llama3RopeConfig> {
    let rope = &config["rope_parameters"];
    let number = |key: &str| rope[key].as_f64().unwrap() as f32;
    (rope["rope_type"] == "llama3").then(|| llama::Llama3RopeConfig {
        factor: number("factor"),
        low_freq_factor: number("low_freq_factor"),
        high_freq_factor: number("high_freq_factor"),
        original_max_position_embeddings: count(rope, "original_max_position_embeddings"),
        rope_type: llama::Llama3RopeType::Llama3,
    })
}

fn llama_config(c: &Value) -> llama::Config {
    llama::Config {
        hidden_size: count(c, "hidden_size"),
        intermediate_size: count(c, "intermediate_size"),
        vocab_size: count(c, "vocab_size"),
        num_hidden_layers: count(c, "num_hidden_layers"),
        num_attention_heads: count(c, "num_attention_heads"),
        num_key_value_heads: count(c, "num_key_value_heads"),
        use_flash_attn: false,
        rms_norm_eps: c["rms_norm_eps"].as_f64().unwrap(),
        rope_theta: rope_theta(c) as f32,
        bos_token_id: None,
        eos_token_id: None,
        rope_scaling: rope_scaling(c),
        max_position_embeddings: count(c, "max_position_embeddings"),
        tie_word_embeddings: c["tie_word_embeddings"].as_bool().unwrap(),
    }
}

/// candle's logits at the last position of each prompt.
type Forward<'a> = Box<dyn FnMut(&Tensor) -> candle_core::Result<Tensor> + 'a>;

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn candle(c: &Value, weights: VarBuilder<'static>) -> candle_core::Result<Forward<'static>> {
    let eps = c["rms_norm_eps"].as_f64().unwrap();
    let tied = c["tie_word_embeddings"].as_bool().unwrap();
    Ok(match c["architectures"][0].as_str().unwrap() {
        "LlamaForCausalLM" => {
            let config = llama_config(c);
            let model = llama::Llama::load(weights, &config)?;
            Box::new(move |tokens| {
                let mut cache = llama::Cache::new(false, DType::F32, &config, &Device::Cpu)?;
                model.forward(tokens, 0, &mut cache)
            })
        }
        "MistralForCausalLM" => {
            let config = mistral::Config {
                vocab_size: count(c, "vocab_size"),
                hidden_size: count(c, "hidden_size"),
                intermediate_size: count(c, "intermediate_size"),
                num_hidden_layers: count(c, "num_hidden_layers"),
                num_attention_heads: count(c, "num_attention_heads"),
                head_dim: Some(count(c, "head_dim")),
                num_key_value_heads: count(c, "num_key_value_heads"),
                hidden_act: Activation::Silu,
                max_position_embeddings: count(c, "max_position_embeddings"),
                rms_norm_eps: eps,
                rope_theta: rope_theta(c),
                sliding_window: None,
                use_flash_attn: false,
            };
            let mut model = mistral::Model::new(&config, weights)?;
            Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            })
        }
        "Qwen2ForCausalLM" => {
            let config = qwen2::Config {
                vocab_size: count(c, "vocab_size"),
                hidden_size: count(c, "hidden_size"),
                intermediate_size: count(c, "intermediate_size"),
                num_hidden_layers: count(c, "num_hidden_layers"),
                num_attention_heads: count(c, "num_attention_heads"),
                num_key_value_heads: count(c, "num_key_value_heads"),
                max_position_embeddings: count(c, "max_position_embeddings"),
                // candle slides even with use_sliding_window off; this is past any prompt.
                sliding_window: 100_000,
                max_window_layers: count(c, "max_window_layers"),
                tie_word_embeddings: tied,
                rope_theta: rope_theta(c),
                rms_norm_eps: eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            let mut model = qwen2::ModelForCausalLM::new(&config, weights)?;
            Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            })
        }
        "Qwen3ForCausalLM" => {
            let config = qwen3::Config {
                vocab_size: count(c, "vocab_size"),
                hidden_size: count(c, "hidden_size"),
                intermediate_size: count(c, "intermediate_size"),
                num_hidden_layers: count(c, "num_hidden_layers"),
                num_attention_heads: count(c, "num_attention_heads"),
                head_dim: count(c, "head_dim"),
                attention_bias: c["attention_bias"].as_bool().unwrap(),
                num_key_value_heads: count(c, "num_key_value_heads"),
                max_position_embeddings: count(c, "max_position_embeddings"),
                sliding_window: None,
                max_window_layers: count(c, "max_window_layers"),
                tie_word_embeddings: tied,
                rope_theta: rope_theta(c),
                rms_norm_eps: eps,
                use_sliding_window: false,
                hidden_act: Activation::Silu,
            };
            let mut model = qwen3::ModelForCausalLM::new(&config, weights)?;
            Box::new(move |tokens| {
                model.clear_kv_cache();
                model.forward(tokens, 0)
            })
        }
        other => panic!("{other}"),
    })
}

fn expected(config: &Value, dir: &Path, prompts: &[Vec<TokenId>]) -> Vec<Vec<f32>> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let weights = VarBuilder::from_buffered_safetensors(bytes, DType::F32, &Device::Cpu).unwrap();
    let mut forward = candle(config, weights).unwrap();
    let mut last = |prompt: &Vec<TokenId>| {
        let tokens = Tensor::new(prompt.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
        forward(&tokens)?.flatten_all()?.to_vec1::<f32>()
    };
    prompts.iter().map(|prompt| last(prompt).unwrap()).collect()
}

/// Our logits at the last position of each prompt, all in one batch.
fn ours(dir: &Path, prompts: &[Vec<TokenId>], kv_dtype: Option<Dtype>) -> Vec<Vec<f32>> {
    let golden = Golden::open_dir(dir, None);
    assert_eq!(golden.checkpoint.dtype, Dtype::BF16, "weights stay in the width of the file");
    let backend = Cpu::new(2);
    let model = golden.model(&backend);
    let blocks = prompts.iter().map(|p| p.len().div_ceil(BLOCK_TOKENS)).sum();
    let mut shape = Model::<Cpu>::kv_shape(&golden.checkpoint, blocks, BLOCK_TOKENS);
    shape.dtype = kv_dtype.unwrap_or(shape.dtype);
    let mut kv = backend.kv(shape).unwrap();
    let prompts: Vec<_> = prompts.iter().map(|prompt| (Recipe::base(), prompt.clone())).collect();
    let mut rows = prompts_as_rows(&prompts);
    rows.logit_rows = rows.spans.iter().map(|s| (s.start + s.len - 1) as u32).collect();
    let outputs = model.forward(&backend, &rows, &backend.slots(0), &mut kv);
    let flat = backend.download(&outputs.logits.unwrap()).unwrap();
    flat.chunks_exact(golden.checkpoint.config.vocabulary).map(<[f32]>::to_vec).collect()
}

#[test]
fn every_family_agrees_with_candle_transformers_on_bf16_weights() {
    for name in ["llama", "llama3", "mistral", "qwen2", "qwen3"] {
        let folder = tempfile::tempdir().unwrap();
        let config = write_rounded(name, folder.path());
        let mut rng = Rng(5);
        let vocabulary = count(&config, "vocab_size");
        let mut prompt = |len: &usize| -> Vec<TokenId> {
            (0..*len).map(|_| rng.below(vocabulary) as TokenId).collect()
        };
        let prompts: Vec<_> = PROMPT_TOKENS.iter().map(&mut prompt).collect();
        let want = expected(&config, folder.path(), &prompts);
        for (kv_dtype, bound) in [(Some(Dtype::F32), F32_KV_TOLERANCE), (None, BF16_KV_TOLERANCE)] {
            let got = ours(folder.path(), &prompts, kv_dtype);
            for ((got, want), len) in got.iter().zip(&want).zip(PROMPT_TOKENS) {
                let distance = distance(got, want);
                println!("{name}, {len} tokens, KV {kv_dtype:?}: {distance:.1e}");
                assert!(distance < bound, "{name}, {len} tokens, KV {kv_dtype:?}: {distance}");
            }
        }
    }
}
