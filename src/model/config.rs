//! `config.json` in the spellings of transformers 4 and 5.

use serde_json::{Map, Value};

use super::error::ModelError;
use super::family::{Defaults, Family};
use super::fields::Fields;
use super::rope::Rope;
use super::rotary::Rotary;
use super::{foreign, identity, llama, mistral, qwen2, qwen3};
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
    /// Its family, as [`FAMILIES`] names it.
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
    /// Whether the head is the embedding. A checkpoint corrects it to what its weights say.
    pub tied: bool,
    /// Longest context, in tokens: `max_position_embeddings`, times the factor of linear scaling.
    pub positions_max: usize,
    /// Width the checkpoint says it has.
    pub dtype: Option<Dtype>,
    /// The rest.
    pub family: Family,
    /// What of the file is not used, for people.
    pub notes: Vec<String>,
}

impl ModelConfig {
    /// Parses the bytes of a `config.json`.
    ///
    /// # Errors
    /// [`ModelError`] naming the field, or the architecture or feature that is not supported.
    pub fn parse(bytes: &[u8]) -> Result<Self, ModelError> {
        let object: Map<String, Value> = serde_json::from_slice(bytes)
            .map_err(|e| ModelError::Config(format!("not a JSON object: {e}")))?;
        let fields = Fields::new(&object);
        let mut notes = Vec::new();
        let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let architecture = identity::architecture(&fields, &known, &mut notes)?;
        let served = FAMILIES.iter().find(|(name, _)| *name == architecture);
        let (_, family) = served.expect("This is a bug: an architecture that is not in the table.");
        foreign::check(&fields)?;
        let family = family(&fields)?;
        let Defaults { vocabulary, inner, positions, .. } = family.defaults;
        let heads = Heads::read(&fields, &family.defaults)?;
        let layers = fields.layers()?;
        let positions = fields.count("max_position_embeddings", Some(positions))?;
        let Rotary { rope, positions_max } =
            Rotary::read(&fields, heads.dim, positions, &mut notes)?;
        let mut config = Self {
            architecture: architecture.to_owned(),
            vocabulary: fields.count("vocab_size", Some(vocabulary))?,
            hidden: heads.hidden,
            inner: fields.count("intermediate_size", Some(inner))?,
            layers,
            heads: heads.queries,
            kv_heads: heads.keys,
            head_dim: heads.dim,
            eps: fields.number("rms_norm_eps", Some(1e-6))? as f32,
            ropes: vec![rope],
            rope_of_layer: vec![Some(0); layers],
            tied: fields.flag("tie_word_embeddings", false)?,
            positions_max,
            dtype: fields.dtype(&mut notes)?,
            family,
            notes: Vec::new(),
        };
        foreign::unread(&fields, &mut notes);
        config.notes = notes.into_iter().map(|note| format!("config.json: {note}")).collect();
        Ok(config)
    }
}

/// The model's width and how heads share it.
struct Heads {
    hidden: usize,
    queries: usize,
    keys: usize,
    dim: usize,
}

impl Heads {
    fn read(fields: &Fields<'_>, defaults: &Defaults) -> Result<Self, ModelError> {
        let hidden = fields.count("hidden_size", Some(Defaults::HIDDEN))?;
        let queries = fields.count("num_attention_heads", Some(Defaults::LAYERS))?;
        // Both may be null, which is not the same as absent: then the other numbers decide.
        let keys = match fields.raw("num_key_value_heads") {
            Some(Value::Null) => queries,
            _ => fields.count("num_key_value_heads", defaults.kv_heads.or(Some(queries)))?,
        };
        let shared = hidden / queries;
        let dim = match fields.raw("head_dim") {
            Some(Value::Null) if defaults.head_dim.is_none() => shared,
            _ => fields.count("head_dim", defaults.head_dim.or(Some(shared)))?,
        };
        if !queries.is_multiple_of(keys) {
            return Err(ModelError::Config(format!(
                "'num_attention_heads' {queries} must be a multiple of 'num_key_value_heads' {keys}"
            )));
        }
        if dim == 0 || !dim.is_multiple_of(2) {
            return Err(ModelError::Config(format!("'head_dim' must be even, got {dim}")));
        }
        Ok(Self { hidden, queries, keys, dim })
    }
}
