//! What `generation_config.json` says of how to draw tokens, with vLLM's meaning: the values that
//! are there stand in for those that a request leaves out, and `max_new_tokens` is a cap.

use serde_json::{Map, Value};

use super::error::TextError;
use super::files::{CONFIG, GENERATION_CONFIG, TextFiles, json};
use crate::request::SamplingParams;

/// Values of a request that leaves them out, and a cap.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SamplingDefaults {
    /// See [`SamplingParams`], as all but the last.
    pub temperature: Option<f32>,
    /// Share of the likeliest tokens.
    pub top_p: Option<f32>,
    /// Number of the likeliest tokens; 0: all.
    pub top_k: Option<u32>,
    /// Least share of the likeliest token's probability.
    pub min_p: Option<f32>,
    /// Of tokens that the text holds already.
    pub repetition_penalty: Option<f32>,
    /// Tokens that any request generates at most (`max_new_tokens`).
    pub tokens_max: Option<u32>,
}

/// Fields that change what transformers generates and that are not applied here, with the value at
/// which they change nothing; null and empty never do.
const NOT_APPLIED: &[(&str, f64)] = &[
    ("begin_suppress_tokens", 0.0),
    ("bad_words_ids", 0.0),
    ("constraints", 0.0),
    ("diversity_penalty", 0.0),
    ("dola_layers", 0.0),
    ("encoder_no_repeat_ngram_size", 0.0),
    ("encoder_repetition_penalty", 1.0),
    ("epsilon_cutoff", 0.0),
    ("eta_cutoff", 0.0),
    ("exponential_decay_length_penalty", 0.0),
    ("force_words_ids", 0.0),
    ("forced_bos_token_id", f64::NAN),
    ("forced_eos_token_id", f64::NAN),
    ("guidance_scale", 1.0),
    ("max_length", 20.0),
    ("max_time", f64::NAN),
    ("min_length", 0.0),
    ("min_new_tokens", 0.0),
    ("no_repeat_ngram_size", 0.0),
    ("num_beam_groups", 1.0),
    ("num_beams", 1.0),
    ("num_return_sequences", 1.0),
    ("penalty_alpha", 0.0),
    ("sequence_bias", 0.0),
    ("stop_strings", 0.0),
    ("suppress_tokens", 0.0),
    ("token_healing", 0.0),
    ("top_h", f64::NAN),
    ("typical_p", 1.0),
    ("watermarking_config", 0.0),
];

/// Fields that are read here.
const READ: [&str; 6] =
    ["temperature", "top_p", "top_k", "min_p", "repetition_penalty", "max_new_tokens"];

/// Fields that are read elsewhere, or that change nothing in what is generated.
const OTHERS: &[&str] = &[
    "_from_model_config",
    "_commit_hash",
    "bos_token_id",
    "cache_config",
    "cache_implementation",
    "compile_config",
    "disable_compile",
    "do_sample",
    "early_stopping",
    "eos_token_id",
    "is_assistant",
    "length_penalty",
    "low_memory",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "pad_token_id",
    "prefill_chunk_size",
    "remove_invalid_values",
    "renormalize_logits",
    "return_dict_in_generate",
    "return_legacy_cache",
    "transformers_version",
    "use_cache",
];

impl SamplingDefaults {
    /// Reads `generation_config.json`, or `config.json` where there is none.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] for a value out of range or of the wrong form.
    pub fn of(files: &TextFiles) -> Result<Self, TextError> {
        let (file, config) = said(files)?;
        let config = &config;
        let broken = |problem: String| TextError::broken(file, problem);
        let number = |key: &str| match given(config, key) {
            None => Ok(None),
            Some(value) => {
                let number = value.as_f64().map(|number| number as f32);
                number
                    .map(Some)
                    .ok_or_else(|| broken(format!("'{key}' must be a number, got {value}")))
            }
        };
        let count = |key: &str, least: i64| match given(config, key) {
            None => Ok(None),
            Some(value) => {
                // Some trainers write 50.0.
                let whole = value.as_f64().filter(|n| n.fract() == 0.0 && *n >= least as f64);
                whole.map(Some).ok_or_else(|| {
                    broken(format!("'{key}' must be a whole number from {least}, got {value}"))
                })
            }
        };
        let defaults = Self {
            temperature: number("temperature")?,
            top_p: number("top_p")?,
            // -1 is off as well.
            top_k: count("top_k", -1)?.map(|k| k as u32),
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            tokens_max: count("max_new_tokens", 1)?.map(|n| n as u32),
        };
        let filled = defaults.fill(None, None, None, None, None);
        filled.check().map(|()| defaults).map_err(|invalid| broken(invalid.message))
    }

