//! Llama 2 and 3.x (transformers `models/llama`).

use super::error::ModelError;
use super::family::{Family, NormPlaces, QkNorm};
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
        windows: fields.windows(None, &|_| false)?,
        kv_heads_default: None,
        head_dim_default: None,
    })
}
