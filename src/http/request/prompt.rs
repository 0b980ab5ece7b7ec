//! What a request gives the model to read, as tokens.

use super::prompts::Prompts;
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

impl From<Prompts> for PromptInput {
    fn from(prompts: Prompts) -> Self {
        match prompts {
            Prompts::Texts(texts) => Self::Texts(texts),
            Prompts::Ids(lists) => Self::Ids(lists),
        }
    }
}

impl PromptInput {
    /// The field that holds them.
    pub fn param(&self) -> &'static str {
        match self {
            Self::Texts(_) | Self::Ids(_) => PROMPT,
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

    /// Checks what costs little, of all prompts: where one of them cannot be served, none is
    /// tokenized. `check` is of a list of tokens.
    ///
    /// # Errors
    /// [`RequestError::Invalid`] and [`RequestError::Text`].
    pub fn check(
        &self,
        text: &ServedText,
        context_tokens_max: u32,
        may_be_empty: bool,
        check: impl Fn(&[TokenId]) -> Result<(), Invalid>,
    ) -> Result<(), RequestError> {
        let count = self.count();
        let of_text = |(i, one): (usize, &String)| match one.is_empty() && !may_be_empty {
            true => Err(at(count, i, Invalid::value(PROMPT, "prompt must not be empty")).into()),
            false => text.tokenizer.check_bytes(one.len()).map_err(|error| {
                let param = PROMPT;
                RequestError::Text { param, error, context_tokens_max }
            }),
        };
        match self {
            Self::Texts(texts) => texts.iter().enumerate().try_for_each(of_text),
            Self::Ids(lists) => lists
                .iter()
                .enumerate()
                .try_for_each(|(i, ids)| Ok(check(ids).map_err(|invalid| at(count, i, invalid))?)),
            // What a template makes of it is not known.
            Self::Chat(_) => Ok(()),
        }
    }

    /// The tokens of each, and what `shape` makes of them as soon as they are there: the first one
    /// that it refuses is the last that is tokenized. Slow for long texts. Unless the request says
    /// otherwise, texts get the tokenizer's special tokens; chats do not, because templates write
    /// them.
    ///
    /// # Errors
    /// [`RequestError::NoTemplate`] and [`RequestError::Text`], and those of `shape`.
    pub fn encode(
        self,
        text: &ServedText,
        context_tokens_max: u32,
        adds_special: Option<bool>,
        shape: impl Fn(Vec<TokenId>) -> Result<Vec<TokenId>, Invalid>,
    ) -> Result<Vec<Vec<TokenId>>, RequestError> {
        let ServedText { tokenizer, template, .. } = text;
        let (param, count) = (self.param(), self.count());
        let failed = |error: TextError| {
            let param = match &error {
                TextError::NotWritten { what: what @ ("tools" | "documents") } => what,
                _ => param,
            };
            RequestError::Text { param, error, context_tokens_max }
        };
        let encode =
            |text: &str, adds_special: bool| tokenizer.encode(text, adds_special).map_err(failed);
        let shaped = |i: usize, ids| Ok(shape(ids).map_err(|invalid| at(count, i, invalid))?);
        match self {
            Self::Ids(lists) => {
                lists.into_iter().enumerate().map(|(i, ids)| shaped(i, ids)).collect()
            }
            Self::Texts(texts) => {
                let prompt = |(i, text): (usize, &String)| {
                    shaped(i, encode(text, adds_special.unwrap_or(true))?)
                };
                texts.iter().enumerate().map(prompt).collect()
            }
            Self::Chat(mut chat) => {
                let template = template.as_ref().ok_or(RequestError::NoTemplate)?;
                template.shape(&mut chat).map_err(failed)?;
                let text = template.render(&chat).map_err(failed)?;
                Ok(vec![shaped(0, encode(&text, adds_special.unwrap_or(false))?)?])
            }
        }
    }
}

/// The field of texts and tokens.
const PROMPT: &str = "prompt";

/// With the place of the prompt at fault, where there are several.
fn at(count: usize, i: usize, invalid: Invalid) -> Invalid {
    match invalid.param {
        PROMPT if count > 1 => {
            let message = format!("{PROMPT}[{i}]: {}", invalid.message);
            Invalid { message, ..invalid }
        }
        _ => invalid,
    }
}
