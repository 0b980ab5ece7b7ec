//! Chat templates, rendered as transformers renders them.
//!
//! A template is a program from the model directory that works on what a client sent. So its
//! work, its output and its depth are bounded, and it can reach nothing but its arguments.

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, context};
use regex::Regex;

use super::capped::Capped;
use super::error::TextError;
use super::files::{CHAT_TEMPLATE, TOKENIZER_CONFIG, TextFiles, json, token_content};
use super::limits::text_bytes_max;
use super::python;

/// One is an instruction or 64 bytes of data; a message takes about a hundred instructions. Used
/// up, rendering fails with [`TextError::TemplateFuel`] after less than a second.
const TEMPLATE_FUEL_MAX: u64 = 4_000_000;
/// Macros that call each other deeper than this fail with [`TextError::TemplateFailed`]. A call
/// counts for 5 or more.
const TEMPLATE_DEPTH_MAX: usize = 200;
/// The one template of the environment, as error messages name it.
const NAME: &str = "chat_template";

/// One message of a chat.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// A model's chat template. Safe to share between threads.
pub struct ChatTemplate {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    text_bytes_max: usize,
}

impl ChatTemplate {
    /// The template of a model: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json` (of several, the one named `default`); `None` if it has none.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] for a file that is no JSON or no template.
    pub fn from_files(
        files: &TextFiles,
        context_tokens_max: u32,
    ) -> Result<Option<Self>, TextError> {
        let config = json(TOKENIZER_CONFIG, files.tokenizer_config.as_deref())?;
        let (file, source) = match &files.chat_template {
            Some(bytes) => (CHAT_TEMPLATE, std::str::from_utf8(bytes).ok()),
            None => match config.get("chat_template") {
                None | Some(serde_json::Value::Null) => return Ok(None),
                Some(template) => (TOKENIZER_CONFIG, default_template(template)),
            },
        };
        let problem = "chat_template must be a string, or a list with one named \"default\"";
        let source = source.ok_or_else(|| match file {
            CHAT_TEMPLATE => TextError::broken(file, "it is not UTF-8"),
            _ => TextError::broken(file, problem),
        })?;
        let mut special_tokens = BTreeMap::new();
        for (key, value) in config.as_object().into_iter().flatten() {
            if let Some(token) = token_content(value).filter(|_| key.ends_with("_token")) {
                special_tokens.insert(key.clone(), token.to_owned());
            }
        }
        match Self::new(source, special_tokens, context_tokens_max) {
            Err(TextError::FileBroken { problem, .. }) => Err(TextError::broken(file, problem)),
            template => template.map(Some),
        }
    }

    /// A template and the variables it sees as `bos_token`, `eos_token` and so on.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] if it is no template.
    pub fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        context_tokens_max: u32,
    ) -> Result<Self, TextError> {
        let problem =
            |error: &dyn std::fmt::Display| TextError::broken(CHAT_TEMPLATE, error.to_string());
        // transformers marks the assistant's text for training; for rendering it is a plain block.
        let marks = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}");
        let source = marks.map_err(|error| problem(&error))?.replace_all(
            source,
            |found: &regex::Captures<'_>| {
                let tag = if found.get(2).is_some() { "endif" } else { "if true" };
                format!("{{%{} {tag} {}%}}", &found[1], &found[3])
            },
        );
        let mut environment = Environment::new();
        // As transformers sets up jinja2.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| problem(&error))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_fuel(Some(TEMPLATE_FUEL_MAX));
        environment.set_recursion_limit(TEMPLATE_DEPTH_MAX);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", python::strftime_now);
        let bytes_max = text_bytes_max(context_tokens_max);
        environment.add_filter(
            "tojson",
            move |value: &Value, options: minijinja::value::Kwargs| {
                python::to_json(value, &options, bytes_max)
            },
        );
        // Python counts more kinds as these than the template engine does, and none as iterable.
        environment.add_test("sequence", |value: &Value| {
            matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
        });
        environment.add_test("iterable", |value: &Value| {
            value.kind() == ValueKind::String || !value.is_none() && value.try_iter().is_ok()
        });
        environment.add_test("number", |value: &Value| {
            matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
        });
        let added = environment.add_template_owned(NAME, source.into_owned());
        added.map_err(|error| problem(&error))?;
        Ok(Self { environment, special_tokens, text_bytes_max: bytes_max })
    }

    /// The prompt for a chat, with BOS if the template writes it: encode it without special
    /// tokens. `add_generation_prompt` opens the assistant's turn.
    ///
    /// # Errors
    /// [`TextError::TooLong`], [`TextError::TemplateRefused`], [`TextError::TemplateFuel`] or
    /// [`TextError::TemplateFailed`].
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TextError> {
        let text_bytes_max = self.text_bytes_max;
        let bytes = messages.iter().map(|m| m.role.len() + m.content.len()).sum::<usize>();
        if bytes > text_bytes_max {
            return Err(TextError::TooLong { text_bytes_max });
        }
        // transformers passes both even if there are none.
        let none = Value::from(());
        let context = context! {
            messages => messages.iter().map(value).collect::<Value>(),
            add_generation_prompt,
            tools => none.clone(),
            documents => none,
            ..Value::from_pairs(self.special_tokens.clone())
        };
        let mut output = Capped { bytes: Vec::new(), bytes_max: text_bytes_max, is_full: false };
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|t| t.render_captured_to(context, &mut output).map(drop));
        match rendered {
            Ok(()) => String::from_utf8(output.bytes)
                .map_err(|error| TextError::TemplateFailed { message: error.to_string() }),
            Err(_) if output.is_full => Err(TextError::TooLong { text_bytes_max }),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn value(message: &Message) -> Value {
    Value::from_pairs([("role", message.role.as_str()), ("content", message.content.as_str())])
}

/// What `raise_exception` was given, carried through the template engine as an error's source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(message: String) -> Result<Value, minijinja::Error> {
    let error = minijinja::Error::new(ErrorKind::InvalidOperation, "raise_exception");
    Err(error.with_source(Raised(message)))
}

fn failed(error: &minijinja::Error) -> TextError {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(Raised(message)) = cause.downcast_ref() {
            return TextError::TemplateRefused { message: message.clone() };
        }
        let kind = cause.downcast_ref::<minijinja::Error>().map(minijinja::Error::kind);
        if kind == Some(ErrorKind::OutOfFuel) {
            return TextError::TemplateFuel { template_fuel_max: TEMPLATE_FUEL_MAX };
        }
        next = cause.source();
    }
    TextError::TemplateFailed { message: error.to_string() }
}

fn default_template(template: &serde_json::Value) -> Option<&str> {
    let named = |entry: &&serde_json::Value| entry.get("name").is_some_and(|n| n == "default");
    match template {
        serde_json::Value::Array(all) => all.iter().find(named)?.get("template")?.as_str(),
        one => one.as_str(),
    }
}
