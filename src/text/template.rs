//! Chat templates, rendered as transformers renders them.
//!
//! A template is a program from the model directory that works on what a client sent. So its
//! work, its output and its depth are bounded, and it can reach nothing but its arguments.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, merge_maps};
use minijinja::{AutoEscape, Environment, ErrorKind, State, context};

use super::call_syntax::CallSyntax;
use super::calls::ToolForms;
use super::capped::Capped;
use super::chat::{Chat, ContentForms, Message, as_transformers, engine_list, engine_map};
use super::error::TextError;
use super::files::{CHAT_TEMPLATE, TOKENIZER_CONFIG, TextFiles, json};
use super::guarded::Guard;
use super::limits::text_bytes_max;
use super::thought_syntax::ThoughtSyntax;
use super::{jinja, python, special};

/// One is an instruction or 64 bytes of data; a message takes about a hundred instructions. Used
/// up, rendering fails with [`TextError::TemplateFuel`] after less than a second.
const TEMPLATE_FUEL_MAX: u64 = 4_000_000;
/// Of the first look at a template, with chats of a few words.
const PROBE_FUEL_MAX: u64 = 100_000;
/// Macros that call each other deeper than this fail with [`TextError::TemplateFailed`]. A call
/// counts for 5 or more.
const TEMPLATE_DEPTH_MAX: usize = 200;
/// The one template of the environment, as error messages name it.
const NAME: &str = "chat_template";

/// Bytes of a template. The longest that is published has 30 thousand.
const TEMPLATE_BYTES_MAX: usize = 128 << 10;

/// Stands at the end of a message that is to be continued, with a space that templates may trim.
const END_MARK: &str = "CONTINUE_FINAL_MESSAGE_TAG ";

/// What is said of a template on which the engine panics.
const ENGINE_FAILS: &str = "the template engine fails on it";

/// A model's chat template. Safe to share between threads.
pub struct ChatTemplate {
    source: String,
    prepared: Arc<Prepared>,
    guard: Guard,
    /// The one for chats with tools, if the model has one of its own.
    tool_use: Option<Box<ChatTemplate>>,
}

/// A template ready to be rendered.
struct Prepared {
    environment: Environment<'static>,
    special_tokens: BTreeMap<String, String>,
    content: ContentForms,
    tools: ToolForms,
    thoughts: Option<ThoughtSyntax>,
    knows_developer: bool,
    knows_documents: bool,
    text_bytes_max: usize,
}

impl ChatTemplate {
    /// The template of a model: `chat_template.jinja`, else `chat_template` of
    /// `tokenizer_config.json`; `None` if it has none. Of several, the one named `tool_use` is
    /// for chats with tools, and the one named `default` for all others.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] for a file that is no JSON or no template.
    pub fn from_files(
        files: &TextFiles,
        context_tokens_max: u32,
    ) -> Result<Option<Self>, TextError> {
        let config = json(TOKENIZER_CONFIG, files.tokenizer_config.as_deref())?;
        let listed = config.get("chat_template").filter(|template| !template.is_null());
        let (file, source, tool_use) = match (&files.chat_template, listed) {
            (Some(bytes), _) => (CHAT_TEMPLATE, std::str::from_utf8(bytes).ok(), None),
            (None, None) => return Ok(None),
            (None, Some(all)) => {
                (TOKENIZER_CONFIG, template_named(all, "default"), template_named(all, "tool_use"))
            }
        };
        let tool_use = tool_use.filter(|_| listed.is_some_and(serde_json::Value::is_array));
        let problem = "chat_template must be a string, or a list with one named \"default\"";
        let source = source.ok_or_else(|| match file {
            CHAT_TEMPLATE => TextError::broken(file, "it is not UTF-8"),
            _ => TextError::broken(file, problem),
        })?;
        let special_tokens = special::named(files)?;
        let read =
            |source: &str| match Self::new(source, special_tokens.clone(), context_tokens_max) {
                Err(TextError::FileBroken { problem, .. }) => Err(TextError::broken(file, problem)),
                template => template,
            };
        let mut template = read(source)?;
        template.tool_use = tool_use.map(read).transpose()?.map(Box::new);
        Ok(Some(template))
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
        Self::at(source, special_tokens, context_tokens_max, || Timestamp::now().as_second())
    }

