//! From prompts to text: what both generation routes share.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use hyper::Response;
use tokio::sync::{mpsc, watch};

use super::error::ApiError;
use super::logprobs::Drawn;
use super::metrics::{Finish, Timing};
use super::models::Target;
use super::sse::{self, Body, DONE, Events, PING};
use super::wire::{Answer, Common, PromptDetails, Stops, Usage, to_json};
use super::{Phase, State, guard, reached, unix_now_s};
use crate::engine::{Event, FinishReason, Ticket};
use crate::ids::TokenId;
use crate::request::{Invalid, Request, RequestFields, SamplingParams};
use crate::text::{Detokenizer, StopMatcher};

/// A request that is ready for the engine.
pub(super) struct Job {
    pub target: Target,
    /// One for each choice, in order.
    pub sequences: Vec<(Ticket, Request)>,
    pub stops: Vec<String>,
    /// When the request arrived.
    pub arrived: Instant,
}

/// What both routes read from their common fields.
pub(super) struct Options {
    pub stream: bool,
    pub include_usage: bool,
    /// Usage so far on every chunk.
    pub continuous_usage: bool,
    pub return_token_ids: bool,
}

impl Options {
    /// # Errors
    /// [`ApiError::Invalid`] for `stream_options` without `stream`.
    pub fn new(common: &Common) -> Result<Self, ApiError> {
        let stream = common.stream.unwrap_or(false);
        if common.stream_options.is_some() && !stream {
            let message = "stream_options may only be given with stream set to true";
            return Err(Invalid::value("stream_options", message).into());
        }
        let options = common.stream_options.as_ref();
        let include_usage = options.and_then(|o| o.include_usage).unwrap_or(false);
        let continuous = options.and_then(|o| o.continuous_usage_stats).unwrap_or(false);
        Ok(Self {
            stream,
            include_usage,
            continuous_usage: include_usage && continuous,
            return_token_ids: common.return_token_ids.unwrap_or(false),
        })
    }
}

/// One sequence's parameters, but for the prompt.
///
/// # Errors
/// [`ApiError::Invalid`] for a `top_k` out of range.
pub(super) fn fields(
    state: &State,
    common: &Common,
    tokens_max: Option<u32>,
    logprobs: Option<u32>,
) -> Result<RequestFields, ApiError> {
    let top_k = match common.top_k.unwrap_or(0) {
        -1 => 0,
        k => u32::try_from(k).map_err(|_| {
            let message = format!("top_k must be -1, 0 (both mean off) or above, got {k}");
            Invalid::value("top_k", message)
        })?,
    };
    let sampling = SamplingParams {
        temperature: common.temperature.unwrap_or(1.0),
        top_p: common.top_p.unwrap_or(1.0),
        top_k,
        min_p: common.min_p.unwrap_or(0.0),
        // Negative seeds are as good as others.
        seed: common.seed.map_or_else(guard::entropy, |seed| seed as u64),
    };
    let stop_tokens = match common.ignore_eos {
        Some(true) => Vec::new(),
        _ => state.app.eos_tokens.clone(),
    };
    Ok(RequestFields { prompt: Vec::new(), tokens_max, sampling, stop_tokens, logprobs })
}

/// The stop strings of a request.
pub(super) fn stops(common: &mut Common) -> Vec<String> {
    common.stop.take().map_or_else(Vec::new, |Stops(stops)| stops)
}

/// New text of a choice.
pub(super) struct Piece {
    pub index: usize,
    /// Empty while more tokens must say what it is.
    pub text: String,
    pub drawn: Option<Drawn>,
    /// `finish_reason`, on a choice's last piece.
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
    stop_tokens: Vec<TokenId>,
    prompt_tokens: u64,
    tokens_max: u64,
    tokens: u64,
    cached_tokens: Option<u32>,
    /// The last token and its text, until the engine says that it is the last.
    tail: Option<(String, Drawn)>,
    timing: Timing,
}

