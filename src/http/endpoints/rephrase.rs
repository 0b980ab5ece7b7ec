//! What the routes that are other spellings of a chat share.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Value, json};

use crate::http::error::{ApiError, RequestError, shown};
use crate::http::request::fields::Common;
use crate::http::request::raw::Raw;
use crate::http::wire::to_json;
use crate::json;
use crate::request::Invalid;
use crate::text::Message;

/// The fields of an object in `param`.
///
/// # Errors
/// [`Invalid`] with what is wrong in it.
pub(in crate::http) fn object<T: DeserializeOwned>(
    param: &'static str,
    Raw(raw): &Raw,
) -> Result<T, Invalid> {
    json::from_str(raw.get())
        .map_err(|why| Invalid::value(param, format!("{param}: {}", shown(&why.to_string()))))
}

/// A value as JSON writes it: an f32 with its own digits.
pub(in crate::http) fn value(of: &impl Serialize) -> Value {
    serde_json::from_slice(&to_json(of)).unwrap_or_default()
}

/// Refuses fields whose answer has no place in one message.
///
/// # Errors
/// [`RequestError::Unsupported`].
pub(in crate::http) fn check_single(common: &Common) -> Result<(), RequestError> {
    let options = common.stream_options.as_ref().map(|options| &options.fields);
    let asked = [
        ("n", common.n.is_some_and(|n| n != 1)),
        ("best_of", common.best_of.is_some_and(|n| n != 1)),
        ("prompt_logprobs", common.prompt_logprobs.is_some()),
        ("return_token_ids", common.return_token_ids == Some(true)),
        ("return_tokens_as_token_ids", common.return_tokens_as_token_ids == Some(true)),
        ("stream_options", options.and_then(|o| o.continuous_usage_stats) == Some(true)),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        None => Ok(()),
        Some((param, _)) => {
            let message =
                format!("{param} is not supported by this route; use /v1/chat/completions for it.");
            Err(RequestError::Unsupported { param: (*param).to_owned(), message })
        }
    }
}

/// Refuses a chat's name for what a route has in `instead`.
///
/// # Errors
/// [`RequestError::Unsupported`].
pub(in crate::http) fn refuse_format(common: &Common, instead: &str) -> Result<(), RequestError> {
    if common.response_format.is_none() {
        return Ok(());
    }
    let message =
        format!("response_format is not a field of this route; send {instead} with a format.");
    unsupported("response_format", message)
}

