//! The `messages` of a chat: any keys, in the client's order, for the model's template to read.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::http::error::{RequestError, shown};
use crate::request::Invalid;
use crate::text::Message;

/// Values in all messages together, an object or a list counting as one and each of its values as
/// one more: a held value takes up to 100 bytes, so this is some 13 MB. More are answered 400.
const MESSAGE_VALUES_MAX: usize = 1 << 17;
/// Objects and lists within each other, from the list of messages on. Deeper is answered 400.
const MESSAGE_DEPTH_MAX: usize = 32;

/// `messages`, read but not looked at.
#[derive(Debug)]
pub(in crate::http) struct Messages(pub Vec<Message>);

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values_left = MESSAGE_VALUES_MAX;
        let any = Any { values_left: &mut values_left, depth: 0 };
        let Value::Array(all) = any.deserialize(deserializer)? else {
            return Err(D::Error::custom("expected a list of objects"));
        };
        objects(all).map(Self)
    }
}

/// A text, or a list of objects likewise.
#[derive(Debug)]
pub(in crate::http) enum TextOrList {
    Text(String),
    List(Vec<Message>),
}

impl<'de> Deserialize<'de> for TextOrList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values_left = MESSAGE_VALUES_MAX;
        match (Any { values_left: &mut values_left, depth: 0 }).deserialize(deserializer)? {
            Value::String(text) => Ok(Self::Text(text)),
            Value::Array(items) => objects(items).map(Self::List),
            _ => Err(D::Error::custom("expected a string or a list of objects")),
        }
    }
}

fn objects<E: Error>(items: Vec<Value>) -> Result<Vec<Message>, E> {
    let object = |value| match value {
        Value::Object(object) => Ok(object),
        _ => Err(E::custom("every item must be an object")),
    };
    items.into_iter().map(object).collect()
}

/// Any object, within the limits of messages.
#[derive(Debug)]
pub(in crate::http) struct Object(pub Map<String, Value>);

impl<'de> Deserialize<'de> for Object {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut values_left = MESSAGE_VALUES_MAX;
        match (Any { values_left: &mut values_left, depth: 0 }).deserialize(deserializer)? {
            Value::Object(object) => Ok(Self(object)),
            _ => Err(D::Error::custom("expected an object")),
        }
    }
}

/// A list of objects likewise.
#[derive(Debug)]
pub(in crate::http) struct Objects(pub Vec<Value>);

impl<'de> Deserialize<'de> for Objects {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Messages(all) = Messages::deserialize(deserializer)?;
        Ok(Self(all.into_iter().map(Value::Object).collect()))
    }
}

impl Messages {
    /// The messages as templates take them.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] and [`RequestError::Unsupported`].
    pub fn read(self) -> Result<Vec<Message>, RequestError> {
        if self.0.is_empty() {
            return invalid("messages must hold at least one message");
        }
        self.0.into_iter().map(read).collect()
    }
}

/// Any value. It counts what it reads, so that a body never becomes a tree of any size.
struct Any<'a> {
    values_left: &'a mut usize,
    depth: usize,
}

impl Any<'_> {
    fn inner(&mut self) -> Any<'_> {
        Any { values_left: self.values_left, depth: self.depth + 1 }
    }

    fn check_depth<E: Error>(&self) -> Result<(), E> {
        match self.depth < MESSAGE_DEPTH_MAX {
            true => Ok(()),
            false => Err(E::custom(format!(
                "objects and lists may be nested {MESSAGE_DEPTH_MAX} deep (message_depth_max)"
            ))),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Any<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let Some(left) = self.values_left.checked_sub(1) else {
            return Err(D::Error::custom(format!(
                "all messages together may hold {MESSAGE_VALUES_MAX} values (message_values_max)"
            )));
        };
        *self.values_left = left;
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Any<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut items = Vec::new();
        while let Some(item) = seq.next_element_seed(self.inner())? {
            items.push(item);
        }
        Ok(items.into())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Value, A::Error> {
        self.check_depth()?;
        let mut items = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            if items.contains_key(&key) {
                return Err(A::Error::custom(format!("\"{}\" is given twice", shown(&key))));
            }
            let value = map.next_value_seed(self.inner())?;
            items.insert(key, value);
        }
        Ok(items.into())
    }
}

fn invalid<T>(message: impl Into<String>) -> Result<T, RequestError> {
    Err(Invalid::value("messages", message).into())
}

