//! `POST /v1/completions`.

use std::borrow::Cow;

use crate::engine::PromptScore;
use crate::http::error::RequestError;
use crate::http::generation::choices::CompletionOutput;
use crate::http::generation::endpoint::{Asked, Endpoint, Reply};
use crate::http::generation::logprobs::Legacy;
use crate::http::request::fields::{Common, CompletionFields};
use crate::http::request::prompt::PromptInput;
use crate::http::request::told::PromptTerms;
use crate::http::wire::{CompletionChoice, LegacyLogprobs, Usage, to_json};
use crate::request::{Invalid, Limits};

/// OpenAI's default.
const TOKENS_MAX_DEFAULT: u32 = 16;

/// Texts in, texts out.
pub(in crate::http) struct Completions {
    reply: Reply,
    /// Of each choice that has come so far.
    begun: Vec<Begun>,
}

/// What of a choice has been streamed.
#[derive(Clone, Default)]
struct Begun {
    is_begun: bool,
    /// Of its prompt, until they are told with the first token.
    scores: Option<Vec<PromptScore>>,
}

impl Endpoint for Completions {
    type Fields = CompletionFields;

    const ID_PREFIX: &'static str = "cmpl";

    fn object(_: bool) -> &'static str {
        "text_completion"
    }

    fn prompt_terms(own: &CompletionFields) -> PromptTerms {
        let suffix = own.suffix.clone().filter(|suffix| !suffix.is_empty());
        PromptTerms { echo: own.echo.unwrap_or(false), suffix }
    }

    fn read(
        own: CompletionFields,
        common: &Common,
        limits: &Limits,
    ) -> Result<Asked, RequestError> {
        let CompletionFields { prompt, logprobs, echo: _, suffix: _ } = own;
        let input = PromptInput::from(prompt.ok_or(RequestError::Missing("prompt"))?);
        if input.count() == 0 {
            return Err(Invalid::value("prompt", "prompt must hold at least one prompt").into());
        }
        let default = TOKENS_MAX_DEFAULT.min(limits.context_tokens_max);
        let tokens_max = Some(common.max_tokens.unwrap_or(default));
        let tokens_max_param = "max_tokens";
        Ok(Asked { input, tokens_max, tokens_max_param, logprobs, tools: None })
    }

    fn new(reply: Reply) -> Self {
        Self { reply, begun: Vec::new() }
    }

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn whole(&self, outputs: &[CompletionOutput], usage: Usage) -> Vec<u8> {
        let choices = outputs.iter().map(|o| self.choice(o, true, o.scores.as_deref()));
        let choices: Vec<_> = choices.collect();
        to_json(&self.reply.answer(&choices, Some(Some(usage))))
    }

    fn opening(&self, _: usize, _: Usage) -> Option<Vec<u8>> {
        None
    }

    fn chunks(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>> {
        let CompletionOutput { index, text, drawn, scores, finish, .. } = output;
        if self.begun.len() <= *index {
            self.begun.resize(index + 1, Begun::default());
        }
        let begun = &mut self.begun[*index];
        if scores.is_some() {
            begun.scores.clone_from(scores);
        }
        let opens = !begun.is_begun;
        let Reply { options, logprobs, .. } = &self.reply;
        // The prompt goes with the first token, if there is one.
        let echoes = opens && !drawn.is_empty() && self.reply.echo(*index).is_some();
        let has_news = logprobs.is_some() || options.return_token_ids;
        let has_news = echoes || (has_news && !drawn.is_empty());
        if text.is_empty() && finish.is_none() && !has_news {
            return Vec::new();
        }
        begun.is_begun = true;
        let scores = begun.scores.take();
        let choice = self.choice(output, opens, scores.as_deref());
        vec![to_json(&self.reply.answer(&[choice], self.reply.chunk_usage(usage)))]
    }
}

impl Completions {
    /// A choice or a part of it; the first part tells of the prompt.
    fn choice<'a>(
        &'a self,
        output: &'a CompletionOutput,
        opens: bool,
        scores: Option<&[PromptScore]>,
    ) -> CompletionChoice<'a> {
        let CompletionOutput { index, text, drawn, finish, .. } = output;
        let reply = &self.reply;
        let echo = reply.echo(*index);
        let opening = echo.filter(|_| opens);
        let logprobs = reply.logprobs.map(|alternatives| {
            let form = Legacy { spelling: &reply.spelling, alternatives };
            let mut lists = match (reply.prompt(*index), opening, scores) {
                (Some(prompt), Some(echo), Some(scores)) => form.prompt(&prompt.ids, echo, scores),
                _ => LegacyLogprobs::default(),
            };
            form.drawn(&mut lists, drawn, echo.map_or(0, |echo| echo.characters));
            lists
        });
        let text = match opening {
            Some(echo) => Cow::Owned(format!("{}{text}", echo.text)),
            None => Cow::Borrowed(text.as_str()),
        };
        CompletionChoice {
            index: *index,
            text,
            logprobs,
            finish_reason: *finish,
            stop_reason: reply.stop_reason(output),
            prompt_logprobs: reply.extra(reply.prompt_logprobs(scores)),
            prompt_token_ids: reply.extra(reply.prompt_ids(*index).filter(|_| opens)),
            token_ids: reply.extra(reply.token_ids(drawn)),
        }
    }
}
