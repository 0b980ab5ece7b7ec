//! A generation request after validation: nothing below re-checks it.

use std::fmt::Debug;

mod invalid;
mod sampling;
mod share;
mod tokens;

pub use invalid::Invalid;
pub use sampling::{BIASES, RANGES, SamplingParams, TokenRules, check_range};
pub use share::{SHARE_WEIGHT_MAX, SHARE_WEIGHT_MIN, Share, ShareWeight};
pub use tokens::{History, TokenMask};

use crate::ids::{Digest, TokenId};
use crate::json::or_more;

/// What a request is validated against; printed at start-up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Prompt plus completion. A prompt that leaves no room is answered 400
    /// `context_length_exceeded`, and so is no completion: it ends where the context does.
    pub context_tokens_max: u32,
    /// Token ids are below this. Others are answered 400.
    pub vocabulary_tokens: u32,
    /// Alternatives a position may report. More is answered 400.
    pub logprobs_max: u32,
}

impl Limits {
    /// Whether any context has room for so many tokens.
    ///
    /// # Errors
    /// [`Invalid`] naming `max_tokens`.
    pub fn check_tokens_max(&self, asked: u32) -> Result<(), Invalid> {
        let context = self.context_tokens_max;
        if asked <= context {
            return Ok(());
        }
        let asked = or_more(asked);
        let message = format!(
            "max_tokens must be at most {context}, this model's context length, got {asked}"
        );
        Err(Invalid::value("max_tokens", message))
    }
}

/// How the hidden states of a prompt become one vector.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pooling {
    /// The last token's.
    Last,
    /// Their mean.
    Mean,
}

/// The form that one sequence must have, and how far it is. One that has failed stays failed.
pub trait Guide: Debug + Send {
    /// The tokens that may come next: of as many as the model has logits for, one at least.
    ///
    /// # Errors
    /// Why it cannot tell, for the client.
    fn mask(&mut self) -> Result<TokenMask, String>;

    /// Takes in the token drawn. True when the form is whole and nothing can follow.
    ///
    /// # Errors
    /// Why it cannot go on, for the client.
    fn accept(&mut self, token: TokenId) -> Result<bool, String>;

    /// Another for the same form, as far as this one and independent of it.
    fn fork(&self) -> Box<dyn Guide>;
}

impl Clone for Box<dyn Guide> {
    fn clone(&self) -> Self {
        (**self).fork()
    }
}

/// All that is asked of a prompt, not checked yet. The default is its likeliest continuation, as
/// long as the context allows.
#[derive(Clone, Debug)]
pub struct RequestFields {
    /// Tokens to generate at most; `None` takes what is left of the context, which more than that
    /// does too.
    pub tokens_max: Option<u32>,
    /// Tokens that are generated at most, whatever is asked for.
    pub tokens_cap: Option<u32>,
    /// How to draw tokens.
    pub sampling: SamplingParams,
    /// Tokens that end the sequence (the model's end-of-sequence ids; empty with `ignore_eos`).
    pub stop_tokens: Vec<TokenId>,
    /// Report the drawn token's logprob and this many alternatives'.
    pub logprobs: Option<u32>,
    /// Report the same of each prompt token, given those before it.
    pub prompt_logprobs: Option<u32>,
    /// Report the prompt's vector and generate nothing.
    pub pooling: Option<Pooling>,
    /// See [`Terms::cache_salt`].
    pub cache_salt: Option<Digest>,
    /// See [`Terms::share`].
    pub share: Share,
    /// See [`Terms::priority`].
    pub priority: i32,
    /// See [`Terms::guide`].
    pub guide: Option<Box<dyn Guide>>,
}

impl Default for RequestFields {
    fn default() -> Self {
        Self {
            tokens_max: None,
            tokens_cap: None,
            sampling: SamplingParams::greedy(),
            stop_tokens: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            pooling: None,
            cache_salt: None,
            share: Share::default(),
            priority: 0,
            guide: None,
        }
    }
}

/// [`RequestFields`] whose values are in range: checked once, for however many prompts.
#[derive(Clone, Debug)]
pub struct RequestParams {
    fields: RequestFields,
}

