//! What answers hold. A name with `?` may be absent; nothing else than what is named is there.

use serde_json::{Map, Value, json};

use crate::http::error::ERROR_CODES;

/// An object of exactly these.
pub(super) fn object(fields: &[(&str, Value)]) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for (name, schema) in fields {
        let plain = name.trim_end_matches('?');
        if plain == *name {
            required.push(plain);
        }
        properties.insert(plain.to_owned(), schema.clone());
    }
    json!({"type": "object", "properties": properties, "required": required,
        "additionalProperties": false})
}

pub(super) fn at(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

pub(super) fn or_null(schema: Value) -> Value {
    json!({"anyOf": [schema, {"type": "null"}]})
}

pub(super) fn list(of: Value) -> Value {
    json!({"type": "array", "items": of})
}

pub(super) fn text() -> Value {
    json!({"type": "string"})
}

pub(super) fn text_or_null() -> Value {
    json!({"type": ["string", "null"]})
}

fn flag() -> Value {
    json!({"type": "boolean"})
}

pub(super) fn count() -> Value {
    json!({"type": "integer", "minimum": 0})
}

pub(super) fn number() -> Value {
    json!({"type": "number"})
}

pub(super) fn word(word: &str) -> Value {
    json!({"const": word})
}

pub(super) fn null() -> Value {
    json!({"type": "null"})
}

pub(super) fn begins(prefix: &str) -> Value {
    json!({"type": "string", "pattern": format!("^{prefix}")})
}

pub(super) fn words(words: &[Option<&str>]) -> Value {
    json!({"enum": words})
}

fn map(of: Value) -> Value {
    json!({"type": "object", "additionalProperties": of})
}

/// The schemas of all answers, by name. Those of `src/http/wire.rs` have the names of its types.
pub(super) fn all() -> Map<String, Value> {
    let parts = [errors(), shared(), completions(), chat(), calls(), models(), others(), server()];
    parts.into_iter().flatten().map(|(name, schema)| (name.to_owned(), schema)).collect()
}

type Named = Vec<(&'static str, Value)>;

/// A stable word for programs; docs/errors.md says when each is answered.
fn error_code() -> Value {
    let codes: Vec<&str> = ERROR_CODES.iter().map(|(code, ..)| *code).collect();
    json!({"type": "string", "enum": codes, "description": "A stable word for programs."})
}

fn errors() -> Named {
    let error = object(&[
        ("message", text()),
        (
            "type",
            words(&[
                Some("invalid_request_error"),
                Some("not_found_error"),
                Some("authentication_error"),
                Some("permission_error"),
                Some("rate_limit_error"),
                Some("server_error"),
            ]),
        ),
        ("param", text_or_null()),
        ("code", error_code()),
    ]);
    let anthropics = object(&[
        (
            "type",
            words(&[
                Some("invalid_request_error"),
                Some("authentication_error"),
                Some("permission_error"),
                Some("not_found_error"),
                Some("request_too_large"),
                Some("rate_limit_error"),
                Some("api_error"),
                Some("overloaded_error"),
            ]),
        ),
        ("message", text()),
    ]);
    vec![
        ("Error", object(&[("error", error)])),
        (
            "AnthropicError",
            object(&[("type", word("error")), ("error", anthropics), ("request_id?", text())]),
        ),
    ]
}

/// What the generation routes share.
fn shared() -> Named {
    vec![
        (
            "Usage",
            object(&[
                ("prompt_tokens", count()),
                ("completion_tokens", count()),
                ("total_tokens", count()),
                ("prompt_tokens_details?", at("PromptDetails")),
                ("completion_tokens_details?", at("CompletionDetails")),
            ]),
        ),
        ("CompletionDetails", object(&[("reasoning_tokens", count())])),
        ("PromptDetails", object(&[("cached_tokens", count())])),
        ("StopReason", json!({"anyOf": [text(), count()]})),
        (
            "PromptLogprob",
            object(&[("logprob", number()), ("rank", count()), ("decoded_token", text())]),
        ),
        ("PromptLogprobs", list(or_null(map(at("PromptLogprob"))))),
        (
            "LegacyLogprobs",
            object(&[
                ("text_offset", list(count())),
                ("token_logprobs", list(json!({"type": ["number", "null"]}))),
                ("tokens", list(text())),
                ("top_logprobs", list(or_null(map(number())))),
            ]),
        ),
        ("ChatLogprobs", object(&[("content", list(at("ChatLogprob"))), ("refusal", null())])),
        (
            "ChatLogprob",
            object(&[
                ("token", text()),
                ("logprob", number()),
                ("bytes", list(json!({"type": "integer", "minimum": 0, "maximum": 255}))),
                ("top_logprobs?", list(at("ChatLogprob"))),
            ]),
        ),
    ]
}

/// An answer or a chunk of it.
fn answer(prefix: &str, kind: &str, choice: &str, usage: (&'static str, Value)) -> Value {
    object(&[
        ("id", begins(prefix)),
        ("object", word(kind)),
        ("created", count()),
        ("model", text()),
        ("system_fingerprint", text()),
        ("choices", list(at(choice))),
        usage,
        ("prompt_logprobs?", or_null(at("PromptLogprobs"))),
        ("prompt_token_ids?", or_null(list(count()))),
    ])
}

/// Of a whole answer, and of a chunk.
fn whole_usage() -> (&'static str, Value) {
    ("usage", at("Usage"))
}

fn chunk_usage() -> (&'static str, Value) {
    ("usage?", or_null(at("Usage")))
}

fn finish() -> Value {
    let reasons = ["stop", "length", "tool_calls", "function_call"].map(Some);
    words(&[&reasons[..], &[None]].concat())
}

/// What a stream holds: one that fails ends with the error.
fn chunk_or_error(chunk: &str) -> Value {
    json!({"anyOf": [at(chunk), at("Error")]})
}

fn completions() -> Named {
    let choice = object(&[
        ("index", count()),
        ("text", text()),
        ("logprobs", or_null(at("LegacyLogprobs"))),
        ("finish_reason", words(&[Some("stop"), Some("length"), None])),
        ("stop_reason?", or_null(at("StopReason"))),
        ("prompt_logprobs?", or_null(at("PromptLogprobs"))),
        ("prompt_token_ids?", or_null(list(count()))),
        ("token_ids?", or_null(list(count()))),
    ]);
    vec![
        ("Completion", answer("cmpl-", "text_completion", "CompletionChoice", whole_usage())),
        ("CompletionChunk", answer("cmpl-", "text_completion", "CompletionChoice", chunk_usage())),
        ("CompletionEvent", chunk_or_error("CompletionChunk")),
        ("CompletionChoice", choice),
    ]
}

fn chat() -> Named {
    let choice = object(&[
        ("index", count()),
        ("message?", at("AssistantMessage")),
        ("delta?", at("MessageDelta")),
        ("logprobs", or_null(at("ChatLogprobs"))),
        ("finish_reason", finish()),
        ("stop_reason?", or_null(at("StopReason"))),
        ("token_ids?", or_null(list(count()))),
    ]);
    let chunk = "chat.completion.chunk";
    vec![
        ("ChatCompletion", answer("chatcmpl-", "chat.completion", "ChatChoice", whole_usage())),
        ("ChatCompletionChunk", answer("chatcmpl-", chunk, "ChatChoice", chunk_usage())),
        ("ChatCompletionEvent", chunk_or_error("ChatCompletionChunk")),
        ("ChatChoice", choice),
        (
            "AssistantMessage",
            object(&[
                ("role", word("assistant")),
                ("content", text_or_null()),
                ("refusal", null()),
                ("reasoning?", text_or_null()),
                ("reasoning_content?", text_or_null()),
                ("tool_calls?", list(at("ToolCall"))),
                ("function_call?", at("FunctionCall")),
            ]),
        ),
        (
            "MessageDelta",
            object(&[
                ("role?", word("assistant")),
                ("content?", text()),
                ("reasoning?", text()),
                ("reasoning_content?", text()),
                ("tool_calls?", list(at("ToolCall"))),
                ("function_call?", at("FunctionCall")),
            ]),
        ),
    ]
}

fn calls() -> Named {
    vec![
        (
            "ToolCall",
            object(&[
                ("index?", count()),
                ("id?", text()),
                ("type?", word("function")),
                ("function", at("FunctionCall")),
            ]),
        ),
        ("FunctionCall", object(&[("name?", text()), ("arguments", text())])),
    ]
}

fn models() -> Named {
    let permission = object(&[
        ("id", begins("modelperm-")),
        ("object", word("model_permission")),
        ("created", count()),
        ("allow_create_engine", flag()),
        ("allow_sampling", flag()),
        ("allow_logprobs", flag()),
        ("allow_search_indices", flag()),
        ("allow_view", flag()),
        ("allow_fine_tuning", flag()),
        ("organization", text()),
        ("group", text_or_null()),
        ("is_blocking", flag()),
    ]);
    let adapter = object(&[
        ("id", text()),
        ("object", word("adapter")),
        ("name", text()),
        ("digest", text()),
        ("method", text()),
        ("rank", count()),
        ("bytes", count()),
        ("targets", list(text())),
        ("state", words(&[Some("loaded"), Some("merged")])),
        ("created", count()),
        ("parent", text()),
    ]);
    let card = object(&[
        ("id", text()),
        ("object", word("model")),
        ("created", count()),
        ("owned_by", text()),
        ("root", text()),
        ("parent", text_or_null()),
        ("max_model_len", json!({"type": ["integer", "null"]})),
        ("permission", list(at("Permission"))),
    ]);
    vec![
        ("ModelList", object(&[("object", word("list")), ("data", list(at("ModelCard")))])),
        ("ModelCard", card),
        ("Permission", permission),
        ("AdapterList", object(&[("object", word("list")), ("data", list(at("AdapterCard")))])),
        ("AdapterCard", adapter),
        (
            "Deleted",
            object(&[
                ("id", text()),
                ("object", words(&[Some("model"), Some("adapter")])),
                ("deleted", json!({"const": true})),
            ]),
        ),
        ("Validation", validation()),
    ]
}

fn validation() -> Value {
    let tensor =
        object(&[("name", text()), ("site", json!({})), ("part", json!({})), ("bytes", count())]);
    object(&[
        ("object", word("adapter.validation")),
        ("valid", json!({"const": true})),
        ("method", text()),
        ("digest", text()),
        ("rank_max", count()),
        ("file_bytes", count()),
        ("served_bytes", count()),
        ("notes", list(text())),
        ("tensors", list(tensor)),
    ])
}

/// Answers of routes that generate nothing.
fn others() -> Named {
    let head = |prefix: &str, of: &str| {
        object(&[
            ("id", begins(prefix)),
            ("object", word("list")),
            ("created", count()),
            ("model", text()),
            ("data", list(at(of))),
            ("usage", at("Usage")),
        ])
    };
    vec![
        ("Embeddings", head("embd-", "Embedding")),
        (
            "Embedding",
            object(&[
                ("object", word("embedding")),
                ("index", count()),
                ("embedding", json!({"anyOf": [list(number()), text()]})),
            ]),
        ),
        ("Loglikelihoods", head("loglik-", "Loglikelihood")),
        (
            "Loglikelihood",
            object(&[
                ("object", word("loglikelihood")),
                ("index", count()),
                ("loglikelihood", number()),
                ("is_greedy", flag()),
                ("token_ids", list(count())),
                ("token_logprobs", list(number())),
                ("prompt_tokens", count()),
                ("continuation_tokens", count()),
            ]),
        ),
        (
            "Tokenized",
            object(&[
                ("count", count()),
                ("max_model_len", count()),
                ("tokens", list(count())),
                ("token_strs", or_null(list(text()))),
            ]),
        ),
        ("Detokenized", object(&[("prompt", text())])),
        ("TokenCount", object(&[("input_tokens", count())])),
    ]
}

/// What the server says of itself.
fn server() -> Named {
    let mut info = json!({
        "type": "object",
        "properties": {
            "model": text(),
            "chat_template": text_or_null(),
            "model_max_length": count(),
        },
        "required": ["model", "chat_template", "model_max_length"],
    });
    // Special tokens by their names, of which a tokenizer may have any.
    info["additionalProperties"] = text_or_null();
    let mut all = vec![
        ("TokenizerInfo", info),
        ("ServerLoad", object(&[("server_load", count())])),
        (
            "Index",
            object(&[
                ("object", word("index")),
                ("name", word("tessera")),
                ("version", text()),
                ("page", text_or_null()),
                ("docs", text()),
                ("openapi", text()),
                ("models", text()),
                ("adapters", text()),
                ("runtime_adapters", flag()),
                ("routes", list(text())),
            ]),
        ),
        ("Version", object(&[("version", text())])),
        ("UsageList", object(&[("object", word("list")), ("data", list(at("UsageRow")))])),
        (
            "UsageRow",
            object(&[
                ("object", word("usage")),
                ("day", json!({"type": "string", "pattern": "^[0-9]{4,}-[0-9]{2}-[0-9]{2}$"})),
                ("key", text_or_null()),
                ("adapter", text()),
                ("requests", count()),
                ("prompt_tokens", count()),
                ("cached_tokens", count()),
                ("completion_tokens", count()),
            ]),
        ),
    ];
    all.extend(batch());
    all
}

fn batch() -> Named {
    let row = object(&[
        ("id", count()),
        ("model", text()),
        ("key", text_or_null()),
        ("state", words(&[Some("waiting"), Some("prefill"), Some("decode")])),
        ("prompt_tokens", count()),
        ("cached_tokens", count()),
        ("computed_tokens", count()),
        ("completion_tokens", count()),
        ("max_tokens", count()),
        ("blocks", count()),
    ]);
    let batch = object(&[
        ("object", word("batch")),
        ("running", count()),
        ("waiting", count()),
        ("blocks_used", or_null(count())),
        ("blocks_total", count()),
        ("block_tokens", count()),
        ("rows", list(at("BatchRow"))),
        ("rows_left_out", count()),
    ]);
    vec![("Batch", batch), ("BatchRow", row)]
}
