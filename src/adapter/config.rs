//! `adapter_config.json`, read field by field so that no field that matters is passed over.
//!
//! A field a method reads is known. Any other is harmless only while its value is null, false,
//! zero or empty; else the adapter is refused by that field's name.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::error::AdapterError;

/// Fields that never change what an adapter computes, whatever their value: descriptions,
/// training settings, and parameters of features that have a switch of their own (which is read,
/// or must be off).
const INERT: &[&str] = &[
    "arrow_config_version",
    "auto_mapping",
    "base_model_class",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    // Says how the base's own weights are stored in GPT-2; peft itself turns it off for linears.
    "fan_in_fan_out",
    "inference_mode",
    "init_ia3_weights",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "parent_library",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
    "transformers_version",
    "unsloth_fixed",
    "velora_config",
];

/// Fields known to change what an adapter computes. Where a method does not read one, no flag can
/// make the adapter right.
const ESSENTIAL: &[&str] = &[
    "alpha_pattern",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "rank_pattern",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "use_rslora",
];

/// Entries of one list or object: more than a model has modules. Each is compared with each module.
const ENTRIES_MAX: usize = 16_384;
/// Patterns of one config that are more than plain names. Each is compiled, and takes up to half a
/// megabyte.
const PATTERNS_MAX: usize = 128;

/// A view of the config that remembers what was read.
pub struct Config<'a> {
    map: &'a Map<String, Value>,
    read: RefCell<BTreeSet<&'static str>>,
    patterns: Cell<usize>,
}

impl<'a> Config<'a> {
    /// A view with nothing read yet.
    pub fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, read: RefCell::default(), patterns: Cell::new(0) }
    }

    /// The value of `key`, unless it is absent or null.
    pub fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().insert(key);
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// Counts a pattern of the field `key` that is about to be compiled.
    ///
    /// # Errors
    /// When there are more than [`PATTERNS_MAX`].
    pub fn count_pattern(&self, key: &'static str) -> Result<(), AdapterError> {
        self.patterns.set(self.patterns.get() + 1);
        match self.patterns.get() <= PATTERNS_MAX {
            true => Ok(()),
            false => Err(AdapterError::Invalid(format!(
                "adapter_config.json: '{key}' goes beyond {PATTERNS_MAX} patterns in one config; \
                 write plain names of modules, of which there may be {ENTRIES_MAX}"
            ))),
        }
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// When it is anything else, null included where `default` is `None`.
    pub fn count(&self, key: &'static str, default: Option<usize>) -> Result<usize, AdapterError> {
        let expected = "a whole number of at least 1";
        match (self.get(key), default) {
            (Some(value), _) => {
                whole(value).filter(|&n| n >= 1).ok_or_else(|| bad(key, expected, value))
            }
            (None, Some(default)) if !self.map.contains_key(key) => Ok(default),
            (None, _) => Err(bad(key, expected, self.map.get(key).unwrap_or(&Value::Null))),
        }
    }

    /// A finite number; `default` where the key is absent.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn number(&self, key: &'static str, default: f64) -> Result<f64, AdapterError> {
        self.read.borrow_mut().insert(key);
        match self.map.get(key) {
            None => Ok(default),
            Some(value) => finite(value).ok_or_else(|| bad(key, "a finite number", value)),
        }
    }

    /// True or false; false where absent or null.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn flag(&self, key: &'static str) -> Result<bool, AdapterError> {
        match self.get(key) {
            None => Ok(false),
            Some(value) => value.as_bool().ok_or_else(|| bad(key, "true or false", value)),
        }
    }

    /// A string, if there is one.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn text(&self, key: &'static str) -> Result<Option<&'a str>, AdapterError> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| bad(key, "a string", value)),
        }
    }

    /// A list of strings, if there is one; one string counts as a list of one.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn texts(&self, key: &'static str) -> Result<Option<Vec<String>>, AdapterError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(one)) => Ok(Some(vec![one.clone()])),
            Some(value) => {
                check_entries(key, value)?;
                strings(value).map(Some).ok_or_else(|| bad(key, "a list of strings", value))
            }
        }
    }

    /// A list of whole numbers; one number counts as a list of one.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn indices(&self, key: &'static str) -> Result<Option<Vec<usize>>, AdapterError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        check_entries(key, value)?;
        let one = whole(value).map(|n| vec![n]);
        let many = || value.as_array()?.iter().map(whole).collect::<Option<Vec<_>>>();
        one.or_else(many).map(Some).ok_or_else(|| bad(key, "whole numbers", value))
    }

    /// An object of finite numbers in the order of the file, where order decides.
    ///
    /// # Errors
    /// When it is anything else.
    pub fn numbers(&self, key: &'static str) -> Result<Vec<(String, f64)>, AdapterError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        check_entries(key, value)?;
        let pairs = || {
            let object = value.as_object()?;
            object.iter().map(|(k, v)| Some((k.clone(), finite(v)?))).collect::<Option<Vec<_>>>()
        };
        pairs().ok_or_else(|| bad(key, "an object of numbers", value))
    }

    /// Refuses the first field that was not read and is not harmless; with `allow_unknown`, only
    /// those known to matter.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`] naming it.
    pub fn finish(&self, allow_unknown: bool) -> Result<(), AdapterError> {
        let read = self.read.borrow();
        let passed_over = |(key, value): &(&String, &Value)| {
            !read.contains(key.as_str()) && !INERT.contains(&key.as_str()) && !neutral(value)
        };
        let essential = |key: &str| ESSENTIAL.contains(&key);
        let mut passed_over = self.map.iter().filter(passed_over);
        let found = passed_over.find(|(key, _)| !allow_unknown || essential(key));
        match found {
            None => Ok(()),
            Some((key, value)) if essential(key) => Err(AdapterError::Invalid(format!(
                "adapter_config.json sets '{key}' to {}, which is not supported for this kind of \
                 adapter; expected it absent, null, false, 0 or empty",
                short(value)
            ))),
            Some((key, value)) => Err(AdapterError::Invalid(format!(
                "adapter_config.json sets '{key}' to {}, which is not known here and may change \
                 what the adapter computes; expected it absent, null, false, 0 or empty \
                 (--allow-unknown-config-keys serves the adapter all the same)",
                short(value)
            ))),
        }
    }
}

/// A list or object of so many entries is read.
fn check_entries(key: &str, found: &Value) -> Result<(), AdapterError> {
    let entries = match found {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    match entries <= ENTRIES_MAX {
        true => Ok(()),
        false => Err(AdapterError::Invalid(format!(
            "adapter_config.json: '{key}' has {entries} entries; at most {ENTRIES_MAX} are read"
        ))),
    }
}

fn neutral(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

fn finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

fn whole(value: &Value) -> Option<usize> {
    value.as_u64().and_then(|n| usize::try_from(n).ok())
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A field of the wrong form.
pub fn bad(key: &str, expected: &str, found: &Value) -> AdapterError {
    let found = short(found);
    AdapterError::Invalid(format!("adapter_config.json: '{key}' must be {expected}, got {found}"))
}

/// A value in an error text: the start of it is enough to find it.
pub fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
