//! The fields of `tokenizer_config.json`: which are used, and which change nothing here.

use serde_json::{Map, Value};

use super::class;
use super::error::TextError;
use super::files::TOKENIZER_CONFIG;

/// Fields that say what a tokenizer does. So do all whose name ends in `_token`.
const USED: &[&str] = &[
    "add_prefix_space",
    "added_tokens_decoder",
    "additional_special_tokens",
    "auto_map",
    "chat_template",
    "extra_special_tokens",
    "legacy",
    "model_specific_special_tokens",
    "split_special_tokens",
    "tokenizer_class",
];

/// Fields that transformers 5 does not read where there is a tokenizer.json (`add_bos_token`:
/// the file's post-processor says it), or that are about batches, training and other libraries.
const HARMLESS: &[&str] = &[
    "add_bos_token",
    "add_eos_token",
    "backend",
    "chat_control_tokens",
    "clean_up_tokenization_spaces",
    "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output",
    "device_map",
    "errors",
    "from_slow",
    "is_local",
    "local_files_only",
    "max_len",
    "max_length",
    "merges_file",
    "model_input_names",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding",
    "padding_side",
    "processor_class",
    "response_schema",
    "response_template",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "special_tokens_map_file",
    "stride",
    "tokenizer_file",
    "transformers_version",
    "trim_offsets",
    "truncation",
    "truncation_side",
    "truncation_strategy",
    "use_default_system_prompt",
    "use_fast",
    "verbose",
    "vocab_file",
];

/// Fields that change ids or text and are not modelled: refused unless they ask for nothing.
const REFUSED: &[&str] = &[
    "fast_tokenizer_files",
    class::REPAIRED,
    "init_inputs",
    "merges",
    "post_processor",
    "tokenizer_object",
    "vocab",
];

/// Says what fields are not known.
///
/// # Errors
/// [`TextError::FileBroken`] for a field that changes ids or text and is not modelled.
pub(super) fn check(config: &Map<String, Value>) -> Result<Vec<String>, TextError> {
    let mut notes = Vec::new();
    for (name, value) in config {
        let known = |list: &[&str]| list.contains(&name.as_str());
        if known(REFUSED) && is_something(value) {
            return Err(TextError::broken(
                TOKENIZER_CONFIG,
                format!("{name} changes how text becomes tokens and is not supported; remove it"),
            ));
        }
        if !(name.ends_with("_token") || known(USED) || known(HARMLESS) || known(REFUSED)) {
            notes.push(format!("{TOKENIZER_CONFIG}: {name} is not known and not used"));
        }
    }
    Ok(notes)
}

/// Whether a text is cleaned up after decoding: spaces before punctuation go. transformers does
/// not do it for BPE unless the second field insists.
///
/// # Errors
/// [`TextError::FileBroken`] if it is, which is not supported.
pub(super) fn check_clean_up(config: &Value, is_bpe: bool) -> Result<(), TextError> {
    const FIELD: &str = "clean_up_tokenization_spaces";
    const INSISTS: &str = "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output";
    let is_on = |name: &str| config.get(name).is_some_and(is_something);
    if is_on(FIELD) && (!is_bpe || is_on(INSISTS)) {
        let problem = format!("{FIELD} takes spaces out of decoded text; set it to false");
        return Err(TextError::broken(TOKENIZER_CONFIG, problem));
    }
    Ok(())
}

/// Python's truth of a value.
pub(super) fn is_something(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(flag) => *flag,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(map) => !map.is_empty(),
    }
}
