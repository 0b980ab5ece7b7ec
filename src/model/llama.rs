//! Llama 2 and 3.x (transformers `models/llama`).

use super::error::ModelError;
use super::family::{Defaults, Family, NormPlaces, QkNorm};
use super::fields::Fields;

/// `LlamaForCausalLM`.
pub fn family(fields: &Fields<'_>) -> Result<Family, ModelError> {
    let attention_bias = fields.flag("attention_bias", false)?;
    Ok(Family {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias", false)?,
        qk_norm: QkNorm::Absent,
        norms: NormPlaces::BEFORE,
        // `sliding_window` and `layer_types` say nothing to this family.
        windows: vec![None; fields.layers()?],
        defaults: Defaults {
            vocabulary: 32000,
            inner: 11008,
            kv_heads: None,
            head_dim: None,
            positions: 2048,
        },
    })
}
