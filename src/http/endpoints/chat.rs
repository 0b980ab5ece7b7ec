//! `POST /v1/chat/completions`.

use std::borrow::Cow;

use super::conversation;
use crate::http::error::RequestError;
use crate::http::generation::called::CallNews;
use crate::http::generation::choices::CompletionOutput;
use crate::http::generation::endpoint::{Asked, Endpoint, Reply};
use crate::http::generation::logprobs::{self, Drawn};
use crate::http::generation::thoughts::{Telling, ThoughtFields};
use crate::http::generation::tools;
use crate::http::request::fields::{ChatFields, Common};
use crate::http::request::prompt::PromptInput;
use crate::http::wire::{AssistantMessage, ChatChoice, ChatLogprobs, MessageDelta, Usage, to_json};
use crate::json::or_more;
use crate::request::{Invalid, Limits};

/// Messages in, the assistant's message out.
pub(in crate::http) struct Chat {
    reply: Reply,
}

impl Endpoint for Chat {
    type Fields = ChatFields;

    const ID_PREFIX: &'static str = "chatcmpl";

    fn object(is_stream: bool) -> &'static str {
        if is_stream { "chat.completion.chunk" } else { "chat.completion" }
    }

    fn thoughts(own: &ChatFields) -> ThoughtFields {
        let telling = match own.include_reasoning {
            Some(false) => Telling::Nowhere,
            _ => Telling::Apart,
        };
        let tokens_max = own.thinking_token_budget;
        ThoughtFields { telling, tokens_max, must_bind: tokens_max.is_some() }
    }

    fn read(mut own: ChatFields, common: &Common, limits: &Limits) -> Result<Asked, RequestError> {
        let logprobs = top_logprobs(own.logprobs, own.top_logprobs, limits)?;
        let (tokens_max_param, tokens_max) = match own.max_completion_tokens {
            Some(max) => ("max_completion_tokens", Some(max)),
            None => ("max_tokens", common.max_tokens),
        };
        let (tools, shown) = tools::read(&mut own)?.unzip();
        let input = PromptInput::Chat(Box::new(conversation::read(own, shown)?));
        Ok(Asked { input, tokens_max, tokens_max_param, logprobs, tools })
    }

    fn new(reply: Reply) -> Self {
        Self { reply }
    }

    fn reply(&self) -> &Reply {
        &self.reply
    }

    fn whole(&self, outputs: &[CompletionOutput], usage: Usage) -> Vec<u8> {
        let calls: Vec<_> = outputs.iter().map(|output| CallNews::merged(&output.calls)).collect();
        let choices = outputs.iter().zip(&calls).map(|(output, calls)| {
            let drawn = self.told(&output.drawn);
            ChatChoice {
                index: output.index,
                message: Some(self.message(output, calls)),
                delta: None,
                logprobs: self.logprobs(&drawn),
                finish_reason: output.finish,
                stop_reason: self.reply.stop_reason(output),
                token_ids: self.reply.extra(self.reply.token_ids(&drawn)),
            }
        });
        let choices: Vec<_> = choices.collect();
        let mut answer = self.reply.answer(&choices, Some(Some(usage)));
        let scores = outputs.first().and_then(|output| output.scores.as_deref());
        answer.prompt_logprobs = self.reply.extra(self.reply.prompt_logprobs(scores));
        answer.prompt_token_ids = self.reply.extra(self.reply.prompt_ids(0));
        to_json(&answer)
    }

    fn opening(&self, index: usize, usage: Usage) -> Option<Vec<u8>> {
        let role = Some("assistant");
        let delta = MessageDelta { role, content: Some(""), ..MessageDelta::default() };
        let choice = ChatChoice {
            index,
            message: None,
            delta: Some(delta),
            logprobs: None,
            finish_reason: None,
            stop_reason: None,
            token_ids: None,
        };
        let choice = [choice];
        let mut answer = self.reply.answer(&choice, self.reply.chunk_usage(usage));
        answer.prompt_token_ids = self.reply.extra(self.reply.prompt_ids(index));
        Some(to_json(&answer))
    }

    fn chunks(&mut self, output: &CompletionOutput, usage: Usage) -> Vec<Vec<u8>> {
        let CompletionOutput { index, thought, text, calls, drawn, finish, .. } = output;
        let told = self.told(drawn);
        let mut drawn = &*told;
        let mut chunks = Vec::new();
        let has_news = self.reply.logprobs.is_some() || self.reply.options.return_token_ids;
        let has_news = has_news && !drawn.is_empty();
        let thinks = self.reply.options.thoughts != Telling::InText;
        let mut deltas = Vec::new();
        if self.reply.options.thoughts == Telling::Apart && !thought.is_empty() {
            let thought = Some(thought.as_str());
            let (reasoning, reasoning_content) = (thought, thought);
            deltas.push(MessageDelta { reasoning, reasoning_content, ..MessageDelta::default() });
        }
        let is_silent = deltas.is_empty() && text.is_empty() && calls.is_empty();
        // Of a last token without text the news goes with the finish.
        if !text.is_empty() || (is_silent && has_news && finish.is_none()) {
            // An empty content would say that the thought is over.
            let content = Some(text.as_str()).filter(|text| !thinks || !text.is_empty());
            deltas.push(MessageDelta { content, ..MessageDelta::default() });
        }
        deltas.extend(calls.iter().map(|call| self.call_delta(call)));
        for delta in deltas {
            let goes_on = CompletionOutput { index: *index, ..Default::default() };
            let logprobs = self.logprobs(drawn).filter(|_| chunks.is_empty());
            chunks.push(self.chunk(&goes_on, delta, drawn, logprobs, usage));
            drawn = &[];
        }
        if finish.is_some() {
            let logprobs = self.logprobs(drawn).filter(|_| !drawn.is_empty());
            chunks.push(self.chunk(output, MessageDelta::default(), drawn, logprobs, usage));
        }
        chunks
    }
}