impl RequestParams {
    /// Parses what does not depend on a prompt.
    ///
    /// # Errors
    /// [`Invalid`] naming the field, the limit and the value.
    pub fn new(fields: RequestFields, limits: &Limits) -> Result<Self, Invalid> {
        let RequestFields { tokens_max, tokens_cap, logprobs, prompt_logprobs, pooling, .. } =
            fields;
        fields.sampling.check()?;
        fields.sampling.rules.check(limits.vocabulary_tokens)?;
        let tokens_max = if pooling.is_some() { Some(0) } else { tokens_max };
        if tokens_max == Some(0) && prompt_logprobs.is_none() && pooling.is_none() {
            let message = "max_tokens must be at least 1, got 0; 0 is for those who ask for \
                           the prompt alone, with echo or prompt_logprobs";
            return Err(Invalid::value("max_tokens", message));
        }
        tokens_max.map_or(Ok(()), |asked| limits.check_tokens_max(asked))?;
        let tokens_max = tokens_max.map(|max| max.min(tokens_cap.unwrap_or(max)));
        let wanted = [("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)];
        let max = limits.logprobs_max;
        if let Some((param, Some(n))) = wanted.into_iter().find(|(_, n)| *n > Some(max)) {
            let n = or_more(n);
            return Err(Invalid::value(param, format!("{param} must be at most {max}, got {n}")));
        }
        Ok(Self { fields: RequestFields { tokens_max, ..fields } })
    }

    /// The same with another seed: every seed is valid.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.fields.sampling.seed = seed;
        self
    }

    /// The same for answers of a form.
    pub fn with_guide(mut self, guide: Option<Box<dyn Guide>>) -> Self {
        self.fields.guide = guide;
        self
    }

    /// Checks a prompt, before or after there is room for it; `limits` are those that the fields
    /// were checked against.
    ///
    /// # Errors
    /// [`Invalid`] for an empty prompt, a token outside the vocabulary, or more than the context
    /// takes.
    pub fn check_prompt(&self, prompt: &[TokenId], limits: &Limits) -> Result<(), Invalid> {
        if prompt.is_empty() {
            let message = "prompt must hold at least one token, got none";
            return Err(Invalid::value("prompt", message));
        }
        let limit = limits.context_tokens_max;
        if let Some(id) = prompt.iter().find(|&&id| id >= limits.vocabulary_tokens) {
            let (vocabulary, id) = (limits.vocabulary_tokens, or_more(*id));
            let message = format!("token ids must be below {vocabulary}, got {id}");
            return Err(Invalid::value("prompt", message));
        }
        // Whoever asks for more than is left gets what is left, but one token at least.
        let least = self.fields.tokens_max.unwrap_or(1).min(1);
        let asked = prompt.len() as u64 + u64::from(least);
        if asked > u64::from(limit) {
            // The wording that LiteLLM and others match to tell this error from the rest.
            let message = format!(
                "This model's maximum context length is {limit} tokens. However, you requested \
                 {asked} tokens ({} in the prompt, at least {least} in the completion). Shorten \
                 the prompt.",
                prompt.len(),
            );
            return Err(Invalid { param: "prompt", message, code: "context_length_exceeded" });
        }
        let tokens_max = self.tokens_max(prompt.len(), limits);
        let min_tokens = self.fields.sampling.rules.min_tokens;
        if min_tokens > tokens_max {
            let min_tokens = or_more(min_tokens);
            let message = format!(
                "min_tokens must be at most the {tokens_max} tokens that may be generated \
                 (max_tokens, or what is left of the context), got {min_tokens}"
            );
            return Err(Invalid::value("min_tokens", message));
        }
        Ok(())
    }

    /// Tokens that a prompt of so many leaves to generate.
    fn tokens_max(&self, prompt_tokens: usize, limits: &Limits) -> u32 {
        let RequestFields { tokens_max, tokens_cap, .. } = self.fields;
        let left = limits.context_tokens_max.saturating_sub(prompt_tokens as u32);
        tokens_max.or(tokens_cap).map_or(left, |max| max.min(left))
    }

    /// The request that a prompt makes.
    ///
    /// # Errors
    /// Those of [`RequestParams::check_prompt`].
    pub fn with_prompt(self, prompt: Vec<TokenId>, limits: &Limits) -> Result<Request, Invalid> {
        self.check_prompt(&prompt, limits)?;
        let tokens_max = self.tokens_max(prompt.len(), limits);
        let RequestFields { sampling, stop_tokens, logprobs, prompt_logprobs, .. } = self.fields;
        let RequestFields { pooling, cache_salt, share, priority, guide, .. } = self.fields;
        let terms = Terms {
            tokens_max,
            sampling,
            stop_tokens,
            logprobs,
            prompt_logprobs,
            pooling,
            cache_salt,
            share,
            priority,
            guide,
        };
        Ok(Request { prompt, terms })
    }
}

/// What is asked of a prompt, checked.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Tokens to generate; 0 only beside prompt logprobs or pooling.
    pub tokens_max: u32,
    /// How to draw them.
    pub sampling: SamplingParams,
    /// Tokens that end the sequence.
    pub stop_tokens: Vec<TokenId>,
    /// Alternatives to report at every position that is drawn.
    pub logprobs: Option<u32>,
    /// The same at every position of the prompt but the first.
    pub prompt_logprobs: Option<u32>,
    /// The prompt's vector; nothing is generated then.
    pub pooling: Option<Pooling>,
    /// Requests of another salt share nothing with this one in the prefix cache.
    pub cache_salt: Option<Digest>,
    /// Whose it is, and what that tenant gets beside others.
    pub share: Share,
    /// Of the tenant's requests lower ones go first.
    pub priority: i32,
    /// The form that the answer must have, at its start.
    pub guide: Option<Box<dyn Guide>>,
}

/// A request that fits the model. Fields are private: the only ways to one are [`Request::new`] and
/// [`RequestParams::with_prompt`].
#[derive(Clone, Debug)]
pub struct Request {
    prompt: Vec<TokenId>,
    terms: Terms,
}

impl Request {
    /// Parses; there is no way to build an invalid `Request`.
    ///
    /// # Errors
    /// [`Invalid`] naming the field, the limit and the value.
    pub fn new(
        prompt: Vec<TokenId>,
        fields: RequestFields,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        RequestParams::new(fields, limits)?.with_prompt(prompt, limits)
    }

    /// Prompt tokens, at least one.
    pub fn prompt(&self) -> &[TokenId] {
        &self.prompt
    }

    /// What is asked of it.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    /// Both.
    pub fn into_parts(self) -> (Vec<TokenId>, Terms) {
        (self.prompt, self.terms)
    }
}
