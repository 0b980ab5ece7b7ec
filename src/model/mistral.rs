//! Mistral (transformers `models/mistral`): Llama without biases, with a sliding window.

use serde_json::Value;

use super::error::ModelError;
use super::family::{Defaults, Family, NormPlaces, QkNorm};
use super::fields::Fields;

/// transformers' value where a config has no such key; null switches it off.
const SLIDING_WINDOW_DEFAULT: usize = 4096;

/// `MistralForCausalLM`.
pub fn family(fields: &Fields<'_>) -> Result<Family, ModelError> {
    let window = match fields.raw("sliding_window") {
        Some(Value::Null) => None,
        _ => Some(fields.count("sliding_window", Some(SLIDING_WINDOW_DEFAULT))?),
    };
    Ok(Family {
        qkv_bias: false,
        o_bias: false,
        mlp_bias: false,
        qk_norm: QkNorm::Absent,
        norms: NormPlaces::BEFORE,
        windows: fields.windows(window, &|_| true)?,
        defaults: Defaults {
            vocabulary: 32000,
            inner: 14336,
            kv_heads: Some(8),
            head_dim: None,
            positions: 131_072,
        },
    })
}
