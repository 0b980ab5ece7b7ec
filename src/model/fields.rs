//! The fields of one `config.json`, with errors that name them.

use std::cell::RefCell;
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::ModelError;
use super::family::Defaults;
use crate::dtype::Dtype;

/// More layers than any model has; what is kept for each would take all memory.
const LAYERS_MAX: u64 = 1024;
/// Every other width and count: products of two of them are numbers.
const COUNT_MAX: u64 = 1 << 27;
/// Characters of a value in an error: enough to find it.
const SHOWN_CHARS_MAX: usize = 80;

/// A config, or an object in it, that remembers what was read.
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<&'static str>>,
}

/// A field of the wrong form.
pub fn bad(key: &str, expected: &str, found: Option<&Value>) -> ModelError {
    let mut found = found.map_or("nothing".into(), Value::to_string);
    if let Some((end, _)) = found.char_indices().nth(SHOWN_CHARS_MAX) {
        found.truncate(end);
        found.push('…');
    }
    ModelError::Config(format!("'{key}' must be {expected}, got {found}"))
}

/// Names as a list for people.
pub fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("'{name}'")).collect::<Vec<_>>().join(", ")
}

impl<'a> Fields<'a> {
    /// A view with nothing read yet.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, read: RefCell::default() }
    }

    /// The value of `key`, null included.
    pub fn raw(&self, key: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key);
        self.map.get(key)
    }

    /// The value of `key`, unless it is absent or null.
    pub fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.raw(key).filter(|value| !value.is_null())
    }

    /// Keys that nobody asked for and whose values say something: neither null, false nor empty.
    /// `inert` are left out, and what begins with an underscore: a library's own notes.
    pub fn unread(&self, inert: &[&str]) -> Vec<&'a str> {
        let read = self.read.borrow();
        let said = self.map.iter().filter(|(_, value)| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Object(object) => !object.is_empty(),
            Value::Array(list) => !list.is_empty(),
            Value::Bool(true) | Value::Number(_) | Value::String(_) => true,
        });
        let keys = said.map(|(key, _)| key.as_str());
        let known = |key: &str| read.contains(key) || inert.contains(&key) || key.starts_with('_');
        keys.filter(|key| !known(key)).collect()
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// When it is absent without a default, or anything else; null is no number.
    pub fn count(&self, key: &'static str, default: Option<usize>) -> Result<usize, ModelError> {
        let found = self.raw(key);
        if let (None, Some(default)) = (found, default) {
            return Ok(default);
        }
        self.within(key, found, COUNT_MAX)
    }

    fn within(
        &self,
        key: &'static str,
        found: Option<&Value>,
        max: u64,
    ) -> Result<usize, ModelError> {
        let whole = found.and_then(Value::as_u64).filter(|&n| n >= 1 && n <= max);
        let expected = || format!("a whole number from 1 to {max}");
        whole.map(|n| n as usize).ok_or_else(|| bad(key, &expected(), found))
    }

    /// `num_hidden_layers`.
    ///
    /// # Errors
    /// When it is no whole number, or more than any model has.
    pub fn layers(&self) -> Result<usize, ModelError> {
        const KEY: &str = "num_hidden_layers";
        match self.raw(KEY) {
            None => Ok(Defaults::LAYERS),
            found => self.within(KEY, found, LAYERS_MAX),
        }
    }

    /// A finite positive number.
    ///
    /// # Errors
    /// When it is absent without a default, or anything else; null is no number.
    pub fn number(&self, key: &'static str, default: Option<f64>) -> Result<f64, ModelError> {
        let found = self.raw(key);
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
    pub fn flag(&self, key: &'static str, default: bool) -> Result<bool, ModelError> {
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
        let layers = self.layers()?;
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

    /// Width that the checkpoint says it has. `dtype` wins over `torch_dtype`, its older name.
    ///
    /// # Errors
    /// When it is no float of at least 16 bits.
    pub fn dtype(&self, notes: &mut Vec<String>) -> Result<Option<Dtype>, ModelError> {
        let key = if self.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        let (found, older) = (self.get(key), self.get("torch_dtype"));
        if let (Some(found), Some(older)) = (found, older.filter(|older| found != Some(*older))) {
            let text = format!("'torch_dtype' {older} is not used: 'dtype' says {found}");
            notes.push(text);
        }
        match found.map(|value| value.as_str().unwrap_or_default().trim_start_matches("torch.")) {
            // The width of the weights themselves.
            None | Some("auto") => Ok(None),
            // Nothing is computed in more than 32 bits here.
            Some("float32" | "float64") => Ok(Some(Dtype::F32)),
            Some("float16") => Ok(Some(Dtype::F16)),
            Some("bfloat16") => Ok(Some(Dtype::BF16)),
            Some(_) => Err(bad(key, "float32, float16 or bfloat16", found)),
        }
    }
}
