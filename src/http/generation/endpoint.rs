//! What the generation routes differ in, and what their replies share.

use serde_json::{Map, Value};

use super::choices::CompletionOutput;
use super::logprobs::{self, Drawn, token_ids};
use super::thoughts::{Telling, ThoughtFields};
use super::tools::Tools;
use crate::engine::PromptScore;
use crate::http::clock::unix_now_s;
use crate::http::error::{ApiError, RequestError};
use crate::http::random::new_id;
use crate::http::request::fields::Common;
use crate::http::request::parse::Fields;
use crate::http::request::prompt::PromptInput;
use crate::http::request::told::{Echo, PromptTerms, ToldPrompt};
use crate::http::spelling::Spelling;
use crate::http::wire::{Answer, PromptLogprobs, StopReason, Usage};
use crate::ids::TokenId;
use crate::request::{Invalid, Limits};

/// A generation route: how it reads its own fields, and how it writes what the model says.
pub(in crate::http) trait Endpoint: Send + Sized + 'static {
    /// The fields that no other route has.
    type Fields: Fields;

    /// What an answer's `id` begins with.
    const ID_PREFIX: &'static str;

    /// Whether each event of a stream is named by its `type`, and the last is one of its own.
    const NAMES_EVENTS: bool = false;

    /// `object` of an answer, or of each chunk of a stream.
    fn object(is_stream: bool) -> &'static str;

    /// Puts what it spells otherwise into the fields of all routes, and says what of the request
    /// its answer repeats.
    ///
    /// # Errors
    /// [`RequestError`], with the field at fault.
    fn translate(_: &mut Self::Fields, _: &mut Common) -> Result<Map<String, Value>, RequestError> {
        Ok(Map::new())
    }

    /// A fault with the names that its fields have here.
    fn respelled(error: ApiError) -> ApiError {
        error
    }

    /// What its own fields ask for of the prompts.
    fn prompt_terms(_: &Self::Fields) -> PromptTerms {
        PromptTerms::default()
    }

    /// What its own fields say of thoughts.
    fn thoughts(_: &Self::Fields) -> ThoughtFields {
        ThoughtFields { telling: Telling::InText, ..ThoughtFields::apart(None) }
    }

    /// Reads its own fields.
    ///
    /// # Errors
    /// [`RequestError`], with the field at fault.
    fn read(own: Self::Fields, common: &Common, limits: &Limits) -> Result<Asked, RequestError>;

    /// The answer to one request.
    fn new(reply: Reply) -> Self;

    /// What [`Endpoint::new`] was given.
    fn reply(&self) -> &Reply;

    /// What is new of a choice of a whole answer, before [`Endpoint::whole`].
    fn see(&mut self, _: &CompletionOutput) {}

    /// The whole answer with all choices, as JSON.
    fn whole(&self, outputs: &[CompletionOutput], usage: Usage) -> Vec<u8>;

    /// The chunk of a choice before the first of [`Endpoint::chunks`], as JSON.
    fn opening(&self, index: usize, usage: Usage) -> Option<Vec<u8>>;

    /// The chunks for what is new of a choice, as JSON: none if it says nothing.
    fn chunks(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>>;

    /// The last chunk of a stream that fails, as JSON.
    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        error.to_json()
    }
}

/// What a route's own fields ask for.
pub(in crate::http) struct Asked {
    pub input: PromptInput,
    /// Tokens to generate, and the field that says so.
    pub tokens_max: Option<u32>,
    pub tokens_max_param: &'static str,
    /// Alternatives to report at every token, if logprobs are to be reported.
    pub logprobs: Option<u32>,
    /// What may be called.
    pub tools: Option<Tools>,
}

/// Everything about the answer that the request decides, the same in every chunk of it.
pub(in crate::http) struct Reply {
    pub id: String,
    object: &'static str,
    pub created: u64,
    /// As the client spelled it.
    pub model: String,
    fingerprint: String,
    pub options: ReplyOptions,
    pub spelling: Spelling,
    /// Alternatives to report at every token, if logprobs are to be reported.
    pub logprobs: Option<u32>,
    /// All prompts if anything is to be told of them, else none.
    pub prompts: Vec<ToldPrompt>,
    /// Choices of each prompt.
    pub samples: usize,
    /// What of the request the answer repeats.
    pub repeats: Map<String, Value>,
}

impl Reply {
    pub fn new<E: Endpoint>(
        model: String,
        fingerprint: String,
        options: ReplyOptions,
        spelling: Spelling,
        logprobs: Option<u32>,
        prompts: Vec<ToldPrompt>,
        samples: usize,
    ) -> Self {
        let join = if E::NAMES_EVENTS { '_' } else { '-' };
        let id = format!("{}{join}{}", E::ID_PREFIX, new_id());
        let (object, created) = (E::object(options.stream), unix_now_s());
        Self {
            id,
            object,
            created,
            model,
            fingerprint,
            options,
            spelling,
            logprobs,
            prompts,
            samples,
            repeats: Map::new(),
        }
    }

