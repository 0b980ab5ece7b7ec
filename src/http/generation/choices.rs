//! What the engine draws for one request, as text.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::{mpsc, watch};

use super::called::{CallNews, CallTerms};
use super::logprobs::Drawn;
use super::thoughts::ThoughtTerms;
use crate::engine::{Event, FinishReason, PromptScore, Ticket};
use crate::http::arrival::Arrival;
use crate::http::error::{ApiError, ServerError};
use crate::http::metrics::{Finish, Timing};
use crate::http::models::Target;
use crate::http::phase::{Phase, reached};
use crate::http::request::ends::Ends;
use crate::http::request::told::Samples;
use crate::http::state::State;
use crate::http::wire::{CompletionDetails, PromptDetails, StopReason, Usage};
use crate::ids::TokenId;
use crate::request::Request;
use crate::text::{CallReader, Detokenizer, StopMatcher, StopOutcome, ThoughtReader};

/// The sequences of one request, ready for the engine.
pub(in crate::http) struct SequenceGroup {
    pub target: Target,
    /// The samples of the first prompt, those of the second, …
    pub sequences: Vec<(Ticket, Request)>,
    /// Sequences of one prompt.
    pub samples: usize,
    /// What ends a text.
    pub ends: Arc<Ends>,
    /// How thoughts are told apart from it, if there may be any.
    pub thoughts: Option<ThoughtTerms>,
    /// How calls are found in it, if there may be any.
    pub calls: Option<CallTerms>,
    pub arrived: Arrival,
}

/// What is new of a choice, or all of it.
#[derive(Default)]
pub(in crate::http) struct CompletionOutput {
    pub index: usize,
    /// What is thought, which is no part of the text.
    pub thought: String,
    /// Empty while more tokens must say what it is.
    pub text: String,
    /// What is new of calls, which are no part of the text.
    pub calls: Vec<CallNews>,
    pub drawn: Vec<Drawn>,
    /// Of the prompt's tokens but the first, if they are wanted; before all tokens.
    pub scores: Option<Vec<PromptScore>>,
    /// `finish_reason`, with a choice's last token.
    pub finish: Option<&'static str>,
    /// What of the request's own wishes was the end.
    pub stop_reason: Option<StopReason>,
}

/// The sequences of one request while they run. Dropping it cancels them.
pub(in crate::http) struct Choices {
    choices: Vec<Choice>,
    /// Choices of one prompt.
    samples: usize,
    /// Where to look first, so that no choice waits for another.
    turn: usize,
    phase: watch::Receiver<Phase>,
    arrived: Arrival,
}

struct Choice {
    /// `None` once it is finished.
    events: Option<mpsc::Receiver<Event>>,
    ends: Arc<Ends>,
    detokenizer: Detokenizer,
    thoughts: Option<(ThoughtReader, ThoughtTerms)>,
    stops: StopMatcher,
    calls: Option<(CallReader, CallTerms)>,
    /// Stop strings end nothing before.
    min_tokens: u64,
    prompt_tokens: u64,
    /// Whether tokens are drawn at all.
    draws: bool,
    tokens: u64,
    /// Those up to the end of the thought, marks among them.
    thought_tokens: u64,
    /// Characters that the detokenizer has given.
    characters: usize,
    /// Of the last token's, those that earlier ones began.
    interrupted: usize,
    cached_tokens: Option<u32>,
    timing: Timing,
}

impl Choices {
    /// Hands all sequences to the engine.
    pub fn start(state: &State, group: SequenceGroup) -> Self {
        let SequenceGroup { target, sequences, samples, ends, thoughts, calls, arrived } = group;
        let of_calls = calls.as_ref().map_or(&[][..], |terms| &terms.shown);
        let of_thoughts = thoughts.as_ref().map_or(&[][..], |terms| &terms.shown);
        let shown = [of_calls, of_thoughts].concat();
        let Target { name: _, recipe, text, counts, caption } = target;
        counts.request();
        let follow = |ticket| counts.follow(ticket).captioned(caption.clone());
        let start = |(i, (ticket, request)): (usize, (Ticket, Request))| Choice {
            detokenizer: Detokenizer::after_prompt(text.tokenizer.clone(), request.prompt())
                .showing_special(ends.shows_special)
                .showing(shown.clone()),
            stops: StopMatcher::new(ends.strings.clone()).including(ends.included),
            thoughts: thoughts.clone().map(|terms| (terms.reader(), terms)),
            calls: calls.clone().map(|terms| (terms.reader(), terms)),
            ends: ends.clone(),
            min_tokens: request.terms().sampling.rules.min_tokens.into(),
            prompt_tokens: request.prompt().len() as u64,
            draws: request.terms().tokens_max > 0,
            tokens: 0,
            thought_tokens: 0,
            characters: 0,
            interrupted: 0,
            cached_tokens: None,
            timing: Timing::new(
                &state.metrics.sequences,
                &counts,
                &arrived,
                &ticket,
                &request,
                i % samples == 0,
            ),
            events: Some(state.engine.generate(follow(ticket), request, recipe.clone())),
        };
        let choices = sequences.into_iter().enumerate().map(start).collect();
        Self { choices, samples, turn: 0, phase: state.phase.subscribe(), arrived }
    }

