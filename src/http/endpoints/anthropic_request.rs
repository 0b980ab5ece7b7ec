//! What `/v1/messages` takes, said as a chat.

use serde::Deserialize;
use serde::de::MapAccess;
use serde_json::Map;
use serde_json::value::RawValue;

use super::rephrase::{check_single, invalid, object, refuse_format, schema_format, unsupported};
use super::{anthropic_tools, anthropic_turns};
use crate::http::error::{RequestError, shown};
use crate::http::request::fields::{ChatFields, Common, Stops};
use crate::http::request::messages::{Messages, Object, Objects, TextOrList};
use crate::http::request::parse::{Fields, fields};
use crate::http::request::raw::Raw;
use crate::http::request::unsupported::{Neutral, Unsupported};

fields! {
    /// What only `/v1/messages` takes.
    MessagesFields {
        /// The chat so far.
        messages: Messages,
        /// What comes before it.
        system: TextOrList,
        /// Strings that end the answer.
        stop_sequences: Stops,
        /// Whether the template has the model think.
        thinking: Raw,
        /// How much of that, and the form of the answer.
        output_config: Raw,
        /// Functions that the model may call.
        tools: Objects,
        /// Which of them it may call, or must.
        tool_choice: Raw,
        /// vLLM's, as in a chat.
        chat_template_kwargs: Object,
    }
    unsupported UNSUPPORTED;
    // All prompts are cached; who pays for a request is not asked here.
    ignored &["cache_control", "anthropic_version", "user_profile_id", "workspace_id"];
}

/// Fields of other versions and of chat.
const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::spelled("parallel_tool_calls", Neutral::Null, "disable_parallel_tool_use"),
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
    Unsupported::spelled("thinking_token_budget", Neutral::Null, "thinking with budget_tokens"),
    Unsupported::new("include_reasoning", Neutral::Is(true)),
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
    if let Some((thinks, _)) = own.thinking.as_ref().map(thinks).transpose()? {
        for name in ["enable_thinking", "thinking"] {
            variables.entry(name).or_insert_with(|| thinks.into());
        }
    }
    let has_tools = own.tools.as_ref().is_some_and(|Objects(all)| !all.is_empty());
    let (tool_choice, parallel_tool_calls) = match &own.tool_choice {
        Some(raw) => anthropic_tools::choice(raw, has_tools)?,
        None => (None, None),
    };
    let tools = own.tools.map(anthropic_tools::functions).transpose()?;
    let given = own.messages.ok_or(RequestError::Missing("messages"))?;
    let (messages, continues) = anthropic_turns::read(own.system, given)?;
    Ok(ChatFields {
        messages: Some(Messages(messages)),
        continue_final_message: Some(continues),
        chat_template_kwargs: Some(Object(variables)),
        reasoning_effort: config.effort,
        tools,
        tool_choice,
        parallel_tool_calls,
        ..ChatFields::default()
    })
}

/// Tokens of a thought, if the request bounds them.
pub(in crate::http) fn thought_tokens_max(own: &MessagesFields) -> Option<u32> {
    thinks(own.thinking.as_ref()?).ok()?.1
}

/// `thinking`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Thinking {
    r#type: String,
    budget_tokens: Option<u32>,
    display: Option<String>,
}

/// Whether to think, and at most how many tokens.
fn thinks(raw: &Raw) -> Result<(bool, Option<u32>), RequestError> {
    let Thinking { r#type, budget_tokens, display } = object("thinking", raw)?;
    if display.as_ref().is_some_and(|display| display != "summarized") {
        let message = "thinking.display is not supported by this server; leave it out.";
        return unsupported("thinking", message.to_owned());
    }
    match r#type.as_str() {
        "disabled" => Ok((false, None)),
        "enabled" | "adaptive" => Ok((true, budget_tokens)),
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
