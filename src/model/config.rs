//! `config.json` in the spellings of transformers 4 and 5.

use serde_json::{Map, Value};

use super::error::ModelError;
use super::family::Family;
use super::fields::{Fields, bad};
use super::rope::Rope;
use super::{llama, mistral, qwen2, qwen3};
use crate::dtype::Dtype;

/// Reads what a family's `config.json` says.
type ReadFamily = fn(&Fields<'_>) -> Result<Family, ModelError>;

/// Every family, by the name its `config.json` carries.
pub static FAMILIES: &[(&str, ReadFamily)] = &[
    ("LlamaForCausalLM", llama::family),
    ("MistralForCausalLM", mistral::family),
    ("Qwen2ForCausalLM", qwen2::family),
    ("Qwen3ForCausalLM", qwen3::family),
];

/// A model's numbers.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// First entry of `architectures`.
    pub architecture: String,
    /// Rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub inner: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Added to the mean square in norms.
    pub eps: f32,
    /// Ways of rotating heads.
    pub ropes: Vec<Rope>,
    /// Which of them each layer uses; `None`: its heads are not rotated.
    pub rope_of_layer: Vec<Option<usize>>,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Longest trained context, in tokens.
    pub positions_max: usize,
    /// Width the checkpoint says it has.
    pub dtype: Option<Dtype>,
    /// The rest.
    pub family: Family,
}

impl ModelConfig {
    /// Parses the bytes of a `config.json`.
    ///
    /// # Errors
    /// [`ModelError`] naming the field, or the architecture or feature that is not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let object: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|e| ModelError::Config(format!("not a JSON object: {e}")))?;
        let fields = Fields(&object);
        let first = fields.get("architectures").and_then(|list| list.get(0)?.as_str());
        let Some(architecture) = first else {
            let found = fields.get("architectures");
            return Err(bad("architectures", "a list with one name", found));
        };
        let Some((_, family)) = FAMILIES.iter().find(|(name, _)| *name == architecture) else {
            let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
            let known = known.join(", ");
            return Err(ModelError::Unsupported(format!(
                "architecture '{architecture}' (supported: {known})"
            )));
        };
        if let Some(quantised) = fields.get("quantization_config") {
            let method = quantised.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            return Err(ModelError::Unsupported(format!(
                "quantised weights ('quantization_config' with method '{method}'); use the f32, \
                 f16 or bf16 checkpoint"
            )));
        }
        let act = fields.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if act != "silu" && act != "swish" {
            return Err(ModelError::Unsupported(format!("hidden_act '{act}' (supported: silu)")));
        }
        let family = family(&fields)?;
        let hidden = fields.count("hidden_size", None)?;
        let heads = fields.count("num_attention_heads", None)?;
        let kv_default = family.kv_heads_default.unwrap_or(heads);
        let kv_heads = fields.count("num_key_value_heads", Some(kv_default))?;
        let dim_default = family.head_dim_default.unwrap_or(hidden / heads);
        let head_dim = fields.count("head_dim", Some(dim_default))?;
        if !heads.is_multiple_of(kv_heads) {
            return Err(ModelError::Config(format!(
                "'num_attention_heads' {heads} must be a multiple of 'num_key_value_heads' \
                 {kv_heads}"
            )));
        }
        if !head_dim.is_multiple_of(2) {
            return Err(ModelError::Config(format!("'head_dim' must be even, got {head_dim}")));
        }
        let layers = fields.count("num_hidden_layers", None)?;
        Ok(Self {
            architecture: architecture.to_owned(),
            vocabulary: fields.count("vocab_size", None)?,
            hidden,
            inner: fields.count("intermediate_size", None)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            eps: fields.number("rms_norm_eps", Some(1e-6))? as f32,
            ropes: vec![fields.rope(head_dim)?],
            rope_of_layer: vec![Some(0); layers],
            tied: fields.flag("tie_word_embeddings", false)?,
            positions_max: fields.count("max_position_embeddings", Some(2048))?,
            dtype: fields.dtype()?,
            family,
        })
    }
}
