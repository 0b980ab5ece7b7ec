//! The items of `/v1/responses`, said as a chat's messages.

use serde_json::{Map, Value};

use super::rephrase::{called, check_keys, invalid, message, result, texts, unsupported};
use crate::http::error::{RequestError, shown};
use crate::http::request::messages::TextOrList;
use crate::text::Message;

/// Types of blocks that hold text.
pub(in crate::http) const TEXTS: [&str; 4] = ["input_text", "output_text", "text", "refusal"];
/// What an earlier answer said of an item.
const REMARKS: [&str; 2] = ["id", "status"];

/// A call that an earlier answer made.
struct Call {
    id: String,
    name: String,
    has_output: bool,
}

/// A chat, item by item.
#[derive(Default)]
struct Items {
    messages: Vec<Message>,
    calls: Vec<Call>,
    /// What was thought before what the assistant says or calls next.
    thoughts: Vec<String>,
}

/// A chat's messages.
///
/// # Errors
/// [`RequestError`] naming `input`.
pub(in crate::http) fn read(
    instructions: Option<String>,
    input: TextOrList,
) -> Result<Vec<Message>, RequestError> {
    let mut items = Items::default();
    if let Some(instructions) = instructions.filter(|text| !text.is_empty()) {
        items.messages.push(message("system", vec![instructions]));
    }
    match input {
        TextOrList::Text(text) if text.is_empty() => invalid("input", "input must not be empty")?,
        TextOrList::Text(text) => items.messages.push(message("user", vec![text])),
        TextOrList::List(all) if all.is_empty() => {
            invalid("input", "input must hold at least one item")?;
        }
        TextOrList::List(all) => all.into_iter().try_for_each(|item| items.read(item))?,
    }
    items.finish()
}

impl Items {
    fn read(&mut self, mut item: Map<String, Value>) -> Result<(), RequestError> {
        match item.shift_remove("type") {
            None | Some(Value::Null) => self.message(item),
            Some(Value::String(kind)) => match kind.as_str() {
                "message" => self.message(item),
                "reasoning" => self.reasoning(item),
                "function_call" => self.call(item),
                "function_call_output" => self.output(item),
                kind => {
                    let kind = shown(kind);
                    let message = format!(
                        "Items of type '{kind}' are not supported in input; send messages, \
                         reasoning and calls of functions."
                    );
                    unsupported("input", message)
                }
            },
            Some(_) => invalid("input", "input: an item's type must be a string"),
        }
    }

    fn message(&mut self, mut item: Map<String, Value>) -> Result<(), RequestError> {
        let role = match item.shift_remove("role") {
            Some(Value::String(role)) => role,
            _ => return invalid("input", "input: a message must have a role, a string"),
        };
        if !["user", "assistant", "system", "developer"].contains(&role.as_str()) {
            let role = shown(&role);
            let message =
                format!("input: a role must be user, assistant, system or developer, got '{role}'");
            return invalid("input", message);
        }
        let texts = texts("input", item.shift_remove("content"), &TEXTS)?;
        check_keys("input", &item, &[REMARKS[0], REMARKS[1], "phase"])?;
        let mut message = message(&role, texts);
        // What is said beside calls is of the same turn.
        match self.messages.last_mut().filter(|last| role == "assistant" && is_only_calls(last)) {
            Some(last) => {
                let content = message.shift_remove("content").unwrap_or_default();
                last.insert("content".to_owned(), content);
            }
            None => self.messages.push(message),
        }
        self.think();
        Ok(())
    }

    /// What an earlier answer thought: its text, or else what was told of it. What only others can
    /// read is left out.
    fn reasoning(&mut self, mut item: Map<String, Value>) -> Result<(), RequestError> {
        let mut thought = Vec::new();
        for (key, kind) in [("content", "reasoning_text"), ("summary", "summary_text")] {
            let parts = item.shift_remove(key).filter(|parts| !parts.is_null());
            let given =
                parts.map_or(Ok(Vec::new()), |parts| texts("input", Some(parts), &[kind]))?;
            if thought.is_empty() {
                thought = given;
            }
        }
        item.shift_remove("encrypted_content");
        check_keys("input", &item, &REMARKS)?;
        self.thoughts.extend(thought.into_iter().filter(|text| !text.trim().is_empty()));
        Ok(())
    }

