//! Tokens of a text and of a vocabulary.

use crate::ids::TokenId;

/// The tokens of a sequence so far.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct History<'a> {
    /// As the request had them.
    pub prompt: &'a [TokenId],
    /// Those drawn since.
    pub generated: &'a [TokenId],
}

impl History<'_> {
    /// The tokens of `vocabulary` that the sequence holds, as often as may be.
    pub fn seen(&self, vocabulary: usize) -> TokenMask {
        let mut seen = TokenMask::none(vocabulary);
        self.prompt.iter().chain(self.generated).for_each(|&token| seen.allow(token));
        seen
    }
}

/// Tokens of a vocabulary, one bit each: those that may be drawn, or those that a text holds.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TokenMask {
    words: Vec<u32>,
}

impl TokenMask {
    /// None of `vocabulary` tokens.
    pub fn none(vocabulary: usize) -> Self {
        Self { words: vec![0; vocabulary.div_ceil(32)] }
    }

    /// All of them.
    pub fn all(vocabulary: usize) -> Self {
        let mut words = vec![u32::MAX; vocabulary.div_ceil(32)];
        if let (Some(last), rest @ 1..) = (words.last_mut(), vocabulary % 32) {
            *last = (1 << rest) - 1;
        }
        Self { words }
    }

    /// Those whose bits are set; see [`TokenMask::words`].
    pub fn of_words(words: Vec<u32>) -> Self {
        Self { words }
    }

    /// Adds one.
    pub fn allow(&mut self, token: TokenId) {
        self.words[token as usize / 32] |= 1 << (token % 32);
    }

    /// Takes one out; whether it was there.
    pub fn remove(&mut self, token: TokenId) -> bool {
        let was_there = self.allows(token);
        if was_there {
            self.words[token as usize / 32] &= !(1 << (token % 32));
        }
        was_there
    }

    /// Whether a token is one of them.
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Those of both; of the same vocabulary.
    pub fn and(&self, other: &Self) -> Self {
        assert_eq!(self.words.len(), other.words.len(), "This is a bug: of another model.");
        Self { words: self.words.iter().zip(&other.words).map(|(a, b)| a & b).collect() }
    }

    /// Token `t` is bit `t % 32` of word `t / 32`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(mask: &TokenMask) -> Vec<TokenId> {
        (0..200).filter(|&token| mask.allows(token)).collect()
    }

    #[test]
    fn a_mask_allows_what_it_was_told() {
        let mut mask = TokenMask::none(70);
        [0, 31, 32, 69].into_iter().for_each(|token| mask.allow(token));
        assert_eq!((tokens(&mask), mask.words().len()), (vec![0, 31, 32, 69], 3));
        let mut other = TokenMask::none(70);
        [1, 31, 33, 69].into_iter().for_each(|token| other.allow(token));
        assert_eq!(tokens(&mask.and(&other)), [31, 69]);
        assert!(mask.remove(31) && !mask.remove(31) && !mask.remove(500));
        assert_eq!(tokens(&mask), [0, 32, 69]);
        for vocabulary in [31, 32, 70] {
            assert_eq!(tokens(&TokenMask::all(vocabulary)).len(), vocabulary);
        }
    }
}
