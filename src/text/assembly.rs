//! Bytes of tokens to text: whole characters only, and U+FFFD for what is none.

use super::vocabulary::Vocabulary;
use crate::ids::TokenId;

/// Puts the bytes of tokens together to text.
#[derive(Clone)]
pub(super) struct Assembly {
    /// The begin of a character, less than four bytes between two pushes.
    pending: Vec<u8>,
    /// No token yet that is written differently at the start of a text.
    at_start: bool,
    /// The character that a text does not begin with, and how many of it are still dropped.
    strip: (char, usize),
}

impl Assembly {
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let strip = vocabulary.strip().unwrap_or((' ', 0));
        Self { pending: Vec::new(), at_start: true, strip }
    }

    /// For a text that goes on where another ends.
    pub fn skip_start(&mut self) {
        self.at_start = false;
        self.strip.1 = 0;
    }

    /// Adds the text that a token makes certain; returns how many of its characters are made of
    /// earlier tokens' bytes alone.
    pub fn push(&mut self, vocabulary: &Vocabulary, id: TokenId, text: &mut String) -> usize {
        let (old, mut interrupted) = (self.pending.len(), 0);
        match vocabulary.start_bytes(id).filter(|_| self.at_start) {
            Some(bytes) => {
                self.at_start = false;
                self.pending.extend(bytes);
            }
            None => self.pending.extend_from_slice(vocabulary.bytes(id)),
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
                    interrupted += usize::from(pending.len() - rest.len() <= old);
                }
                // Further bytes may complete it.
                None => break,
            }
        }
        let done = pending.len() - rest.len();
        pending.drain(..done);
        self.pending = pending;
        interrupted
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
