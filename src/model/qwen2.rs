//! Qwen2 and Qwen2.5 (transformers `models/qwen2`): Llama with a bias on q, k and v.

use serde_json::Value;

use super::error::ModelError;
use super::family::{Family, NormPlaces, QkNorm};
use super::fields::Fields;

/// `Qwen2ForCausalLM`.
pub fn family(fields: &Fields<'_>) -> Result<Family, ModelError> {
    Ok(Family {
        qkv_bias: true,
        o_bias: false,
        mlp_bias: false,
        qk_norm: QkNorm::Absent,
        norms: NormPlaces::BEFORE,
        windows: windows(fields)?,
        kv_heads_default: Some(32),
        head_dim_default: None,
    })
}

/// Layers from `max_window_layers` on slide, if `use_sliding_window` is set.
pub fn windows(fields: &Fields<'_>) -> Result<Vec<Option<u32>>, ModelError> {
    let window = match fields.0.get("sliding_window") {
        _ if !fields.flag("use_sliding_window", false)? => None,
        Some(Value::Null) => None,
        _ => Some(fields.count("sliding_window", Some(4096))?),
    };
    // 0 is legal here: every layer slides.
    let first = fields.0.get("max_window_layers").and_then(Value::as_u64).unwrap_or(28) as usize;
    fields.windows(window, &|layer| layer >= first)
}
