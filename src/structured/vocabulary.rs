//! A tokenizer's tokens as a tree of bytes, which masks are read off.

use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use std::sync::Arc;

use super::limits;
use crate::ids::TokenId;
use crate::text::Tokenizer;

/// A tree is at most this deep. No form can ask for a longer token; shorter ones spell its text.
const TOKEN_BYTES_MAX: usize = 1_000;

/// Compiles forms for one tokenizer.
pub(super) struct Vocabulary {
    pub factory: ParserFactory,
    /// Tokens that the model has logits for. The next id stands for the end of the text.
    pub tokens: u32,
}

impl Vocabulary {
    /// # Errors
    /// Why no tree can be made.
    pub fn new(tokenizer: &Tokenizer, tokens: u32) -> Result<Self, String> {
        let word = |id| {
            let bytes = tokenizer.token_bytes(id);
            // Bytes that no UTF-8 holds mark the tokens that are no text.
            let marker = TokTrie::SPECIAL_TOKEN_MARKER;
            if bytes.is_empty() || bytes.len() > TOKEN_BYTES_MAX || bytes.contains(&marker) {
                return Vec::new();
            }
            match tokenizer.is_special(id) {
                true => [&[marker], bytes].concat(),
                false => bytes.to_vec(),
            }
        };
        let mut words: Vec<Vec<u8>> = (0..tokens).map(word).collect();
        words.push(Vec::new());
        let trie = TokTrie::from(&TokRxInfo::new(tokens + 1, tokens), &words);
        let env: TokEnv = Arc::new(Tokens { trie });
        let slices = SlicedBiasComputer::json_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|error| error.to_string())?;
        *factory.quiet().limits_mut() = limits::parser();
        Ok(Self { factory, tokens })
    }

    /// What stands for the end of the text.
    pub fn end(&self) -> TokenId {
        self.tokens
    }
}

struct Tokens {
    trie: TokTrie,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.greedy_tokenize(bytes)
    }

    /// The model chooses how text is cut into tokens, also where the form leaves no choice of text.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
