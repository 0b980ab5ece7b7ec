//! `tokenizer.json`, kept from taking the process down with it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::assembly::Assembly;
use super::error::TextError;
use super::files::{TOKENIZER, TextFiles};
use super::limits::text_bytes_max;
use super::vocabulary::Vocabulary;
use crate::ids::TokenId;

/// Text that every tokenizer must be able to encode, with its special tokens. A tokenizer that
/// panics on any text usually does on this one, and is then refused when it is loaded.
const PROBE: &str = " The quick brown fox, 12345 times:\n\t日本語 😀";

/// A model's tokenizer. Safe to share between threads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary: Vocabulary,
    text_bytes_max: usize,
}

impl Tokenizer {
    /// Reads `tokenizer.json` of a model directory; `context_tokens_max` bounds the texts that
    /// [`Tokenizer::encode`] takes (see [`text_bytes_max`]).
    ///
    /// # Errors
    /// [`TextError::FileMissing`] or [`TextError::FileBroken`].
    pub fn load(dir: &Path, context_tokens_max: u32) -> Result<Self, TextError> {
        Self::from_bytes(&TextFiles::read(dir)?.tokenizer, context_tokens_max)
    }

    /// Parses the content of a `tokenizer.json`. Truncation and padding in it are ignored, as
    /// transformers ignores them.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] for a file that the tokenizers library cannot read or use, or
    /// whose decoder is none of those that language models have.
    pub fn from_bytes(json: &[u8], context_tokens_max: u32) -> Result<Self, TextError> {
        let problem = |problem: String| TextError::broken(TOKENIZER, problem);
        let inner = caught(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(json)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(inner)
        });
        let inner = inner.map_err(problem)?;
        let vocabulary = caught(|| Ok(Vocabulary::new(&inner))).and_then(|made| made);
        let vocabulary = vocabulary.map_err(problem)?;
        caught(|| inner.encode_fast(PROBE, true)).map_err(problem)?;
        Ok(Self { inner, vocabulary, text_bytes_max: text_bytes_max(context_tokens_max) })
    }

    /// The tokens of a text. `add_special_tokens` puts in what the tokenizer's post-processor
    /// adds (usually BOS); a rendered chat template has it already.
    ///
    /// # Errors
    /// [`TextError::TooLong`] before any work is done; [`TextError::TokenizerFailed`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TextError> {
        if text.len() > self.text_bytes_max {
            return Err(TextError::TooLong { text_bytes_max: self.text_bytes_max });
        }
        let encoded = caught(|| self.inner.encode_fast(text, add_special_tokens));
        match encoded {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(message) => Err(TextError::TokenizerFailed { message }),
        }
    }

    /// The text of tokens, from the start of a text; ids outside the vocabulary have none. Bytes
    /// that are no UTF-8 become U+FFFD as in [`String::from_utf8_lossy`]. (The tokenizers library
    /// does the same for byte-level BPE; with byte fallback it replaces the valid characters
    /// beside a bad byte too, which a stream could not do without waiting for all of them.)
    pub fn decode(&self, ids: &[TokenId], skip_special_tokens: bool) -> String {
        let mut assembly = Assembly::new(&self.vocabulary);
        let mut text = String::new();
        for &id in ids {
            if !(skip_special_tokens && self.is_special(id)) {
                assembly.push(&self.vocabulary, id, &mut text);
            }
        }
        assembly.finish(&mut text);
        text
    }

    /// The bytes that a token adds to a text it is not the first of: a part of a character for
    /// some tokens, nothing for an id outside the vocabulary.
    pub fn token_bytes(&self, id: TokenId) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// [`Tokenizer::token_bytes`] as text, with U+FFFD for what is no UTF-8 by itself.
    pub fn token_str(&self, id: TokenId) -> String {
        String::from_utf8_lossy(self.token_bytes(id)).into_owned()
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<TokenId> {
        self.inner.token_to_id(token)
    }

    /// Ids of the vocabulary are below this; some of them may be unused.
    pub fn vocabulary_tokens(&self) -> u32 {
        self.vocabulary.vocabulary_tokens()
    }

    /// Whether a token is a control token, which is no part of the text.
    pub fn is_special(&self, id: TokenId) -> bool {
        self.vocabulary.is_special(id)
    }

    pub(super) fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }
}

/// Runs the tokenizers library, which panics on some files and on some texts.
fn caught<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing is left half-changed: a tokenizer's only mutable state is its caches, and their
    // locks are only ever tried, so that a poisoned one costs the cache and no more.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("the tokenizers library panicked: {}", said.unwrap_or("no reason given")))
        }
    }
}
