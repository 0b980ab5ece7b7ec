//! What `/v1/messages` and `/v1/responses` answer, whole and as events of a stream, in the forms of
//! Anthropic and OpenAI.

use serde_json::{Value, json};

use super::answers::{at, begins, count, list, null, number, object, or_null, text, text_or_null};
use super::answers::{word, words};

/// Schemas by name.
pub(super) fn all() -> Vec<(&'static str, Value)> {
    vec![
        ("Message", message()),
        ("MessageUsage", message_usage()),
        ("MessageBlock", message_block()),
        ("MessageEvent", message_event()),
        ("Response", response()),
        ("ResponseUsage", response_usage()),
        ("ResponseItem", response_item()),
        ("ResponsePart", response_part()),
        ("ResponseEvent", response_event()),
    ]
}

const STOP_REASONS: [Option<&str>; 4] =
    [Some("end_turn"), Some("max_tokens"), Some("stop_sequence"), Some("tool_use")];

fn message_block() -> Value {
    let call = object(&[
        ("type", word("tool_use")),
        ("id", text()),
        ("name", text()),
        ("input", json!({"type": "object"})),
    ]);
    let thought =
        object(&[("type", word("thinking")), ("thinking", text()), ("signature", word(""))]);
    json!({"anyOf": [thought, object(&[("type", word("text")), ("text", text())]), call]})
}

fn message() -> Value {
    object(&[
        ("id", begins("msg_")),
        ("type", word("message")),
        ("role", word("assistant")),
        ("model", text()),
        ("content", list(at("MessageBlock"))),
        ("stop_reason", words(&[&STOP_REASONS[..], &[None]].concat())),
        ("stop_sequence", text_or_null()),
        ("usage", at("MessageUsage")),
    ])
}

fn message_usage() -> Value {
    object(&[
        ("input_tokens", count()),
        ("cache_creation_input_tokens", count()),
        ("cache_read_input_tokens", or_null(count())),
        ("output_tokens", count()),
        ("output_tokens_details?", object(&[("thinking_tokens", count())])),
    ])
}

/// One event of a stream of messages.
fn message_event() -> Value {
    let event =
        |kind: &str, own: &[(&str, Value)]| object(&[&[("type", word(kind))][..], own].concat());
    let index = || ("index", count());
    let delta = json!({"anyOf": [
        object(&[("type", word("thinking_delta")), ("thinking", text())]),
        object(&[("type", word("text_delta")), ("text", text())]),
        object(&[("type", word("input_json_delta")), ("partial_json", text())]),
    ]});
    let end = object(&[("stop_reason", words(&STOP_REASONS)), ("stop_sequence", text_or_null())]);
    json!({"anyOf": [
        event("message_start", &[("message", at("Message"))]),
        event("content_block_start", &[index(), ("content_block", at("MessageBlock"))]),
        event("ping", &[]),
        event("content_block_delta", &[index(), ("delta", delta)]),
        event("content_block_stop", &[index()]),
        event("message_delta", &[("delta", end), ("usage", at("MessageUsage"))]),
        event("message_stop", &[]),
        at("AnthropicError"),
    ]})
}

fn response() -> Value {
    let error = object(&[("code", text()), ("message", text())]);
    let incomplete = object(&[("reason", word("max_output_tokens"))]);
    let no = || json!({"const": false});
    let integer_or_null = || json!({"type": ["integer", "null"]});
    let status = ["in_progress", "completed", "incomplete", "failed"].map(Some);
    object(&[
        ("id", begins("resp_")),
        ("object", word("response")),
        ("created_at", count()),
        ("status", words(&status)),
        ("background", no()),
        ("error", or_null(error)),
        ("incomplete_details", or_null(incomplete)),
        ("max_tool_calls", integer_or_null()),
        ("model", text()),
        ("output", list(at("ResponseItem"))),
        ("previous_response_id", null()),
        ("store", no()),
        ("tool_choice", json!({"type": ["string", "object"]})),
        ("tools", list(json!({"type": "object"}))),
        ("truncation", word("disabled")),
        ("instructions", text_or_null()),
        ("max_output_tokens", integer_or_null()),
        ("metadata", json!({"type": "object"})),
        ("parallel_tool_calls", json!({"type": "boolean"})),
        ("reasoning", object(&[("effort", text_or_null()), ("summary", null())])),
        ("temperature", or_null(number())),
        ("text", object(&[("format", json!({"type": "object"}))])),
        ("top_logprobs", count()),
        ("top_p", or_null(number())),
        ("user", text_or_null()),
        ("usage", or_null(at("ResponseUsage"))),
    ])
}

