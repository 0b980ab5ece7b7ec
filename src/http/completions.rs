//! `POST /v1/completions`.

use super::choices::CompletionOutput;
use super::endpoint::{Asked, Endpoint, Reply};
use super::error::RequestError;
use super::fields::{Common, CompletionFields, Prompts};
use super::logprobs::{legacy, token_ids};
use super::prompt::PromptInput;
use super::wire::{CompletionChoice, Usage, to_json};
use crate::ids::TokenId;
use crate::request::{Invalid, Limits};

/// OpenAI's default.
const TOKENS_MAX_DEFAULT: u32 = 16;

/// Texts in, texts out.
pub(super) struct Completions {
    reply: Reply,
    /// Characters of each choice's tokens so far, and whether its prompt has been returned.
    begun: Vec<(usize, bool)>,
}

impl Endpoint for Completions {
    type Fields = CompletionFields;

    const ID_PREFIX: &'static str = "cmpl";

    fn object(_: bool) -> &'static str {
        "text_completion"
    }

    fn read(
        own: CompletionFields,
        common: &Common,
        limits: &Limits,
    ) -> Result<Asked, RequestError> {
        let CompletionFields { prompt, logprobs } = own;
        let input = match prompt.ok_or(RequestError::Missing("prompt"))? {
            Prompts::Texts(texts) => PromptInput::Texts(texts),
            Prompts::Ids(lists) => PromptInput::Ids(lists),
        };
        if input.count() == 0 {
            return Err(Invalid::value("prompt", "prompt must hold at least one prompt").into());
        }
        let default = TOKENS_MAX_DEFAULT.min(limits.context_tokens_max);
        let tokens_max = Some(common.max_tokens.unwrap_or(default));
        Ok(Asked { input, tokens_max, tokens_max_param: "max_tokens", logprobs })
    }

    fn new(reply: Reply) -> Self {
        Self { reply, begun: Vec::new() }
    }

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn whole(&self, outputs: &[CompletionOutput], usage: Usage) -> Vec<u8> {
        let Reply { options, tokenizer, has_logprobs, prompts, .. } = &self.reply;
        let ids: Vec<Vec<TokenId>> =
            outputs.iter().map(|output| token_ids(&output.drawn)).collect();
        let choices = outputs.iter().map(|output| CompletionChoice {
            index: output.index,
            text: &output.text,
            logprobs: has_logprobs.then(|| legacy(tokenizer, &output.drawn, &mut 0)),
            finish_reason: output.finish,
            prompt_token_ids: prompts.get(output.index).map(Vec::as_slice),
            token_ids: options.return_token_ids.then(|| ids[output.index].as_slice()),
        });
        let choices: Vec<_> = choices.collect();
        to_json(&self.reply.answer(&choices, Some(Some(usage))))
    }

    fn opening(&self, _: Usage) -> Option<Vec<u8>> {
        None
    }

    fn chunks(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>> {
        let CompletionOutput { index, text, drawn, finish } = output;
        let Reply { options, tokenizer, has_logprobs, prompts, .. } = &self.reply;
        let returns_ids = options.return_token_ids;
        if text.is_empty() && finish.is_none() && !has_logprobs && !returns_ids {
            return Vec::new();
        }
        if self.begun.len() <= *index {
            self.begun.resize(index + 1, (0, false));
        }
        let (offset, has_prompt) = &mut self.begun[*index];
        let ids = token_ids(drawn);
        let returns_prompt = returns_ids && !std::mem::replace(has_prompt, true);
        let prompt = prompts.get(*index).filter(|_| returns_prompt);
        let choice = CompletionChoice {
            index: *index,
            text,
            logprobs: has_logprobs.then(|| legacy(tokenizer, drawn, offset)),
            finish_reason: *finish,
            prompt_token_ids: prompt.map(Vec::as_slice),
            token_ids: returns_ids.then_some(ids.as_slice()),
        };
        vec![to_json(&self.reply.answer(&[choice], self.reply.chunk_usage(usage)))]
    }
}