    /// What a request asks for, filled up with the defaults, then with values that do nothing.
    pub fn fill(
        &self,
        temperature: Option<f32>,
        top_p: Option<f32>,
        top_k: Option<u32>,
        min_p: Option<f32>,
        repetition_penalty: Option<f32>,
    ) -> SamplingParams {
        let penalty = repetition_penalty.or(self.repetition_penalty);
        SamplingParams {
            temperature: temperature.or(self.temperature).unwrap_or(1.0),
            top_p: top_p.or(self.top_p).unwrap_or(1.0),
            top_k: top_k.or(self.top_k).unwrap_or(0),
            min_p: min_p.or(self.min_p).unwrap_or(0.0),
            repetition_penalty: penalty.unwrap_or(1.0),
            // The file has no names for the rest.
            ..SamplingParams::greedy()
        }
    }

    /// Every value that is there, as the file spells it; empty if there is none.
    pub fn describe(&self) -> String {
        let Self { temperature, top_p, top_k, min_p, repetition_penalty, tokens_max } = self;
        let show = |name: &str, value: Option<String>| value.map(|value| format!("{name} {value}"));
        let number = |value: &Option<f32>| value.map(|value| value.to_string());
        let count = |value: &Option<u32>| value.map(|value| value.to_string());
        let all = [
            show("temperature", number(temperature)),
            show("top_p", number(top_p)),
            show("top_k", count(top_k)),
            show("min_p", number(min_p)),
            show("repetition_penalty", number(repetition_penalty)),
            show("max_new_tokens", count(tokens_max)),
        ];
        all.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }
}

/// Fields of `generation_config.json` that transformers' `generate` would follow and that are not
/// applied here, and those that nobody knows, with their values.
///
/// # Errors
/// [`TextError::FileBroken`] for a file that is no JSON.
pub fn not_applied(files: &TextFiles) -> Result<Vec<String>, TextError> {
    let (_, config) = &said(files)?;
    let found = NOT_APPLIED.iter().filter_map(|(key, neutral)| {
        let value = given(config, key).filter(|value| !does_nothing(value, *neutral))?;
        Some(format!("{key} {value}"))
    });
    let is_known = |key: &str| {
        let others = READ.iter().chain(OTHERS);
        others.copied().chain(NOT_APPLIED.iter().map(|(key, _)| *key)).any(|known| known == key)
    };
    let unknown = config.iter().filter(|(key, value)| !is_known(key) && !value.is_null());
    Ok(found.chain(unknown.map(|(key, value)| format!("{key} {value}"))).collect())
}

/// The fields of `generation_config.json`; without one, those of `config.json` that belong there,
/// as older models have them and transformers reads them.
fn said(files: &TextFiles) -> Result<(&'static str, Map<String, Value>), TextError> {
    let read = |file, bytes: &Option<Vec<u8>>| match json(file, bytes.as_deref())? {
        Value::Object(fields) => Ok(fields),
        _ => Ok(Map::new()),
    };
    if files.generation_config.is_some() {
        return Ok((GENERATION_CONFIG, read(GENERATION_CONFIG, &files.generation_config)?));
    }
    let mut fields = read(CONFIG, &files.config)?;
    let belongs = |key: &str| READ.contains(&key) || NOT_APPLIED.iter().any(|(k, _)| *k == key);
    fields.retain(|key, _| belongs(key));
    Ok((CONFIG, fields))
}

fn given<'a>(config: &'a Map<String, Value>, key: &str) -> Option<&'a Value> {
    config.get(key).filter(|value| !value.is_null())
}

fn does_nothing(value: &Value, neutral: f64) -> bool {
    match value {
        Value::Number(number) => number.as_f64() == Some(neutral),
        Value::Bool(flag) => !flag,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(_) | Value::Null => false,
    }
}
