//! The turns of `/v1/messages`, said as a chat's messages.

use serde_json::{Map, Value};

use super::rephrase::{
    block_text, called, check_keys, invalid, message, result, texts, with_thought,
};
use crate::http::error::{RequestError, shown};
use crate::http::request::messages::{Messages, TextOrList};
use crate::text::Message;

/// What one role says: turns of one role after each other are one turn.
#[derive(Default)]
struct Turn {
    role: String,
    thoughts: Vec<String>,
    texts: Vec<String>,
    calls: Vec<Call>,
    results: Vec<ToolResult>,
}

struct Call {
    id: String,
    name: String,
    input: Value,
}

struct ToolResult {
    id: String,
    texts: Vec<String>,
}

/// A chat's messages, and whether the model goes on with the last.
///
/// # Errors
/// [`RequestError`] naming `system` or `messages`.
pub(in crate::http) fn read(
    system: Option<TextOrList>,
    Messages(given): Messages,
) -> Result<(Vec<Message>, bool), RequestError> {
    if given.is_empty() {
        return invalid("messages", "messages must hold at least one message");
    }
    let mut turns: Vec<Turn> = Vec::new();
    if let Some(system) = system {
        let system = match system {
            TextOrList::Text(text) => Value::String(text),
            TextOrList::List(blocks) => blocks.into_iter().map(Value::Object).collect(),
        };
        let texts = texts("system", Some(system), &["text"])?;
        if texts.iter().any(|text| !text.is_empty()) {
            turns.push(Turn { role: "system".to_owned(), texts, ..Turn::default() });
        }
    }
    let last = given.len() - 1;
    for (i, message) in given.into_iter().enumerate() {
        let turn = turn(message)?;
        let is_silent = turn.texts.iter().all(String::is_empty)
            && turn.calls.is_empty()
            && turn.results.is_empty();
        // A last turn of the assistant that says nothing yet is one to begin.
        if is_silent && i == last && turn.role == "assistant" {
            continue;
        }
        // A thought that was cut is all of its turn.
        if is_silent && turn.thoughts.is_empty() {
            return invalid("messages", "messages: every message must have a text");
        }
        match turns.last_mut().filter(|before| before.role == turn.role) {
            Some(before) => before.extend(turn)?,
            None => turns.push(turn),
        }
    }
    if turns.is_empty() {
        return invalid("messages", "messages: one message at least must have a text");
    }
    check_pairs(&turns)?;
    let end = turns.last().filter(|turn| turn.role == "assistant");
    let end = end.and_then(|turn| turn.texts.last());
    if end.is_some_and(|text| text.ends_with(char::is_whitespace)) {
        let message = "messages: a last message of the assistant, which the model goes on with, \
                       must not end with whitespace";
        return invalid("messages", message);
    }
    let continues = end.is_some();
    let mut messages = Vec::new();
    let mut before: Vec<Call> = Vec::new();
    for turn in turns {
        before = turn.write(&before, &mut messages);
    }
    Ok((messages, continues))
}

impl Turn {
    fn extend(&mut self, more: Self) -> Result<(), RequestError> {
        if !more.results.is_empty() {
            self.check_begin()?;
        }
        self.thoughts.extend(more.thoughts);
        self.texts.extend(more.texts);
        self.calls.extend(more.calls);
        self.results.extend(more.results);
        Ok(())
    }

    /// # Errors
    /// There is a text where a result is to follow.
    fn check_begin(&self) -> Result<(), RequestError> {
        match self.texts.iter().all(String::is_empty) {
            true => Ok(()),
            false => invalid(
                "messages",
                "messages: tool_result blocks must come first in a user's turn, and texts after \
                 them",
            ),
        }
    }

    /// Writes what it says; `calls` are those of the turn before. Gives its own.
    fn write(self, calls: &[Call], messages: &mut Vec<Message>) -> Vec<Call> {
        let Self { role, thoughts, texts, calls: own, mut results } = self;
        let thought = (!thoughts.is_empty()).then(|| thoughts.join("\n"));
        // Templates that write no ids tell results apart by their order.
        let place = |id: &str| calls.iter().position(|call| call.id == id);
        results.sort_by_key(|result| place(&result.id));
        for ToolResult { id, texts } in results {
            let name = place(&id).map_or("", |i| calls[i].name.as_str());
            messages.push(result(&id, name, texts));
        }
        if !own.is_empty() {
            let calls: Value =
                own.iter().map(|call| called(&call.id, &call.name, call.input.clone())).collect();
            let mut message = match texts.iter().all(String::is_empty) {
                true => Message::from_iter([
                    ("role".to_owned(), role.into()),
                    ("content".to_owned(), Value::Null),
                ]),
                false => message(&role, texts),
            };
            message.insert("tool_calls".to_owned(), calls);
            messages.push(with_thought(message, thought));
        } else if thought.is_some() || texts.iter().any(|text| !text.is_empty()) {
            let texts = if texts.is_empty() { vec![String::new()] } else { texts };
            messages.push(with_thought(message(&role, texts), thought));
        }
        own
    }
}

