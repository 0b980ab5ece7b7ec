//! How answers write tokens.

use std::sync::Arc;

use crate::ids::TokenId;
use crate::text::{Detokenizer, Tokenizer};

/// How logprobs name tokens.
pub(super) struct Spelling {
    pub tokenizer: Arc<Tokenizer>,
    /// By `token_id:5`, not by text.
    pub as_ids: bool,
    /// Special tokens are parts of texts.
    pub shows_special: bool,
}

impl Spelling {
    /// For a text of its own.
    pub fn detokenizer(&self, shows_special: bool) -> Detokenizer {
        Detokenizer::new(self.tokenizer.clone()).showing_special(shows_special)
    }

    /// The text of a token, with U+FFFD for what is none by itself.
    pub fn text(&self, id: TokenId) -> String {
        if self.as_ids { by_id(id) } else { self.tokenizer.token_str(id) }
    }

    /// A name that tells parts of characters apart, as OpenAI's completions write them.
    pub fn name(&self, id: TokenId) -> String {
        let bytes = self.tokenizer.token_bytes(id);
        match std::str::from_utf8(bytes) {
            _ if self.as_ids => by_id(id),
            Ok(text) => text.to_owned(),
            Err(_) => {
                let escaped = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
                format!("bytes:{}", escaped.collect::<String>())
            }
        }
    }
}

/// The name of a token by its id.
pub(super) fn by_id(id: TokenId) -> String {
    format!("token_id:{id}")
}
