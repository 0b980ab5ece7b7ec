//! `config.json` in the spellings of transformers 4 and 5.

use serde_json::{Map, Value};

use super::{FAMILIES, ModelError};
use crate::dtype::Dtype;

/// The fields of one `config.json`, with errors that name them.
pub struct Fields<'a>(pub &'a Map<String, Value>);

/// What sets one family apart from the others.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Bias on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub o_bias: bool,
    /// Bias on gate, up and down.
    pub mlp_bias: bool,
    /// RMS norm on each head of q and k.
    pub qk_norm: bool,
    /// A layer's sliding window, in layer order; `None` attends to everything.
    pub windows: Vec<Option<u32>>,
    /// Key/value heads where the config does not say.
    pub kv_heads_default: Option<usize>,
    /// Head width where the config does not say.
    pub head_dim_default: Option<usize>,
}

/// How rotary frequencies are stretched beyond the trained context.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided.
    Linear {
        /// By this.
        factor: f64,
    },
    /// Long wavelengths divided, short ones kept, the ones between blended (transformers
    /// `modeling_rope_utils.py`, `_compute_llama3_parameters`).
    Llama3 {
        /// Divisor of long wavelengths.
        factor: f64,
        /// Wavelengths above `original / low` are long.
        low: f64,
        /// Wavelengths below `original / high` are short.
        high: f64,
        /// Context of the original training, in tokens.
        original: f64,
    },
}

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
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Their stretching.
    pub rope_scaling: RopeScaling,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Longest trained context, in tokens.
    pub positions_max: usize,
    /// Width the checkpoint says it has.
    pub dtype: Option<Dtype>,
    /// The rest.
    pub family: Family,
}

fn bad(key: &str, expected: &str, found: Option<&Value>) -> ModelError {
    let found = found.map_or("nothing".into(), Value::to_string);
    ModelError::Config(format!("'{key}' must be {expected}, got {found}"))
}

