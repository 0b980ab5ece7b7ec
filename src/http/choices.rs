//! What the engine draws for one request, as text.

use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::{mpsc, watch};

use super::error::{ApiError, ServerError};
use super::logprobs::Drawn;
use super::metrics::{Finish, Timing};
use super::models::Target;
use super::phase::{Phase, reached};
use super::state::State;
use super::wire::{PromptDetails, Usage};
use crate::engine::{Event, FinishReason, Ticket};
use crate::request::Request;
use crate::text::{Detokenizer, StopMatcher, StopOutcome};

/// The sequences of one request, ready for the engine.
pub(super) struct SequenceGroup {
    pub target: Target,
    /// One for each choice, in order.
    pub sequences: Vec<(Ticket, Request)>,
    /// Strings that end a text.
    pub stops: Vec<String>,
    /// When the request arrived.
    pub arrived: Instant,
}

/// What is new of a choice, or all of it.
#[derive(Default)]
pub(super) struct CompletionOutput {
    pub index: usize,
    /// Empty while more tokens must say what it is.
    pub text: String,
    pub drawn: Vec<Drawn>,
    /// `finish_reason`, with a choice's last token.
    pub finish: Option<&'static str>,
}

/// The sequences of one request while they run. Dropping it cancels them.
pub(super) struct Choices {
    choices: Vec<Choice>,
    /// Where to look first, so that no choice waits for another.
    turn: usize,
    phase: watch::Receiver<Phase>,
}

struct Choice {
    /// `None` once it is finished.
    events: Option<mpsc::Receiver<Event>>,
    detokenizer: Detokenizer,
    stops: StopMatcher,
    prompt_tokens: u64,
    tokens: u64,
    cached_tokens: Option<u32>,
    timing: Timing,
}

impl Choices {
    /// Hands all sequences to the engine.
    pub fn start(state: &State, group: SequenceGroup) -> Self {
        let SequenceGroup { target, sequences, stops, arrived } = group;
        let Target { name: _, recipe, text, counts } = target;
        let start = |(ticket, request): (Ticket, Request)| Choice {
            detokenizer: Detokenizer::after_prompt(text.tokenizer.clone(), request.prompt()),
            stops: StopMatcher::new(stops.clone()),
            prompt_tokens: request.prompt().len() as u64,
            tokens: 0,
            cached_tokens: None,
            timing: Timing::new(&state.metrics, &counts, arrived, request.prompt().len()),
            events: Some(state.engine.generate(ticket, request, recipe.clone())),
        };
        let choices = sequences.into_iter().map(start).collect();
        Self { choices, turn: 0, phase: state.phase.subscribe() }
    }

    /// What is new of any choice; `None` when all are finished.
    ///
    /// # Errors
    /// [`ServerError::Draining`], [`ServerError::EngineFailed`] and [`ServerError::EngineGone`].
    pub async fn next(&mut self) -> Result<Option<CompletionOutput>, ApiError> {
        let Self { choices, turn, phase } = self;
        let next = tokio::select! {
            biased;
            output = poll_fn(|cx| poll(choices, turn, cx)) => output,
            () = reached(phase, Phase::Cancelling) => Err(ServerError::Draining),
        };
        next.map_err(ApiError::Server)
    }

    /// Waits for all choices.
    ///
    /// # Errors
    /// Those of [`Choices::next`].
    pub async fn collect(&mut self) -> Result<Vec<CompletionOutput>, ApiError> {
        let whole = |index| CompletionOutput { index, ..CompletionOutput::default() };
        let mut outputs: Vec<_> = (0..self.choices.len()).map(whole).collect();
        while let Some(new) = self.next().await? {
            let output = &mut outputs[new.index];
            output.text += &new.text;
            output.drawn.extend(new.drawn);
            output.finish = new.finish;
        }
        Ok(outputs)
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        let prompt_tokens = self.choices.iter().map(|c| c.prompt_tokens).sum();
        let completion_tokens = self.choices.iter().map(|c| c.tokens).sum();
        let cached: Option<u64> = self.choices.iter().map(|c| c.cached_tokens.map(u64::from)).sum();
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: cached.map(|cached_tokens| PromptDetails { cached_tokens }),
        }
    }
}

fn poll(
    choices: &mut [Choice],
    turn: &mut usize,
    cx: &mut Context<'_>,
) -> Poll<Result<Option<CompletionOutput>, ServerError>> {
    let mut is_finished = true;
    for i in 0..choices.len() {
        let index = (*turn + i) % choices.len();
        let choice = &mut choices[index];
        while let Some(events) = &mut choice.events {
            let Poll::Ready(event) = events.poll_recv(cx) else {
                is_finished = false;
                break;
            };
            let event = event.ok_or(ServerError::EngineGone)?;
            if let Some(output) = choice.take(index, event)? {
                *turn = index + 1;
                return Poll::Ready(Ok(Some(output)));
            }
        }
    }
    if is_finished { Poll::Ready(Ok(None)) } else { Poll::Pending }
}

impl Choice {
    fn take(
        &mut self,
        index: usize,
        event: Event,
    ) -> Result<Option<CompletionOutput>, ServerError> {
        match event {
            Event::Failed(message) => Err(ServerError::EngineFailed(message)),
            Event::Started { cached_tokens } => {
                self.cached_tokens = Some(cached_tokens);
                Ok(None)
            }
            // No route asks for them.
            Event::Scores(_) | Event::Embedding(_) => Ok(None),
            Event::Token { token, logprob, top, finish } => {
                self.tokens += 1;
                self.timing.token();
                let mut text = match finish {
                    // A stop token ends the text and is no part of it.
                    Some(FinishReason::Stop) => String::new(),
                    Some(FinishReason::Length) | None => self.detokenizer.push(token),
                };
                if finish.is_some() {
                    text += &self.detokenizer.finish();
                }
                let StopOutcome { emit: mut text, stopped } = self.stops.push(&text);
                if finish.is_some() {
                    text += &self.stops.finish();
                }
                let finish = match (stopped, finish) {
                    (Some(_), _) | (None, Some(FinishReason::Stop)) => Some(Finish::Stop),
                    (None, Some(FinishReason::Length)) => Some(Finish::Length),
                    (None, None) => None,
                };
                let finish = finish.map(|finish| self.finish(finish));
                let drawn = vec![Drawn { token, logprob, top }];
                Ok(Some(CompletionOutput { index, text, drawn, finish }))
            }
        }
    }

    /// Ends the sequence: without a receiver the engine gives up its place.
    fn finish(&mut self, finish: Finish) -> &'static str {
        self.events = None;
        self.timing.finish(finish);
        finish.name()
    }
}
