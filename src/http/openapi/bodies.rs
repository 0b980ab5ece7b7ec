//! What each route takes: the fields that its parser reads, with the ranges that are checked after.

use serde_json::{Value, json};

use super::forms;
use crate::http::endpoints::anthropic_request::MessagesFields;
use crate::http::endpoints::embeddings::EmbeddingFields;
use crate::http::endpoints::loglikelihood::LoglikelihoodFields;
use crate::http::endpoints::responses_request::ResponsesFields;
use crate::http::endpoints::tokens::{DetokenizeFields, TokenizeRequest};
use crate::http::generation::generate::CACHE_SALT_CHARS_MAX;
use crate::http::generation::passes::PassFields;
use crate::http::request::fields::{
    ChatFields, CompletionFields, Generation, LoadFields, STREAM_OPTIONS_MAX, UnloadFields,
    ValidateFields,
};
use crate::http::request::parse::Fields;
use crate::http::request::schemas::object;
use crate::http::request::told::{BEST_OF_MAX, SAMPLES_MAX};
use crate::http::schema::{Bounds, nullable};
use crate::http::table::Post;
use crate::request::RANGES;

/// A field, and what is to be said of it beyond its type. What has a type of its own stands for all
/// of it.
type Patch = (&'static str, Value);

/// What a route takes, and what of it.
struct Taken {
    schema: Value,
    patches: Vec<Patch>,
    required: &'static [&'static str],
    /// Fields that all routes read and this one refuses.
    refused: Vec<&'static str>,
}

/// Fields whose answer has no place in one message.
const NOT_SINGLE: &[&str] = &[
    "n",
    "best_of",
    "prompt_logprobs",
    "return_token_ids",
    "return_tokens_as_token_ids",
    "response_format",
];

/// The schema of a route's body.
pub(super) fn body(post: Post, bounds: &Bounds<'_>) -> Value {
    let Taken { mut schema, patches, required, refused } = taken(post, bounds);
    if let Value::Object(properties) = &mut schema["properties"] {
        refused.iter().for_each(|name| drop(properties.shift_remove(*name)));
        for (name, patch) in patches {
            if let Some(property) = properties.get_mut(name) {
                apply(property, patch);
            }
        }
        for name in required {
            properties.get_mut(*name).map(refuse_null);
        }
    }
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    if matches!(post, Post::Tokenize) {
        schema["oneOf"] = json!([
            {"required": ["prompt"], "properties":
                {"prompt": {"type": "string"}, "messages": {"type": "null"}}},
            {"required": ["messages"], "properties":
                {"messages": {"type": "array"}, "prompt": {"type": "null"}}},
        ]);
    }
    schema
}

fn apply(property: &mut Value, patch: Value) {
    let is_whole = ["type", "anyOf"].iter().any(|key| patch.get(key).is_some());
    let description = property.get("description").cloned();
    if is_whole {
        *property = nullable(patch);
        if let Some(description) = description {
            property["description"] = description;
        }
    } else if let (Value::Object(property), Value::Object(patch)) = (property, patch) {
        property.extend(patch);
    }
}

/// Takes back what [`nullable`] does.
fn refuse_null(schema: &mut Value) {
    let is_null = |value: &Value| *value == "null" || value.is_null() || value["type"] == "null";
    for key in ["type", "enum", "anyOf"] {
        if let Some(Value::Array(all)) = schema.get_mut(key) {
            all.retain(|value| !is_null(value));
        }
    }
}

/// The fields of a type, and those that change nothing.
fn of<T: Fields>(bounds: &Bounds<'_>) -> Value {
    let mut schema = object(T::properties(bounds));
    if let Value::Object(properties) = &mut schema["properties"] {
        // What a route itself refuses is not taken, whatever others do.
        for name in T::ignored().into_iter().filter(|name| T::unsupported(name).is_none()) {
            let nothing = || json!({"description": "Taken, and changes nothing in the answer."});
            properties.entry(name).or_insert_with(nothing);
        }
    }
    schema
}

fn taken(post: Post, bounds: &Bounds<'_>) -> Taken {
    let plain =
        |schema, required| Taken { schema, patches: Vec::new(), required, refused: Vec::new() };
    match post {
        Post::Completions => Taken {
            patches: [common(bounds, 0), completions(bounds)].concat(),
            ..plain(of::<Generation<CompletionFields>>(bounds), &["prompt"])
        },
        Post::Chat => Taken {
            patches: [common(bounds, 0), chat(bounds), chat_tokens(bounds)].concat(),
            ..plain(of::<Generation<ChatFields>>(bounds), &["messages"])
        },
        Post::Messages => Taken {
            patches: [common(bounds, 1), messages(), coolest(), named_events()].concat(),
            refused: NOT_SINGLE.to_vec(),
            ..plain(of::<Generation<MessagesFields>>(bounds), &["messages", "max_tokens"])
        },
        Post::CountTokens => Taken {
            patches: [messages(), any_tokens()].concat(),
            ..plain(of::<Generation<MessagesFields>>(bounds), &["messages"])
        },
        Post::Responses => Taken {
            patches: [common(bounds, 1), responses(bounds), named_events()].concat(),
            refused: [NOT_SINGLE, &["max_tokens"]].concat(),
            ..plain(of::<Generation<ResponsesFields>>(bounds), &["input"])
        },
        Post::Embeddings => Taken {
            patches: vec![(
                "dimensions",
                json!({"type": "integer", "minimum": 1, "maximum": bounds.hidden_size}),
            )],
            ..plain(of::<PassFields<EmbeddingFields>>(bounds), &["input"])
        },
        Post::Loglikelihood => plain(of::<PassFields<LoglikelihoodFields>>(bounds), &["requests"]),
        Post::Tokenize => Taken {
            patches: [chat(bounds), any_tokens()].concat(),
            ..plain(of::<TokenizeRequest>(bounds), &[])
        },
        Post::Detokenize => plain(of::<DetokenizeFields>(bounds), &["tokens"]),
        Post::Load => Taken {
            patches: vec![("lora_name", name()), ("lora_path", some())],
            ..plain(of::<LoadFields>(bounds), &["lora_name", "lora_path"])
        },
        Post::Unload => Taken {
            patches: vec![("lora_name", some())],
            ..plain(of::<UnloadFields>(bounds), &["lora_name"])
        },
        Post::Validate => Taken {
            patches: vec![("lora_name", name()), ("lora_path", some())],
            ..plain(of::<ValidateFields>(bounds), &["lora_path"])
        },
    }
}

