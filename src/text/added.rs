//! A token as files of tokenizers write it: a string, or an object with its flags.

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::error::TextError;

/// One token of a file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Token {
    pub content: String,
    lstrip: bool,
    rstrip: bool,
    single_word: bool,
    /// If it is not said, what is not special is normalized.
    normalized: Option<bool>,
    special: bool,
}

impl Token {
    /// A special token without flags.
    pub fn special(content: &str) -> Self {
        Self::new(content, true, None)
    }

    pub fn new(content: &str, special: bool, normalized: Option<bool>) -> Self {
        let content = content.to_owned();
        Self { content, lstrip: false, rstrip: false, single_word: false, normalized, special }
    }

    /// `place` names the file and the field, for the error.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] for what is neither a string nor an object of a token.
    pub fn of(place: Place<'_>, value: &Value) -> Result<Self, TextError> {
        match value {
            Value::String(content) => Ok(Self::special(content)),
            Value::Object(fields) => Self::of_object(place, fields),
            other => Err(place.wrong(format!("must be a token, got {other}"))),
        }
    }

    fn of_object(place: Place<'_>, fields: &Map<String, Value>) -> Result<Self, TextError> {
        let mut token = Self::new("", false, None);
        for (name, value) in fields {
            let flag = || {
                let wrong = || place.wrong(format!("{name} must be true or false, got {value}"));
                value.as_bool().ok_or_else(wrong)
            };
            match name.as_str() {
                "content" => {
                    let wrong = || place.wrong(format!("content must be a string, got {value}"));
                    token.content = value.as_str().ok_or_else(wrong)?.to_owned();
                }
                "lstrip" => token.lstrip = flag()?,
                "rstrip" => token.rstrip = flag()?,
                "single_word" => token.single_word = flag()?,
                "normalized" => token.normalized = Some(flag()?),
                "special" => token.special = flag()?,
                "__type" | "id" => {}
                other => return Err(place.wrong(format!("a token has no field {other:?}"))),
            }
        }
        if fields.get("content").is_none() {
            return Err(place.wrong("a token needs its content".into()));
        }
        Ok(token)
    }

    /// The token with its special flag set, as `special_tokens_map.json` means it.
    pub fn made_special(mut self) -> Self {
        self.special = true;
        self
    }

    /// The token as the tokenizers library takes it.
    pub fn added(&self) -> AddedToken {
        AddedToken::from(self.content.as_str(), self.special)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
            .single_word(self.single_word)
            .normalized(self.normalized.unwrap_or(!self.special))
    }
}

/// Where a value stands: a file and a field of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub file: &'static str,
    pub field: &'a str,
}

impl Place<'_> {
    /// The error of a value that stands here.
    pub fn wrong(self, problem: String) -> TextError {
        TextError::broken(self.file, format!("{}: {problem}", self.field))
    }
}
