//! Llama 2 and 3.x (transformers `models/llama`).

use super::ModelError;
use super::config::{Family, Fields};

/// `LlamaForCausalLM`.
pub fn family(fields: &Fields<'_>) -> Result<Family, ModelError> {
    let attention_bias = fields.flag("attention_bias", false)?;
    Ok(Family {
        qkv_bias: attention_bias,
        o_bias: attention_bias,
        mlp_bias: fields.flag("mlp_bias", false)?,
        qk_norm: false,
        windows: fields.windows(None, &|_| false)?,
        kv_heads_default: None,
        head_dim_default: None,
    })
}