    /// One JSON object with these choices.
    pub fn answer<'a, C>(
        &'a self,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
    ) -> Answer<'a, C> {
        Answer {
            id: &self.id,
            object: self.object,
            created: self.created,
            model: &self.model,
            system_fingerprint: &self.fingerprint,
            choices,
            usage,
            prompt_logprobs: None,
            prompt_token_ids: None,
        }
    }

    /// The prompt of a choice, if anything is to be told of it.
    pub fn prompt(&self, index: usize) -> Option<&ToldPrompt> {
        self.prompts.get(index / self.samples)
    }

    /// What the text of a choice begins with.
    pub fn echo(&self, index: usize) -> Option<&Echo> {
        self.prompt(index)?.echo.as_ref()
    }

    /// Its tokens, if they are to be returned.
    pub fn prompt_ids(&self, index: usize) -> Option<&[TokenId]> {
        let prompt = self.prompt(index).filter(|_| self.options.return_token_ids)?;
        Some(&prompt.ids)
    }

    /// What was drawn, if it is to be returned.
    pub fn token_ids(&self, drawn: &[Drawn]) -> Option<Vec<TokenId>> {
        self.options.return_token_ids.then(|| token_ids(drawn))
    }

    /// vLLM's `stop_reason`: null of a choice that ended otherwise, absent of one that goes on.
    pub fn stop_reason<'a>(&self, output: &'a CompletionOutput) -> Option<Option<&'a StopReason>> {
        output.finish.map(|_| output.stop_reason.as_ref())
    }

    /// vLLM's extra fields: null in a whole answer that did not ask for them, and absent in a
    /// stream, where each chunk would say so again.
    pub fn extra<T>(&self, value: Option<T>) -> Option<Option<T>> {
        (value.is_some() || !self.options.stream).then_some(value)
    }

    /// `prompt_logprobs` of a choice's prompt, if they are asked for.
    pub fn prompt_logprobs(&self, scores: Option<&[PromptScore]>) -> Option<PromptLogprobs> {
        let asked = self.options.prompt_logprobs?;
        Some(logprobs::prompt(&self.spelling, scores?, asked))
    }

    /// `usage` of a chunk before the last: null if the last will have it.
    pub fn chunk_usage(&self, usage: Usage) -> Option<Option<Usage>> {
        self.options.include_usage.then(|| self.options.continuous_usage.then_some(usage))
    }
}

/// What both routes read from their common fields.
pub(in crate::http) struct ReplyOptions {
    pub stream: bool,
    pub include_usage: bool,
    /// Usage so far on every chunk.
    pub continuous_usage: bool,
    pub return_token_ids: bool,
    /// Tokens are named by their ids in logprobs.
    pub tokens_as_ids: bool,
    /// Alternatives to report at every token of a prompt, if that is to be reported.
    pub prompt_logprobs: Option<u32>,
    /// There may be calls.
    pub may_call: bool,
    /// A call is told of in OpenAI's older form.
    pub calls_old: bool,
    /// Where thoughts are told of, if there may be any.
    pub thoughts: Telling,
}

impl ReplyOptions {
    /// # Errors
    /// [`RequestError::Invalid`] for `stream_options` without `stream`, and for
    /// `prompt_logprobs` with it.
    pub fn new(common: &Common) -> Result<Self, RequestError> {
        let stream = common.stream.unwrap_or(false);
        if common.stream_options.is_some() && !stream {
            let message = "stream_options may only be given with stream set to true";
            return Err(Invalid::value("stream_options", message).into());
        }
        if common.prompt_logprobs.is_some() && stream {
            let message = "prompt_logprobs cannot be streamed; leave out stream, or send \
                           echo and logprobs to /v1/completions";
            return Err(Invalid::value("prompt_logprobs", message).into());
        }
        let options = common.stream_options.as_ref().map(|options| &options.fields);
        let include_usage = options.and_then(|o| o.include_usage).unwrap_or(false);
        let continuous = options.and_then(|o| o.continuous_usage_stats).unwrap_or(false);
        Ok(Self {
            stream,
            include_usage,
            continuous_usage: include_usage && continuous,
            return_token_ids: common.return_token_ids.unwrap_or(false),
            tokens_as_ids: common.return_tokens_as_token_ids.unwrap_or(false),
            prompt_logprobs: common.prompt_logprobs,
            may_call: false,
            calls_old: false,
            thoughts: Telling::InText,
        })
    }
}
