//! A model's tokenizer, of all its files.

use std::path::Path;

use serde_json::Value;

use super::assembly::Assembly;
use super::caught::caught;
use super::error::TextError;
use super::files::{TOKENIZER, TextFiles};
use super::limits::text_bytes_max;
use super::merge::{Merged, merge};
use super::vocabulary::Vocabulary;
use crate::ids::{Digest, TokenId};

/// Text that every tokenizer must be able to encode, with its special tokens. A tokenizer that
/// panics on any text usually does on this one, and is then refused when it is loaded.
const PROBE: &str = " The quick brown fox, 12345 times:\n\t日本語 😀";

/// A model's tokenizer. Safe to share between threads.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    vocabulary: Vocabulary,
    text_bytes_max: usize,
    notes: Vec<String>,
    /// Offsets that the library gives leave out spaces at both ends of a token.
    trims_offsets: bool,
}

/// A token that was added to a vocabulary, or marked in it.
#[derive(Clone, Debug, PartialEq)]
pub struct AddedToken {
    /// Its id.
    pub id: TokenId,
    /// How a text spells it.
    pub content: String,
    /// Whether it is no part of the text.
    pub is_special: bool,
}

impl Tokenizer {
    /// Reads the tokenizer of a model directory; `context_tokens_max` bounds the texts that
    /// [`Tokenizer::encode`] takes (see [`text_bytes_max`]).
    ///
    /// # Errors
    /// [`TextError::FileMissing`], [`TextError::OtherTokenizer`] or [`TextError::FileBroken`].
    pub fn load(dir: &Path, context_tokens_max: u32) -> Result<Self, TextError> {
        Self::from_files(&TextFiles::read(dir)?, context_tokens_max)
    }

    /// The tokenizer of a `tokenizer.json` alone.
    ///
    /// # Errors
    /// As [`Tokenizer::from_files`].
    pub fn from_bytes(json: &[u8], context_tokens_max: u32) -> Result<Self, TextError> {
        let files = TextFiles { tokenizer: Some(json.to_vec()), ..TextFiles::default() };
        Self::from_files(&files, context_tokens_max)
    }

    /// What transformers makes of `tokenizer.json`, `tokenizer_config.json`,
    /// `special_tokens_map.json` and `added_tokens.json` (and of the `model_type` in
    /// `config.json`). Truncation and padding are ignored, as transformers ignores them.
    ///
    /// # Errors
    /// [`TextError::FileMissing`] without `tokenizer.json`; [`TextError::FileBroken`] for files
    /// that the tokenizers library cannot read or use, that contradict each other, that ask for
    /// what is not supported, or whose decoder is none of those that language models have.
    pub fn from_files(files: &TextFiles, context_tokens_max: u32) -> Result<Self, TextError> {
        let problem = |problem: String| TextError::broken(TOKENIZER, problem);
        let Merged { tokenizer: inner, notes } = merge(files)?;
        let vocabulary = caught(|| Ok(Vocabulary::new(&inner))).and_then(|made| made);
        let vocabulary = vocabulary.map_err(problem)?;
        caught(|| inner.encode_fast(PROBE, true)).map_err(problem)?;
        let text_bytes_max = text_bytes_max(context_tokens_max);
        let after = serde_json::to_string(&inner.get_post_processor()).unwrap_or_default();
        let trims_offsets = after.contains("\"trim_offsets\":true");
        Ok(Self { inner, vocabulary, text_bytes_max, notes, trims_offsets })
    }

    /// What the files say that is not used, one line each.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The tokens that were added to the vocabulary or marked in it, by id.
    pub fn added_tokens(&self) -> Vec<AddedToken> {
        let added = self.inner.get_added_tokens_decoder().into_iter();
        let token = |(id, token): (TokenId, tokenizers::AddedToken)| AddedToken {
            id,
            is_special: self.is_special(id),
            content: token.content,
        };
        let mut added: Vec<AddedToken> = added.map(token).collect();
        added.sort_by_key(|token| token.id);
        added
    }