impl Choices {
    /// Hands all sequences to the engine.
    pub fn start(state: &Arc<State>, job: Job) -> Self {
        let Job { target, sequences, stops, arrived } = job;
        let app = &state.app;
        let start = |(ticket, request): (Ticket, Request)| Choice {
            detokenizer: Detokenizer::after_prompt(app.tokenizer.clone(), request.prompt()),
            stops: StopMatcher::new(stops.clone()),
            stop_tokens: request.stop_tokens().to_vec(),
            prompt_tokens: request.prompt().len() as u64,
            tokens_max: u64::from(request.tokens_max()),
            tokens: 0,
            cached_tokens: None,
            tail: None,
            timing: Timing::new(state, &target.counts, arrived, request.prompt().len()),
            events: Some(app.engine.generate(ticket, request, target.adapter.clone())),
        };
        let choices = sequences.into_iter().map(start).collect();
        Self { choices, turn: 0, phase: state.phase.subscribe() }
    }

    /// The next piece of any choice; `None` when all are finished.
    ///
    /// # Errors
    /// [`ApiError::Draining`], [`ApiError::EngineFailed`] and [`ApiError::EngineGone`].
    pub async fn next(&mut self) -> Result<Option<Piece>, ApiError> {
        let Self { choices, turn, phase } = self;
        tokio::select! {
            biased;
            piece = poll_fn(|cx| poll(choices, turn, cx)) => piece,
            () = reached(phase, Phase::Cancelling) => Err(ApiError::Draining),
        }
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
) -> Poll<Result<Option<Piece>, ApiError>> {
    let mut is_finished = true;
    for i in 0..choices.len() {
        let index = (*turn + i) % choices.len();
        let choice = &mut choices[index];
        while let Some(events) = &mut choice.events {
            let Poll::Ready(event) = events.poll_recv(cx) else {
                is_finished = false;
                break;
            };
            let event = event.ok_or(ApiError::EngineGone)?;
            if let Some(piece) = choice.take(index, event)? {
                *turn = index + 1;
                return Poll::Ready(Ok(Some(piece)));
            }
        }
    }
    if is_finished { Poll::Ready(Ok(None)) } else { Poll::Pending }
}

impl Choice {
    fn take(&mut self, index: usize, event: Event) -> Result<Option<Piece>, ApiError> {
        match event {
            Event::Failed(message) => Err(ApiError::EngineFailed(message)),
            Event::Started { cached_tokens } => {
                self.cached_tokens = Some(cached_tokens);
                Ok(None)
            }
            Event::Token { token, logprob, top } => {
                self.tokens += 1;
                self.timing.token();
                let is_stop = self.stop_tokens.contains(&token);
                // A stop token ends the text and is no part of it.
                let text = if is_stop { String::new() } else { self.detokenizer.push(token) };
                let drawn = Drawn { token, logprob, top };
                if is_stop || self.tokens >= self.tokens_max {
                    self.tail = Some((text, drawn));
                    return Ok(None);
                }
                let outcome = self.stops.push(&text);
                let finish = outcome.stopped.map(|_| self.finish(Finish::Stop));
                Ok(Some(Piece { index, text: outcome.emit, drawn: Some(drawn), finish }))
            }
            Event::Done { reason } => {
                let (mut text, drawn) = match self.tail.take() {
                    Some((text, drawn)) => (text, Some(drawn)),
                    None => (String::new(), None),
                };
                text += &self.detokenizer.finish();
                let outcome = self.stops.push(&text);
                let text = outcome.emit + &self.stops.finish();
                let finish = match (outcome.stopped, reason) {
                    (Some(_), _) | (None, FinishReason::Stop) => Finish::Stop,
                    (None, FinishReason::Length) => Finish::Length,
                };
                let finish = Some(self.finish(finish));
                Ok(Some(Piece { index, text, drawn, finish }))
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

/// A finished choice.
#[derive(Default)]
pub(super) struct Whole {
    pub text: String,
    pub drawn: Vec<Drawn>,
    pub finish: Option<&'static str>,
}

/// Waits for all choices.
///
/// # Errors
/// Those of [`Choices::next`].
pub(super) async fn collect(choices: &mut Choices) -> Result<Vec<Whole>, ApiError> {
    let mut wholes: Vec<Whole> = Vec::new();
    wholes.resize_with(choices.choices.len(), Whole::default);
    while let Some(piece) = choices.next().await? {
        let whole = &mut wholes[piece.index];
        whole.text += &piece.text;
        whole.drawn.extend(piece.drawn);
        whole.finish = piece.finish;
    }
    Ok(wholes)
}

/// What is the same in every chunk of an answer.
pub(super) struct Head {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
    pub options: Options,
}

impl Head {
    pub fn new(prefix: &str, object: &'static str, model: String, options: Options) -> Self {
        let id = format!("{prefix}-{}", guard::new_id());
        Self { id, object, created: unix_now_s(), model, options }
    }

    /// One JSON object with these choices.
    pub fn answer<'a, C>(
        &'a self,
        choices: &'a [C],
        usage: Option<Option<Usage>>,
    ) -> Answer<'a, C> {
        let Self { id, object, created, model, .. } = self;
        let (id, model) = (id.as_str(), model.as_str());
        Answer { id, object, created: *created, model, choices, usage, prompt_token_ids: None }
    }

    /// `usage` of a chunk before the last: null if the last will have it.
    pub fn chunk_usage(&self, usage: Usage) -> Option<Option<Usage>> {
        self.options.include_usage.then(|| self.options.continuous_usage.then_some(usage))
    }
}

/// How a route writes chunks.
pub(super) trait Chunks: Send + 'static {
    fn head(&self) -> &Head;

    /// Chunks before the first piece, as JSON.
    fn opening(&self, usage: Usage) -> Option<Vec<u8>>;

    /// The chunks of a piece, as JSON: none if it says nothing.
    fn piece(&mut self, piece: Piece, usage: Usage) -> Vec<Vec<u8>>;
}

/// Answers with a stream that begins at the first event, so that what fails at once still has
/// a status of its own; or after a while without one, so that proxies keep the connection.
///
/// # Errors
/// Those of [`Choices::next`] for the first piece.
pub(super) async fn stream<C: Chunks>(
    state: &State,
    mut choices: Choices,
    chunks: C,
) -> Result<Response<Body>, ApiError> {
    let keep_alive = match state.app.http.keep_alive_ms {
        0 => Duration::MAX,
        ms => Duration::from_millis(ms),
    };
    let first = match tokio::time::timeout(keep_alive, choices.next()).await {
        Ok(first) => first?,
        Err(_) => None,
    };
    Ok(sse::stream(move |events| async move {
        // A send fails only when the client is gone; there is no one to tell.
        let _ = write(events, choices, first, chunks, keep_alive).await;
    }))
}

type Sent = Result<(), mpsc::error::SendError<bytes::Bytes>>;

async fn write<C: Chunks>(
    events: Events,
    mut choices: Choices,
    first: Option<Piece>,
    mut chunks: C,
    keep_alive: Duration,
) -> Sent {
    if first.is_none() {
        events.send(PING.into()).await?;
    }
    if let Some(opening) = chunks.opening(choices.usage()) {
        events.send(sse::event(&opening)).await?;
    }
    if let Some(piece) = first {
        write_piece(&events, &choices, &mut chunks, piece).await?;
    }
    loop {
        match tokio::time::timeout(keep_alive, choices.next()).await {
            Err(_) => events.send(PING.into()).await?,
            Ok(Ok(Some(piece))) => write_piece(&events, &choices, &mut chunks, piece).await?,
            Ok(Ok(None)) => break,
            Ok(Err(error)) => return events.send(sse::event(&error.to_json())).await,
        }
    }
    let head = chunks.head();
    if head.options.include_usage {
        let answer = head.answer::<()>(&[], Some(Some(choices.usage())));
        events.send(sse::event(&to_json(&answer))).await?;
    }
    events.send(DONE.into()).await
}

async fn write_piece<C: Chunks>(
    events: &Events,
    choices: &Choices,
    chunks: &mut C,
    piece: Piece,
) -> Sent {
    for chunk in chunks.piece(piece, choices.usage()) {
        events.send(sse::event(&chunk)).await?;
    }
    Ok(())
}
