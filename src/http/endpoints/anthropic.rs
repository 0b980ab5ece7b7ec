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
use crate::http::generation::items::{Change, Item, Items};
use crate::http::generation::thoughts::ThoughtFields;
use crate::http::generation::tools::{self, Tools};
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
    /// The blocks of its content.
    items: Items,
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

    fn thoughts(own: &MessagesFields) -> ThoughtFields {
        ThoughtFields::apart(request::thought_tokens_max(own))
    }

    fn read(own: MessagesFields, common: &Common, _: &Limits) -> Result<Asked, RequestError> {
        let (tokens_max, tokens_max_param) = (common.max_tokens, "max_tokens");
        let (input, tools) = input(own)?;
        Ok(Asked { input, tokens_max, tokens_max_param, logprobs: None, tools })
    }

    fn new(reply: Reply) -> Self {
        let items = Items::new(reply.options.may_call);
        Self { reply, items }
    }

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn see(&mut self, output: &CompletionOutput) {
        self.items.add(output, &[]);
    }

    fn whole(&self, outputs: &[CompletionOutput], used: Usage) -> Vec<u8> {
        let content = self.items.all.iter().map(whole_block).collect();
        let end = outputs.first().map(|output| self.ending(output));
        to_json(&self.message(content, end, usage(used)))
    }

    fn opening(&self, _: usize, used: Usage) -> Option<Vec<u8>> {
        let message = self.message(json!([]), None, usage(used));
        Some(to_json(&json!({"type": "message_start", "message": message})))
    }

    fn chunks(&mut self, output: &CompletionOutput, used: Usage) -> Vec<Vec<u8>> {
        let changes = self.items.add(output, &[]);
        let mut events: Vec<Value> = Vec::new();
        for change in changes {
            match change {
                Change::Open { at } => {
                    let block = first_block(&self.items.all[at]);
                    let kind = "content_block_start";
                    events.push(json!({"type": kind, "index": at, "content_block": block}));
                    events.extend((at == 0).then(|| json!({"type": "ping"})));
                }
                Change::Thought { at, text } => {
                    events.push(delta(at, &json!({"type": "thinking_delta", "thinking": text})));
                }
                Change::Text { text, .. } if text.is_empty() => {}
                Change::Text { at, text, .. } => {
                    events.push(delta(at, &json!({"type": "text_delta", "text": text})));
                }
                Change::Arguments { at, arguments } => {
                    let more = json!({"type": "input_json_delta", "partial_json": arguments});
                    events.push(delta(at, &more));
                }
                Change::Close { at } => {
                    events.push(json!({"type": "content_block_stop", "index": at}));
                }
            }
        }
        if output.finish.is_some() {
            let (reason, sequence) = self.ending(output);
            let delta = json!({"stop_reason": reason, "stop_sequence": sequence});
            let usage = usage(used);
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
    fn ending<'a>(&self, output: &'a CompletionOutput) -> Ending<'a> {
        match (output.finish, &output.stop_reason) {
            (Some("length"), _) => ("max_tokens", None),
            (_, Some(StopReason::Text(text))) => ("stop_sequence", Some(text)),
            _ if self.items.has_calls() => ("tool_use", None),
            _ => ("end_turn", None),
        }
    }

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

fn delta(at: usize, delta: &Value) -> Value {
    json!({"type": "content_block_delta", "index": at, "delta": delta})
}

/// A block as a stream begins it.
fn first_block(item: &Item) -> Value {
    match item {
        Item::Thought { .. } => thinking(""),
        Item::Text { .. } => json!({"type": "text", "text": ""}),
        Item::Call { id, name, .. } => tool_use(id, name, json!({})),
    }
}

fn whole_block(item: &Item) -> Value {
    match item {
        Item::Thought { text } => thinking(text),
        Item::Text { text, .. } => json!({"type": "text", "text": text}),
        Item::Call { id, name, arguments } => tool_use(id, name, certain(arguments).into()),
    }
}

/// Nothing is signed: whoever sends a thought back may change it.
fn thinking(text: &str) -> Value {
    json!({"type": "thinking", "thinking": text, "signature": ""})
}

fn tool_use(id: &str, name: &str, input: Value) -> Value {
    // Of a chat's ids, those that no template wants otherwise have the other API's prefix.
    let id = id.strip_prefix("call_").map_or_else(|| id.to_owned(), |id| format!("toolu_{id}"));
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

/// Arguments as an object: of what was cut, all values that are whole.
fn certain(arguments: &str) -> Map<String, Value> {
    if let Ok(whole) = serde_json::from_str(arguments) {
        return whole;
    }
    let (mut in_text, mut is_escaped) = (false, false);
    let mut open = String::new();
    let mut last = (0, String::new());
    for (i, c) in arguments.char_indices() {
        if in_text {
            in_text = c != '"' || is_escaped;
            is_escaped = c == '\\' && !is_escaped;
            continue;
        }
        // After an opening bracket, after a closing one and before a comma all values are whole.
        let end = match c {
            '"' => {
                in_text = true;
                continue;
            }
            '{' => {
                open.insert(0, '}');
                i + 1
            }
            '[' => {
                open.insert(0, ']');
                i + 1
            }
            '}' | ']' => {
                open.drain(..1.min(open.len()));
                i + 1
            }
            ',' => i,
            _ => continue,
        };
        last = (end, open.clone());
    }
    let (end, closing) = last;
    serde_json::from_str(&format!("{}{closing}", &arguments[..end])).unwrap_or_default()
}

/// `usage`: what the cache had is no part of `input_tokens`.
fn usage(usage: Usage) -> Value {
    let cached = usage.prompt_tokens_details.map(|details| details.cached_tokens);
    let mut told = json!({
        "input_tokens": usage.prompt_tokens.saturating_sub(cached.unwrap_or(0)),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": usage.completion_tokens,
    });
    if let Some(details) = usage.completion_tokens_details {
        told["output_tokens_details"] = json!({"thinking_tokens": details.reasoning_tokens});
    }
    told
}

/// What the model reads, and what it may call.
fn input(own: MessagesFields) -> Result<(PromptInput, Option<Tools>), RequestError> {
    let mut chat = request::chat(own)?;
    let (tools, shown) = tools::read(&mut chat)?.unzip();
    Ok((PromptInput::Chat(Box::new(conversation::read(chat, shown)?)), tools))
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
    let bytes = payload.bytes.len();
    let count = move |state: &State| {
        let parsed = parse::<Generation<MessagesFields>>(&payload.bytes)?;
        let Generation { own, common } = parsed.fields;
        state.check_unknown(&[parsed.unknown, common.unknown()].concat())?;
        count(state, &caller, own, &common).map_err(|error| respelled(error.into(), NAMES))
    };
    let tokens = state.on_text(bytes, count).await?;
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
    let prompts = input(own)?.0.encode(&text, context_tokens_max, common.add_special_tokens, Ok)?;
    Ok(prompts.iter().map(Vec::len).sum())
}
