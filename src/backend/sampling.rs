//! What is made of logits.

use std::borrow::Cow;

use super::device::{Device, Fault};
use crate::ids::TokenId;
use crate::request::{History, SamplingParams, TokenMask};

/// Drawing tokens, and scoring given ones.
pub trait Sampling: Device {
    /// Makes of each row of `[m, vocabulary]` what is wanted of it.
    ///
    /// # Errors
    /// The first [`Fault`] since the last one was told: ops after it did nothing.
    fn sample(&self, logits: &Self::Tensor, wants: &[Want<'_>]) -> Result<Vec<Sampled>, Fault>;
}

/// What one row of logits is for.
#[derive(Clone, Copy, Debug)]
pub enum Want<'a> {
    /// A token is drawn.
    Draw(Draw<'a>),
    /// A token is given, and how likely it is wanted.
    Score(Score),
}

impl Want<'_> {
    /// Alternatives to report beside the token, if its logprob and rank matter to anyone.
    pub fn logprobs(&self) -> Option<u32> {
        match self {
            Want::Draw(Draw { logprobs, .. }) => *logprobs,
            Want::Score(Score { logprobs, .. }) => Some(*logprobs),
        }
    }
}

/// How to draw from one row of logits.
#[derive(Clone, Copy, Debug)]
pub struct Draw<'a> {
    /// All that the request says of it.
    pub params: &'a SamplingParams,
    /// The text so far. The number of tokens drawn fixes the draw, with the seed.
    pub history: History<'a>,
    /// Tokens that may be drawn, of those that the rules of `params` allow; `None`: all of those.
    pub mask: Option<&'a TokenMask>,
    /// Report rank and this many alternatives beside the token.
    pub logprobs: Option<u32>,
}

impl<'a> Draw<'a> {
    /// What the request asks of single tokens, for a vocabulary. The rules and their order are
    /// those of vLLM's sampler (v1/sample/sampler.py, ops/bad_words.py and ops/penalties.py, and
    /// logits_processor/builtin.py). With x a token's logit, c how often the answer holds it, and r
    /// the repetition penalty where prompt or answer hold it and else 1:
    ///
    /// ```text
    /// x₁ = −∞ where the token is not allowed, completes a bad word, or would end the answer early
    /// x₂ = x₁ + logit_bias
    /// x₃ = x₂ / r where x₂ > 0, else x₂ · r
    /// x₄ = x₃ − (frequency_penalty · c + presence_penalty [c > 0])
    /// ```
    ///
    /// Temperature and filters read x₄.
    pub fn changes(&self, vocabulary: usize) -> Changes<'a> {
        let Draw { params, history, mask, logprobs: _ } = *self;
        let allowed = params.rules.allowed.as_ref();
        let is_whole = |mask: &TokenMask| mask.words().len() == vocabulary.div_ceil(32);
        let sets = mask.into_iter().chain(allowed);
        assert!(sets.into_iter().all(is_whole), "This is a bug: tokens of another model.");
        let mask = match (mask, allowed) {
            (Some(mask), Some(allowed)) => Some(Cow::Owned(mask.and(allowed))),
            (one, other) => one.or(other).map(Cow::Borrowed),
        };
        let penalty = params.repetition_penalty;
        let mut repeated = (penalty != 1.0).then(|| history.seen(vocabulary));
        let repeat = |token| match repeated.as_mut().is_some_and(|seen| seen.remove(token)) {
            true => penalty,
            false => 1.0,
        };
        let edits = edits(params, history.generated, vocabulary, repeat);
        Changes { mask, repeated, edits }
    }
}

/// What is made of a row of logits before temperature and filters.
#[derive(Clone, Debug, PartialEq)]
pub struct Changes<'a> {
    /// Tokens that may be drawn; `None`: all.
    pub mask: Option<Cow<'a, TokenMask>>,
    /// Tokens that the repetition penalty changes and no edit names; `None`: none.
    pub repeated: Option<TokenMask>,
    /// Of one token each, by id.
    pub edits: Vec<Edit>,
}

impl Changes<'_> {
    /// Whether the row is drawn from as it is.
    pub fn are_none(&self) -> bool {
        let Self { mask, repeated, edits } = self;
        mask.is_none() && repeated.is_none() && edits.is_empty()
    }
}

/// What is made of one token's logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Edit {
    /// The token.
    pub token: TokenId,
    /// Added first; −∞ forbids the token.
    pub add: f32,
    /// Then divides what is positive and multiplies the rest.
    pub repeat: f32,
    /// Then taken off.
    pub take: f32,
}

impl Edit {
    /// Every operation rounds on its own, so that all devices get the same bits. What is not finite
    /// stays so.
    pub fn apply(&self, logit: f32) -> f32 {
        let Self { token: _, add, repeat, take } = *self;
        repeated(logit + add, repeat) - take
    }
}

/// A logit under a repetition penalty.
pub fn repeated(logit: f32, penalty: f32) -> f32 {
    if logit > 0.0 { logit / penalty } else { logit * penalty }
}

/// `repeat`: the repetition penalty of a token.
fn edits(
    params: &SamplingParams,
    generated: &[TokenId],
    vocabulary: usize,
    mut repeat: impl FnMut(TokenId) -> f32,
) -> Vec<Edit> {
    let SamplingParams { presence_penalty, frequency_penalty, rules, .. } = params;
    // What is added to a token's logit, and how often the answer holds it.
    let mut changes: Vec<(TokenId, f32, u32)> = Vec::new();
    changes.extend(rules.bias.iter().map(|&(token, bias)| (token, bias, 0)));
    changes.extend(rules.banned(generated).map(|token| (token, f32::NEG_INFINITY, 0)));
    if *presence_penalty != 0.0 || *frequency_penalty != 0.0 {
        changes.extend(generated.iter().map(|&token| (token, 0.0, 1)));
    }
    // A model's files may name an end-of-sequence token that it does not have.
    changes.retain(|(token, ..)| (*token as usize) < vocabulary);
    changes.sort_unstable_by_key(|(token, ..)| *token);
    let of_one_token = changes.chunk_by(|(a, ..), (b, ..)| a == b);
    let edit = |changes: &[(TokenId, f32, u32)]| {
        let token = changes[0].0;
        let add = changes.iter().map(|(_, add, _)| add).sum();
        let count: u32 = changes.iter().map(|(_, _, count)| count).sum();
        let take = f64::from(*frequency_penalty) * f64::from(count)
            + if count > 0 { f64::from(*presence_penalty) } else { 0.0 };
        Edit { token, add, repeat: repeat(token), take: take as f32 }
    };
    of_one_token.map(edit).collect()
}

/// How likely a given token is.
#[derive(Clone, Copy, Debug)]
pub struct Score {
    /// The token.
    pub target: TokenId,
    /// Alternatives to report beside it.
    pub logprobs: u32,
}

/// One token, drawn or given.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token; `None` when the row held no finite logit that may be drawn.
    pub token: Option<TokenId>,
    /// Natural logarithm of its probability before all rules, penalties, temperature and filters.
    pub logprob: f32,
    /// 1 and the number of likelier tokens, a lower id being likelier among equals; 0 where no
    /// logprobs are wanted.
    pub rank: u32,
    /// The likeliest tokens and their logprobs, best first; empty unless asked for.
    pub top: Vec<(TokenId, f32)>,
}