/// What [`crate::adapter::check_name`] takes.
fn name() -> Value {
    json!({"pattern": r"^(?!other$)(?!.*\.\.)(?!(.*/)?\.?(/|$))[A-Za-z0-9._:/-]{1,256}$"})
}

/// Something.
fn some() -> Value {
    json!({"minLength": 1})
}

/// Of all routes that generate; `least` tokens are generated at least.
fn common(bounds: &Bounds<'_>, least: u32) -> Vec<Patch> {
    let context = bounds.limits.context_tokens_max;
    let mut patches: Vec<Patch> = RANGES
        .iter()
        .map(|(name, range)| (*name, json!({"minimum": range.start(), "maximum": range.end()})))
        .collect();
    let keep = json!({"anyOf": [
        {"type": "integer", "enum": [-1]},
        {"type": "integer", "minimum": 1, "maximum": context},
    ]});
    patches.extend([
        ("max_tokens", json!({"minimum": least, "maximum": context})),
        ("min_tokens", json!({"maximum": context})),
        ("top_k", json!({"minimum": -1})),
        ("truncate_prompt_tokens", keep),
        ("cache_salt", json!({"minLength": 1, "maxLength": CACHE_SALT_CHARS_MAX})),
        ("n", json!({"minimum": 1, "maximum": SAMPLES_MAX})),
        ("best_of", json!({"minimum": 1, "maximum": BEST_OF_MAX})),
        ("prompt_logprobs", json!({"maximum": bounds.limits.logprobs_max})),
        ("allowed_token_ids", json!({"minItems": 1})),
        ("response_format", forms::response_format()),
        ("structured_outputs", forms::structured_outputs()),
        ("guided_json", forms::json_schema()),
        ("guided_regex", json!({"type": "string"})),
        ("guided_choice", forms::choices()),
        ("guided_grammar", json!({"type": "string"})),
        ("grammar", json!({"type": "string"})),
        ("json_schema", forms::json_schema()),
        ("chat_template_kwargs", forms::variables()),
    ]);
    patches
}

fn completions(bounds: &Bounds<'_>) -> Vec<Patch> {
    vec![("logprobs", json!({"maximum": bounds.limits.logprobs_max}))]
}

fn chat(bounds: &Bounds<'_>) -> Vec<Patch> {
    let limits = bounds.limits;
    vec![
        ("messages", forms::messages()),
        ("top_logprobs", json!({"maximum": limits.logprobs_max})),
        ("chat_template_kwargs", forms::variables()),
        ("reasoning_effort", forms::effort()),
        ("tools", forms::tools()),
        ("tool_choice", forms::tool_choice()),
        ("functions", forms::functions()),
        ("function_call", forms::function_call()),
    ]
}

/// What a chat says of its answer alone.
fn chat_tokens(bounds: &Bounds<'_>) -> Vec<Patch> {
    vec![("max_completion_tokens", json!({"maximum": bounds.limits.context_tokens_max}))]
}

fn messages() -> Vec<Patch> {
    vec![
        ("messages", forms::anthropic_messages()),
        ("system", forms::anthropic_system()),
        ("thinking", forms::thinking()),
        ("output_config", forms::output_config()),
        ("tool_choice", forms::anthropic_tool_choice()),
        ("chat_template_kwargs", forms::variables()),
    ]
}

/// Where nothing is drawn nobody asks whether the model has a token.
fn any_tokens() -> Vec<Patch> {
    let items = json!({"items": {"type": "integer", "minimum": 0}});
    ["allowed_token_ids", "stop_token_ids"].map(|field| (field, items.clone())).to_vec()
}

/// Anthropic's own range of it.
fn coolest() -> Vec<Patch> {
    vec![("temperature", json!({"minimum": 0, "maximum": 1}))]
}

/// A stream of named events has no place for usage on each.
fn named_events() -> Vec<Patch> {
    let options = json!({"include_usage": {"type": ["boolean", "null"]},
        "continuous_usage_stats": {"enum": [false, null]}, "include_obfuscation": {}});
    vec![(
        "stream_options",
        json!({"type": "object", "properties": options,
        "maxProperties": STREAM_OPTIONS_MAX}),
    )]
}

fn responses(bounds: &Bounds<'_>) -> Vec<Patch> {
    let limits = bounds.limits;
    vec![
        ("input", forms::items()),
        ("max_output_tokens", json!({"minimum": 1, "maximum": limits.context_tokens_max})),
        ("text", forms::text_format()),
        ("reasoning", forms::reasoning()),
        ("tool_choice", forms::flat_tool_choice()),
        ("max_tool_calls", json!({"minimum": 1})),
        ("include", forms::include()),
        ("top_logprobs", json!({"maximum": limits.logprobs_max})),
        ("truncation", json!({"type": "string", "enum": ["auto", "disabled"]})),
    ]
}
