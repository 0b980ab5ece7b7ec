//! `POST /v1/messages` and its `count_tokens`: a chat as Anthropic's clients spell it.

use std::sync::Arc;

use hyper::Response;
use serde_json::{Map, Value, json};

use super::anthropic_request::{self as request, MessagesFields};
use super::conversation;
use super::rephrase::respelled;
use crate::http::caller::Caller;
use crate::http::error::{ApiError, RequestError};
use crate::http::generation::choices::CompletionOutput;
use crate::http::generation::endpoint::{Asked, Endpoint, Reply};
use crate::http::models::resolve;
use crate::http::request::body::Payload;
use crate::http::request::fields::{Common, Generation};
use crate::http::request::parse::parse;
use crate::http::request::prompt::PromptInput;
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::wire::{StopReason, Usage, to_json};
use crate::request::Limits;

/// Names of fields that errors know by others.
const NAMES: &[(&str, &str)] =
    &[("reasoning_effort", "output_config.effort"), ("response_format", "output_config.format")];

/// Messages in, one out.
pub(in crate::http) struct AnthropicMessages {
    reply: Reply,
    /// Whether a block has begun in the stream.
    is_open: bool,
}

impl Endpoint for AnthropicMessages {
    type Fields = MessagesFields;

    const ID_PREFIX: &'static str = "msg";
    const NAMES_EVENTS: bool = true;

    fn object(_: bool) -> &'static str {
        "message"
    }

    fn translate(
        own: &mut MessagesFields,
        common: &mut Common,
    ) -> Result<Map<String, Value>, RequestError> {
        request::translate(own, common)?;
        Ok(Map::new())
    }

    fn respelled(error: ApiError) -> ApiError {
        respelled(error, NAMES)
    }

    fn read(own: MessagesFields, common: &Common, _: &Limits) -> Result<Asked, RequestError> {
        let (tokens_max, tokens_max_param) = (common.max_tokens, "max_tokens");
        Ok(Asked { input: input(own)?, tokens_max, tokens_max_param, logprobs: None, tools: None })
    }

    fn new(reply: Reply) -> Self {
        Self { reply, is_open: false }
    }

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn whole(&self, outputs: &[CompletionOutput], used: Usage) -> Vec<u8> {
        let output = outputs.first();
        let text = output.map_or("", |output| &output.text);
        let content = json!([{"type": "text", "text": text}]);
        let end = output.map(ending);
        to_json(&self.message(content, end, usage(used)))
    }

    fn opening(&self, _: usize, used: Usage) -> Option<Vec<u8>> {
        let message = self.message(json!([]), None, usage(used));
        Some(to_json(&json!({"type": "message_start", "message": message})))
    }

    fn chunks(&mut self, output: &CompletionOutput, used: Usage) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        if !self.is_open {
            self.is_open = true;
            let block = json!({"type": "text", "text": ""});
            events.push(json!({"type": "content_block_start", "index": 0, "content_block": block}));
            events.push(json!({"type": "ping"}));
        }
        if !output.text.is_empty() {
            let delta = json!({"type": "text_delta", "text": output.text});
            events.push(json!({"type": "content_block_delta", "index": 0, "delta": delta}));
        }
        if output.finish.is_some() {
            let (reason, sequence) = ending(output);
            let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
            let usage = usage(used);
            events.push(json!({"type": "content_block_stop", "index": 0}));
            events.push(json!({"type": "message_delta", "delta": delta, "usage": usage}));
            events.push(json!({"type": "message_stop"}));
        }
        events.iter().map(to_json).collect()
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        error.to_anthropics()
    }
}

/// Why a message ends: `stop_reason` and `stop_sequence`.
type Ending<'a> = (&'static str, Option<&'a str>);

impl AnthropicMessages {
    fn message(&self, content: Value, end: Option<Ending<'_>>, usage: Value) -> Value {
        json!({
            "id": self.reply.id,
            "type": "message",
            "role": "assistant",
            "model": self.reply.model,
            "content": content,
            "stop_reason": end.map(|(reason, _)| reason),
            "stop_sequence": end.and_then(|(_, sequence)| sequence),
            "usage": usage,
        })
    }
}

fn ending(output: &CompletionOutput) -> Ending<'_> {
    match (output.finish, &output.stop_reason) {
        (Some("length"), _) => ("max_tokens", None),
        (_, Some(StopReason::Text(text))) => ("stop_sequence", Some(text)),
        _ => ("end_turn", None),
    }
}

/// `usage`: what the cache had is no part of `input_tokens`.
fn usage(usage: Usage) -> Value {
    let cached = usage.prompt_tokens_details.map(|details| details.cached_tokens);
    json!({
        "input_tokens": usage.prompt_tokens - cached.unwrap_or(0),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    })
}

fn input(own: MessagesFields) -> Result<PromptInput, RequestError> {
    Ok(PromptInput::Chat(Box::new(conversation::read(request::chat(own)?, None)?)))
}

/// How many tokens a request gives the model to read.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) async fn count_tokens(
    state: &Arc<State>,
    caller: Caller,
    payload: Payload,
) -> Result<Response<Body>, ApiError> {
    let count = move |state: &State| {
        let parsed = parse::<Generation<MessagesFields>>(&payload.bytes)?;
        let Generation { own, common } = parsed.fields;
        state.check_unknown(&[parsed.unknown, common.unknown()].concat())?;
        count(state, &caller, own, &common).map_err(|error| respelled(error.into(), NAMES))
    };
    let tokens = state.off_thread(&state.text_tasks, count).await?;
    Ok(whole("application/json", to_json(&json!({"input_tokens": tokens}))))
}

fn count(
    state: &State,
    caller: &Caller,
    own: MessagesFields,
    common: &Common,
) -> Result<usize, RequestError> {
    let text = resolve(state, caller, common.model.as_deref())?.text;
    let context_tokens_max = state.model.limits.context_tokens_max;
    let prompts = input(own)?.encode(&text, context_tokens_max, common.add_special_tokens)?;
    Ok(prompts.iter().map(Vec::len).sum())
}
