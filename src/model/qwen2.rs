//! Qwen2 and Qwen2.5 (transformers `models/qwen2`): Llama with a bias on q, k and v.

use serde_json::Value;

use super::error::ModelError;
use super::family::{Defaults, Family, NormPlaces, QkNorm};
use super::fields::{Fields, bad};

/// `Qwen2ForCausalLM`.
pub fn family(fields: &Fields<'_>) -> Result<Family, ModelError> {
    Ok(Family {
        qkv_bias: true,
        o_bias: false,
        mlp_bias: false,
        qk_norm: QkNorm::Absent,
        norms: NormPlaces::BEFORE,
        windows: windows(fields)?,
        defaults: Defaults {
            vocabulary: 151_936,
            inner: 22016,
            kv_heads: Some(32),
            head_dim: None,
            positions: 32768,
        },
    })
}

/// Layers from `max_window_layers` on slide, if `use_sliding_window` is set.
pub fn windows(fields: &Fields<'_>) -> Result<Vec<Option<u32>>, ModelError> {
    // Both are read whatever the switch says: without it they mean nothing.
    let (size, first) = (fields.raw("sliding_window"), fields.raw("max_window_layers"));
    let window = match size {
        _ if !fields.flag("use_sliding_window", false)? => None,
        Some(Value::Null) => None,
        _ => Some(fields.count("sliding_window", Some(4096))?),
    };
    // 0 is legal here: every layer slides.
    let first = match first {
        None => 28,
        Some(first) => {
            first.as_u64().ok_or_else(|| bad("max_window_layers", "a whole number", Some(first)))?
                as usize
        }
    };
    fields.windows(window, &|layer| layer >= first)
}