    /// What tells this tokenizer from those that give other ids or other text: not how its files
    /// are written, and not the texts that it takes.
    pub fn digest(&self) -> Digest {
        let mut hasher = blake3::Hasher::new();
        // Serializing a tokenizer cannot fail: it is maps of strings, lists and numbers.
        let json = serde_json::to_value(&self.inner).unwrap_or_default();
        hash(&mut hasher, &json);
        hasher.update(&[u8::from(self.inner.get_encode_special_tokens())]);
        let ids = 0..self.vocabulary_tokens();
        hasher.update(&ids.map(|id| u8::from(self.is_special(id))).collect::<Vec<_>>());
        Digest(*hasher.finalize().as_bytes())
    }

    /// Whether a text of so many bytes is one that is tokenized.
    ///
    /// # Errors
    /// [`TextError::TooLong`].
    pub fn check_bytes(&self, bytes: usize) -> Result<(), TextError> {
        match bytes <= self.text_bytes_max {
            true => Ok(()),
            false => Err(TextError::TooLong { text_bytes_max: self.text_bytes_max }),
        }
    }

    /// The tokens of a text. `add_special_tokens` puts in what the tokenizer's post-processor
    /// adds (usually BOS); a rendered chat template has it already.
    ///
    /// # Errors
    /// [`TextError::TooLong`] before any work is done; [`TextError::TokenizerFailed`].
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<TokenId>, TextError> {
        self.check_bytes(text.len())?;
        let encoded = caught(|| self.inner.encode_fast(text, add_special_tokens));
        match encoded {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(message) => Err(TextError::TokenizerFailed { message }),
        }
    }

    /// The tokens of a text, as [`Tokenizer::encode`] gives them but for special tokens that it
    /// adds after the text; and how many stand before the first that holds a byte at or after
    /// `border_bytes` of the text.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_with_border(
        &self,
        text: &str,
        border_bytes: usize,
        add_special_tokens: bool,
    ) -> Result<(Vec<TokenId>, usize), TextError> {
        self.check_bytes(text.len())?;
        let encoded = caught(|| self.inner.encode(text, add_special_tokens));
        let encoded = encoded.map_err(|message| TextError::TokenizerFailed { message })?;
        let (ids, added) = (encoded.get_ids(), encoded.get_special_tokens_mask());
        let count = added.iter().rposition(|&added| added == 0).map_or(0, |last| last + 1);
        let leading = added.iter().take_while(|&&added| added == 1).count();
        // Of an empty text all special tokens stand before it.
        let count = if count == 0 { leading } else { count };
        let end = |i: usize| {
            let (start, end) = encoded.get_offsets()[i];
            let spaces = self.token_bytes(ids[i]).iter().rev().take_while(|&&b| b == b' ').count();
            if self.trims_offsets && start < end { end + spaces } else { end }
        };
        let is_after = |i: &usize| added[*i] == 0 && end(*i) > border_bytes;
        let border = (0..count).find(is_after).unwrap_or(count);
        Ok((ids[..count].to_vec(), border))
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

    /// A token as the vocabulary spells it; `None` for an id that it does not have.
    pub fn spelling(&self, id: TokenId) -> Option<String> {
        self.inner.id_to_token(id)
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

/// Hashes a JSON whatever the order of its keys.
fn hash(hasher: &mut blake3::Hasher, json: &Value) {
    match json {
        Value::Array(list) => {
            hasher.update(b"[").update(&list.len().to_le_bytes());
            list.iter().for_each(|value| hash(hasher, value));
        }
        Value::Object(map) => {
            hasher.update(b"{").update(&map.len().to_le_bytes());
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by_key(|(key, _)| *key);
            for (key, value) in entries {
                hasher.update(&key.len().to_le_bytes()).update(key.as_bytes());
                hash(hasher, value);
            }
        }
        scalar => {
            let text = scalar.to_string();
            hasher.update(b"=").update(&text.len().to_le_bytes()).update(text.as_bytes());
        }
    }
}
