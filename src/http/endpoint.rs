//! What the two generation routes differ in, and what their replies share.

use std::sync::Arc;

use super::choices::CompletionOutput;
use super::clock::unix_now_s;
use super::error::RequestError;
use super::fields::Common;
use super::parse::Fields;
use super::prompt::PromptInput;
use super::random::new_id;
use super::wire::{Answer, Usage};
use crate::ids::TokenId;
use crate::request::{Invalid, Limits};
use crate::text::Tokenizer;

/// A generation route: how it reads its own fields, and how it writes what the model says.
pub(super) trait Endpoint: Send + Sized + 'static {
    /// The fields that no other route has.
    type Fields: Fields;

    /// What an answer's `id` begins with.
    const ID_PREFIX: &'static str;

    /// `object` of an answer, or of each chunk of a stream.
    fn object(is_stream: bool) -> &'static str;

    /// Reads its own fields.
    ///
    /// # Errors
    /// [`RequestError`], with the field at fault.
    fn read(own: Self::Fields, common: &Common, limits: &Limits) -> Result<Asked, RequestError>;

    /// The answer to one request.
    fn new(reply: Reply) -> Self;

    /// What [`Endpoint::new`] was given.
    fn reply(&self) -> &Reply;

    /// The whole answer with all choices, as JSON.
    fn whole(&self, outputs: &[CompletionOutput], usage: Usage) -> Vec<u8>;

    /// The chunk before the first of [`Endpoint::chunks`], as JSON.
    fn opening(&self, usage: Usage) -> Option<Vec<u8>>;

    /// The chunks for what is new of a choice, as JSON: none if it says nothing.
    fn chunks(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>>;
}

/// What a route's own fields ask for.
pub(super) struct Asked {
    pub input: PromptInput,
    /// Tokens to generate, and the field that says so.
    pub tokens_max: Option<u32>,
    pub tokens_max_param: &'static str,
    /// Alternatives to report at every token, if logprobs are to be reported.
    pub logprobs: Option<u32>,
}

/// Everything about the answer that the request decides, the same in every chunk of it.
pub(super) struct Reply {
    id: String,
    object: &'static str,
    created: u64,
    /// As the client spelled it.
    model: String,
    pub options: ReplyOptions,
    pub tokenizer: Arc<Tokenizer>,
    pub has_logprobs: bool,
    /// The prompt of each choice if they are to be returned, else none.
    pub prompts: Vec<Vec<TokenId>>,
}

impl Reply {
    pub fn new<E: Endpoint>(
        model: String,
        options: ReplyOptions,
        tokenizer: Arc<Tokenizer>,
        has_logprobs: bool,
        prompts: Vec<Vec<TokenId>>,
    ) -> Self {
        let id = format!("{}-{}", E::ID_PREFIX, new_id());
        let (object, created) = (E::object(options.stream), unix_now_s());
        Self { id, object, created, model, options, tokenizer, has_logprobs, prompts }
    }

    /// One JSON object with these choices.
    pub fn answer<'a, C>(
        &'a self,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
    ) -> Answer<'a, C> {
        let Self { id, object, created, model, .. } = self;
        let (id, model) = (id.as_str(), model.as_str());
        Answer { id, object, created: *created, model, choices, usage, prompt_token_ids: None }
    }

    /// `usage` of a chunk before the last: null if the last will have it.
    pub fn chunk_usage(&self, usage: Usage) -> Option<Option<Usage>> {
        self.options.include_usage.then(|| self.options.continuous_usage.then_some(usage))
    }
}

/// What both routes read from their common fields.
pub(super) struct ReplyOptions {
    pub stream: bool,
    pub include_usage: bool,
    /// Usage so far on every chunk.
    pub continuous_usage: bool,
    pub return_token_ids: bool,
}

impl ReplyOptions {
    /// # Errors
    /// [`RequestError::Invalid`] for `stream_options` without `stream`.
    pub fn new(common: &Common) -> Result<Self, RequestError> {
        let stream = common.stream.unwrap_or(false);
        if common.stream_options.is_some() && !stream {
            let message = "stream_options may only be given with stream set to true";
            return Err(Invalid::value("stream_options", message).into());
        }
        let options = common.stream_options.as_ref();
        let include_usage = options.and_then(|o| o.include_usage).unwrap_or(false);
        let continuous = options.and_then(|o| o.continuous_usage_stats).unwrap_or(false);
        Ok(Self {
            stream,
            include_usage,
            continuous_usage: include_usage && continuous,
            return_token_ids: common.return_token_ids.unwrap_or(false),
        })
    }
}