fn unsupported<T>(message: impl Into<String>) -> Result<T, RequestError> {
    Err(RequestError::Unsupported { param: "messages".to_owned(), message: message.into() })
}

/// A message as templates take it: every key stays, as it is and where it is; what OpenAI's older
/// API says of functions is said as its newer one says it of tools.
fn read(mut message: Message) -> Result<Message, RequestError> {
    let role = match message.get_mut("role") {
        Some(Value::String(role)) => role,
        _ => return invalid("a message must have a role, a string"),
    };
    match role.as_str() {
        "system" | "developer" | "user" | "assistant" | "tool" => {}
        "function" => *role = "tool".to_owned(),
        role => {
            let role = shown(role);
            return invalid(format!(
                "a message's role must be system, developer, user, assistant or tool, got '{role}'"
            ));
        }
    }
    let role = role.clone();
    read_calls(&mut message, &role)?;
    match message.get_mut("content") {
        Some(Value::String(_)) => {}
        Some(Value::Array(parts)) => parts.iter_mut().try_for_each(read_part)?,
        // Its turn may have been a call or a refusal; the template sees it without content.
        None | Some(Value::Null) if role == "assistant" => {}
        None | Some(Value::Null) => return invalid("a message must have a content"),
        Some(_) => return invalid("a message's content must be a string or a list of parts"),
    }
    Ok(message)
}

/// Reads what an assistant called.
fn read_calls(message: &mut Message, role: &str) -> Result<(), RequestError> {
    let asks = |key: &str| match message.get(key) {
        None | Some(Value::Null) => false,
        Some(Value::Array(items)) => !items.is_empty(),
        Some(_) => true,
    };
    match (asks("function_call"), asks("tool_calls")) {
        (false, false) => {
            // An empty list is no call, which templates could take for one.
            message.remove("function_call");
            message.remove("tool_calls");
            return Ok(());
        }
        _ if role != "assistant" => return invalid("only an assistant's message may have calls"),
        (true, true) => return invalid("function_call and tool_calls cannot both be given"),
        (true, false) => {
            let function = message.remove("function_call");
            let call = serde_json::json!([{"type": "function", "function": function}]);
            message.insert("tool_calls".to_owned(), call);
        }
        (false, true) => {}
    }
    let Some(Value::Array(calls)) = message.get("tool_calls") else {
        return invalid("tool_calls must be a list");
    };
    calls.iter().try_for_each(check_call)
}

fn check_call(call: &Value) -> Result<(), RequestError> {
    match call.get("type") {
        None | Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == "function" => {}
        Some(_) => return unsupported("Calls of other types than function are not supported."),
    }
    let Some(Value::Object(function)) = call.get("function") else {
        return invalid("a call must have a function, an object");
    };
    if !function.get("name").is_some_and(Value::is_string) {
        return invalid("a call's function must have a name, a string");
    }
    let is_object = match function.get("arguments") {
        Some(Value::String(text)) => {
            text.trim().is_empty() || serde_json::from_str::<Map<String, Value>>(text).is_ok()
        }
        Some(Value::Object(_)) => true,
        _ => false,
    };
    match is_object {
        true => Ok(()),
        false => invalid("a call's arguments must be an object, or a string that is JSON of one"),
    }
}

/// A part of a content, under the one name that templates have for text.
fn read_part(part: &mut Value) -> Result<(), RequestError> {
    if let Value::String(text) = part {
        *part = serde_json::json!({"type": "text", "text": std::mem::take(text)});
        return Ok(());
    }
    let Value::Object(part) = part else {
        return invalid("a part of a message's content must be an object");
    };
    let Some(Value::String(kind)) = part.get_mut("type") else {
        return invalid("a part of a message's content must have a type, a string");
    };
    let key = match kind.as_str() {
        "text" | "input_text" | "output_text" => "text",
        "refusal" => "refusal",
        other => {
            let kind = shown(other);
            return unsupported(format!(
                "Content parts of type '{kind}' are not supported by this server; send text."
            ));
        }
    };
    let kind = std::mem::replace(kind, "text".to_owned());
    match part.get(key) {
        Some(Value::String(text)) if key != "text" => {
            let text = text.clone();
            part.insert("text".to_owned(), text.into());
            Ok(())
        }
        Some(Value::String(_)) => Ok(()),
        _ => invalid(format!("a part of type {kind} must have a {key}, a string")),
    }
}
