//! What `/v1/messages` takes, said as a chat.

use serde::Deserialize;
use serde::de::MapAccess;
use serde_json::value::RawValue;
use serde_json::{Map, Number, Value};

use super::rephrase::{
    check_keys, check_single, invalid, message, object, refuse_format, schema_format, texts,
    unsupported,
};
use crate::http::error::{RequestError, shown};
use crate::http::request::fields::{ChatFields, Common, Stops};
use crate::http::request::messages::{Messages, Object, TextOrList};
use crate::http::request::parse::{Fields, fields};
use crate::http::request::raw::Raw;
use crate::http::request::unsupported::{Neutral, Unsupported};

fields! {
    /// What only `/v1/messages` takes.
    MessagesFields {
        messages: Messages,
        system: TextOrList,
        stop_sequences: Stops,
        thinking: Raw,
        output_config: Raw,
        /// vLLM's, as in a chat.
        chat_template_kwargs: Object,
    }
    unsupported UNSUPPORTED;
    // All prompts are cached; who pays for a request is not asked here.
    ignored &["cache_control", "anthropic_version", "user_profile_id", "workspace_id"];
}

/// Fields of other versions and of chat.
const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::new("tools", Neutral::Empty),
    Unsupported::new("tool_choice", Neutral::Empty),
    Unsupported::new("functions", Neutral::Empty),
    Unsupported::new("function_call", Neutral::Empty),
    Unsupported::new("mcp_servers", Neutral::Empty),
    Unsupported::new("container", Neutral::Null),
    Unsupported::new("context_management", Neutral::Empty),
    Unsupported::new("diagnostics", Neutral::Null),
    Unsupported::new("inference_geo", Neutral::Null),
    Unsupported::new("speed", Neutral::Words(&["standard"])),
    Unsupported::spelled("output_format", Neutral::Null, "output_config with a format"),
    Unsupported::spelled("prompt", Neutral::Null, "messages"),
    Unsupported::spelled("max_completion_tokens", Neutral::Null, "max_tokens"),
    Unsupported::spelled("reasoning_effort", Neutral::Null, "output_config with an effort"),
    Unsupported::new("logprobs", Neutral::Is(false)),
    Unsupported::new("top_logprobs", Neutral::Number(0.0)),
    Unsupported::new("echo", Neutral::Is(false)),
    Unsupported::new("suffix", Neutral::Empty),
    Unsupported::new("documents", Neutral::Empty),
    Unsupported::new("add_generation_prompt", Neutral::Null),
    Unsupported::spelled(
        "continue_final_message",
        Neutral::Null,
        "a last message of the assistant",
    ),
];

/// Puts what has other names here where all routes have it.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) fn translate(
    own: &mut MessagesFields,
    common: &mut Common,
) -> Result<(), RequestError> {
    check_single(common)?;
    if common.max_tokens.is_none() {
        return Err(RequestError::Missing("max_tokens"));
    }
    if let Some(temperature) = common.temperature.filter(|&temperature| temperature > 1.0) {
        let message = format!("temperature must be between 0 and 1, got {temperature}");
        return invalid("temperature", message);
    }
    match (own.stop_sequences.take(), &common.stop) {
        (Some(_), Some(_)) => {
            return invalid("stop", "stop and stop_sequences cannot both be given");
        }
        (Some(stops), None) => common.stop = Some(stops),
        (None, _) => {}
    }
    let config = output_config(own)?;
    refuse_format(common, "output_config")?;
    if let Some(format) = config.format {
        common.response_format = schema_format(Some("output"), Some(&format.schema));
    }
    Ok(())
}

