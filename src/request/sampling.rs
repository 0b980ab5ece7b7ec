//! How tokens are drawn.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::sync::Arc;

use super::invalid::Invalid;
use super::tokens::TokenMask;
use crate::ids::TokenId;

/// The range of each number that says how tokens are drawn. The penalties of OpenAI's are as its
/// reference has them; repetition penalties outside of theirs make of any text a list of words that
/// have not been said.
pub const RANGES: [(&str, RangeInclusive<f64>); 6] = [
    ("temperature", 0.0..=2.0),
    ("top_p", 0.0..=1.0),
    ("min_p", 0.0..=1.0),
    ("repetition_penalty", 0.01..=100.0),
    ("presence_penalty", -2.0..=2.0),
    ("frequency_penalty", -2.0..=2.0),
];
/// What may be added to a logit, as OpenAI's reference has it.
pub const BIASES: RangeInclusive<f64> = -100.0..=100.0;

/// Checks a number of a request against its range, before it is rounded: what is just outside may
/// not be afterwards.
///
/// # Errors
/// [`Invalid`] naming it. A name without a range takes any number.
pub fn check_range(param: &'static str, value: f64) -> Result<(), Invalid> {
    match RANGES.iter().find(|(name, range)| *name == param && !range.contains(&value)) {
        None => Ok(()),
        Some((_, range)) => Err(outside(param, range, &value)),
    }
}

fn outside(param: &'static str, range: &RangeInclusive<f64>, value: &dyn Display) -> Invalid {
    let (least, most) = (range.start(), range.end());
    Invalid::value(param, format!("{param} must be between {least} and {most}, got {value}"))
}

/// How the next token is drawn from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the largest logit.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this, one at least; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drops tokens less likely than this share of the likeliest one's; 0 drops none.
    pub min_p: f32,
    /// Divides the positive logits of tokens that the prompt or the answer holds, and multiplies
    /// the others (CTRL, arXiv 1909.05858); 1 changes none.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that the answer holds.
    pub presence_penalty: f32,
    /// Taken off the logits of tokens that the answer holds, once for each time.
    pub frequency_penalty: f32,
    /// The same seed, prompt and adapter give the same tokens, whatever else is in the batch.
    pub seed: u64,
    /// What is asked of single tokens; one for all sequences of a request.
    pub rules: Arc<TokenRules>,
}

impl SamplingParams {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
            rules: Arc::default(),
        }
    }

    /// Checks every field against its range, but for the rules, which need a vocabulary.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        let Self { temperature, top_p, top_k: _, min_p, seed: _, rules: _, .. } = self;
        let Self { repetition_penalty, presence_penalty, frequency_penalty, .. } = self;
        let values =
            [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty];
        for ((param, range), value) in RANGES.iter().zip(values) {
            if !(*range.start() as f32..=*range.end() as f32).contains(value) {
                return Err(outside(param, range, value));
            }
        }
        Ok(())
    }
}

/// What is asked of single tokens. The default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenRules {
    /// Added to the logits of these tokens, each of which stands once.
    pub bias: Vec<(TokenId, f32)>,
    /// The last token of each is not drawn where those before it are the end of the answer.
    pub bad_words: Vec<Vec<TokenId>>,
    /// Tokens that may be drawn; `None`: all.
    pub allowed: Option<TokenMask>,
    /// Tokens that an answer has before any of `held_back` is drawn.
    pub min_tokens: u32,
    /// Those that would end it.
    pub held_back: Vec<TokenId>,
}

impl TokenRules {
    /// Checks them against a vocabulary.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field with a token that the model lacks, or a bias out of
    /// range.
    pub fn check(&self, vocabulary: u32) -> Result<(), Invalid> {
        let Self { bias, bad_words, allowed, min_tokens: _, held_back: _ } = self;
        if let Some((token, _)) = bias.iter().find(|(token, _)| *token >= vocabulary) {
            let message = format!("token ids must be below {vocabulary}, got {token}");
            return Err(Invalid::value("logit_bias", message));
        }
        if let Some((token, bias)) =
            bias.iter().find(|(_, bias)| !BIASES.contains(&f64::from(*bias)))
        {
            let (least, most) = (BIASES.start(), BIASES.end());
            let message =
                format!("a bias must be between {least} and {most}, got {bias} for token {token}");
            return Err(Invalid::value("logit_bias", message));
        }
        if let Some(token) = bad_words.iter().flatten().find(|&&token| token >= vocabulary) {
            let message = format!(
                "a word is spelled with token {token}, and the model has those below {vocabulary}"
            );
            return Err(Invalid::value("bad_words", message));
        }
        if bad_words.iter().any(Vec::is_empty) {
            return Err(Invalid::value("bad_words", "a word must hold at least one token"));
        }
        let words = (vocabulary as usize).div_ceil(32);
        match allowed {
            Some(allowed) if allowed.words().len() != words => {
                let message = format!("the set of tokens must be one of {vocabulary}");
                Err(Invalid::value("allowed_token_ids", message))
            }
            _ => Ok(()),
        }
    }

    /// Whether some tokens cannot be drawn at some places.
    pub fn forbid(&self) -> bool {
        self.allowed.is_some() || !self.bad_words.is_empty() || self.min_tokens > 0
    }

    /// Tokens that must not come after `generated`, any of them more than once.
    pub fn banned<'a>(&'a self, generated: &'a [TokenId]) -> impl Iterator<Item = TokenId> + 'a {
        let is_early = generated.len() < self.min_tokens as usize;
        let held_back = self.held_back.iter().copied().filter(move |_| is_early);
        let bad = self.bad_words.iter().filter_map(|word| {
            let (last, before) = word.split_last()?;
            generated.ends_with(before).then_some(*last)
        });
        bad.chain(held_back)
    }
}
