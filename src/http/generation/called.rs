//! The calls of tools in answers.

use std::sync::Arc;

use serde_json::Value;

use crate::http::random::new_id;
use crate::http::wire::{FunctionCall, ToolCall};
use crate::ids::TokenId;
use crate::text::{CallPart, CallReader, CallSyntax, Tokenizer};

/// Letters of an id where templates take only as many.
const SHORT_ID_CHARS: usize = 9;

/// How calls are found in what a model says.
#[derive(Clone)]
pub(in crate::http) struct CallTerms {
    pub syntax: CallSyntax,
    /// The functions that may be called.
    pub names: Arc<[String]>,
    /// Schemas of their arguments, if what a model writes needs them to be read.
    pub schemas: Arc<[Value]>,
    /// The answer ends with its first call.
    pub is_single: bool,
    /// `finish_reason` of an answer that ends by itself and holds calls.
    pub finish: &'static str,
    /// Special tokens that are parts of calls.
    pub shown: Vec<TokenId>,
}

impl CallTerms {
    /// For the first character of an answer.
    pub fn reader(&self) -> CallReader {
        let reader = CallReader::new(self.syntax, self.names.clone(), self.is_single);
        reader.typed_by(self.schemas.clone())
    }
}

/// The marks of calls that are special tokens.
pub(in crate::http) fn special_marks(
    syntax: CallSyntax,
    tokenizer: &Tokenizer,
) -> Vec<(&'static str, TokenId)> {
    let special = |mark: &&'static str| {
        let id = tokenizer.token_id(mark).filter(|&id| tokenizer.is_special(id))?;
        Some((*mark, id))
    };
    syntax.shown().iter().filter_map(special).collect()
}

/// What is new of one call of a choice.
#[derive(Clone, Default)]
pub(in crate::http) struct CallNews {
    pub index: usize,
    /// With its begin: its id and the function's name.
    pub begin: Option<(String, String)>,
    pub arguments: String,
}

impl CallNews {
    /// Of parts that follow `calls` calls.
    pub fn all(parts: Vec<CallPart>, calls: usize, syntax: CallSyntax) -> Vec<Self> {
        let mut begun = calls;
        let news = parts.into_iter().map(|part| match part {
            CallPart::Begin(name) => {
                begun += 1;
                let begin = Some((id(syntax), name));
                Self { index: begun - 1, begin, arguments: String::new() }
            }
            CallPart::Arguments(arguments) => {
                Self { index: begun.saturating_sub(1), begin: None, arguments }
            }
        });
        news.collect()
    }

    /// All that is known of each call.
    pub fn merged(news: &[Self]) -> Vec<Self> {
        let mut calls: Vec<Self> = Vec::new();
        for new in news {
            match calls.last_mut().filter(|_| new.begin.is_none()) {
                Some(call) => call.arguments += &new.arguments,
                None => calls.push(new.clone()),
            }
        }
        calls
    }

    /// As it is on the wire; `index` says whether it is a part.
    pub fn to_wire(&self, index: Option<usize>) -> ToolCall<'_> {
        let id = self.begin.as_ref().map(|(id, _)| id.as_str());
        ToolCall { index, id, r#type: id.map(|_| "function"), function: self.function() }
    }

    /// The same in OpenAI's older form.
    pub fn function(&self) -> FunctionCall<'_> {
        let name = self.begin.as_ref().map(|(_, name)| name.as_str());
        FunctionCall { name, arguments: &self.arguments }
    }
}

fn id(syntax: CallSyntax) -> String {
    let id = new_id();
    match syntax.has_short_ids() {
        true => id[..SHORT_ID_CHARS].to_owned(),
        false => format!("call_{}", &id[..24]),
    }
}