/// The chat that it is.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) fn chat(own: MessagesFields) -> Result<ChatFields, RequestError> {
    let config = output_config(&own)?;
    let mut variables = own.chat_template_kwargs.map_or_else(Map::new, |Object(all)| all);
    if let Some(thinks) = own.thinking.as_ref().map(thinks).transpose()? {
        for name in ["enable_thinking", "thinking"] {
            variables.entry(name).or_insert_with(|| thinks.into());
        }
    }
    let Messages(given) = own.messages.ok_or(RequestError::Missing("messages"))?;
    if given.is_empty() {
        return invalid("messages", "messages must hold at least one message");
    }
    let mut turns: Vec<Turn> = Vec::new();
    if let Some(system) = own.system {
        let system = match system {
            TextOrList::Text(text) => Value::String(text),
            TextOrList::List(blocks) => blocks.into_iter().map(Value::Object).collect(),
        };
        let texts = texts("system", Some(system), &["text"])?;
        if texts.iter().any(|text| !text.is_empty()) {
            turns.push(Turn { role: "system".to_owned(), texts });
        }
    }
    let last = given.len() - 1;
    for (i, message) in given.into_iter().enumerate() {
        let Turn { role, texts } = turn(message)?;
        let is_empty = texts.iter().all(String::is_empty);
        match turns.last_mut() {
            // A last turn of the assistant that says nothing yet is one to begin.
            _ if is_empty && i == last && role == "assistant" => {}
            _ if is_empty => {
                return invalid("messages", "messages: every message must have a text");
            }
            // Turns of one role are one turn there, and many templates take no other.
            Some(before) if before.role == role => before.texts.extend(texts),
            _ => turns.push(Turn { role, texts }),
        }
    }
    let end = turns.last().filter(|turn| turn.role == "assistant");
    let end = end.and_then(|turn| turn.texts.last());
    if end.is_some_and(|text| text.ends_with(char::is_whitespace)) {
        let message = "messages: a last message of the assistant, which the model goes on with, \
                       must not end with whitespace";
        return invalid("messages", message);
    }
    let continues = end.is_some();
    let messages = turns.into_iter().map(|Turn { role, texts }| message(&role, texts)).collect();
    Ok(ChatFields {
        messages: Some(Messages(messages)),
        continue_final_message: Some(continues),
        chat_template_kwargs: Some(Object(variables)),
        reasoning_effort: config.effort,
        ..ChatFields::default()
    })
}

/// What one role says.
struct Turn {
    role: String,
    texts: Vec<String>,
}

fn turn(mut message: Map<String, Value>) -> Result<Turn, RequestError> {
    let role = match message.remove("role") {
        Some(Value::String(role)) => role,
        _ => return invalid("messages", "messages: a message must have a role, a string"),
    };
    if !["user", "assistant", "system"].contains(&role.as_str()) {
        let role = shown(&role);
        let message = format!("messages: a role must be user or assistant, got '{role}'");
        return invalid("messages", message);
    }
    let texts = texts("messages", message.remove("content"), &["text"])?;
    check_keys("messages", &message, &[])?;
    Ok(Turn { role, texts })
}

/// `thinking`. What it may cost is not counted apart: `max_tokens` bounds all of an answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Thinking {
    r#type: String,
    #[serde(rename = "budget_tokens")]
    _budget_tokens: Option<Number>,
    display: Option<String>,
}

fn thinks(raw: &Raw) -> Result<bool, RequestError> {
    let Thinking { r#type, display, .. } = object("thinking", raw)?;
    if display.as_ref().is_some_and(|display| display != "summarized") {
        let message = "thinking.display is not supported by this server; leave it out.";
        return unsupported("thinking", message.to_owned());
    }
    match r#type.as_str() {
        "disabled" => Ok(false),
        "enabled" | "adaptive" => Ok(true),
        other => {
            let other = shown(other);
            let message =
                format!("thinking.type must be disabled, enabled or adaptive, got '{other}'");
            invalid("thinking", message)
        }
    }
}

/// `output_config`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputConfig {
    effort: Option<String>,
    format: Option<OutputFormat>,
}

/// Its `format`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputFormat {
    r#type: String,
    schema: Box<RawValue>,
}

fn output_config(own: &MessagesFields) -> Result<OutputConfig, RequestError> {
    let Some(raw) = &own.output_config else { return Ok(OutputConfig::default()) };
    let config: OutputConfig = object("output_config", raw)?;
    match &config.format {
        Some(format) if format.r#type != "json_schema" => {
            let found = shown(&format.r#type);
            let message =
                format!("output_config.format.type must be \"json_schema\", got '{found}'");
            invalid("output_config", message)
        }
        _ => Ok(config),
    }
}
