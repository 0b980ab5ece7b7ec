//! `POST /v1/responses`: a chat as OpenAI's newer API spells it. Nothing is kept: whoever goes on
//! with an answer sends it again.

use serde_json::{Map, Value, json};

use super::conversation;
use super::rephrase::{respelled, value};
use super::responses_request::{self as request, ResponsesFields};
use crate::http::error::{ApiError, RequestError};
use crate::http::generation::choices::CompletionOutput;
use crate::http::generation::endpoint::{Asked, Endpoint, Reply};
use crate::http::generation::items::{Change, Item, Items};
use crate::http::generation::logprobs::{self, Drawn};
use crate::http::generation::thoughts::ThoughtFields;
use crate::http::generation::tools;
use crate::http::random::new_id;
use crate::http::request::fields::Common;
use crate::http::request::prompt::PromptInput;
use crate::http::wire::{Usage, to_json};
use crate::request::Limits;

/// Items in, items out: thoughts, messages and calls of functions.
pub(in crate::http) struct Responses {
    reply: Reply,
    /// What the items' ids end with.
    id: String,
    /// The next event's.
    sequence_number: u64,
    items: Items,
}

impl Endpoint for Responses {
    type Fields = ResponsesFields;

    const ID_PREFIX: &'static str = "resp";
    const NAMES_EVENTS: bool = true;

    fn object(_: bool) -> &'static str {
        "response"
    }

    fn translate(
        own: &mut ResponsesFields,
        common: &mut Common,
    ) -> Result<Map<String, Value>, RequestError> {
        request::translate(own, common)
    }

    fn respelled(error: ApiError) -> ApiError {
        let names = [
            ("messages", "input"),
            ("response_format", "text.format"),
            ("reasoning_effort", "reasoning.effort"),
        ];
        respelled(error, &names)
    }

    fn thoughts(own: &ResponsesFields) -> ThoughtFields {
        let tokens_max = own.thinking_token_budget;
        ThoughtFields { must_bind: tokens_max.is_some(), ..ThoughtFields::apart(tokens_max) }
    }

    fn read(own: ResponsesFields, _: &Common, limits: &Limits) -> Result<Asked, RequestError> {
        let logprobs = request::logprobs(&own, limits.logprobs_max)?;
        let (tokens_max, tokens_max_param) = (own.max_output_tokens, "max_output_tokens");
        let mut chat = request::chat(own)?;
        let (tools, shown) = tools::read(&mut chat)?.unzip();
        let input = PromptInput::Chat(Box::new(conversation::read(chat, shown)?));
        Ok(Asked { input, tokens_max, tokens_max_param, logprobs, tools })
    }

    fn new(reply: Reply) -> Self {
        // The opening event has the number 0.
        let items = Items::new(reply.options.may_call);
        Self { reply, id: new_id(), sequence_number: 1, items }
    }

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn see(&mut self, output: &CompletionOutput) {
        self.items.add(output, self.told(output));
    }

    fn whole(&self, outputs: &[CompletionOutput], usage: Usage) -> Vec<u8> {
        outputs.first().map_or_else(Vec::new, |output| to_json(&self.ended(output, usage)))
    }

    fn opening(&self, _: usize, _: Usage) -> Option<Vec<u8>> {
        let response = self.response("in_progress", json!([]), Value::Null);
        let kind = "response.created";
        Some(to_json(&json!({"type": kind, "sequence_number": 0, "response": response})))
    }

    fn chunks(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        if self.sequence_number == 1 {
            let response = self.response("in_progress", json!([]), Value::Null);
            events.push(self.event("response.in_progress", json!({"response": response})));
        }
        for change in self.items.add(output, self.told(output)) {
            match change {
                Change::Open { at } => self.open(at, &mut events),
                Change::Thought { at, text } => {
                    let delta = self.part_at(at, json!({"delta": text}));
                    events.push(self.event("response.reasoning_text.delta", delta));
                }
                Change::Text { text, drawn, .. } if text.is_empty() && drawn.is_empty() => {}
                Change::Text { at, text, drawn } => {
                    let delta = json!({"delta": text, "logprobs": self.logprobs(&drawn)});
                    events.push(self.event("response.output_text.delta", self.part_at(at, delta)));
                }
                Change::Arguments { at, arguments } => {
                    let delta = self.item_at(at, json!({"delta": arguments}));
                    events.push(self.event("response.function_call_arguments.delta", delta));
                }
                Change::Close { at } => self.close(at, output, &mut events),
            }
        }
        if output.finish.is_some() {
            let kind = format!("response.{}", status(output));
            let response = self.ended(output, usage);
            events.push(self.event(&kind, json!({"response": response})));
        }
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        let mut response = self.response("failed", json!([]), Value::Null);
        response["error"] = json!({"code": "server_error", "message": error.message()});
        self.event("response.failed", json!({"response": response}))
    }
}

impl Responses {
    /// An item of the stream begins.
    fn open(&mut self, at: usize, events: &mut Vec<Vec<u8>>) {
        let mut item = self.item(at, "in_progress");
        let part = match self.items.all[at] {
            Item::Thought { .. } => Some(thought_part("")),
            Item::Text { .. } => Some(self.part("", &[])),
            Item::Call { .. } => None,
        };
        match part {
            Some(_) => item["content"] = json!([]),
            None => item["arguments"] = json!(""),
        }
        let added = json!({"output_index": at, "item": item});
        events.push(self.event("response.output_item.added", added));
        if let Some(part) = part {
            let part = self.part_at(at, json!({"part": part}));
            events.push(self.event("response.content_part.added", part));
        }
    }

