//! What is nested in fields that are read as they stand: messages, tools, forms of answers.

use serde_json::{Value, json};

use crate::http::endpoints::conversation::{EFFORTS, RESERVED};
use crate::http::endpoints::rephrase::REMARKS;
use crate::http::endpoints::responses_items::TEXTS;
use crate::http::endpoints::responses_request::INCLUDED;
use crate::http::generation::tools::TOOLS_MAX;
use crate::http::schema::nullable;

/// Names of functions and of schemas.
const NAME: &str = "^[a-zA-Z0-9_-]{1,64}$";
const FUNCTION_NAME: &str = "^[a-zA-Z0-9_.-]{1,64}$";

/// Nothing else than these, of which `required` must be there.
fn closed(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required,
        "additionalProperties": false})
}

/// Whatever else is there is read by the model's template.
fn open(properties: Value, required: &[&str]) -> Value {
    json!({"type": "object", "properties": properties, "required": required})
}

fn text() -> Value {
    json!({"type": "string"})
}

fn words(words: &[&str]) -> Value {
    json!({"type": "string", "enum": words})
}

/// What asks for nothing.
fn nothing() -> Value {
    json!({"anyOf": [{"type": "null"}, {"type": "array", "maxItems": 0}]})
}

/// `messages` of a chat.
pub(super) fn messages() -> Value {
    let part = json!({"anyOf": [
        text(),
        open(json!({"type": words(&["text", "input_text", "output_text"]), "text": text()}),
            &["type", "text"]),
        open(json!({"type": words(&["refusal"]), "refusal": text()}), &["type", "refusal"]),
    ]});
    let content = json!({"anyOf": [text(), {"type": "array", "items": part}]});
    let arguments = json!({
        "anyOf": [text(), {"type": "object"}],
        "description": "An object, or a string that is JSON of one.",
    });
    let function = open(json!({"name": text(), "arguments": arguments}), &["name", "arguments"]);
    let call =
        open(json!({"type": nullable(words(&["function"])), "function": function}), &["function"]);
    let calls = json!({"type": ["array", "null"], "items": call});
    let old_call = json!({"anyOf": [function, nothing()]});
    let others = ["system", "developer", "user", "tool", "function"];
    let assistant = open(
        json!({
            "role": words(&["assistant"]),
            "content": nullable(content.clone()),
            "tool_calls": calls,
            "function_call": old_call,
        }),
        &["role"],
    );
    let other = open(
        json!({
            "role": words(&others),
            "content": content,
            "tool_calls": nothing(),
            "function_call": nothing(),
        }),
        &["role", "content"],
    );
    json!({"type": "array", "minItems": 1, "items": {"anyOf": [other, assistant]}})
}

/// `chat_template_kwargs`.
pub(super) fn variables() -> Value {
    json!({"type": "object", "propertyNames": {"not": {"enum": RESERVED}}})
}

/// `reasoning_effort`.
pub(super) fn effort() -> Value {
    words(&EFFORTS)
}

/// A function, in OpenAI's newer and older forms.
fn function() -> Value {
    let parameters = json!({
        "type": ["object", "null"],
        "properties": {"type": {"enum": ["object", null]}},
        "description": "A JSON schema of an object.",
    });
    open(
        json!({
            "name": {"type": "string", "pattern": FUNCTION_NAME},
            "description": nullable(text()),
            "strict": {"type": ["boolean", "null"]},
            "parameters": parameters,
        }),
        &["name"],
    )
}

/// `tools`.
pub(super) fn tools() -> Value {
    let tool =
        open(json!({"type": words(&["function"]), "function": function()}), &["type", "function"]);
    json!({"type": "array", "maxItems": TOOLS_MAX, "items": tool})
}

/// `functions`.
pub(super) fn functions() -> Value {
    json!({"type": "array", "maxItems": TOOLS_MAX, "items": function()})
}

/// The name of a function, by itself or nested.
fn named() -> Value {
    let kind = nullable(words(&["function"]));
    let nested = open(
        json!({"type": kind, "function": open(json!({"name": text()}), &["name"])}),
        &["function"],
    );
    let flat = open(json!({"type": kind, "name": text()}), &["name"]);
    json!({"anyOf": [nested, flat]})
}

/// `tool_choice`.
pub(super) fn tool_choice() -> Value {
    let terms = json!({
        "mode": words(&["auto", "required"]),
        "tools": {"type": "array", "minItems": 1, "items": named()},
    });
    let allowed = open(
        json!({
            "type": words(&["allowed_tools"]),
            "allowed_tools": open(terms, &["mode", "tools"]),
        }),
        &["type", "allowed_tools"],
    );
    json!({"anyOf": [words(&["none", "auto", "required"]), named(), allowed]})
}

