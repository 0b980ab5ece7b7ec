//! The tools of `/v1/messages`, said as a chat says them.

use serde::Deserialize;
use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

use super::rephrase::{check_keys, invalid, object, unsupported};
use crate::http::error::{RequestError, shown};
use crate::http::request::messages::Objects;
use crate::http::request::raw::Raw;

/// Keys of a tool with the values that ask for nothing.
fn neutral() -> [(&'static str, Value); 3] {
    [
        ("defer_loading", json!(false)),
        ("allowed_callers", json!(["direct"])),
        ("input_examples", json!([])),
    ]
}

/// Functions.
///
/// # Errors
/// [`RequestError`] naming `tools`.
pub(in crate::http) fn functions(Objects(tools): Objects) -> Result<Objects, RequestError> {
    let functions = tools.into_iter().enumerate().map(|(i, tool)| match tool {
        Value::Object(tool) => function(i, tool),
        _ => invalid("tools", format!("tools[{i}] must be an object")),
    });
    functions.collect::<Result<_, _>>().map(Objects)
}

fn function(i: usize, mut tool: Map<String, Value>) -> Result<Value, RequestError> {
    match tool.remove("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "custom" => {}
        Some(Value::String(kind)) => {
            let kind = shown(&kind);
            let message = format!(
                "tools[{i}]: tools of type '{kind}' are not supported by this server; send tools \
                 of your own, with a name and an input_schema."
            );
            return unsupported("tools", message);
        }
        Some(_) => return invalid("tools", format!("tools[{i}] must have a type, a string")),
    }
    let Some(schema @ Value::Object(_)) = tool.remove("input_schema") else {
        let message = format!("tools[{i}] must have an input_schema, a JSON schema of an object");
        return invalid("tools", message);
    };
    if !schema.get("type").is_none_or(|kind| kind == "object") {
        return invalid("tools", format!("tools[{i}]: input_schema must be of type \"object\""));
    }
    let mut function = Map::new();
    for key in ["name", "description"] {
        if let Some(value) = tool.remove(key) {
            function.insert(key.to_owned(), value);
        }
    }
    function.insert("parameters".to_owned(), schema);
    if let Some(strict) = tool.remove("strict") {
        function.insert("strict".to_owned(), strict);
    }
    tool.retain(|key, value| !neutral().contains(&(key.as_str(), value.clone())));
    // Every prompt is cached, and every input streamed as it is drawn.
    check_keys("tools", &tool, &["cache_control", "eager_input_streaming"])?;
    Ok(json!({"type": "function", "function": function}))
}

/// `tool_choice`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolChoice {
    r#type: String,
    name: Option<String>,
    disable_parallel_tool_use: Option<bool>,
}

/// `tool_choice` and `parallel_tool_calls` of a chat.
///
/// # Errors
/// [`RequestError`] naming `tool_choice`.
pub(in crate::http) fn choice(
    raw: &Raw,
    has_tools: bool,
) -> Result<(Option<Raw>, Option<bool>), RequestError> {
    let ToolChoice { r#type, name, disable_parallel_tool_use } = object("tool_choice", raw)?;
    if !has_tools {
        return invalid("tool_choice", "tool_choice may only be given with tools; send those too");
    }
    if name.is_some() != (r#type == "tool") {
        let message = "tool_choice must have a name if its type is \"tool\", and only then";
        return invalid("tool_choice", message);
    }
    let choice = match r#type.as_str() {
        "auto" | "none" => json!(r#type),
        "any" => json!("required"),
        "tool" => json!({"type": "function", "function": {"name": name}}),
        other => {
            let other = shown(other);
            let message =
                format!("tool_choice.type must be auto, any, tool or none, got '{other}'");
            return invalid("tool_choice", message);
        }
    };
    let parallel = disable_parallel_tool_use.map(|is_single| !is_single);
    Ok((to_raw_value(&choice).ok().map(Raw), parallel))
}
