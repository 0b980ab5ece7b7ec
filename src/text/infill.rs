//! Filling the middle of a text, for tokenizers that have tokens for it.

use super::error::TextError;
use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

/// How models that fill in spell where the prefix begins, where the suffix begins, where the
/// middle begins, and, if it is not the end of a sequence, where the middle ends.
const SPELLINGS: &[([&str; 3], Option<&str>)] = &[
    (["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"], None),
    (["<fim_prefix>", "<fim_suffix>", "<fim_middle>"], None),
    (["<fim-prefix>", "<fim-suffix>", "<fim-middle>"], None),
    (["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"], None),
    (["▁<PRE>", "▁<SUF>", "▁<MID>"], Some("▁<EOT>")),
];

/// A letter that no text goes on after.
const LETTER: &str = "☺";

/// The tokens that stand around what is given of a text whose middle is asked for.
pub struct Infill {
    prefix: TokenId,
    suffix: TokenId,
    middle: TokenId,
    /// The token that ends a middle, beside those that end any text.
    pub end: Option<TokenId>,
}

impl Infill {
    /// Those of a tokenizer; `None` if it has none.
    pub fn of(tokenizer: &Tokenizer) -> Option<Self> {
        SPELLINGS.iter().find_map(|([prefix, suffix, middle], end)| {
            Some(Self {
                prefix: tokenizer.token_id(prefix)?,
                suffix: tokenizer.token_id(suffix)?,
                middle: tokenizer.token_id(middle)?,
                end: end.and_then(|end| tokenizer.token_id(end)),
            })
        })
    }

    /// The tokens of what stands after the middle.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_suffix(
        &self,
        tokenizer: &Tokenizer,
        suffix: &str,
    ) -> Result<Vec<TokenId>, TextError> {
        if self.end.is_none() {
            return tokenizer.encode(suffix, false);
        }
        // Such a tokenizer writes a space before any text. It is written before a letter that is
        // a token by itself, and goes with it.
        let alone = tokenizer.encode(LETTER, false)?;
        let with = tokenizer.encode(&format!("{LETTER}{suffix}"), false)?;
        match with.strip_prefix(alone.as_slice()) {
            Some(tokens) => Ok(tokens.to_vec()),
            None => tokenizer.encode(suffix, false),
        }
    }

    /// The prompt that asks for what stands between two texts. What the tokenizer puts before any
    /// text, `front`, stays first.
    pub fn prompt(&self, front: &[TokenId], before: &[TokenId], after: &[TokenId]) -> Vec<TokenId> {
        let (front, before) = match before.strip_prefix(front) {
            Some(rest) => (front, rest),
            None => (&[][..], before),
        };
        [front, &[self.prefix], before, &[self.suffix], after, &[self.middle]].concat()
    }
}