/// `tool_choice` of `/v1/responses`, where nothing is nested.
pub(super) fn flat_tool_choice() -> Value {
    let allowed = open(
        json!({
            "type": words(&["allowed_tools"]),
            "mode": words(&["auto", "required"]),
            "tools": {"type": "array", "minItems": 1, "items": named()},
        }),
        &["type", "mode", "tools"],
    );
    json!({"anyOf": [words(&["none", "auto", "required"]), named(), allowed]})
}

/// `tool_choice` of Anthropic's messages.
pub(super) fn anthropic_tool_choice() -> Value {
    closed(
        json!({
            "type": words(&["auto", "any", "tool", "none"]),
            "name": nullable(text()),
            "disable_parallel_tool_use": {"type": ["boolean", "null"]},
        }),
        &["type"],
    )
}

/// `function_call`.
pub(super) fn function_call() -> Value {
    json!({"anyOf": [words(&["none", "auto"]), named()]})
}

/// A JSON schema.
pub(super) fn json_schema() -> Value {
    json!({
        "type": ["object", "boolean", "string"],
        "description": "A JSON schema, or a string of one; docs/api.md says what is followed.",
    })
}

/// `response_format`.
pub(super) fn response_format() -> Value {
    let schema = closed(
        json!({
            "name": {"type": "string", "pattern": NAME},
            "schema": json_schema(),
            "strict": {"type": ["boolean", "null"]},
            "description": nullable(text()),
        }),
        &["name", "schema"],
    );
    let none = json!({"type": "null"});
    json!({"anyOf": [
        closed(json!({"type": words(&["text"]), "json_schema": none, "schema": none}), &["type"]),
        closed(
            json!({"type": words(&["json_object"]), "schema": nullable_schema(),
                "json_schema": none}),
            &["type"],
        ),
        closed(
            json!({"type": words(&["json_schema"]), "json_schema": schema, "schema": none}),
            &["type", "json_schema"],
        ),
    ]})
}

fn nullable_schema() -> Value {
    json!({"type": ["object", "boolean", "string", "null"]})
}

/// `structured_outputs`.
pub(super) fn structured_outputs() -> Value {
    let flag = json!({"type": ["boolean", "null"]});
    let none = json!({"type": "null"});
    let mut schema = closed(
        json!({
            "json": nullable_schema(),
            "regex": nullable(text()),
            "choice": nullable(choices()),
            "grammar": nullable(text()),
            "json_object": flag,
            "disable_any_whitespace": flag,
            "disable_additional_properties": {"enum": [false, null]},
            "whitespace_pattern": none,
            "structural_tag": none,
        }),
        &[],
    );
    schema["minProperties"] = 1.into();
    schema["description"] = "One of json, regex, choice, grammar and json_object.".into();
    schema
}

/// `guided_choice`.
pub(super) fn choices() -> Value {
    json!({"type": "array", "minItems": 1, "items": text()})
}

/// Texts, or blocks of them; `kinds` are the types of a block.
fn blocks(kinds: &[&str], other: &Value) -> Value {
    let mut remarks = serde_json::Map::new();
    remarks.extend(REMARKS.map(|remark| (remark.to_owned(), json!({}))));
    let block = |kinds: &[&str], key: &str| {
        let mut properties = remarks.clone();
        properties.insert("type".to_owned(), words(kinds));
        properties.insert(key.to_owned(), text());
        json!({"type": "object", "properties": properties, "required": ["type", key],
            "additionalProperties": other})
    };
    let (refusals, texts): (Vec<&str>, Vec<&str>) = kinds.iter().partition(|k| **k == "refusal");
    let mut forms = vec![block(&texts, "text")];
    if !refusals.is_empty() {
        forms.push(block(&refusals, "refusal"));
    }
    json!({"type": "array", "items": {"anyOf": forms}})
}

/// Null is as good as no key.
fn no_other() -> Value {
    json!({"type": "null"})
}

/// `system` of Anthropic's messages.
pub(super) fn anthropic_system() -> Value {
    json!({"anyOf": [text(), blocks(&["text"], &no_other())]})
}

