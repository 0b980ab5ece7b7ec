//! The files of a model directory that say how text becomes tokens.

use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;

use serde_json::Value;

use super::error::TextError;

/// The largest tokenizers in use (vocabularies of 256k tokens) take 35 MB.
pub(super) const TOKENIZER_BYTES_MAX: u64 = 128 << 20;
/// Configs and templates are a few KB; those that list every added token reach 1 MB.
pub(super) const CONFIG_BYTES_MAX: u64 = 8 << 20;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const CONFIG: &str = "config.json";

/// The content of those files, from a directory or from the executable itself.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    /// `tokenizer.json`, the only one that must be there.
    pub tokenizer: Vec<u8>,
    /// `tokenizer_config.json`: special tokens, and the chat template of older models.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `chat_template.jinja`.
    pub chat_template: Option<Vec<u8>>,
    /// `generation_config.json`: end-of-sequence ids.
    pub generation_config: Option<Vec<u8>>,
    /// `config.json`: end-of-sequence ids of older models.
    pub config: Option<Vec<u8>>,
}

impl TextFiles {
    /// Reads a Hugging Face model directory.
    ///
    /// # Errors
    /// [`TextError::FileMissing`] without a `tokenizer.json`; [`TextError::FileBroken`] for one
    /// that is no regular file, is too large or cannot be read.
    pub fn read(dir: &Path) -> Result<Self, TextError> {
        let config = |name| read(dir, name, CONFIG_BYTES_MAX);
        Ok(Self {
            tokenizer: read(dir, TOKENIZER, TOKENIZER_BYTES_MAX)?
                .ok_or(TextError::FileMissing { file: TOKENIZER })?,
            tokenizer_config: config(TOKENIZER_CONFIG)?,
            chat_template: config(CHAT_TEMPLATE)?,
            generation_config: config(GENERATION_CONFIG)?,
            config: config(CONFIG)?,
        })
    }
}

impl TextFiles {
    /// The `generation_config.json` of a directory that must have one.
    ///
    /// # Errors
    /// [`TextError::FileMissing`] and [`TextError::FileBroken`].
    pub fn read_generation_config(dir: &Path) -> Result<Vec<u8>, TextError> {
        let found = read(dir, GENERATION_CONFIG, CONFIG_BYTES_MAX)?;
        found.ok_or(TextError::FileMissing { file: GENERATION_CONFIG })
    }
}

/// A special token as configs write it: a string, or an object with its `content`.
pub(super) fn token_content(token: &Value) -> Option<&str> {
    token.as_str().or_else(|| token.get("content")?.as_str())
}

/// The JSON of a file; null if the file is not there.
pub(super) fn json(file: &'static str, bytes: Option<&[u8]>) -> Result<Value, TextError> {
    let Some(bytes) = bytes else { return Ok(Value::Null) };
    serde_json::from_slice(bytes).map_err(|error| TextError::broken(file, error.to_string()))
}

/// A file of a directory, if it is there.
pub(super) fn read(
    dir: &Path,
    file: &'static str,
    bytes_max: u64,
) -> Result<Option<Vec<u8>>, TextError> {
    let failed = |error: std::io::Error| TextError::broken(file, error.kind().to_string());
    let path = dir.join(file);
    let found = match fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        found => found.map_err(failed)?,
    };
    // A pipe would block for ever.
    if !found.is_file() {
        return Err(TextError::broken(file, "it is not a regular file"));
    }
    let mut bytes = Vec::new();
    let opened = fs::File::open(&path).map_err(failed)?;
    opened.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(TextError::broken(file, format!("it must be at most {bytes_max} bytes")));
    }
    Ok(Some(bytes))
}
