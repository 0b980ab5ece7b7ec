//! What a chat template is given: messages, and what form of content each role's messages take.

use minijinja::Value as EngineValue;
use serde_json::{Map, Value, json};

/// One message of a chat: its `role`, its `content`, and what else the client wrote, in its order.
pub type Message = Map<String, Value>;

/// Everything that a chat template sees beside the model's special tokens.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// The turns so far.
    pub messages: Vec<Message>,
    /// Whether to open the assistant's turn.
    pub add_generation_prompt: bool,
    /// Whether the prompt ends within the last message, for the model to write on.
    pub continue_final_message: bool,
    /// JSON schemas of the tools that the model may call.
    pub tools: Option<Vec<Value>>,
    /// Texts for the model to look things up in.
    pub documents: Option<Vec<Value>>,
    /// Further variables, by name; they win over special tokens.
    pub variables: Map<String, Value>,
}

/// Names under which clients send an assistant's reasoning; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A message as transformers hands it to a template: without the keys that are null, and with the
/// reasoning under the names that templates read.
pub(super) fn as_transformers(message: &Message) -> Message {
    let reasoning = REASONING.iter().find_map(|key| message.get(*key).filter(|v| !v.is_null()));
    let mut seen = Message::new();
    if let Some(reasoning) = reasoning {
        seen.insert("thinking".to_owned(), reasoning.clone());
    }
    for (key, value) in message.iter().filter(|(_, value)| !value.is_null()) {
        seen.insert(key.clone(), value.clone());
    }
    if let Some(reasoning) = reasoning {
        seen.insert(REASONING[0].to_owned(), reasoning.clone());
    }
    seen
}

/// An object as the template engine holds it.
pub(super) fn engine_map(map: &Map<String, Value>) -> EngineValue {
    EngineValue::from_pairs(map.iter().map(|(key, value)| (key.as_str(), engine_value(value))))
}

/// A list likewise, or none.
pub(super) fn engine_list(list: Option<&[Value]>) -> EngineValue {
    list.map_or(EngineValue::from(()), |list| list.iter().map(engine_value).collect())
}

fn engine_value(value: &Value) -> EngineValue {
    match value {
        Value::Null => EngineValue::from(()),
        Value::Bool(value) => (*value).into(),
        Value::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(whole), _) => whole.into(),
            (None, Some(whole)) => whole.into(),
            (None, None) => number.as_f64().into(),
        },
        Value::String(text) => text.as_str().into(),
        Value::Array(list) => engine_list(Some(list)),
        Value::Object(map) => engine_map(map),
    }
}

/// What a template makes of the two forms of a message's content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Forms {
    /// It writes a string as text.
    pub text: bool,
    /// It writes every text of a list of parts.
    pub parts: bool,
}

impl Forms {
    /// What templates took before there were parts.
    const TEXT: Self = Self { text: true, parts: false };

    /// The message in a form that the template reads. Texts of parts are joined as vLLM joins them
    /// if it reads only strings; a string becomes one part if it reads only lists.
    pub fn shape(self, message: &mut Message) {
        let Some(content) = message.get_mut("content") else { return };
        match content {
            Value::Array(parts) if !self.parts => {
                let texts = parts.iter().filter_map(|part| part.get("text")?.as_str());
                *content = texts.collect::<Vec<_>>().join("\n").into();
            }
            Value::String(text) if !self.text => {
                *content = json!([{"type": "text", "text": std::mem::take(text)}]);
            }
            _ => {}
        }
    }
}

/// The forms of content that a template reads, for each role that it may tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ContentForms {
    system: Forms,
    user: Forms,
    assistant: Forms,
}

impl ContentForms {
    /// Until it is known.
    pub const TEXT: Self = Self { system: Forms::TEXT, user: Forms::TEXT, assistant: Forms::TEXT };

    /// Found out by rendering small chats and looking for their texts in what comes out, because a
    /// template may hand contents through macros and variables before it looks at them. `None` from
    /// `render` is a template that refuses the chat.
    /// If it refuses all of them, it is taken at its word: one that names a part's text reads both.
    pub fn probe(source: &str, render: impl Fn(Vec<Message>) -> Option<String>) -> Self {
        let names = [".text", "'text'", "\"text\""].iter().any(|key| source.contains(key));
        let fallback = Forms { text: true, parts: names };
        // What stands around the message is looked at in the form that works.
        let around = |role: &str, form: Forms| {
            AROUND.iter().find_map(|(before, after)| {
                forms(|content| {
                    let plain = |role: &&str| {
                        let mut one = message(role, "x".into());
                        form.shape(&mut one);
                        one
                    };
                    let mut chat: Vec<Message> = before.iter().map(plain).collect();
                    // Roles take turns in many templates.
                    let turns = role == "assistant" && !chat.iter().any(|m| m["role"] == "user");
                    chat.extend(turns.then(|| plain(&"user")));
                    chat.push(message(role, content));
                    chat.extend(after.iter().filter(|next| **next != role).map(plain));
                    render(chat)
                })
            })
        };
        let only_parts = Forms { text: false, parts: true };
        let of = |role| around(role, Forms::TEXT).or_else(|| around(role, only_parts));
        let user = of("user").unwrap_or(fallback);
        let other = |role| around(role, user).unwrap_or(user);
        Self { user, system: other("system"), assistant: other("assistant") }
    }

    /// A message in the form that the template reads for its role.
    pub fn shape(&self, message: &mut Message) {
        let forms = match message.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => self.system,
            Some("assistant") => self.assistant,
            _ => self.user,
        };
        forms.shape(message);
    }
}

fn message(role: &str, content: Value) -> Message {
    let mut message = Message::new();
    message.insert("role".to_owned(), role.into());
    message.insert("content".to_owned(), content);
    message
}

/// Roles before and after the message that a template is tried on: some take a chat only with
/// a system's words, only as a whole turn, or only after one.
const AROUND: [(&[&str], &[&str]); 6] = [
    (&[], &["user"]),
    (&[], &[]),
    (&["system"], &[]),
    (&[], &["assistant"]),
    (&["user", "assistant"], &[]),
    (&["system", "user", "assistant"], &["assistant"]),
];
/// Texts that no template writes by itself.
const PROBES: [&str; 2] = ["qxprobeoneq", "qxprobetwoq"];
/// A key of a part that no template reads: where it comes out, the part was printed as a whole.
const STRANGE: &str = "qxprobekeyq";

/// The forms that come out whole; `None` if neither does.
pub(super) fn forms(render: impl Fn(Value) -> Option<String>) -> Option<Forms> {
    let part = |text: &str| json!({"type": "text", "text": text, STRANGE: 1});
    let text = render(PROBES[0].into()).is_some_and(|out| out.contains(PROBES[0]));
    let parts = render(PROBES.map(part).to_vec().into()).is_some_and(|out| {
        PROBES.iter().all(|probe| out.contains(probe)) && !out.contains(STRANGE)
    });
    (text || parts).then_some(Forms { text, parts })
}