/// `messages` of Anthropic's.
pub(super) fn anthropic_messages() -> Value {
    let message = |role: &[&str], content: Value| {
        json!({
            "type": "object",
            "properties": {"role": words(role), "content": content},
            "required": ["role", "content"],
            "additionalProperties": no_other(),
        })
    };
    let texts = blocks(&["text"], &no_other());
    let texts_and = |others: &[Value]| {
        let all: Vec<_> = others.iter().chain([&texts["items"]]).collect();
        json!({"anyOf": [text(), {"type": "array", "items": {"anyOf": all}}]})
    };
    let id = json!({"type": "string", "minLength": 1});
    let block = |kind: &str, mut keys: Value, required: &[&str]| {
        keys["type"] = words(&[kind]);
        keys["cache_control"] = json!({});
        let required = [&["type"], required].concat();
        json!({"type": "object", "properties": keys, "required": required,
            "additionalProperties": no_other()})
    };
    let call = json!({"id": id, "name": text(), "input": {"type": "object"}, "caller": {}});
    let result = json!({
        "tool_use_id": id,
        "content": {"anyOf": [nullable(text()), texts]},
        "is_error": {"type": ["boolean", "null"]},
    });
    let signature = nullable(text());
    let said = texts_and(&[
        block("tool_use", call, &["id", "name", "input"]),
        block("thinking", json!({"thinking": text(), "signature": signature}), &["thinking"]),
        block("redacted_thinking", json!({"data": text(), "signature": signature}), &["data"]),
    ]);
    let asked = texts_and(&[block("tool_result", result, &["tool_use_id"])]);
    let forms = [
        message(&["user"], asked),
        message(&["assistant"], said),
        message(&["system"], texts_and(&[])),
    ];
    json!({"type": "array", "minItems": 1, "items": {"anyOf": forms}})
}

/// `thinking`.
pub(super) fn thinking() -> Value {
    closed(
        json!({
            "type": words(&["disabled", "enabled", "adaptive"]),
            "budget_tokens": {"type": ["integer", "null"], "minimum": 0},
            "display": nullable(words(&["summarized"])),
        }),
        &["type"],
    )
}

/// `output_config`.
pub(super) fn output_config() -> Value {
    let format = closed(
        json!({"type": words(&["json_schema"]), "schema": json_schema()}),
        &["type", "schema"],
    );
    closed(
        json!({
            "effort": nullable(effort()),
            "format": {"anyOf": [format, {"type": "null"}]},
        }),
        &[],
    )
}

/// `input` of `/v1/responses`.
pub(super) fn items() -> Value {
    let content = json!({"anyOf": [text(), blocks(&TEXTS, &no_other())]});
    let item = json!({
        "type": "object",
        "properties": {
            "type": nullable(words(&["message"])),
            "role": words(&["user", "assistant", "system", "developer"]),
            "content": content,
            "id": {}, "status": {}, "phase": {},
        },
        "required": ["role", "content"],
        "additionalProperties": no_other(),
    });
    let other = |kind: &str, mut keys: Value, required: &[&str]| {
        keys["type"] = words(&[kind]);
        keys["id"] = json!({});
        keys["status"] = json!({});
        let required = [&["type"], required].concat();
        json!({"type": "object", "properties": keys, "required": required,
            "additionalProperties": no_other()})
    };
    let parts = |kinds: &[&str]| json!({"anyOf": [text(), blocks(kinds, &no_other())]});
    let thoughts = |kind: &str| json!({"anyOf": [parts(&[kind]), {"type": "null"}]});
    let (told, summed_up) = (thoughts("reasoning_text"), thoughts("summary_text"));
    let thought = json!({"content": told, "summary": summed_up, "encrypted_content": {}});
    let id = json!({"type": "string", "minLength": 1});
    let call = json!({"call_id": id, "name": id, "arguments": text(), "caller": {}, "async": {}});
    let output = json!({"call_id": id, "output": parts(&["input_text", "text"]), "name": {},
        "caller": {}, "async": {}});
    let items = [
        item,
        other("reasoning", thought, &[]),
        other("function_call", call, &["call_id", "name", "arguments"]),
        other("function_call_output", output, &["call_id", "output"]),
    ];
    json!({"anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"anyOf": items}},
    ]})
}

/// `include` of `/v1/responses`.
pub(super) fn include() -> Value {
    json!({"type": "array", "items": words(&INCLUDED)})
}

/// `text` of `/v1/responses`.
pub(super) fn text_format() -> Value {
    let none = json!({"type": "null"});
    let flag = json!({"type": ["boolean", "null"]});
    let named = json!({"type": "string", "pattern": NAME});
    let plain = |kind: &str, schema: &Value| {
        closed(
            json!({"type": words(&[kind]), "schema": schema, "name": none, "strict": none,
            "description": none}),
            &["type"],
        )
    };
    let format = json!({"anyOf": [
        plain("text", &none),
        plain("json_object", &nullable_schema()),
        closed(
            json!({"type": words(&["json_schema"]), "name": named, "schema": json_schema(),
                "strict": flag, "description": nullable(text())}),
            &["type", "name", "schema"],
        ),
        {"type": "null"},
    ]});
    closed(json!({"format": format, "verbosity": nullable(text())}), &[])
}

/// `reasoning` of `/v1/responses`.
pub(super) fn reasoning() -> Value {
    let auto = nullable(words(&["auto"]));
    closed(json!({"effort": nullable(effort()), "summary": auto, "generate_summary": auto}), &[])
}
