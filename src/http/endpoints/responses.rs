//! `POST /v1/responses`: a chat as OpenAI's newer API spells it. Nothing is kept: whoever goes on
//! with an answer sends it again.

use serde_json::{Map, Value, json};

use super::conversation;
use super::rephrase::{respelled, value};
use super::responses_request::{self as request, ResponsesFields};
use crate::http::error::{ApiError, RequestError};
use crate::http::generation::choices::CompletionOutput;
use crate::http::generation::endpoint::{Asked, Endpoint, Reply};
use crate::http::generation::logprobs::{self, Drawn};
use crate::http::random::new_id;
use crate::http::request::fields::Common;
use crate::http::request::prompt::PromptInput;
use crate::http::wire::{Usage, to_json};
use crate::request::Limits;

/// Items in, a message out.
pub(in crate::http) struct Responses {
    reply: Reply,
    /// The message's id.
    item: String,
    /// The next event's.
    sequence_number: u64,
    /// Whether the message has begun in the stream.
    is_open: bool,
    /// All of it so far, in a stream.
    text: String,
    drawn: Vec<Drawn>,
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

    fn read(own: ResponsesFields, _: &Common, limits: &Limits) -> Result<Asked, RequestError> {
        let logprobs = request::logprobs(&own, limits.logprobs_max)?;
        let (tokens_max, tokens_max_param) = (own.max_output_tokens, "max_output_tokens");
        let chat = conversation::read(request::chat(own)?, None)?;
        let input = PromptInput::Chat(Box::new(chat));
        Ok(Asked { input, tokens_max, tokens_max_param, logprobs, tools: None })
    }

    fn new(reply: Reply) -> Self {
        Self {
            reply,
            item: format!("msg_{}", new_id()),
            // The opening event has the first.
            sequence_number: 1,
            is_open: false,
            text: String::new(),
            drawn: Vec::new(),
        }
    }

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn whole(&self, outputs: &[CompletionOutput], usage: Usage) -> Vec<u8> {
        let Some(output) = outputs.first() else { return Vec::new() };
        let message = self.message(status(output), &output.text, &output.drawn);
        to_json(&self.ended(output, json!([message]), usage))
    }

    fn opening(&self, _: usize, _: Usage) -> Option<Vec<u8>> {
        let response = self.response("in_progress", json!([]), Value::Null);
        let kind = "response.created";
        Some(to_json(&json!({"type": kind, "sequence_number": 0, "response": response})))
    }

    fn chunks(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>> {
        let mut events = Vec::new();
        if !self.is_open {
            self.is_open = true;
            events.extend(self.begin());
        }
        let news = self.logprobs(&output.drawn);
        let tells = self.reply.logprobs.is_some() && !output.drawn.is_empty();
        if !output.text.is_empty() || tells {
            let delta = json!({"delta": output.text, "logprobs": news});
            events.push(self.event("response.output_text.delta", &self.at_part(delta)));
        }
        self.text += &output.text;
        if self.reply.logprobs.is_some() {
            self.drawn.extend_from_slice(&output.drawn);
        }
        if output.finish.is_some() {
            events.extend(self.end(output, usage));
        }
        events
    }

    fn failed(&mut self, error: &ApiError) -> Vec<u8> {
        let mut response = self.response("failed", json!([]), Value::Null);
        response["error"] = json!({"code": "server_error", "message": error.message()});
        self.event("response.failed", &json!({"response": response}))
    }
}

impl Responses {
    /// What stands between the opening of a stream and its first text.
    fn begin(&mut self) -> Vec<Vec<u8>> {
        let response = self.response("in_progress", json!([]), Value::Null);
        let mut item = self.message("in_progress", "", &[]);
        item["content"] = json!([]);
        let part = self.part("", &[]);
        vec![
            self.event("response.in_progress", &json!({"response": response})),
            self.event("response.output_item.added", &json!({"output_index": 0, "item": item})),
            self.event("response.content_part.added", &self.at_part(json!({"part": part}))),
        ]
    }

    /// What ends a stream.
    fn end(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>> {
        let status = status(output);
        let logprobs = self.logprobs(&self.drawn);
        let done = self.at_part(json!({"text": self.text, "logprobs": logprobs}));
        let part = self.at_part(json!({"part": self.part(&self.text, &self.drawn)}));
        let item = self.message(status, &self.text, &self.drawn);
        let response = self.ended(output, json!([item]), usage);
        let last = format!("response.{status}");
        vec![
            self.event("response.output_text.done", &done),
            self.event("response.content_part.done", &part),
            self.event("response.output_item.done", &json!({"output_index": 0, "item": item})),
            self.event(&last, &json!({"response": response})),
        ]
    }

    /// An event of the stream, numbered.
    fn event(&mut self, kind: &str, fields: &Value) -> Vec<u8> {
        let mut event = json!({"type": kind, "sequence_number": self.sequence_number});
        self.sequence_number += 1;
        if let (Value::Object(event), Value::Object(fields)) = (&mut event, fields) {
            event.extend(fields.clone());
        }
        to_json(&event)
    }

    /// Where in the response the message's text is, and what is said of it.
    fn at_part(&self, fields: Value) -> Value {
        let mut at = json!({"item_id": self.item, "output_index": 0, "content_index": 0});
        if let (Value::Object(at), Value::Object(fields)) = (&mut at, fields) {
            at.extend(fields);
        }
        at
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

    fn message(&self, status: &str, text: &str, drawn: &[Drawn]) -> Value {
        json!({
            "id": self.item,
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [self.part(text, drawn)],
        })
    }

    /// The response when its text has ended.
    fn ended(&self, output: &CompletionOutput, items: Value, used: Usage) -> Value {
        let status = status(output);
        let mut response = self.response(status, items, usage(used));
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

fn status(output: &CompletionOutput) -> &'static str {
    if output.finish == Some("length") { "incomplete" } else { "completed" }
}

fn usage(usage: Usage) -> Value {
    let cached = usage.prompt_tokens_details.map_or(0, |details| details.cached_tokens);
    json!({
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.total_tokens,
    })
}