    /// Gives what was thought to the turn that it comes before.
    fn think(&mut self) {
        let thoughts = std::mem::take(&mut self.thoughts);
        let last = self.messages.last_mut().filter(|_| !thoughts.is_empty());
        if let Some(turn) = last.filter(|turn| turn.get("role").is_some_and(|r| r == "assistant")) {
            turn.entry("reasoning_content").or_insert(thoughts.join("\n").into());
        }
    }

    fn call(&mut self, mut item: Map<String, Value>) -> Result<(), RequestError> {
        let id = text(&mut item, "function_call", "call_id")?;
        let name = text(&mut item, "function_call", "name")?;
        let Some(Value::String(arguments)) = item.shift_remove("arguments") else {
            let message = "input: a function_call must have arguments, a string of JSON";
            return invalid("input", message);
        };
        check_rest(item)?;
        if self.calls.iter().any(|call| call.id == id) {
            let id = shown(&id);
            return invalid("input", format!("input: two calls have the call_id '{id}'"));
        }
        let call = called(&id, &name, arguments.into());
        let is_turn = |last: &&mut Message| last.get("role").is_some_and(|r| r == "assistant");
        match self.messages.last_mut().filter(is_turn) {
            Some(last) => match last.get_mut("tool_calls").and_then(Value::as_array_mut) {
                Some(calls) => calls.push(call),
                None => drop(last.insert("tool_calls".to_owned(), vec![call].into())),
            },
            None => {
                let mut turn = Message::new();
                turn.insert("role".to_owned(), "assistant".into());
                turn.insert("content".to_owned(), Value::Null);
                turn.insert("tool_calls".to_owned(), vec![call].into());
                self.messages.push(turn);
            }
        }
        self.think();
        self.calls.push(Call { id, name, has_output: false });
        Ok(())
    }

    fn output(&mut self, mut item: Map<String, Value>) -> Result<(), RequestError> {
        let id = text(&mut item, "function_call_output", "call_id")?;
        let mut texts = texts("input", item.shift_remove("output"), &["input_text", "text"])?;
        if texts.is_empty() {
            texts.push(String::new());
        }
        // The call says it.
        item.shift_remove("name");
        check_rest(item)?;
        let shown = shown(&id);
        let Some(call) = self.calls.iter_mut().find(|call| call.id == id) else {
            let message = format!(
                "input: the call_id '{shown}' of a function_call_output is that of no \
                 function_call before it; send that too"
            );
            return invalid("input", message);
        };
        if std::mem::replace(&mut call.has_output, true) {
            let message = format!("input: the function_call '{shown}' has two outputs");
            return invalid("input", message);
        }
        self.messages.push(result(&id, &call.name, texts));
        Ok(())
    }

    fn finish(mut self) -> Result<Vec<Message>, RequestError> {
        if let Some(call) = self.calls.iter().find(|call| !call.has_output) {
            let message = format!(
                "input: the function_call '{}' has no function_call_output; send one",
                shown(&call.id)
            );
            return invalid("input", message);
        }
        // Templates that write no ids tell outputs apart by their order.
        let place = |message: &Message| {
            let id = message.get("tool_call_id")?.as_str()?;
            self.calls.iter().position(|call| call.id == id)
        };
        let is_same = |a: &Message, b: &Message| place(a).is_some() && place(b).is_some();
        for run in self.messages.chunk_by_mut(is_same) {
            run.sort_by_key(place);
        }
        Ok(self.messages)
    }
}

fn is_only_calls(message: &Message) -> bool {
    message.contains_key("tool_calls") && message.get("content").is_none_or(Value::is_null)
}

/// Refuses what else an item says.
fn check_rest(mut item: Map<String, Value>) -> Result<(), RequestError> {
    // Who called is known: the model.
    if item.get("caller").and_then(|caller| caller.get("type")).is_some_and(|t| t == "direct") {
        item.shift_remove("caller");
    }
    if item.get("async").is_some_and(|is_async| is_async == false) {
        item.shift_remove("async");
    }
    check_keys("input", &item, &REMARKS)
}

fn text(item: &mut Map<String, Value>, kind: &str, key: &str) -> Result<String, RequestError> {
    match item.shift_remove(key) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        _ => {
            let message = format!("input: a {kind} must have {key}, a string with a character");
            invalid("input", message)
        }
    }
}