    /// An item of the stream is whole.
    fn close(&mut self, at: usize, output: &CompletionOutput, events: &mut Vec<Vec<u8>>) {
        match &self.items.all[at] {
            Item::Thought { text } => {
                let done = self.part_at(at, json!({"text": text}));
                let part = self.part_at(at, json!({"part": thought_part(text)}));
                events.push(self.event("response.reasoning_text.done", done));
                events.push(self.event("response.content_part.done", part));
            }
            Item::Text { text, drawn } => {
                let logprobs = self.logprobs(drawn);
                let done = self.part_at(at, json!({"text": text, "logprobs": logprobs}));
                let part = self.part_at(at, json!({"part": self.part(text, drawn)}));
                events.push(self.event("response.output_text.done", done));
                events.push(self.event("response.content_part.done", part));
            }
            Item::Call { name, arguments, .. } => {
                let done = self.item_at(at, json!({"name": name, "arguments": arguments}));
                events.push(self.event("response.function_call_arguments.done", done));
            }
        }
        let item = self.item(at, self.item_status(at, output));
        let done = json!({"output_index": at, "item": item});
        events.push(self.event("response.output_item.done", done));
    }

    /// An event of the stream, numbered.
    fn event(&mut self, kind: &str, fields: Value) -> Vec<u8> {
        let event = json!({"type": kind, "sequence_number": self.sequence_number});
        self.sequence_number += 1;
        to_json(&joined(event, fields))
    }

    /// Where in the response an item is, and what is said of it.
    fn item_at(&self, at: usize, fields: Value) -> Value {
        joined(json!({"item_id": self.item_id(at), "output_index": at}), fields)
    }

    /// Where in the response a message's text is, and what is said of it.
    fn part_at(&self, at: usize, fields: Value) -> Value {
        self.item_at(at, joined(json!({"content_index": 0}), fields))
    }

    /// The tokens that are to be told of: those of text.
    fn told<'a>(&self, output: &'a CompletionOutput) -> &'a [Drawn] {
        let is_thought = output.drawn.iter().any(|drawn| drawn.is_thought);
        if self.reply.logprobs.is_some() && !is_thought { &output.drawn } else { &[] }
    }

    fn logprobs(&self, drawn: &[Drawn]) -> Value {
        match self.reply.logprobs {
            Some(_) => value(&logprobs::chat(&self.reply.spelling, drawn).content),
            None => json!([]),
        }
    }

    fn part(&self, text: &str, drawn: &[Drawn]) -> Value {
        let logprobs = self.logprobs(drawn);
        json!({"type": "output_text", "annotations": [], "logprobs": logprobs, "text": text})
    }

    fn item_id(&self, at: usize) -> String {
        let kind = match self.items.all[at] {
            Item::Thought { .. } => "rs",
            Item::Text { .. } => "msg",
            Item::Call { .. } => "fc",
        };
        // Unlike those of other answers, and of one length.
        let (head, tail) = self.id.split_at(self.id.len() - 4);
        let tail = u16::from_str_radix(tail, 16).unwrap_or_default().wrapping_add(at as u16);
        format!("{kind}_{head}{tail:04x}")
    }

    fn item(&self, at: usize, status: &str) -> Value {
        let id = self.item_id(at);
        match &self.items.all[at] {
            Item::Thought { text } => json!({
                "id": id,
                "type": "reasoning",
                "status": status,
                "summary": [],
                "content": [thought_part(text)],
            }),
            Item::Text { text, drawn } => json!({
                "id": id,
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": [self.part(text, drawn)],
            }),
            Item::Call { id: call_id, name, arguments } => json!({
                "id": id,
                "type": "function_call",
                "status": status,
                "call_id": call_id,
                "name": name,
                "arguments": arguments,
            }),
        }
    }

    /// Only the last item is cut.
    fn item_status(&self, at: usize, output: &CompletionOutput) -> &'static str {
        if at + 1 == self.items.all.len() { status(output) } else { "completed" }
    }

    /// The response when it has ended.
    fn ended(&self, output: &CompletionOutput, used: Usage) -> Value {
        let status = status(output);
        let items = (0..self.items.all.len()).map(|at| self.item(at, self.item_status(at, output)));
        let mut response = self.response(status, items.collect(), usage(used));
        if status == "incomplete" {
            response["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        response
    }

    fn response(&self, status: &str, output: Value, usage: Value) -> Value {
        let mut response = json!({
            "id": self.reply.id,
            "object": "response",
            "created_at": self.reply.created,
            "status": status,
            "background": false,
            "error": null,
            "incomplete_details": null,
            "max_tool_calls": null,
            "model": self.reply.model,
            "output": output,
            "previous_response_id": null,
            "store": false,
            "tool_choice": "auto",
            "tools": [],
            "truncation": "disabled",
        });
        if let Value::Object(response) = &mut response {
            response.extend(self.reply.repeats.clone());
            response.insert("usage".to_owned(), usage);
        }
        response
    }
}

fn thought_part(text: &str) -> Value {
    json!({"type": "reasoning_text", "text": text})
}

/// Two objects as one.
fn joined(mut object: Value, more: Value) -> Value {
    if let (Value::Object(object), Value::Object(more)) = (&mut object, more) {
        object.extend(more);
    }
    object
}

fn status(output: &CompletionOutput) -> &'static str {
    if output.finish == Some("length") { "incomplete" } else { "completed" }
}

fn usage(usage: Usage) -> Value {
    let cached = usage.prompt_tokens_details.map_or(0, |details| details.cached_tokens);
    let thought = usage.completion_tokens_details.map_or(0, |details| details.reasoning_tokens);
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": usage.total_tokens,
    })
}
