//! What `/v1/responses` takes, said as a chat.

use serde::de::MapAccess;
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use super::rephrase::{
    check_single, invalid, object, refuse_format, schema_format, unsupported, value,
};
use super::{responses_items, responses_tools};
use crate::http::error::{RequestError, shown};
use crate::http::request::fields::{ChatFields, Common};
use crate::http::request::messages::{Messages, Object, Objects, TextOrList};
use crate::http::request::parse::{Fields, fields};
use crate::http::request::raw::Raw;
use crate::http::request::unsupported::{Neutral, Unsupported};
use crate::json::or_more;

fields! {
    /// What only `/v1/responses` takes.
    ResponsesFields {
        /// A text, or the messages so far.
        input: TextOrList,
        /// What comes before it.
        instructions: String,
        /// Tokens to generate at most.
        max_output_tokens: u32,
        /// The form of the answer.
        text: Raw,
        /// How much the template has the model think.
        reasoning: Raw,
        /// What the answer tells beside its text.
        include: Vec<String>,
        /// Alternatives of each token; only with logprobs in `include`.
        top_logprobs: u32,
        /// Taken; an input that does not fit is a 400.
        truncation: String,
        /// Nothing is stored, whatever it says; the answer says so.
        store: bool,
        /// Repeated in the answer.
        metadata: Object,
        /// Repeated in the answer.
        user: String,
        /// Functions that the model may call.
        tools: Objects,
        /// Which of them it may call, or must.
        tool_choice: Raw,
        /// Whether it may call more than one.
        parallel_tool_calls: bool,
        /// Of tools that the server itself would run: it runs none.
        max_tool_calls: u32,
        /// vLLM's, as in a chat.
        chat_template_kwargs: Object,
        /// Tokens of a thought at most, as in a chat.
        thinking_token_budget: u32,
    }
    unsupported UNSUPPORTED;
    ignored &["prompt_cache_options"];
}

/// What needs answers that are kept, or is chat's.
const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::new("previous_response_id", Neutral::Null),
    Unsupported::new("conversation", Neutral::Null),
    Unsupported::new("background", Neutral::Is(false)),
    Unsupported::new("background_options", Neutral::Null),
    Unsupported::new("prompt", Neutral::Null),
    Unsupported::new("functions", Neutral::Empty),
    Unsupported::new("function_call", Neutral::Empty),
    Unsupported::new("context_management", Neutral::Empty),
    Unsupported::new("moderation", Neutral::Null),
    Unsupported::new("image", Neutral::Null),
    Unsupported::new("access_programs", Neutral::Null),
    Unsupported::spelled("messages", Neutral::Null, "input"),
    Unsupported::spelled("max_completion_tokens", Neutral::Null, "max_output_tokens"),
    Unsupported::spelled("reasoning_effort", Neutral::Null, "reasoning with an effort"),
    Unsupported::spelled("logprobs", Neutral::Is(false), "include and top_logprobs"),
    Unsupported::new("echo", Neutral::Is(false)),
    Unsupported::new("suffix", Neutral::Empty),
    Unsupported::new("documents", Neutral::Empty),
    Unsupported::new("add_generation_prompt", Neutral::Null),
    Unsupported::new("continue_final_message", Neutral::Is(false)),
    Unsupported::new("include_reasoning", Neutral::Is(true)),
];

/// Asks for the logprobs of a message.
const LOGPROBS: &str = "message.output_text.logprobs";
/// What `include` may ask for: nothing of a thought is encrypted, so that the latter adds nothing.
pub(in crate::http) const INCLUDED: [&str; 2] = [LOGPROBS, "reasoning.encrypted_content"];

/// Puts what has other names here where all routes have it; what the answer repeats.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) fn translate(
    own: &ResponsesFields,
    common: &mut Common,
) -> Result<Map<String, Value>, RequestError> {
    check_single(common)?;
    if common.max_tokens.is_some() {
        let message = "max_tokens is not a field of this route; send max_output_tokens instead.";
        return unsupported("max_tokens", message.to_owned());
    }
    if own.max_tool_calls == Some(0) {
        return invalid("max_tool_calls", "max_tool_calls must be at least 1, got 0");
    }
    if let Some(truncation) = own.truncation.as_ref().filter(|t| *t != "auto" && *t != "disabled") {
        let truncation = shown(truncation);
        let message = format!("truncation must be \"auto\" or \"disabled\", got '{truncation}'");
        return invalid("truncation", message);
    }
    refuse_format(common, "text")?;
    let (format, shown_text) = text(own)?;
    common.response_format = format;
    let metadata = own.metadata.as_ref().map_or_else(|| json!({}), |Object(all)| value(all));
    let reasoning = reasoning(own)?;
    let repeats = json!({
        "instructions": own.instructions,
        "max_output_tokens": own.max_output_tokens,
        "max_tool_calls": own.max_tool_calls,
        "metadata": metadata,
        "parallel_tool_calls": own.parallel_tool_calls.unwrap_or(true),
        "reasoning": {"effort": reasoning.effort, "summary": null},
        "temperature": value(&common.temperature),
        "tool_choice": responses_tools::repeated_choice(own.tool_choice.as_ref()),
        "tools": responses_tools::repeated(own.tools.as_ref()),
        "text": {"format": shown_text},
        "top_logprobs": own.top_logprobs.unwrap_or(0),
        "top_p": value(&common.top_p),
        "user": own.user,
    });
    match repeats {
        Value::Object(repeats) => Ok(repeats),
        _ => Ok(Map::new()),
    }
}

