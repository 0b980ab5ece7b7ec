//! Qwen3, dense (transformers `models/qwen3`): Llama with a norm on each head of q and k.

use super::error::ModelError;
use super::family::{Defaults, Family, NormPlaces, QkNorm};
use super::fields::Fields;
use super::qwen2::windows;

/// `Qwen3ForCausalLM`.
pub fn family(fields: &Fields<'_>) -> Result<Family, ModelError> {
    let attention_bias = fields.flag("attention_bias", false)?;
    Ok(Family {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: false,
        qk_norm: QkNorm::Head,
        norms: NormPlaces::BEFORE,
        windows: windows(fields)?,
        defaults: Defaults {
            vocabulary: 151_936,
            inner: 22016,
            kv_heads: Some(32),
            head_dim: Some(128),
            positions: 32768,
        },
    })
}