impl Fields<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// When it is absent without a default, or anything else.
    pub fn count(&self, key: &str, default: Option<usize>) -> Result<usize, ModelError> {
        let found = self.get(key);
        if let (None, Some(default)) = (found, default) {
            return Ok(default);
        }
        let whole = found.and_then(Value::as_u64).filter(|&n| n >= 1 && n <= u64::from(u32::MAX));
        whole.map(|n| n as usize).ok_or_else(|| bad(key, "a whole number of at least 1", found))
    }

    /// A finite positive number.
    ///
    /// # Errors
    /// When it is absent without a default, or anything else.
    pub fn number(&self, key: &str, default: Option<f64>) -> Result<f64, ModelError> {
        let found = self.get(key);
        if let (None, Some(default)) = (found, default) {
            return Ok(default);
        }
        let number = found.and_then(Value::as_f64).filter(|n| n.is_finite() && *n > 0.0);
        number.ok_or_else(|| bad(key, "a positive number", found))
    }

    /// True or false.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| bad(key, "true or false", Some(value))),
        }
    }

    /// `sliding_window` of each layer. `layer_types` decides where it is there; else `all`.
    ///
    /// # Errors
    /// When the fields are of the wrong form, or a layer is of a type not known here.
    pub fn windows(
        &self,
        window: Option<usize>,
        all: &dyn Fn(usize) -> bool,
    ) -> Result<Vec<Option<u32>>, ModelError> {
        let layers = self.count("num_hidden_layers", None)?;
        let window = window.map(|w| w as u32);
        let Some(types) = self.get("layer_types") else {
            return Ok((0..layers).map(|i| window.filter(|_| all(i))).collect());
        };
        let list = types.as_array().filter(|list| list.len() == layers);
        let Some(list) = list else {
            return Err(bad("layer_types", &format!("a list of {layers} names"), Some(types)));
        };
        let one = |kind: &Value| match kind.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") if window.is_some() => Ok(window),
            _ => Err(bad("layer_types", "full_attention or sliding_attention", Some(kind))),
        };
        list.iter().map(one).collect()
    }

    /// `rope_theta` and the scaling, from `rope_parameters` (transformers 5) or `rope_theta` and
    /// `rope_scaling` (transformers 4).
    fn rope(&self) -> Result<(f64, RopeScaling), ModelError> {
        let new = self.get("rope_parameters");
        let block = new.or_else(|| self.get("rope_scaling"));
        let empty = Map::new();
        let block = match block {
            None => Fields(&empty),
            Some(Value::Object(block)) => Fields(block),
            Some(other) => return Err(bad("rope_parameters", "an object", Some(other))),
        };
        let default = self.number("rope_theta", Some(10000.0))?;
        let theta = block.number("rope_theta", Some(default))?;
        let kind = block.get("rope_type").or_else(|| block.get("type"));
        let partial = block.number("partial_rotary_factor", Some(1.0))?
            * self.number("partial_rotary_factor", Some(1.0))?;
        if partial != 1.0 {
            return Err(ModelError::Config(format!(
                "'partial_rotary_factor' {partial} is not supported; expected 1"
            )));
        }
        let scaling = match kind.map(|kind| kind.as_str().unwrap_or_default()) {
            None if block.get("factor").is_some() => {
                return Err(bad("rope_type", "given beside 'factor'", None));
            }
            None | Some("default") => RopeScaling::Default,
            Some("linear") => RopeScaling::Linear { factor: block.number("factor", None)? },
            Some("llama3") => RopeScaling::Llama3 {
                factor: block.number("factor", None)?,
                low: block.number("low_freq_factor", None)?,
                high: block.number("high_freq_factor", None)?,
                original: block.number("original_max_position_embeddings", None)?,
            },
            Some(other) => {
                return Err(ModelError::Unsupported(format!(
                    "rope type '{other}' (supported: default, linear, llama3)"
                )));
            }
        };
        Ok((theta, scaling))
    }

    fn dtype(&self) -> Result<Option<Dtype>, ModelError> {
        let key = if self.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        match self.get(key).map(|value| value.as_str().unwrap_or_default()) {
            None => Ok(None),
            Some("float32") => Ok(Some(Dtype::F32)),
            Some("float16") => Ok(Some(Dtype::F16)),
            Some("bfloat16") => Ok(Some(Dtype::BF16)),
            Some(_) => Err(bad(key, "float32, float16 or bfloat16", self.get(key))),
        }
    }
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
        let (rope_theta, rope_scaling) = fields.rope()?;
        Ok(Self {
            architecture: architecture.to_owned(),
            vocabulary: fields.count("vocab_size", None)?,
            hidden,
            inner: fields.count("intermediate_size", None)?,
            layers: fields.count("num_hidden_layers", None)?,
            heads,
            kv_heads,
            head_dim,
            eps: fields.number("rms_norm_eps", Some(1e-6))? as f32,
            rope_theta,
            rope_scaling,
            tied: fields.flag("tie_word_embeddings", false)?,
            positions_max: fields.count("max_position_embeddings", Some(2048))?,
            dtype: fields.dtype()?,
            family,
        })
    }

    /// Rotary frequencies, one a pair of dimensions: `theta^(-2i / head_dim)`, stretched.
    pub fn rope_frequencies(&self) -> Vec<f64> {
        let half = self.head_dim / 2;
        let plain =
            (0..half).map(|i| self.rope_theta.powf(-((2 * i) as f64) / self.head_dim as f64));
        let stretch = |f: f64| match self.rope_scaling {
            RopeScaling::Default => f,
            RopeScaling::Linear { factor } => f / factor,
            RopeScaling::Llama3 { factor, low, high, original } => {
                let wavelength = 2.0 * std::f64::consts::PI / f;
                if wavelength > original / low {
                    f / factor
                } else if wavelength < original / high {
                    f
                } else {
                    let smooth = (original / wavelength - low) / (high - low);
                    (1.0 - smooth) * f / factor + smooth * f
                }
            }
        };
        plain.map(stretch).collect()
    }
}