fn response_usage() -> Value {
    let input = object(&[("cached_tokens", count()), ("cache_write_tokens", count())]);
    object(&[
        ("input_tokens", count()),
        ("input_tokens_details", input),
        ("output_tokens", count()),
        ("output_tokens_details", object(&[("reasoning_tokens", count())])),
        ("total_tokens", count()),
    ])
}

fn response_item() -> Value {
    let status = || words(&["in_progress", "completed", "incomplete"].map(Some));
    let message = object(&[
        ("id", begins("msg_")),
        ("type", word("message")),
        ("status", status()),
        ("role", word("assistant")),
        ("content", list(at("ResponsePart"))),
    ]);
    let call = object(&[
        ("id", begins("fc_")),
        ("type", word("function_call")),
        ("status", status()),
        ("call_id", text()),
        ("name", text()),
        ("arguments", text()),
    ]);
    let thought = object(&[
        ("id", begins("rs_")),
        ("type", word("reasoning")),
        ("status", status()),
        ("summary", json!({"type": "array", "maxItems": 0})),
        ("content", list(at("ResponsePart"))),
    ]);
    json!({"anyOf": [thought, message, call]})
}

fn response_part() -> Value {
    let thought = object(&[("type", word("reasoning_text")), ("text", text())]);
    let said = object(&[
        ("type", word("output_text")),
        ("annotations", json!({"type": "array", "maxItems": 0})),
        ("logprobs", list(at("ChatLogprob"))),
        ("text", text()),
    ]);
    json!({"anyOf": [thought, said]})
}

/// One event of a stream of a response.
fn response_event() -> Value {
    let zero = || json!({"const": 0});
    let event = |kinds: &[&str], own: &[(&str, Value)]| {
        let kinds: Vec<_> = kinds.iter().map(|kind| Some(*kind)).collect();
        object(&[&[("type", words(&kinds)), ("sequence_number", count())][..], own].concat())
    };
    let of_part = |kinds: &[&str], own: &[(&str, Value)]| {
        let place = [("item_id", text()), ("output_index", count()), ("content_index", zero())];
        event(kinds, &[&place[..], own].concat())
    };
    let of_call = |kind: &str, own: &[(&str, Value)]| {
        let place = [("item_id", text()), ("output_index", count())];
        event(&[kind], &[&place[..], own].concat())
    };
    let logprobs = || ("logprobs", list(at("ChatLogprob")));
    let of_all = [
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ];
    let items = ["response.output_item.added", "response.output_item.done"];
    let parts = ["response.content_part.added", "response.content_part.done"];
    json!({"anyOf": [
        event(&of_all, &[("response", at("Response"))]),
        event(&items, &[("output_index", count()), ("item", at("ResponseItem"))]),
        of_part(&parts, &[("part", at("ResponsePart"))]),
        of_part(&["response.reasoning_text.delta"], &[("delta", text())]),
        of_part(&["response.reasoning_text.done"], &[("text", text())]),
        of_part(&["response.output_text.delta"], &[("delta", text()), logprobs()]),
        of_part(&["response.output_text.done"], &[("text", text()), logprobs()]),
        of_call("response.function_call_arguments.delta", &[("delta", text())]),
        of_call(
            "response.function_call_arguments.done",
            &[("name", text()), ("arguments", text())],
        ),
    ]})
}
