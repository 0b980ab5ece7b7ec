//! The tokens that end a sequence.

use serde_json::Value;

use super::error::TextError;
use super::files::{CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, TextFiles, json, token_content};
use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

/// The tokens that end a sequence: `eos_token_id` of `generation_config.json`, else of
/// `config.json`; and beside them the `eos_token` of `tokenizer_config.json`. None if no file names
/// one.
///
/// # Errors
/// [`TextError::FileBroken`] for a file that is no JSON, an id that is no id, or an `eos_token`
/// outside the vocabulary.
pub fn stop_token_ids(files: &TextFiles, tokenizer: &Tokenizer) -> Result<Vec<TokenId>, TextError> {
    let configs = [(GENERATION_CONFIG, &files.generation_config), (CONFIG, &files.config)];
    let mut stop = Vec::new();
    for (file, bytes) in configs {
        let ids = match json(file, bytes.as_deref())?.get_mut("eos_token_id").map(Value::take) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids,
            Some(id) => vec![id],
        };
        let id = |value: &Value| {
            let id = value.as_u64().and_then(|id| TokenId::try_from(id).ok());
            id.ok_or_else(|| {
                TextError::broken(file, format!("eos_token_id must be token ids, got {value}"))
            })
        };
        if !ids.is_empty() {
            stop = ids.iter().map(id).collect::<Result<_, _>>()?;
            break;
        }
    }
    let config = json(TOKENIZER_CONFIG, files.tokenizer_config.as_deref())?;
    if let Some(token) = config.get("eos_token").and_then(token_content) {
        let id = tokenizer.token_id(token);
        let problem = || format!("eos_token {token:?} is not in the vocabulary");
        let id = id.ok_or_else(|| TextError::broken(TOKENIZER_CONFIG, problem()))?;
        if !stop.contains(&id) {
            stop.push(id);
        }
    }
    Ok(stop)
}