impl Chat {
    fn message<'a>(
        &self,
        output: &'a CompletionOutput,
        calls: &'a [CallNews],
    ) -> AssistantMessage<'a> {
        let is_old = self.reply.options.calls_old;
        let told = if is_old { &[][..] } else { calls };
        let thoughts = self.reply.options.thoughts;
        let may_be_empty = calls.is_empty() && thoughts == Telling::InText;
        let thought = Some(output.thought.as_str()).filter(|thought| !thought.is_empty());
        let thought = match thoughts {
            Telling::InText => None,
            Telling::Apart => Some(thought),
            Telling::Nowhere => Some(None),
        };
        AssistantMessage {
            role: "assistant",
            content: Some(output.text.as_str()).filter(|text| may_be_empty || !text.is_empty()),
            refusal: None,
            reasoning: thought,
            reasoning_content: thought,
            tool_calls: told.iter().map(|call| call.to_wire(None)).collect(),
            function_call: calls.first().filter(|_| is_old).map(CallNews::function),
        }
    }

    fn call_delta<'a>(&self, call: &'a CallNews) -> MessageDelta<'a> {
        match self.reply.options.calls_old {
            true => {
                let function_call = Some(call.function());
                MessageDelta { function_call, ..MessageDelta::default() }
            }
            false => {
                let tool_calls = vec![call.to_wire(Some(call.index))];
                MessageDelta { tool_calls, ..MessageDelta::default() }
            }
        }
    }

    /// The tokens that an answer tells of: none of a thought that it does not tell of.
    fn told<'a>(&self, drawn: &'a [Drawn]) -> Cow<'a, [Drawn]> {
        match self.reply.options.thoughts {
            Telling::Nowhere => drawn.iter().filter(|drawn| !drawn.is_thought).cloned().collect(),
            _ => Cow::Borrowed(drawn),
        }
    }

    fn logprobs(&self, drawn: &[Drawn]) -> Option<ChatLogprobs> {
        self.reply.logprobs.map(|_| logprobs::chat(&self.reply.spelling, drawn))
    }

    /// A chunk after the opening one. `output` says whose it is and whether it is the last.
    fn chunk(
        &self,
        output: &CompletionOutput,
        delta: MessageDelta<'_>,
        drawn: &[Drawn],
        logprobs: Option<ChatLogprobs>,
        usage: Usage,
    ) -> Vec<u8> {
        let choice = ChatChoice {
            index: output.index,
            message: None,
            delta: Some(delta),
            logprobs,
            finish_reason: output.finish,
            stop_reason: self.reply.stop_reason(output),
            token_ids: self.reply.extra(self.reply.token_ids(drawn)),
        };
        to_json(&self.reply.answer(&[choice], self.reply.chunk_usage(usage)))
    }
}

/// How many alternatives to report, if any logprobs.
fn top_logprobs(
    logprobs: Option<bool>,
    top_logprobs: Option<u32>,
    limits: &Limits,
) -> Result<Option<u32>, Invalid> {
    let max = limits.logprobs_max;
    match (logprobs.unwrap_or(false), top_logprobs) {
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = "top_logprobs may only be given with logprobs set to true";
            Err(Invalid::value("top_logprobs", message))
        }
        (true, Some(n)) if n > max => {
            let message = format!("top_logprobs must be at most {max}, got {}", or_more(n));
            Err(Invalid::value("top_logprobs", message))
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}
