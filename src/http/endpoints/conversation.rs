//! What a chat request gives the model's template to write.

use serde_json::Value;

use crate::http::error::{RequestError, shown};
use crate::http::request::fields::ChatFields;
use crate::http::request::messages::{Object, Objects};
use crate::request::Invalid;
use crate::text::Chat;

/// Names that a template has from the request itself, from its chat or from transformers.
pub(in crate::http) const RESERVED: [&str; 14] = [
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "documents",
    "messages",
    "namespace",
    "padding",
    "raise_exception",
    "return_dict",
    "strftime_now",
    "tokenize",
    "tools",
    "truncation",
];
/// What OpenAI's clients may say of how long to think.
pub(in crate::http) const EFFORTS: [&str; 7] =
    ["none", "minimal", "low", "medium", "high", "xhigh", "max"];
/// Variables by which templates turn thinking on and off.
const THINKING: [&str; 2] = ["enable_thinking", "thinking"];

/// The chat of a request, with the tools that the template is to write.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) fn read(
    own: ChatFields,
    tools: Option<Vec<Value>>,
) -> Result<Chat, RequestError> {
    let messages = own.messages.ok_or(RequestError::Missing("messages"))?.read()?;
    let continue_final_message = own.continue_final_message.unwrap_or(false);
    if continue_final_message && own.add_generation_prompt == Some(true) {
        let message = "continue_final_message and add_generation_prompt cannot both be true";
        return Err(Invalid::value("continue_final_message", message).into());
    }
    let mut variables = own.chat_template_kwargs.map_or_else(Default::default, |Object(all)| all);
    if let Some(name) = variables.keys().find(|name| RESERVED.contains(&name.as_str())) {
        let name = shown(name);
        let message =
            format!("chat_template_kwargs cannot hold \"{name}\"; it has that name already");
        return Err(Invalid::value("chat_template_kwargs", message).into());
    }
    if let Some(effort) = own.reasoning_effort {
        if !EFFORTS.contains(&effort.as_str()) {
            let effort = shown(&effort);
            let message = format!("reasoning_effort must be one of {EFFORTS:?}, got '{effort}'");
            return Err(Invalid::value("reasoning_effort", message).into());
        }
        let thinks = effort != "none";
        for name in THINKING {
            variables.entry(name).or_insert_with(|| thinks.into());
        }
        variables.entry("reasoning_effort").or_insert_with(|| effort.into());
    }
    Ok(Chat {
        messages,
        add_generation_prompt: own.add_generation_prompt.unwrap_or(!continue_final_message),
        continue_final_message,
        tools,
        documents: own.documents.map(|Objects(all)| all),
        variables,
    })
}
