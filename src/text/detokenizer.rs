//! Tokens to text, one token at a time.

use std::sync::Arc;

use super::Tokenizer;
use crate::ids::TokenId;

/// A character of UTF-8 has at most four bytes, so it began at most this many tokens ago (tokens
/// of one byte each).
const CHARACTER_TOKENS_MAX: usize = 4;

/// The text of a stream of tokens, each piece as soon as it is certain. All pieces together are
/// [`Tokenizer::decode`] of all tokens, without the special ones. The cost of a token does not
/// depend on how many came before.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    assembly: Assembly,
}

impl Detokenizer {
    /// For tokens that begin a text.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let assembly = Assembly::new(&tokenizer);
        Self { tokenizer, assembly }
    }

    /// For tokens that go on where a prompt ends: a space before the first word is part of the
    /// text, and a character that begins in the prompt is written whole.
    pub fn after_prompt(tokenizer: Arc<Tokenizer>, prompt: &[TokenId]) -> Self {
        let mut detokenizer = Self::new(tokenizer);
        let last = prompt.iter().rev().filter(|&&id| !detokenizer.tokenizer.is_special(id));
        let mut last: Vec<TokenId> = last.take(CHARACTER_TOKENS_MAX + 1).copied().collect();
        if last.len() > CHARACTER_TOKENS_MAX {
            last.truncate(CHARACTER_TOKENS_MAX);
            detokenizer.assembly.skip_start();
        }
        for id in last.into_iter().rev() {
            detokenizer.push(id);
        }
        detokenizer
    }

    /// The text that is certain now and was not before: empty for a special token, for a part of
    /// a character, or for an id outside the vocabulary.
    pub fn push(&mut self, id: TokenId) -> String {
        let mut text = String::new();
        if !self.tokenizer.is_special(id) {
            self.assembly.push(&self.tokenizer, id, &mut text);
        }
        text
    }

    /// The text that was held back: U+FFFD if the tokens end inside a character.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.assembly.finish(&mut text);
        text
    }
}

/// Puts pieces together to text.
pub(super) struct Assembly {
    /// The begin of a character, less than four bytes between two pushes.
    pending: Vec<u8>,
    /// No token yet that is written differently at the start of a text.
    at_start: bool,
    /// The character that a text does not begin with, and how many of it are still dropped.
    strip: (char, usize),
}

impl Assembly {
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let strip = tokenizer.pieces().strip().unwrap_or((' ', 0));
        Self { pending: Vec::new(), at_start: true, strip }
    }

    fn skip_start(&mut self) {
        self.at_start = false;
        self.strip.1 = 0;
    }

    pub fn push(&mut self, tokenizer: &Tokenizer, id: TokenId, text: &mut String) {
        let pieces = tokenizer.pieces();
        match pieces.start_bytes(id).filter(|_| self.at_start) {
            Some(bytes) => {
                self.at_start = false;
                self.pending.extend(bytes);
            }
            None => self.pending.extend_from_slice(pieces.bytes(id)),
        }
        let mut pending = std::mem::take(&mut self.pending);
        let mut rest = pending.as_slice();
        while !rest.is_empty() {
            let (valid, invalid_bytes) = match std::str::from_utf8(rest) {
                Ok(valid) => (valid, Some(0)),
                Err(error) => {
                    let valid = &rest[..error.valid_up_to()];
                    (std::str::from_utf8(valid).unwrap_or_default(), error.error_len())
                }
            };
            self.emit(valid, text);
            rest = &rest[valid.len()..];
            match invalid_bytes {
                Some(0) => {}
                Some(bytes) => {
                    self.emit("\u{FFFD}", text);
                    rest = &rest[bytes..];
                }
                // Further bytes may complete it.
                None => break,
            }
        }
        let done = pending.len() - rest.len();
        pending.drain(..done);
        self.pending = pending;
    }

    pub fn finish(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            self.pending.clear();
            self.emit("\u{FFFD}", text);
        }
    }

    fn emit(&mut self, mut new: &str, text: &mut String) {
        let (letter, left) = &mut self.strip;
        while *left > 0 && !new.is_empty() {
            match new.strip_prefix(*letter) {
                Some(rest) => {
                    new = rest;
                    *left -= 1;
                }
                None => *left = 0,
            }
        }
        text.push_str(new);
    }
}
