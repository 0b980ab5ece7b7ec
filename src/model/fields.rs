//! The fields of one `config.json`, with errors that name them.

use serde_json::{Map, Value};

use super::error::ModelError;
use super::rope::{Rope, RopeScaling};
use crate::dtype::Dtype;

/// A config, or an object in it.
pub struct Fields<'a>(pub &'a Map<String, Value>);

/// A field of the wrong form.
pub fn bad(key: &str, expected: &str, found: Option<&Value>) -> ModelError {
    let found = found.map_or("nothing".into(), Value::to_string);
    ModelError::Config(format!("'{key}' must be {expected}, got {found}"))
}

impl Fields<'_> {
    /// The value of `key`, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Value> {
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

    /// Rotary frequencies, from `rope_parameters` (transformers 5) or `rope_theta` and
    /// `rope_scaling` (transformers 4).
    ///
    /// # Errors
    /// When a field is of the wrong form, or the kind of scaling is not known here.
    pub fn rope(&self, head_dim: usize) -> Result<Rope, ModelError> {
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
        Ok(Rope { theta, scaling, dims: head_dim })
    }

    /// Width that the checkpoint says it has.
    ///
    /// # Errors
    /// When it is none of the three.
    pub fn dtype(&self) -> Result<Option<Dtype>, ModelError> {
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
