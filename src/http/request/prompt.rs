//! What a request gives the model to read, as tokens.

use crate::http::error::RequestError;
use crate::ids::TokenId;
use crate::request::Invalid;
use crate::text::{Chat, ServedText, TextError};

/// The prompts of a request; each is a sequence.
pub(in crate::http) enum PromptInput {
    /// Texts as they are.
    Texts(Vec<String>),
    /// Tokens as they are.
    Ids(Vec<Vec<TokenId>>),
    /// One chat, for the model's template.
    Chat(Box<Chat>),
}

impl PromptInput {
    /// The field that holds them.
    pub fn param(&self) -> &'static str {
        match self {
            Self::Texts(_) | Self::Ids(_) => "prompt",
            Self::Chat(_) => "messages",
        }
    }

    /// Sequences that they make.
    pub fn count(&self) -> usize {
        match self {
            Self::Texts(texts) => texts.len(),
            Self::Ids(lists) => lists.len(),
            Self::Chat(_) => 1,
        }
    }

    /// The tokens of each; slow for long texts. Unless the request says otherwise, texts get the
    /// tokenizer's special tokens; chats do not, because templates write them.
    ///
    /// # Errors
    /// [`RequestError::Invalid`], [`RequestError::NoTemplate`] and [`RequestError::Text`].
    pub fn encode(
        self,
        text: &ServedText,
        context_tokens_max: u32,
        adds_special: Option<bool>,
        may_be_empty: bool,
    ) -> Result<Vec<Vec<TokenId>>, RequestError> {
        let ServedText { tokenizer, template, .. } = text;
        let param = self.param();
        let failed = |error: TextError| {
            let param = match &error {
                TextError::NotWritten { what: what @ ("tools" | "documents") } => what,
                _ => param,
            };
            RequestError::Text { param, error, context_tokens_max }
        };
        let encode =
            |text: &str, adds_special: bool| tokenizer.encode(text, adds_special).map_err(failed);
        match self {
            Self::Ids(lists) => Ok(lists),
            Self::Texts(texts) => {
                let prompt = |text: &String| match text.is_empty() && !may_be_empty {
                    true => Err(Invalid::value("prompt", "a prompt must not be empty").into()),
                    false => encode(text, adds_special.unwrap_or(true)),
                };
                texts.iter().map(prompt).collect()
            }
            Self::Chat(mut chat) => {
                let template = template.as_ref().ok_or(RequestError::NoTemplate)?;
                template.shape(&mut chat).map_err(failed)?;
                let text = template.render(&chat).map_err(failed)?;
                Ok(vec![encode(&text, adds_special.unwrap_or(false))?])
            }
        }
    }
}