    /// The same with a clock of its own for `strftime_now`: seconds since 1970.
    ///
    /// # Errors
    /// [`TextError::FileBroken`] if it is no template.
    pub fn at(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        context_tokens_max: u32,
        now_unix_s: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, TextError> {
        if source.len() > TEMPLATE_BYTES_MAX {
            let problem = format!(
                "a chat template must have at most {TEMPLATE_BYTES_MAX} bytes \
                 (template_bytes_max), got {}",
                source.len()
            );
            return Err(TextError::broken(CHAT_TEMPLATE, problem));
        }
        let (guard, source) = (Guard::default(), source.to_owned());
        let of = source.clone();
        let prepare = move || Prepared::new(&of, special_tokens, context_tokens_max, now_unix_s);
        let failed = TextError::broken(CHAT_TEMPLATE, ENGINE_FAILS);
        let prepared = guard.run(prepare).map_err(|stopped| stopped.error(failed))??;
        Ok(Self { source, prepared: Arc::new(prepared), guard, tool_use: None })
    }

    /// The template as its author wrote it.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// A chat in the form that the template reads: a message's content a string, a list of parts,
    /// or what the client sent if it reads both; arguments of calls an object or a string. A
    /// `developer` is a `system` to a template that does not know OpenAI's newer word for it.
    ///
    /// # Errors
    /// [`TextError::NotWritten`] for tools and documents that the template does not write.
    pub fn shape(&self, chat: &mut Chat) -> Result<(), TextError> {
        self.of(chat).prepared.shape(chat)
    }

    /// How it writes the calls of chats with tools.
    pub fn call_syntax(&self) -> CallSyntax {
        self.tool_use.as_deref().unwrap_or(self).prepared.tools.syntax
    }

    /// How its model marks what it thinks, if it says anything of that.
    pub fn thought_syntax(&self) -> Option<ThoughtSyntax> {
        let own = self.prepared.thoughts;
        own.or_else(|| self.tool_use.as_ref().and_then(|template| template.thought_syntax()))
    }

    /// The one for chats with tools, or the one for all others.
    fn of(&self, chat: &Chat) -> &Self {
        match (&self.tool_use, &chat.tools) {
            (Some(tool_use), Some(_)) => tool_use,
            _ => self,
        }
    }

    /// The prompt for a chat, with BOS if the template writes it: encode it without special
    /// tokens. What transformers' `apply_chat_template` writes for the same arguments.
    ///
    /// # Errors
    /// [`TextError::TooLong`], [`TextError::TemplateRefused`], [`TextError::TemplateFuel`],
    /// [`TextError::TemplateLate`], [`TextError::TemplateFailed`] or [`TextError::NotContinued`].
    pub fn render(&self, chat: &Chat) -> Result<String, TextError> {
        let Self { prepared, guard, .. } = self.of(chat);
        let text_bytes_max = prepared.text_bytes_max;
        let bytes = chat.messages.iter().map(content_bytes).sum::<usize>();
        if bytes > text_bytes_max {
            return Err(TextError::TooLong { text_bytes_max });
        }
        let (prepared, chat) = (prepared.clone(), chat.clone());
        let failed = TextError::TemplateFailed { message: ENGINE_FAILS.to_owned() };
        let rendered = guard.run(move || match chat.continue_final_message {
            true => prepared.render_open(chat),
            false => prepared.render(&chat),
        });
        rendered.map_err(|stopped| stopped.error(failed))?
    }
}

impl Prepared {
    fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
        context_tokens_max: u32,
        now_unix_s: impl Fn() -> i64 + Send + Sync + 'static,
    ) -> Result<Self, TextError> {
        let problem =
            |error: &dyn std::fmt::Display| TextError::broken(CHAT_TEMPLATE, error.to_string());
        let mut environment = Environment::new();
        // As transformers sets up jinja2.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        let syntax = syntax.map_err(|error| problem(&error))?;
        let prepared = jinja::prepared(source, &syntax).map_err(|error| problem(&error))?;
        environment.set_syntax(syntax);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_recursion_limit(TEMPLATE_DEPTH_MAX);
        python::install(&mut environment);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", move |format: &str| {
            python::strftime(now_unix_s(), format)
        });
        let added = environment.add_template_owned(NAME, prepared);
        added.map_err(|error| problem(&error))?;
        let mut template = Self {
            environment,
            special_tokens,
            content: ContentForms::TEXT,
            tools: ToolForms::default(),
            thoughts: ThoughtSyntax::of_source(source),
            knows_developer: source.contains("developer"),
            knows_documents: source.contains("documents"),
            text_bytes_max: text_bytes_max(context_tokens_max),
        };
        template.environment.set_fuel(Some(PROBE_FUEL_MAX));
        let is_endless = Cell::new(false);
        // One that works without end is not tried again and again.
        let render = |chat: &Chat| {
            if is_endless.get() {
                return None;
            }
            let rendered = template.render(chat);
            is_endless.set(matches!(rendered, Err(TextError::TemplateFuel { .. })));
            rendered.ok()
        };
        let content = ContentForms::probe(source, |messages| {
            let chat = Chat { messages, ..Chat::default() };
            render(&chat).or_else(|| render(&Chat { add_generation_prompt: true, ..chat.clone() }))
        });
        let tools = ToolForms::probe(source, |chat| render(&chat));
        (template.content, template.tools) = (content, tools);
        template.environment.set_fuel(Some(TEMPLATE_FUEL_MAX));
        Ok(template)
    }

    fn shape(&self, chat: &mut Chat) -> Result<(), TextError> {
        if chat.documents.as_ref().is_some_and(|all| !all.is_empty()) && !self.knows_documents {
            return Err(TextError::NotWritten { what: "documents" });
        }
        if !self.knows_developer {
            let roles = chat.messages.iter_mut().filter_map(|message| message.get_mut("role"));
            roles.filter(|role| *role == "developer").for_each(|role| *role = "system".into());
        }
        for message in &mut chat.messages {
            let is_result = message.get("role").is_some_and(|role| role == "tool");
            match self.tools.results.filter(|_| is_result) {
                Some(forms) => forms.shape(message),
                None => self.content.shape(message),
            }
        }
        self.tools.shape(chat)
    }

    /// The prompt up to where the last message's content ends, as transformers finds that: by a
    /// mark at its end.
    fn render_open(&self, mut chat: Chat) -> Result<String, TextError> {
        let why = "it has no text";
        let content = chat.messages.last_mut().and_then(|message| message.get_mut("content"));
        let text = match content {
            Some(serde_json::Value::Array(parts)) => {
                parts.iter_mut().rev().find_map(|part| part.get_mut("text"))
            }
            content => content,
        };
        let Some(serde_json::Value::String(text)) = text else {
            return Err(TextError::NotContinued { why });
        };
        let own = text.trim().to_owned();
        text.push_str(END_MARK);
        let rendered = self.render(&chat)?;
        let why = "the model's chat template does not write it as it is";
        let missing = TextError::NotContinued { why };
        let at = rendered.rfind(END_MARK.trim_end()).filter(|_| rendered.contains(&own));
        let (before, after) = rendered.split_at(at.ok_or(missing)?);
        Ok(if after.starts_with(END_MARK) { before } else { before.trim_end() }.to_owned())
    }

    fn render(&self, chat: &Chat) -> Result<String, TextError> {
        let text_bytes_max = self.text_bytes_max;
        let messages = chat.messages.iter().map(as_transformers);
        // transformers passes tools and documents even if there are none.
        let context = context! {
            messages => messages.map(|message| engine_map(&message)).collect::<Value>(),
            add_generation_prompt => chat.add_generation_prompt,
            tools => engine_list(chat.tools.as_deref()),
            documents => engine_list(chat.documents.as_deref()),
            ..merge_maps([
                engine_map(&chat.variables),
                Value::from_pairs(self.special_tokens.clone()),
            ])
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

/// Bytes of text in a message's content, which templates write out.
fn content_bytes(message: &Message) -> usize {
    let text = |value: &serde_json::Value| value.as_str().map_or(0, str::len);
    match message.get("content") {
        Some(serde_json::Value::Array(parts)) => {
            parts.iter().filter_map(|part| part.get("text")).map(text).sum()
        }
        content => content.map_or(0, text),
    }
}

/// What `raise_exception` was given, carried through the template engine as an error's source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

fn raise_exception(state: &State<'_, '_>, message: &Value) -> Result<Value, minijinja::Error> {
    let message = python::text(state, message)?;
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

/// The template of a name in a list of them; a single one has every name.
fn template_named<'a>(templates: &'a serde_json::Value, name: &str) -> Option<&'a str> {
    let named = |entry: &&serde_json::Value| entry.get("name").is_some_and(|n| n == name);
    match templates {
        serde_json::Value::Array(all) => all.iter().rfind(named)?.get("template")?.as_str(),
        one => one.as_str(),
    }
}
