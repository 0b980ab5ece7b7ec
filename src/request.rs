//! A generation request after validation: nothing below re-checks it.

use crate::ids::TokenId;

/// What a request is validated against; printed at start-up.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Prompt plus completion. More is answered 400 `context_length_exceeded`.
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

/// How the next token is drawn from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the largest logit.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drops tokens less likely than this share of the likeliest one's; 0 drops none.
    pub min_p: f32,
    /// The same seed, prompt and adapter give the same tokens, whatever else is in the batch.
    pub seed: u64,
}

impl SamplingParams {
    /// Always the likeliest token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_p: 1.0, top_k: 0, min_p: 0.0, seed: 0 }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// [`Invalid`] naming the first field out of range.
    fn check(&self) -> Result<(), Invalid> {
        let Self { temperature, top_p, top_k: _, min_p, seed: _ } = self;
        if !(0.0..=2.0).contains(temperature) {
            let message = format!("temperature must be between 0 and 2, got {temperature}");
            return Err(Invalid::value("temperature", message));
        }
        if !(*top_p > 0.0 && *top_p <= 1.0) {
            let message = format!("top_p must be above 0 and at most 1, got {top_p}");
            return Err(Invalid::value("top_p", message));
        }
        if !(0.0..=1.0).contains(min_p) {
            let message = format!("min_p must be between 0 and 1, got {min_p}");
            return Err(Invalid::value("min_p", message));
        }
        Ok(())
    }
}

/// All of a request but its prompt: checked once, for however many prompts. Fields are private:
/// the only way to one is [`RequestParams::new`].
#[derive(Clone, Debug)]
pub struct RequestParams {
    tokens_max: Option<u32>,
    sampling: SamplingParams,
    stop_tokens: Vec<TokenId>,
    logprobs: Option<u32>,
}

/// A request that fits the model. Fields are private: the only ways to one are [`Request::new`] and
/// [`RequestParams::with_prompt`].
#[derive(Clone, Debug)]
pub struct Request {
    prompt: Vec<TokenId>,
    tokens_max: u32,
    sampling: SamplingParams,
    stop_tokens: Vec<TokenId>,
    logprobs: Option<u32>,
}

/// What [`Request::new`] checks.
#[derive(Clone, Debug)]
pub struct RequestFields {
    /// Prompt tokens.
    pub prompt: Vec<TokenId>,
    /// Tokens to generate; `None` takes what is left of the context.
    pub tokens_max: Option<u32>,
    /// How to draw tokens.
    pub sampling: SamplingParams,
    /// Tokens that end the sequence (the model's end-of-sequence ids; empty with `ignore_eos`).
    pub stop_tokens: Vec<TokenId>,
    /// Report the sampled token's logprob and this many alternatives'.
    pub logprobs: Option<u32>,
}

impl RequestParams {
    /// Parses what does not depend on a prompt; the arguments are those of [`RequestFields`].
    ///
    /// # Errors
    /// [`Invalid`] naming the field, the limit and the value.
    pub fn new(
        tokens_max: Option<u32>,
        sampling: SamplingParams,
        stop_tokens: Vec<TokenId>,
        logprobs: Option<u32>,
        limits: &Limits,
    ) -> Result<Self, Invalid> {
        sampling.check()?;
        if tokens_max == Some(0) {
            return Err(Invalid::value("max_tokens", "max_tokens must be at least 1, got 0"));
        }
        if let Some(n) = logprobs.filter(|&n| n > limits.logprobs_max) {
            let max = limits.logprobs_max;
            let message = format!("logprobs must be at most {max}, got {n}");
            return Err(Invalid::value("logprobs", message));
        }
        Ok(Self { tokens_max, sampling, stop_tokens, logprobs })
    }

    /// The same with another seed: every seed is valid.
    pub fn with_seed(self, seed: u64) -> Self {
        let sampling = SamplingParams { seed, ..self.sampling };
        Self { sampling, ..self }
    }

    /// The request that a prompt makes; `limits` are those that the parameters were checked
    /// against.
    ///
    /// # Errors
    /// [`Invalid`] for an empty prompt, a token outside the vocabulary, or more than the context
    /// takes.
    pub fn with_prompt(self, prompt: Vec<TokenId>, limits: &Limits) -> Result<Request, Invalid> {
        let Self { tokens_max, sampling, stop_tokens, logprobs } = self;
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
        let asked = prompt.len() as u64 + u64::from(tokens_max.unwrap_or(1));
        if asked > u64::from(limit) {
            // The wording that LiteLLM and others match to tell this error from the rest.
            let message = format!(
                "This model's maximum context length is {limit} tokens. However, you requested \
                 {asked} tokens ({} in the prompt, {} in the completion). Shorten the prompt or \
                 lower max_tokens.",
                prompt.len(),
                tokens_max.unwrap_or(1)
            );
            return Err(Invalid { param: "prompt", message, code: "context_length_exceeded" });
        }
        let tokens_max = tokens_max.unwrap_or(limit - prompt.len() as u32);
        Ok(Request { prompt, tokens_max, sampling, stop_tokens, logprobs })
    }
}

impl Request {
    /// Parses; there is no way to build an invalid `Request`.
    ///
    /// # Errors
    /// [`Invalid`] naming the field, the limit and the value.
    pub fn new(fields: RequestFields, limits: &Limits) -> Result<Self, Invalid> {
        let RequestFields { prompt, tokens_max, sampling, stop_tokens, logprobs } = fields;
        let params = RequestParams::new(tokens_max, sampling, stop_tokens, logprobs, limits)?;
        params.with_prompt(prompt, limits)
    }

    /// Prompt tokens, at least one.
    pub fn prompt(&self) -> &[TokenId] {
        &self.prompt
    }

    /// Tokens to generate, at least one.
    pub fn tokens_max(&self) -> u32 {
        self.tokens_max
    }

    /// How to draw tokens.
    pub fn sampling(&self) -> &SamplingParams {
        &self.sampling
    }

    /// Tokens that end the sequence.
    pub fn stop_tokens(&self) -> &[TokenId] {
        &self.stop_tokens
    }

    /// Alternatives to report at every position.
    pub fn logprobs(&self) -> Option<u32> {
        self.logprobs
    }
}
