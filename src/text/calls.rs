//! What a chat template writes of tools: those that may be called, what was called, and what came
//! of it. Found out by rendering small chats, as with contents: many templates take no tools, and
//! drop in silence what they do not read.

use serde_json::{Value, json};

use super::call_syntax::CallSyntax;
use super::chat::{Chat, Forms, Message, forms};
use super::error::TextError;

/// The form of a call's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arguments {
    /// An object, as transformers has them.
    Object,
    /// JSON, as OpenAI's clients send them.
    Text,
}

/// What a template writes of tools.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct ToolForms {
    /// It writes the tools that may be called.
    pub listed: bool,
    /// It writes calls whose arguments have this form.
    pub arguments: Option<Arguments>,
    /// It writes results, with contents in these forms.
    pub results: Option<Forms>,
    /// How it writes calls.
    pub syntax: CallSyntax,
}

const NAME: &str = "qxprobename";
const KEY: &str = "qxprobekey";
const VALUE: &str = "qxprobevalue";
/// Some templates take ids of nine letters only.
const ID: &str = "qxprobeid";

impl ToolForms {
    /// `render` is `None` for a chat that the template refuses.
    pub fn probe(source: &str, render: impl Fn(Chat) -> Option<String>) -> Self {
        if !["tool", "function"].iter().any(|word| source.contains(word)) {
            return Self::default();
        }
        let tool = json!({"type": "function", "function": {"name": NAME, "description": "x",
            "parameters": {"type": "object", "properties": {KEY: {"type": "string",
                "description": "x"}}, "required": [KEY]}}});
        let with_tools = |messages: Vec<Value>| {
            let messages = messages.into_iter().filter_map(|m| m.as_object().cloned()).collect();
            let tools = Some(vec![tool.clone()]);
            render(Chat { messages, tools, add_generation_prompt: true, ..Chat::default() })
        };
        let user = json!({"role": "user", "content": "x"});
        let call = |arguments: Value, content: Value| {
            json!({"role": "assistant", "content": content, "tool_calls": [{"id": ID,
                "type": "function", "function": {"name": NAME, "arguments": arguments}}]})
        };
        let result = |content: Value| {
            let (role, id) = ("tool", ID);
            json!({"role": role, "tool_call_id": id, "name": NAME, "content": content})
        };
        let listed = with_tools(vec![user.clone()]).is_some_and(|out| out.contains(NAME));
        // Some take no content beside a call, and some no call without.
        let contents = [Value::from(""), Value::Null];
        let object = json!({KEY: VALUE});
        let written = |arguments: &Value| {
            contents.iter().find_map(|content| {
                let call = call(arguments.clone(), content.clone());
                let out = with_tools(vec![user.clone(), call, result("x".into())])?;
                let own = out.rfind(VALUE).map(|_| out.replace(&format!("'{KEY}'"), ""))?;
                // Of an object that is printed as Python prints it nothing is left.
                (own.contains(KEY) && own.contains(NAME)).then_some(out)
            })
        };
        let (arguments, out) = match (written(&object), written(&object.to_string().into())) {
            (Some(out), _) => (Some(Arguments::Object), Some(out)),
            (None, Some(out)) => (Some(Arguments::Text), Some(out)),
            (None, None) => (None, None),
        };
        let syntax = match out {
            Some(out) => CallSyntax::of_text(&out, NAME, VALUE),
            None => CallSyntax::of_source(source),
        };
        let given = match arguments {
            Some(Arguments::Text) => object.to_string().into(),
            _ => object,
        };
        let results = contents.iter().find_map(|content| {
            forms(|of| {
                with_tools(vec![user.clone(), call(given.clone(), content.clone()), result(of)])
            })
        });
        Self { listed, arguments, results, syntax }
    }

    /// Gives calls the form that the template reads.
    ///
    /// # Errors
    /// [`TextError::NotWritten`] for what it does not write.
    pub fn shape(self, chat: &mut Chat) -> Result<(), TextError> {
        if chat.tools.as_ref().is_some_and(|tools| !tools.is_empty()) && !self.listed {
            return Err(TextError::NotWritten { what: "tools" });
        }
        let is_result = |message: &Message| message.get("role").is_some_and(|role| role == "tool");
        if self.results.is_none() && chat.messages.iter().any(is_result) {
            return Err(TextError::NotWritten { what: "results of tools" });
        }
        let calls =
            chat.messages.iter_mut().filter_map(|m| m.get_mut("tool_calls")?.as_array_mut());
        for call in calls.flatten() {
            let form = self.arguments.ok_or(TextError::NotWritten { what: "calls of tools" })?;
            let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
            match (form, &*arguments) {
                (Arguments::Object, Value::String(text)) => {
                    let text = if text.trim().is_empty() { "{}" } else { text };
                    if let Ok(object) = serde_json::from_str(text) {
                        *arguments = object;
                    }
                }
                (Arguments::Text, Value::Object(_)) => *arguments = arguments.to_string().into(),
                _ => {}
            }
        }
        Ok(())
    }
}