/// Each call has one result in the turn after it, and each result a call in the turn before it.
fn check_pairs(turns: &[Turn]) -> Result<(), RequestError> {
    let fault = |message: String| invalid("messages", format!("messages: {message}"));
    let mut ids: Vec<&str> = Vec::new();
    let mut open: Vec<&str> = Vec::new();
    let without = |id: &str| {
        let id = shown(id);
        fault(format!("the tool_use '{id}' has no tool_result in the message after it; send one"))
    };
    for turn in turns {
        for ToolResult { id, .. } in &turn.results {
            let Some(i) = open.iter().position(|known| known == id) else {
                let known = ids.contains(&id.as_str());
                let id = shown(id);
                return match known {
                    true => fault(format!(
                        "the tool_use '{id}' must have one tool_result, in the message after it"
                    )),
                    false => fault(format!(
                        "the tool_use_id '{id}' of a tool_result is that of no tool_use in the \
                         message before it"
                    )),
                };
            };
            open.remove(i);
        }
        if let Some(id) = open.first() {
            return without(id);
        }
        for Call { id, .. } in &turn.calls {
            if ids.contains(&id.as_str()) {
                return fault(format!("the tool_use id '{}' is given twice", shown(id)));
            }
            ids.push(id);
            open.push(id);
        }
    }
    open.first().map_or(Ok(()), |id| without(id))
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
    let mut turn = Turn { role, ..Turn::default() };
    match message.remove("content") {
        Some(Value::Array(blocks)) => blocks.into_iter().try_for_each(|b| turn.read(b))?,
        content => turn.texts = texts("messages", content, &["text"])?,
    }
    check_keys("messages", &message, &[])?;
    Ok(turn)
}

impl Turn {
    /// Takes a block of its content.
    fn read(&mut self, block: Value) -> Result<(), RequestError> {
        let Value::Object(mut block) = block else {
            return invalid("messages", "messages: a block of a content must be an object");
        };
        let kind = block.get("type").and_then(Value::as_str).unwrap_or_default();
        let speaker = match kind {
            "tool_use" | "thinking" | "redacted_thinking" => "assistant",
            "tool_result" => "user",
            _ => {
                self.texts.push(block_text("messages", block, &["text"])?);
                return Ok(());
            }
        };
        if self.role != speaker {
            let message =
                format!("messages: {kind} blocks belong to messages of the role {speaker}");
            return invalid("messages", message);
        }
        match (speaker, block.remove("type")) {
            ("assistant", Some(Value::String(kind))) if kind == "tool_use" => {
                self.calls.push(call(block)?);
            }
            ("assistant", kind) => self.thoughts.extend(thought(kind, block)?),
            _ => {
                self.check_begin()?;
                self.results.push(tool_result(block)?);
            }
        }
        Ok(())
    }
}

/// What a block of an earlier answer thinks; nothing of one that only others can read.
fn thought(
    kind: Option<Value>,
    mut block: Map<String, Value>,
) -> Result<Option<String>, RequestError> {
    let (kind, key) = match kind {
        Some(Value::String(kind)) if kind == "thinking" => (kind, "thinking"),
        _ => ("redacted_thinking".to_owned(), "data"),
    };
    let Some(Value::String(text)) = block.remove(key) else {
        let message = format!("messages: a block of type {kind} must have a {key}, a string");
        return invalid("messages", message);
    };
    // What this server writes has an empty one; others' says nothing to it.
    if !matches!(block.remove("signature"), None | Some(Value::Null | Value::String(_))) {
        return invalid("messages", "messages: a signature must be a string");
    }
    check_keys("messages", &block, &["cache_control"])?;
    Ok(Some(text).filter(|text| key == "thinking" && !text.trim().is_empty()))
}

fn call(mut block: Map<String, Value>) -> Result<Call, RequestError> {
    let id = id("tool_use", "id", &mut block)?;
    let Some(Value::String(name)) = block.remove("name") else {
        return invalid("messages", "messages: a tool_use must have a name, a string");
    };
    let Some(input @ Value::Object(_)) = block.remove("input") else {
        return invalid("messages", "messages: a tool_use must have an input, an object");
    };
    // Who called is known: the model.
    if block.get("caller").and_then(|caller| caller.get("type")).is_some_and(|t| t == "direct") {
        block.remove("caller");
    }
    check_keys("messages", &block, &["cache_control"])?;
    Ok(Call { id, name, input })
}

fn tool_result(mut block: Map<String, Value>) -> Result<ToolResult, RequestError> {
    let id = id("tool_result", "tool_use_id", &mut block)?;
    let is_error = match block.remove("is_error") {
        None | Some(Value::Null) => false,
        Some(Value::Bool(is_error)) => is_error,
        Some(_) => {
            let message = "messages: is_error of a tool_result must be true or false";
            return invalid("messages", message);
        }
    };
    let mut texts = match block.remove("content") {
        None | Some(Value::Null) => vec![String::new()],
        Some(content @ (Value::String(_) | Value::Array(_))) => {
            texts("messages", Some(content), &["text"])?
        }
        Some(_) => {
            let message =
                "messages: the content of a tool_result must be a string or a list of blocks";
            return invalid("messages", message);
        }
    };
    check_keys("messages", &block, &["cache_control"])?;
    if texts.is_empty() {
        texts.push(String::new());
    }
    if is_error {
        // Templates have no place for it but the text.
        let mark = if texts[0].is_empty() { "Error" } else { "Error: " };
        texts[0].insert_str(0, mark);
    }
    Ok(ToolResult { id, texts })
}

fn id(kind: &str, key: &str, block: &mut Map<String, Value>) -> Result<String, RequestError> {
    match block.remove(key) {
        Some(Value::String(id)) if !id.is_empty() => Ok(id),
        _ => {
            let message = format!("messages: a {kind} must have {key}, a string with a character");
            invalid("messages", message)
        }
    }
}
