//! What is made of logits.

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
    /// Ranges and temperature.
    pub params: &'a SamplingParams,
    /// The text so far. The number of tokens drawn fixes the draw, with the seed.
    pub history: History<'a>,
    /// Tokens that may be drawn; `None`: all.
    pub mask: Option<&'a TokenMask>,
    /// Report rank and this many alternatives beside the token.
    pub logprobs: Option<u32>,
}

impl Draw<'_> {
    /// The tokens whose logits the repetition penalty changes; `None` where it changes none.
    pub fn penalised(&self, vocabulary: usize) -> Option<TokenMask> {
        (self.params.repetition_penalty != 1.0).then(|| self.history.seen(vocabulary))
    }
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
    /// Natural logarithm of its probability before penalty, temperature, filters and mask.
    pub logprob: f32,
    /// 1 and the number of likelier tokens, a lower id being likelier among equals; 0 where no
    /// logprobs are wanted.
    pub rank: u32,
    /// The likeliest tokens and their logprobs, best first; empty unless asked for.
    pub top: Vec<(TokenId, f32)>,
}