/// OpenAI's `response_format` of a chat for a schema.
pub(in crate::http) fn schema_format(name: Option<&str>, schema: Option<&RawValue>) -> Option<Raw> {
    #[derive(Serialize)]
    struct Schema<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<&'a str>,
        schema: Option<&'a RawValue>,
    }
    #[derive(Serialize)]
    struct Format<'a> {
        r#type: &'static str,
        json_schema: Schema<'a>,
    }
    let json_schema = Schema { name, schema };
    to_raw_value(&Format { r#type: "json_schema", json_schema }).ok().map(Raw)
}

/// The texts of a content that is a string or a list of blocks; `kinds` are the types of blocks
/// that hold text.
///
/// # Errors
/// [`RequestError`] naming `param`.
pub(in crate::http) fn texts(
    param: &'static str,
    content: Option<Value>,
    kinds: &[&str],
) -> Result<Vec<String>, RequestError> {
    let blocks = match content {
        Some(Value::String(text)) => return Ok(vec![text]),
        Some(Value::Array(blocks)) => blocks,
        _ => return invalid(param, "a content must be a string or a list of blocks"),
    };
    let text = |block| match block {
        Value::Object(block) => block_text(param, block, kinds),
        _ => invalid(param, "a block of a content must be an object"),
    };
    blocks.into_iter().map(text).collect()
}

/// Keys of a block that say nothing of its text: a cache that is there anyway, and what an earlier
/// answer said of it.
pub(in crate::http) const REMARKS: [&str; 4] =
    ["cache_control", "citations", "annotations", "logprobs"];

/// The text of one block.
pub(in crate::http) fn block_text(
    param: &'static str,
    mut block: Message,
    kinds: &[&str],
) -> Result<String, RequestError> {
    let kind = match block.remove("type") {
        Some(Value::String(kind)) => kind,
        _ => return invalid(param, "a block of a content must have a type, a string"),
    };
    if !kinds.contains(&kind.as_str()) {
        let kind = shown(&kind);
        return unsupported(
            param,
            format!("Blocks of type '{kind}' are not supported in {param}; send text."),
        );
    }
    let key = if kind == "refusal" { "refusal" } else { "text" };
    let text = block.remove(key);
    check_keys(param, &block, &REMARKS)?;
    match text {
        Some(Value::String(text)) => Ok(text),
        _ => invalid(param, format!("a block of type {kind} must have a {key}, a string")),
    }
}

/// Refuses an object with other keys than these.
///
/// # Errors
/// [`RequestError::Unsupported`] naming `param`.
pub(in crate::http) fn check_keys(
    param: &'static str,
    object: &Message,
    known: &[&str],
) -> Result<(), RequestError> {
    let other = object.iter().find(|(key, value)| !value.is_null() && !known.contains(&&key[..]));
    match other {
        None => Ok(()),
        Some((key, _)) => {
            let key = shown(key);
            unsupported(param, format!("\"{key}\" is not supported in {param}; leave it out."))
        }
    }
}

/// A message of a chat.
pub(in crate::http) fn message(role: &str, mut texts: Vec<String>) -> Message {
    let content = match texts.len() {
        1 => Value::String(texts.swap_remove(0)),
        _ => texts.into_iter().map(|text| json!({"type": "text", "text": text})).collect(),
    };
    Message::from_iter([("role".to_owned(), role.into()), ("content".to_owned(), content)])
}

/// The same, with what was thought before it.
pub(in crate::http) fn with_thought(mut message: Message, thought: Option<String>) -> Message {
    if let Some(thought) = thought {
        message.entry("reasoning_content").or_insert(thought.into());
    }
    message
}

/// A call in a chat's message.
pub(in crate::http) fn called(id: &str, name: &str, arguments: Value) -> Value {
    let function = json!({"name": name, "arguments": arguments});
    json!({"id": id, "type": "function", "function": function})
}

/// What came of a call, as a chat's message.
pub(in crate::http) fn result(id: &str, name: &str, texts: Vec<String>) -> Message {
    let mut message = message("tool", texts);
    message.insert("tool_call_id".to_owned(), id.into());
    message.insert("name".to_owned(), name.into());
    message
}

/// A fault with the names that fields have on another route.
pub(in crate::http) fn respelled(
    error: ApiError,
    names: &[(&'static str, &'static str)],
) -> ApiError {
    let ApiError::Request(error) = error else { return error };
    let name = |param: &str| names.iter().find(|(from, _)| *from == param).map(|(_, to)| *to);
    let said = |message: &str, from: &str, to: &str| message.replacen(from, to, 1);
    ApiError::Request(match error {
        RequestError::Invalid(invalid) => RequestError::Invalid(match name(invalid.param) {
            Some(to) => {
                let message = said(&invalid.message, invalid.param, to);
                Invalid { param: to, message, ..invalid }
            }
            None => invalid,
        }),
        RequestError::Unsupported { param, message } => match name(&param) {
            Some(to) => {
                let message = said(&message, &param, to);
                RequestError::Unsupported { param: to.to_owned(), message }
            }
            None => RequestError::Unsupported { param, message },
        },
        RequestError::Text { param, error, context_tokens_max } => {
            let param = name(param).unwrap_or(param);
            RequestError::Text { param, error, context_tokens_max }
        }
        RequestError::Missing(field) => RequestError::Missing(name(field).unwrap_or(field)),
        other => other,
    })
}

/// A 400 for a value.
pub(in crate::http) fn invalid<T>(
    param: &'static str,
    message: impl Into<String>,
) -> Result<T, RequestError> {
    Err(Invalid::value(param, message.into()).into())
}

/// A 400 for what is known and not built.
pub(in crate::http) fn unsupported<T>(param: &str, message: String) -> Result<T, RequestError> {
    Err(RequestError::Unsupported { param: param.to_owned(), message })
}
