//! The tokens that end a sequence.

use serde_json::Value;

use super::error::TextError;
use super::files::{CONFIG, GENERATION_CONFIG, TOKENIZER_CONFIG, TextFiles, json};
use super::special;
use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

/// The tokens that end a sequence: `eos_token_id` of `generation_config.json`, else of
/// `config.json`; and beside them the tokenizer's `eos_token`. None if no file names one.
///
/// # Errors
/// [`TextError::FileBroken`] for a file that is no JSON, an id that is no id or outside the
/// vocabulary, or an `eos_token` outside it.
pub fn stop_token_ids(files: &TextFiles, tokenizer: &Tokenizer) -> Result<Vec<TokenId>, TextError> {
    let model = json(CONFIG, files.config.as_deref())?;
    let embeddings = model.get("vocab_size").and_then(Value::as_u64);
    let mut stop = Vec::new();
    let configs = [(GENERATION_CONFIG, &files.generation_config), (CONFIG, &files.config)];
    for (file, bytes) in configs {
        let ids = match json(file, bytes.as_deref())?.get_mut("eos_token_id").map(Value::take) {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids,
            Some(id) => vec![id],
        };
        let tokens = embeddings.unwrap_or(0).max(u64::from(tokenizer.vocabulary_tokens()));
        for value in &ids {
            let id = value.as_u64().filter(|&id| id < tokens);
            let id = id.and_then(|id| TokenId::try_from(id).ok()).ok_or_else(|| {
                let expected = format!("eos_token_id must be token ids below {tokens}");
                TextError::broken(file, format!("{expected}, got {value}"))
            })?;
            if !stop.contains(&id) {
                stop.push(id);
            }
        }
        if !ids.is_empty() {
            break;
        }
    }
    let Some(token) = special::named(files)?.remove("eos_token") else { return Ok(stop) };
    let id = tokenizer.token_id(&token).ok_or_else(|| {
        let problem = format!("eos_token {token:?} is not in the vocabulary");
        TextError::broken(TOKENIZER_CONFIG, problem)
    })?;
    // A token that the model has no embedding for is none that it could write.
    let is_written = embeddings.is_none_or(|embeddings| u64::from(id) < embeddings);
    if is_written && !stop.contains(&id) {
        stop.push(id);
    }
    Ok(stop)
}
