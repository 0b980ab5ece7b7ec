//! The files of a model directory that say how text becomes tokens.

use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use super::error::TextError;
use crate::files::{Folder, NotRead, steadily};

/// The largest tokenizers in use (vocabularies of 256k tokens) take 35 MB.
const TOKENIZER_BYTES_MAX: u64 = 128 << 20;
/// Configs and templates are a few KB; those that list every added token reach 1 MB.
const CONFIG_BYTES_MAX: u64 = 8 << 20;

pub(super) const TOKENIZER: &str = "tokenizer.json";
pub(super) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(super) const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
pub(super) const ADDED_TOKENS: &str = "added_tokens.json";
pub(super) const CHAT_TEMPLATE: &str = "chat_template.jinja";
/// Where transformers looks first.
const OTHER_DEFAULT: &str = "additional_chat_templates/default.jinja";
pub(super) const GENERATION_CONFIG: &str = "generation_config.json";
pub(super) const CONFIG: &str = "config.json";
/// All that a directory may hold of them beside `config.json`, which is the model's.
pub const TEXT_FILES: &[&str] = &[
    TOKENIZER,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    CHAT_TEMPLATE,
    GENERATION_CONFIG,
];
/// Forms of a tokenizer from which transformers makes a `tokenizer.json`.
const OTHER_TOKENIZERS: [&str; 6] =
    ["tokenizer.model", "tekken.json", "tiktoken.model", "spiece.model", "vocab.json", "vocab.txt"];

/// The content of those files, from a directory or from the executable itself.
#[derive(Clone, Debug, Default)]
pub struct TextFiles {
    /// `tokenizer.json`. A model must have one, an adapter need not.
    pub tokenizer: Option<Vec<u8>>,
    /// `tokenizer_config.json`: special tokens, and the chat template of older models.
    pub tokenizer_config: Option<Vec<u8>>,
    /// `special_tokens_map.json`: special tokens of older models.
    pub special_tokens_map: Option<Vec<u8>>,
    /// `added_tokens.json`: added tokens of older models.
    pub added_tokens: Option<Vec<u8>>,
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
    /// [`TextError::FileMissing`] or [`TextError::OtherTokenizer`] without a `tokenizer.json`;
    /// [`TextError::FileBroken`] for a file that is no regular file, is too large or cannot be
    /// read.
    pub fn read(dir: &Path) -> Result<Self, TextError> {
        steady(dir, TOKENIZER, Self::of_model)
    }

    fn of_model(dir: &Folder) -> Result<Self, TextError> {
        let config = read(dir, CONFIG, CONFIG_BYTES_MAX)?;
        let files = Self { config, ..Self::of_adapter(dir)? };
        if dir.holds(OTHER_DEFAULT) {
            let problem = "transformers uses it before chat_template.jinja and this server does \
                           not read it; move it to chat_template.jinja";
            return Err(TextError::broken(OTHER_DEFAULT, problem));
        }
        if files.tokenizer.is_some() {
            return Ok(files);
        }
        let other = OTHER_TOKENIZERS.into_iter().find(|file| dir.holds(file));
        Err(match other {
            Some(found) => TextError::OtherTokenizer { found },
            None => TextError::FileMissing { file: TOKENIZER },
        })
    }

    /// Reads those of the files that an adapter's directory holds; `config.json` is not its own.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] for a file that is no regular file, is too large or cannot be
    /// read.
    pub fn of_adapter(dir: &Folder) -> Result<Self, TextError> {
        let config = |name| read(dir, name, CONFIG_BYTES_MAX);
        Ok(Self {
            tokenizer: read(dir, TOKENIZER, TOKENIZER_BYTES_MAX)?,
            tokenizer_config: config(TOKENIZER_CONFIG)?,
            special_tokens_map: config(SPECIAL_TOKENS_MAP)?,
            added_tokens: config(ADDED_TOKENS)?,
            chat_template: config(CHAT_TEMPLATE)?,
            generation_config: config(GENERATION_CONFIG)?,
            config: None,
        })
    }
}

impl TextFiles {
    /// The `generation_config.json` of a directory that must have one.
    ///
    /// # Errors
    /// [`TextError::FileMissing`] and [`TextError::FileBroken`].
    pub fn read_generation_config(dir: &Path) -> Result<Vec<u8>, TextError> {
        let read = |dir: &Folder| read(dir, GENERATION_CONFIG, CONFIG_BYTES_MAX);
        let found = steady(dir, GENERATION_CONFIG, read)?;
        found.ok_or(TextError::FileMissing { file: GENERATION_CONFIG })
    }
}

/// The JSON of a file; null if the file is not there.
pub(super) fn json(file: &'static str, bytes: Option<&[u8]>) -> Result<Value, TextError> {
    let Some(bytes) = bytes else { return Ok(Value::Null) };
    serde_json::from_slice(bytes).map_err(|error| TextError::broken(file, error.to_string()))
}

/// The JSON object of a file; an empty one if the file is not there.
pub(super) fn object(
    file: &'static str,
    bytes: Option<&[u8]>,
) -> Result<Map<String, Value>, TextError> {
    match json(file, bytes)? {
        Value::Object(object) => Ok(object),
        Value::Null if bytes.is_none() => Ok(Map::new()),
        other => {
            let found = other.to_string().chars().take(80).collect::<String>();
            Err(TextError::broken(file, format!("it must be a JSON object, got {found}")))
        }
    }
}

/// What `read` makes of the operator's directory `dir`, of which `file` is what must be there.
fn steady<T>(
    dir: &Path,
    file: &'static str,
    read: impl Fn(&Folder) -> Result<T, TextError>,
) -> Result<T, TextError> {
    steadily(|| Folder::open(dir), read).map_err(|why| match why {
        NotRead::Absent => TextError::FileMissing { file },
        why => TextError::broken(file, format!("its directory {why}")),
    })?
}

/// A file of a directory, if it is there.
fn read(dir: &Folder, file: &'static str, bytes_max: u64) -> Result<Option<Vec<u8>>, TextError> {
    let (opened, bytes) = match dir.file(file) {
        Ok(opened) => opened,
        Err(NotRead::Absent) => return Ok(None),
        Err(why) => return Err(TextError::broken(file, format!("it {why}"))),
    };
    let too_large = || TextError::broken(file, format!("it must be at most {bytes_max} bytes"));
    if bytes > bytes_max {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    let read = (&*opened).take(bytes_max + 1).read_to_end(&mut bytes);
    read.map_err(|error| TextError::broken(file, error.kind().to_string()))?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large());
    }
    Ok(Some(bytes))
}