/// How many alternatives to report, if any logprobs.
///
/// # Errors
/// [`RequestError`] naming `include` or `top_logprobs`.
pub(in crate::http) fn logprobs(
    own: &ResponsesFields,
    max: u32,
) -> Result<Option<u32>, RequestError> {
    let include = own.include.as_deref().unwrap_or_default();
    if let Some(other) = include.iter().find(|item| !INCLUDED.contains(&item.as_str())) {
        let other = shown(other);
        return unsupported("include", format!("\"{other}\" is not supported in include."));
    }
    match (include.iter().any(|item| item == LOGPROBS), own.top_logprobs.unwrap_or(0)) {
        (_, n) if n > max => {
            let n = or_more(n);
            invalid("top_logprobs", format!("top_logprobs must be at most {max}, got {n}"))
        }
        (false, 0) => Ok(None),
        (false, _) => {
            let message = format!("top_logprobs may only be given with {LOGPROBS} in include");
            invalid("top_logprobs", message)
        }
        (true, n) => Ok(Some(n)),
    }
}

/// The chat that it is.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) fn chat(own: ResponsesFields) -> Result<ChatFields, RequestError> {
    let reasoning_effort = reasoning(&own)?.effort;
    let input = own.input.ok_or(RequestError::Missing("input"))?;
    let messages = responses_items::read(own.instructions, input)?;
    Ok(ChatFields {
        messages: Some(Messages(messages)),
        chat_template_kwargs: own.chat_template_kwargs,
        reasoning_effort,
        tools: own.tools.map(responses_tools::functions).transpose()?,
        tool_choice: own.tool_choice,
        parallel_tool_calls: own.parallel_tool_calls,
        ..ChatFields::default()
    })
}

/// `reasoning`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reasoning {
    effort: Option<String>,
    summary: Option<String>,
    generate_summary: Option<String>,
}

fn reasoning(own: &ResponsesFields) -> Result<Reasoning, RequestError> {
    let Some(raw) = &own.reasoning else { return Ok(Reasoning::default()) };
    let reasoning: Reasoning = object("reasoning", raw)?;
    // A summary there is only if the model makes one.
    let is_auto = |asked: &Option<String>| asked.as_ref().is_none_or(|asked| asked == "auto");
    if !is_auto(&reasoning.summary) || !is_auto(&reasoning.generate_summary) {
        let message = "reasoning.summary is not supported by this server; leave it out or auto.";
        return unsupported("reasoning", message.to_owned());
    }
    Ok(reasoning)
}

/// `text`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    format: Option<Box<RawValue>>,
    /// Which model says little is up to the model.
    #[serde(rename = "verbosity")]
    _verbosity: Option<String>,
}

/// Its `format`: what a chat nests in `json_schema` stands beside the type.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Format {
    r#type: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schema: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    strict: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<String>,
}

/// The form of the answer, and how the answer shows it.
fn text(own: &ResponsesFields) -> Result<(Option<Raw>, Value), RequestError> {
    let plain = json!({"type": "text"});
    let Some(raw) = &own.text else { return Ok((None, plain)) };
    let Text { format, .. } = object("text", raw)?;
    let Some(format) = format.map(Raw) else { return Ok((None, plain)) };
    let format: Format = object("text.format", &format)?;
    let shown = value(&format);
    let form = match format.r#type.as_str() {
        "json_schema" => schema_format(format.name.as_deref(), format.schema.as_deref()),
        // Whatever else belongs to no other type, and the reader of forms says so.
        _ if format.name.is_none() => to_raw_value(&format).ok().map(Raw),
        _ => return invalid("text.format", "text.format: name is of type json_schema only"),
    };
    Ok((form, shown))
}
