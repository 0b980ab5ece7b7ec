//! A model that draws any token that a guide allows.

use std::sync::Arc;

use tessera::ids::TokenId;
use tessera::request::Guide;
use tessera::structured::{Form, FormError, Forms};
use tessera::text::Tokenizer;

use crate::Rng;

/// Logits of the model, and the token that ends its text.
pub const VOCABULARY: u32 = 512;
pub const END: TokenId = 1;

pub struct World {
    pub tokenizer: Arc<Tokenizer>,
    pub forms: Forms,
}

/// How a text ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ended {
    /// The end was drawn.
    Drawn,
    /// Nothing could follow.
    Whole,
    /// There were no tokens left.
    Cut,
}

impl World {
    pub fn new() -> Self {
        let dir = crate::root().join("tests/golden/llama");
        let tokenizer = Arc::new(Tokenizer::load(&dir, 4096).unwrap());
        Self { tokenizer, forms: Forms::new(VOCABULARY) }
    }

    pub fn guide(&self, form: &Form) -> Result<Box<dyn Guide>, FormError> {
        self.forms.guide(&self.tokenizer, form, &[END])
    }

    /// Why a form is refused.
    pub fn refused(&self, form: &Form) -> String {
        match self.guide(form) {
            Ok(_) => panic!("{form:?} is taken"),
            Err(error) => error.to_string(),
        }
    }

    /// Whether a form takes a text, one token a byte, and may end there.
    pub fn takes(&self, form: &Form, text: &str) -> bool {
        let mut guide = self.guide(form).unwrap_or_else(|e| panic!("{form:?}: {e}"));
        let mut is_whole = false;
        for byte in text.bytes() {
            let of_byte = |&id: &TokenId| self.tokenizer.token_bytes(id) == [byte];
            let token = (7..VOCABULARY).find(of_byte).unwrap();
            if is_whole || !guide.mask().unwrap().allows(token) {
                return false;
            }
            is_whole = guide.accept(token).unwrap();
        }
        is_whole || guide.mask().unwrap().allows(END)
    }

    /// Draws tokens until the text ends, rather ones that close something.
    pub fn write(&self, guide: &mut dyn Guide, rng: &mut Rng, max: usize) -> (String, Ended) {
        let mut tokens = Vec::new();
        let text = |tokens: &[TokenId]| self.tokenizer.decode(tokens, true);
        while tokens.len() < max {
            let mask = guide.mask().unwrap_or_else(|e| panic!("{:?}: {e}", text(&tokens)));
            let allowed: Vec<TokenId> = (0..VOCABULARY).filter(|&t| mask.allows(t)).collect();
            let closes = |&&t: &&TokenId| {
                t == END || [b"\"", b"}", b"]"].iter().any(|b| self.tokenizer.token_bytes(t) == *b)
            };
            let closing: Vec<TokenId> = allowed.iter().filter(closes).copied().collect();
            let from = match closing.is_empty() || rng.below(3) > 0 {
                true => &allowed,
                false => &closing,
            };
            let token = from[rng.below(from.len())];
            if token == END {
                return (text(&tokens), Ended::Drawn);
            }
            assert!(!self.tokenizer.is_special(token), "{token} is no text");
            tokens.push(token);
            if guide.accept(token).unwrap() {
                return (text(&tokens), Ended::Whole);
            }
        }
        (text(&tokens), Ended::Cut)
    }
}
