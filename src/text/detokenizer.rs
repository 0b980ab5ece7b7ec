//! Tokens to text, one token at a time.

use std::sync::Arc;

use super::assembly::Assembly;
use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

/// A character of UTF-8 has at most four bytes, so it began at most this many tokens ago (tokens
/// of one byte each).
const CHARACTER_TOKENS_MAX: usize = 4;

/// The text of a stream of tokens, each part as soon as it is certain. All parts together are
/// [`Tokenizer::decode`] of all tokens, without the special ones. The cost of a token does not
/// depend on how many came before.
#[derive(Clone)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    assembly: Assembly,
    shows_special: bool,
    /// Special tokens that are shown nevertheless.
    shown: Vec<TokenId>,
}

impl Detokenizer {
    /// For tokens that begin a text.
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        let assembly = Assembly::new(tokenizer.vocabulary());
        Self { tokenizer, assembly, shows_special: false, shown: Vec::new() }
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

    /// The same, for texts that special tokens are parts of if `shows_special` says so.
    pub fn showing_special(self, shows_special: bool) -> Self {
        Self { shows_special, ..self }
    }

    /// The same, for texts that these special tokens are parts of.
    pub fn showing(self, shown: Vec<TokenId>) -> Self {
        Self { shown, ..self }
    }

    /// The text that is certain now and was not before: empty for a special token that is not
    /// shown, for a part of a character, or for an id outside the vocabulary.
    pub fn push(&mut self, id: TokenId) -> String {
        self.push_told(id).1
    }

    /// The same, and how many of its characters are of tokens before this one: U+FFFD for a
    /// character that they began and this one does not go on with.
    pub fn push_told(&mut self, id: TokenId) -> (usize, String) {
        let mut text = String::new();
        let is_hidden = self.tokenizer.is_special(id) && !self.shown.contains(&id);
        if !self.shows_special && is_hidden {
            return (0, text);
        }
        let interrupted = self.assembly.push(self.tokenizer.vocabulary(), id, &mut text);
        (interrupted, text)
    }

    /// The text that was held back: U+FFFD if the tokens end inside a character.
    pub fn finish(&mut self) -> String {
        let mut text = String::new();
        self.assembly.finish(&mut text);
        text
    }
}
