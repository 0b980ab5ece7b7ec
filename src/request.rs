//! A generation request after validation: nothing below re-checks it.

use std::ops::RangeInclusive;

use crate::ids::{Digest, TokenId};

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

/// Why a request was refused; the text is shown to the client with status 400.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field at fault, as the client spelled it.
    pub param: &'static str,
    /// What was expected, what was found, what to do.
    pub message: String,
    /// A stable machine-readable word.
    pub code: &'static str,
}

impl Invalid {
    /// A field whose value is out of range or of the wrong form.
    pub fn value(param: &'static str, message: impl Into<String>) -> Self {
        Self { param, message: message.into(), code: "invalid_value" }
    }
}

/// Penalties outside of it make of any text a list of words that have not been said.
const REPETITION_PENALTIES: RangeInclusive<f32> = 0.01..=100.0;

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
    /// The same seed, prompt and adapter give the same tokens, whatever else is in the batch.
    pub seed: u64,
}

impl SamplingParams {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        let (top_p, top_k, min_p, repetition_penalty) = (1.0, 0, 0.0, 1.0);
        Self { temperature: 0.0, top_p, top_k, min_p, repetition_penalty, seed: 0 }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field out of range.
    pub fn check(&self) -> Result<(), Invalid> {
        let Self { temperature, top_p, top_k: _, min_p, repetition_penalty, seed: _ } = self;
        if !(0.0..=2.0).contains(temperature) {
            let message = format!("temperature must be between 0 and 2, got {temperature}");
            return Err(Invalid::value("temperature", message));
        }
        if !(0.0..=1.0).contains(top_p) {
            let message = format!("top_p must be between 0 and 1, got {top_p}");
            return Err(Invalid::value("top_p", message));
        }
        if !(0.0..=1.0).contains(min_p) {
            let message = format!("min_p must be between 0 and 1, got {min_p}");
            return Err(Invalid::value("min_p", message));
        }
        if !REPETITION_PENALTIES.contains(repetition_penalty) {
            let (least, most) = (REPETITION_PENALTIES.start(), REPETITION_PENALTIES.end());
            let message = format!(
                "repetition_penalty must be between {least} and {most}, got {repetition_penalty}"
            );
            return Err(Invalid::value("repetition_penalty", message));
        }
        Ok(())
    }
}

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

/// How the hidden states of a prompt become one vector.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Pooling {
    /// The last token's.
    Last,
    /// Their mean.
    Mean,
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
    /// See [`Terms::priority`].
    pub priority: i32,
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
            priority: 0,
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
        let tokens_max = if pooling.is_some() { Some(0) } else { tokens_max };
        if tokens_max == Some(0) && prompt_logprobs.is_none() && pooling.is_none() {
            let message = "max_tokens must be at least 1, got 0; 0 is for those who ask for \
                           the prompt alone, with echo or prompt_logprobs";
            return Err(Invalid::value("max_tokens", message));
        }
        let context = limits.context_tokens_max;
        if let Some(asked) = tokens_max.filter(|&asked| asked > context) {
            let message = format!(
                "max_tokens must be at most {context}, this model's context length, got {asked}"
            );
            return Err(Invalid::value("max_tokens", message));
        }
        let tokens_max = tokens_max.map(|max| max.min(tokens_cap.unwrap_or(max)));
        let wanted = [("logprobs", logprobs), ("prompt_logprobs", prompt_logprobs)];
        let max = limits.logprobs_max;
        if let Some((param, Some(n))) = wanted.into_iter().find(|(_, n)| *n > Some(max)) {
            return Err(Invalid::value(param, format!("{param} must be at most {max}, got {n}")));
        }
        Ok(Self { fields: RequestFields { tokens_max, ..fields } })
    }

    /// The same with another seed: every seed is valid.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.fields.sampling.seed = seed;
        self
    }

    /// The request that a prompt makes; `limits` are those that the fields were checked against.
    ///
    /// # Errors
    /// [`Invalid`] for an empty prompt, a token outside the vocabulary, or more than the context
    /// takes.
    pub fn with_prompt(self, prompt: Vec<TokenId>, limits: &Limits) -> Result<Request, Invalid> {
        let RequestFields { tokens_max, tokens_cap, sampling, stop_tokens, .. } = self.fields;
        let RequestFields { logprobs, prompt_logprobs, pooling, cache_salt, priority, .. } =
            self.fields;
        if prompt.is_empty() {
            let message = "prompt must hold at least one token, got none";
            return Err(Invalid::value("prompt", message));
        }
        let limit = limits.context_tokens_max;
        if let Some(id) = prompt.iter().find(|&&id| id >= limits.vocabulary_tokens) {
            let vocabulary = limits.vocabulary_tokens;
            let message = format!("token ids must be below {vocabulary}, got {id}");
            return Err(Invalid::value("prompt", message));
        }
        // Whoever asks for more than is left gets what is left, but one token at least.
        let least = tokens_max.unwrap_or(1).min(1);
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
        let left = limit - prompt.len() as u32;
        let tokens_max = tokens_max.or(tokens_cap).map_or(left, |max| max.min(left));
        let terms = Terms {
            tokens_max,
            sampling,
            stop_tokens,
            logprobs,
            prompt_logprobs,
            pooling,
            cache_salt,
            priority,
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
    /// Lower ones run first; of equal ones those that came first.
    pub priority: i32,
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

    /// Adds one.
    pub fn allow(&mut self, token: TokenId) {
        self.words[token as usize / 32] |= 1 << (token % 32);
    }

    /// Whether a token is one of them.
    pub fn allows(&self, token: TokenId) -> bool {
        self.words.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
    }

    /// Token `t` is bit `t % 32` of word `t / 32`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mask_allows_what_it_was_told() {
        let mut mask = TokenMask::none(70);
        [0, 31, 32, 69].into_iter().for_each(|token| mask.allow(token));
        let allowed: Vec<TokenId> = (0..200).filter(|&token| mask.allows(token)).collect();
        assert_eq!((allowed, mask.words().len()), (vec![0, 31, 32, 69], 3));
    }
}
