//! What was said so far, and what goes to the server of it.

use serde_json::{Map, Value, json};

use crate::cli::CliError;
use crate::cli::client::{Client, Events};
use crate::cli::terminal::one_line;

const ROUTE: &str = "/v1/chat/completions";
/// Here a server says whether the model's chat template takes a message.
const TOKENIZE: &str = "/tokenize";

/// A talk.
pub struct Talk {
    client: Client,
    names: Vec<String>,
    model: String,
    /// Fields of every request.
    fields: Map<String, Value>,
    system: Option<String>,
    /// Of user and assistant, in turns.
    messages: Vec<Value>,
}

/// A part of an answer.
pub struct Part {
    /// For the user.
    pub text: String,
    /// What the model thinks, where it does.
    pub thought: String,
}

impl Talk {
    /// With a client of a server that has these names; nobody is talked to yet.
    pub fn new(
        client: Client,
        names: Vec<String>,
        fields: Map<String, Value>,
        system: Option<String>,
    ) -> Self {
        Self { client, names, model: String::new(), fields, system, messages: Vec::new() }
    }

    /// Who answers.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Who could.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// What the model is told before all else.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// Tells it something else from here on.
    pub fn set_system(&mut self, text: Option<&str>) {
        self.system = text.map(str::to_owned);
    }

    /// Forgets what was said.
    pub fn reset(&mut self) {
        self.messages.clear();
    }

    /// Asks again for the names: adapters come and go.
    ///
    /// # Errors
    /// When there is no server any more.
    pub async fn look_again(&mut self) -> Result<(), CliError> {
        self.names = self.client.models().await?;
        Ok(())
    }

    /// Goes on with another model.
    ///
    /// # Errors
    /// When there is none of this name, or it has no chat template.
    pub async fn switch(&mut self, name: &str) -> Result<(), CliError> {
        if !self.names.iter().any(|known| known == name) {
            self.look_again().await?;
        }
        let body = json!({"model": name, "messages": [{"role": "user", "content": "Hello"}]});
        let asked = self.client.post(TOKENIZE, "", body.to_string().into()).await?;
        match asked.code().as_deref() {
            Some("no_chat_template") => Err(CliError::Usage(format!(
                "the model '{name}' has no chat template, so that nobody can talk to it; \
                 tessera generate goes on with a text"
            ))),
            Some("model_not_found") => Err(self.unknown(name)),
            // Another server may lack the route, or know more names than it lists.
            _ if asked.status == 404 && !self.names.iter().any(|known| known == name) => {
                Err(self.unknown(name))
            }
            _ => {
                self.model = name.to_owned();
                Ok(())
            }
        }
    }

    fn unknown(&self, name: &str) -> CliError {
        let names = one_line(&self.names.join(", "));
        CliError::Usage(format!("there is no model '{name}'; there are {names}"))
    }

    /// Says a text; the answer comes in parts.
    pub fn say(&mut self, text: &str) -> Answer<'_> {
        self.messages.push(json!({"role": "user", "content": text}));
        Answer { talk: self, events: None, text: String::new(), tokens: None }
    }

    fn body(&self) -> Value {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        let messages: Vec<Value> = system.chain(self.messages.iter().cloned()).collect();
        let mut body = self.fields.clone();
        body.insert("model".to_owned(), json!(self.model));
        body.insert("messages".to_owned(), messages.into());
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        body.into()
    }
}

/// An answer that is coming. Dropped before a first word, what was asked is forgotten with it: the
/// user may say it again.
pub struct Answer<'a> {
    talk: &'a mut Talk,
    events: Option<Events>,
    text: String,
    tokens: Option<u64>,
}

impl Answer<'_> {
    /// The next part; `None` at the end. It may be dropped at any moment.
    ///
    /// # Errors
    /// When the server refuses, or the answer breaks off.
    pub async fn next(&mut self) -> Result<Option<Part>, CliError> {
        let events = match &mut self.events {
            Some(events) => events,
            None => {
                let opened = self.talk.client.stream(ROUTE, &self.talk.body()).await?;
                self.events.insert(opened)
            }
        };
        let Some(event) = events.next().await? else { return Ok(None) };
        self.tokens = event["usage"]["completion_tokens"].as_u64().or(self.tokens);
        let delta = &event["choices"][0]["delta"];
        let word = |name: &str| delta[name].as_str().filter(|text| !text.is_empty());
        let text = word("content").unwrap_or_default().to_owned();
        let thought = word("reasoning_content").or_else(|| word("reasoning")).unwrap_or_default();
        self.text.push_str(&text);
        Ok(Some(Part { text, thought: thought.to_owned() }))
    }

    /// Ends it where it is; the tokens of a whole answer.
    pub fn end(self) -> Option<u64> {
        self.tokens
    }
}

impl Drop for Answer<'_> {
    fn drop(&mut self) {
        match self.text.is_empty() {
            true => drop(self.talk.messages.pop()),
            false => {
                let text = std::mem::take(&mut self.text);
                self.talk.messages.push(json!({"role": "assistant", "content": text}));
            }
        }
    }
}
