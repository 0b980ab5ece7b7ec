//! The tools of `/v1/responses`, said as a chat says them: what a chat nests in `function` stands
//! beside the type.

use serde_json::{Map, Value, json};

use super::rephrase::{check_keys, invalid};
use crate::http::error::RequestError;
use crate::http::request::messages::Objects;
use crate::http::request::raw::Raw;

/// Keys of a function with the values that ask for nothing.
fn neutral() -> [(&'static str, Value); 3] {
    [
        ("defer_loading", json!(false)),
        ("async", json!(false)),
        ("allowed_callers", json!(["direct"])),
    ]
}

/// What a chat nests.
const NESTED: [&str; 4] = ["name", "description", "parameters", "strict"];

/// Functions. Tools of other types stay as they are, for the reader of a chat's to refuse.
///
/// # Errors
/// [`RequestError`] naming `tools`.
pub(in crate::http) fn functions(Objects(tools): Objects) -> Result<Objects, RequestError> {
    let functions = tools.into_iter().enumerate().map(|(i, tool)| match tool {
        Value::Object(tool) if is_function(&tool) => function(i, tool),
        other => Ok(other),
    });
    functions.collect::<Result<_, _>>().map(Objects)
}

fn is_function(tool: &Map<String, Value>) -> bool {
    tool.get("type").is_some_and(|kind| kind == "function")
}

fn function(i: usize, mut tool: Map<String, Value>) -> Result<Value, RequestError> {
    if tool.contains_key("function") {
        let message = format!(
            "tools[{i}]: name, description and parameters stand beside the type on this route, \
             not in function"
        );
        return invalid("tools", message);
    }
    tool.remove("type");
    let mut function = Map::new();
    for key in NESTED {
        if let Some(value) = tool.shift_remove(key) {
            function.insert(key.to_owned(), value);
        }
    }
    tool.retain(|key, value| !neutral().contains(&(key.as_str(), value.clone())));
    check_keys("tools", &tool, &[])?;
    Ok(json!({"type": "function", "function": function}))
}

/// Tools as an answer repeats them, with what was left to the server.
pub(in crate::http) fn repeated(tools: Option<&Objects>) -> Value {
    let Some(Objects(tools)) = tools else { return json!([]) };
    let mut tools = tools.clone();
    for tool in tools.iter_mut().filter_map(Value::as_object_mut).filter(|tool| is_function(tool)) {
        for (key, value) in [("description", Value::Null), ("parameters", Value::Null)] {
            tool.entry(key).or_insert(value);
        }
        if tool.get("strict").is_none_or(Value::is_null) {
            tool.insert("strict".to_owned(), false.into());
        }
    }
    tools.into()
}

/// `tool_choice` likewise.
pub(in crate::http) fn repeated_choice(choice: Option<&Raw>) -> Value {
    choice
        .and_then(|Raw(raw)| serde_json::from_str(raw.get()).ok())
        .unwrap_or_else(|| "auto".into())
}