    /// Sequences that there are.
    pub fn count(&self) -> usize {
        self.choices.len()
    }

    /// What is new of any choice; `None` when all are finished.
    ///
    /// # Errors
    /// [`ServerError::Draining`], [`ServerError::EngineFailed`] and [`ServerError::EngineGone`].
    pub async fn next(&mut self) -> Result<Option<CompletionOutput>, ApiError> {
        let Self { choices, turn, phase, .. } = self;
        let next = tokio::select! {
            biased;
            output = poll_fn(|cx| poll(choices, turn, cx)) => output,
            () = reached(phase, Phase::Cancelling) => Err(ServerError::Draining),
        };
        let next = next.map_err(ApiError::Server);
        if let Err(error) = &next {
            self.arrived.learn(|known| known.error = Some(error.code()));
        }
        next
    }

    /// Waits for all choices, and shows what is new of them as it comes.
    ///
    /// # Errors
    /// Those of [`Choices::next`].
    pub async fn collect(
        &mut self,
        mut show: impl FnMut(&CompletionOutput),
    ) -> Result<Vec<CompletionOutput>, ApiError> {
        let whole = |index| CompletionOutput { index, ..CompletionOutput::default() };
        let mut outputs: Vec<_> = (0..self.choices.len()).map(whole).collect();
        while let Some(new) = self.next().await? {
            show(&new);
            let output = &mut outputs[new.index];
            output.thought += &new.thought;
            output.text += &new.text;
            output.calls.extend(new.calls);
            output.drawn.extend(new.drawn);
            output.scores = output.scores.take().or(new.scores);
            output.finish = new.finish;
            output.stop_reason = new.stop_reason;
        }
        Ok(outputs)
    }

    /// Tokens so far: those of each prompt once, and those of all samples.
    pub fn usage(&self) -> Usage {
        let prompts = || self.choices.iter().step_by(self.samples);
        let prompt_tokens = prompts().map(|c| c.prompt_tokens).sum();
        let completion_tokens = self.choices.iter().map(|c| c.tokens).sum();
        let cached: Option<u64> = prompts().map(|c| c.cached_tokens.map(u64::from)).sum();
        let thinks = self.choices.iter().any(|c| c.thoughts.is_some());
        let reasoning_tokens = self.choices.iter().map(|c| c.thought_tokens).sum();
        Usage {
            prompt_tokens,
            completion_tokens,
            total_tokens: prompt_tokens + completion_tokens,
            prompt_tokens_details: cached.map(|cached_tokens| PromptDetails { cached_tokens }),
            completion_tokens_details: thinks.then_some(CompletionDetails { reasoning_tokens }),
        }
    }
}

impl Drop for Choices {
    fn drop(&mut self) {
        let prompts = self.choices.chunks(self.samples.max(1));
        prompts.for_each(|samples| Timing::prompt_ended(samples.iter().map(|c| &c.timing)));
    }
}

/// Of each prompt's samples the likeliest by token, the likeliest first, at the places that they
/// have in the answer.
pub(in crate::http) fn best(
    outputs: Vec<CompletionOutput>,
    samples: Samples,
) -> Vec<CompletionOutput> {
    let Samples { drawn, told } = samples;
    if drawn == told {
        return outputs;
    }
    let mean = |output: &CompletionOutput| {
        let sum: f64 = output.drawn.iter().map(|drawn| f64::from(drawn.logprob)).sum();
        sum / output.drawn.len().max(1) as f64
    };
    let mut ranked: Vec<(usize, f64, CompletionOutput)> =
        outputs.into_iter().map(|output| (output.index / drawn, mean(&output), output)).collect();
    // Of equals the earlier sample comes first: the sort is stable.
    ranked.sort_by(|(a, x, _), (b, y, _)| a.cmp(b).then(y.total_cmp(x)));
    let ranked = ranked.into_iter().enumerate().filter(|(i, _)| i % drawn < told).zip(0..);
    ranked.map(|((_, (_, _, output)), index)| CompletionOutput { index, ..output }).collect()
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
            Event::NoTokenLeft => Err(ServerError::NoTokenLeft),
            Event::NotFinite => Err(ServerError::NotFinite),
            Event::Astray(message) => Err(ServerError::Astray(message)),
            Event::Started { cached_tokens } => {
                self.cached_tokens = Some(cached_tokens);
                self.timing.began(cached_tokens);
                Ok(None)
            }
            Event::Scores(scores) => {
                // Where nothing is drawn it is the last event.
                let finish = (!self.draws).then(|| self.finish(Finish::Length));
                let scores = Some(scores);
                Ok(Some(CompletionOutput { index, scores, finish, ..Default::default() }))
            }
            // No route asks for them.
            Event::Embedding(_) => Ok(None),
            Event::Token { token, logprob, top, finish } => {
                self.tokens += 1;
                self.timing.token();
                let before = self.characters;
                let output = self.token(token, finish);
                let offset = before + self.interrupted;
                let is_thought = self.thought_tokens == self.tokens;
                let drawn = vec![Drawn { token, logprob, top, offset, is_thought }];
                Ok(Some(CompletionOutput { index, drawn, ..output }))
            }
        }
    }

    /// What a token says.
    fn token(&mut self, token: TokenId, finish: Option<FinishReason>) -> CompletionOutput {
        self.interrupted = 0;
        let mut text = match (finish, self.ends.spelled(token)) {
            // A token that ends the text is no part of it.
            (Some(FinishReason::Stop), _) if !self.ends.included => String::new(),
            // A special one is shown as the stop string that it is.
            (Some(FinishReason::Stop), Some(string)) => string.clone(),
            _ => {
                let (interrupted, text) = self.detokenizer.push_told(token);
                self.interrupted = interrupted;
                text
            }
        };
        if finish.is_some() {
            text += &self.detokenizer.finish();
        }
        self.characters += text.chars().count();
        let may_stop = self.tokens > self.min_tokens;
        let (thought, ended) = self.read_thought(&mut text, finish);
        let StopOutcome { emit: mut text, stopped } = self.stops.push_if(may_stop, &text);
        let stopped = ended.filter(|_| may_stop).or(stopped);
        if finish.is_some() {
            text += &self.stops.finish();
        }
        let is_stop = finish == Some(FinishReason::Stop);
        let mut finish = match (stopped, finish) {
            (Some(_), _) | (None, Some(FinishReason::Stop | FinishReason::Whole)) => {
                Some(Finish::Stop)
            }
            (None, Some(FinishReason::Length)) => Some(Finish::Length),
            (None, None) => None,
        };
        let (calls, is_cut) = self.read_calls(&mut text, &mut finish);
        let mut finish = finish.map(|finish| self.finish(finish));
        // A call that a stop string or the model itself has cut is none that a client could make.
        if let Some((_, terms)) = self.calls.as_ref().filter(|(r, _)| r.calls() > 0 && !is_cut) {
            finish = finish.map(|name| if name == "stop" { terms.finish } else { name });
        }
        let stop_reason = match (stopped, is_stop) {
            (Some(i), _) => Some(StopReason::Text(self.ends.strings[i].clone())),
            (None, true) => self.ends.reason(token),
            (None, false) => None,
        };
        CompletionOutput { thought, text, calls, finish, stop_reason, ..Default::default() }
    }

    /// Takes what is thought out of new text; and which stop string the mark is that ends it, after
    /// which there is no text.
    fn read_thought(
        &mut self,
        text: &mut String,
        finish: Option<FinishReason>,
    ) -> (String, Option<usize>) {
        let Some((reader, terms)) = &mut self.thoughts else { return (String::new(), None) };
        let was_over = reader.is_over();
        let mut split = reader.push(text);
        let is_over = reader.is_over();
        if !was_over && reader.has_thought() {
            self.thought_tokens = self.tokens;
        }
        if let Some(finish) = finish {
            let rest = reader.finish(finish == FinishReason::Length);
            split.thought += &rest.thought;
            split.text += &rest.text;
        }
        let is_mark = |stop: &String| terms.syntax.closes().contains(&stop.as_str());
        let ends_now = is_over && !was_over && reader.has_thought();
        let ended = self.ends.strings.iter().position(is_mark).filter(|_| ends_now);
        *text = if ended.is_some() { String::new() } else { split.text };
        (split.thought, ended)
    }

    /// Takes calls out of new text, and says whether the last of them ends before it is whole. The
    /// last one that there may be ends the text, also where it is as long as it may be.
    fn read_calls(
        &mut self,
        text: &mut String,
        finish: &mut Option<Finish>,
    ) -> (Vec<CallNews>, bool) {
        let Some((reader, terms)) = &mut self.calls else { return (Vec::new(), false) };
        let calls = reader.calls();
        let mut read = reader.push(text);
        if reader.is_done() {
            *finish = Some(Finish::Stop);
        }
        let is_cut = finish.is_some() && reader.is_within();
        if let Some(finish) = finish {
            let last = reader.finish(matches!(finish, Finish::Length));
            read.content += &last.content;
            read.calls.extend(last.calls);
        }
        *text = read.content;
        (CallNews::all(read.calls, calls, terms.syntax), is_cut)
    }

    /// Ends the sequence: without a receiver the engine gives up its place.
    fn finish(&mut self, finish: Finish) -> &'static str {
        self.events = None;
        self.timing.finish(finish);
        finish.name()
    }
}
