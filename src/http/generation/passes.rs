//! Prompts for which nothing is generated: only what the model makes of them is wanted, a vector or
//! the logprobs of their tokens.

use std::time::Duration;

use serde::de::MapAccess;
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use crate::engine::{Busy, Event, Ticket};
use crate::http::arrival::Arrival;
use crate::http::error::{ApiError, ServerError};
use crate::http::metrics::{Finish, Timing};
use crate::http::models;
use crate::http::phase::{Phase, reached};
use crate::http::request::dialects;
use crate::http::request::parse::Fields;
use crate::http::request::prompt::PromptInput;
use crate::http::request::unsupported::{GENERATION, IGNORED, PASSES, Unsupported};
use crate::http::schema::{Bounds, Property};
use crate::http::state::State;
use crate::http::wire::{PromptDetails, Usage};
use crate::ids::TokenId;
use crate::request::{Request, RequestParams};
use crate::text::ServedText;

/// Prompts of a request. More are answered 400.
pub(in crate::http) const PASSES_MAX: usize = 2048;
/// Sequences of one request in the engine's queue at once: the others come after them, so that a
/// long list leaves room for others' requests.
const PASSES_AT_ONCE: usize = 64;
/// For places in the queue after the first. Then the request is answered 429 after all.
const PLACES_WAIT_MS: u64 = 60_000;
/// Between two looks at the queue.
const PLACES_RETRY_MS: u64 = 5;

/// The fields of a route that generates nothing, and those that ask any route for what it has not.
#[derive(Default)]
pub(in crate::http) struct PassFields<T>(pub T);

impl<T: Fields> Fields for PassFields<T> {
    fn unsupported(key: &str) -> Option<&'static Unsupported> {
        let others = [PASSES, GENERATION, dialects::FIELDS];
        T::unsupported(key)
            .or_else(|| others.into_iter().flatten().find(|known| known.field == key))
    }

    fn ignored() -> Vec<&'static str> {
        [&T::ignored(), IGNORED].concat()
    }

    fn properties(bounds: &Bounds<'_>) -> Vec<Property> {
        T::properties(bounds)
    }

    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        self.0.set(key, map)
    }
}

/// The prompts of one request, ready for the engine.
pub(in crate::http) struct Passes {
    pub target: models::Target,
    /// Places for the first of them.
    pub tickets: Vec<Ticket>,
    pub requests: Vec<Request>,
    pub arrived: Arrival,
}

/// Tokens of texts, each checked as soon as it is there. A full server says so before.
///
/// # Errors
/// [`Busy`], and [`RequestError`] naming `prompt`.
pub(in crate::http) fn encode(
    state: &State,
    input: PromptInput,
    text: &ServedText,
    adds_special: Option<bool>,
    params: &RequestParams,
) -> Result<Vec<Vec<TokenId>>, ApiError> {
    let limits = &state.model.limits;
    let check = |ids: &[TokenId]| params.check_prompt(ids, limits);
    input.check(text, limits.context_tokens_max, false, check)?;
    check_places(state, input.count())?;
    let checked = |ids: Vec<TokenId>| check(&ids).map(|()| ids);
    Ok(input.encode(text, limits.context_tokens_max, adds_special, checked)?)
}

/// Whether there are places for the first of `count` prompts.
///
/// # Errors
/// [`Busy`].
pub(in crate::http) fn check_places(state: &State, count: usize) -> Result<(), Busy> {
    state.engine.check_places(count.min(at_once(state)))
}

/// Takes places for the first of `count` prompts.
///
/// # Errors
/// [`Busy`].
pub(in crate::http) fn reserve(state: &State, count: usize) -> Result<Vec<Ticket>, Busy> {
    state.engine.reserve(count.min(at_once(state)))
}

fn at_once(state: &State) -> usize {
    PASSES_AT_ONCE.min(state.engine.requests_max())
}

/// Runs all of them; the last event of each, in order.
///
/// # Errors
/// [`ServerError`].
pub(in crate::http) async fn run(
    state: &State,
    passes: Passes,
) -> Result<(Vec<Event>, Usage), ApiError> {
    let Passes { target, mut tickets, requests, arrived } = passes;
    let mut phase = state.phase.subscribe();
    target.counts.request();
    let (mut events, mut usage) = (Vec::with_capacity(requests.len()), no_tokens());
    let mut left = requests.into_iter();
    loop {
        let wave: Vec<Request> = left.by_ref().take(at_once(state)).collect();
        if wave.is_empty() {
            return Ok((events, usage));
        }
        if tickets.is_empty() {
            tickets = tokio::select! {
                places = places(state, wave.len()) => places?,
                () = reached(&mut phase, Phase::Cancelling) => {
                    return Err(ServerError::Draining.into());
                }
            };
        }
        let start = |(request, ticket): (Request, Ticket)| {
            add(&mut usage, request.prompt().len() as u64, 0);
            let (sequences, counts) = (&state.metrics.sequences, &target.counts);
            let timing = Timing::new(sequences, counts, &arrived, &ticket, &request, true);
            let ticket = counts.follow(ticket).captioned(target.caption.clone());
            (state.engine.generate(ticket, request, target.recipe.clone()), timing)
        };
        let running: Vec<_> = wave.into_iter().zip(tickets.drain(..)).map(start).collect();
        for (receiver, mut timing) in running {
            let (event, cached_tokens) = last(receiver, &mut phase).await?;
            timing.began(cached_tokens);
            timing.finish(Finish::Stop);
            add(&mut usage, 0, cached_tokens.into());
            events.push(event);
        }
    }
}

/// Places for the next of a request's prompts, as soon as there are any.
async fn places(state: &State, count: usize) -> Result<Vec<Ticket>, Busy> {
    let wait = async {
        loop {
            match state.engine.reserve(count) {
                Ok(tickets) => return tickets,
                Err(_) => sleep(Duration::from_millis(PLACES_RETRY_MS)).await,
            }
        }
    };
    let places = timeout(Duration::from_millis(PLACES_WAIT_MS), wait).await;
    places.or_else(|_| state.engine.reserve(count))
}

/// The last event of a sequence that generates nothing, and how much of its prompt was cached.
async fn last(
    mut events: mpsc::Receiver<Event>,
    phase: &mut watch::Receiver<Phase>,
) -> Result<(Event, u32), ServerError> {
    let mut cached = 0;
    loop {
        let event = tokio::select! {
            biased;
            event = events.recv() => event.ok_or(ServerError::EngineGone)?,
            () = reached(phase, Phase::Cancelling) => return Err(ServerError::Draining),
        };
        match event {
            Event::Started { cached_tokens } => cached = cached_tokens,
            Event::Failed(message) => return Err(ServerError::EngineFailed(message)),
            Event::NotFinite => return Err(ServerError::NotFinite),
            // Nothing is drawn here.
            Event::Token { .. } | Event::NoTokenLeft | Event::Astray(_) => {}
            last @ (Event::Embedding(_) | Event::Scores(_)) => return Ok((last, cached)),
        }
    }
}

fn no_tokens() -> Usage {
    let prompt_tokens_details = Some(PromptDetails { cached_tokens: 0 });
    Usage {
        prompt_tokens: 0,
        completion_tokens: 0,
        total_tokens: 0,
        prompt_tokens_details,
        completion_tokens_details: None,
    }
}

fn add(usage: &mut Usage, prompt_tokens: u64, cached_tokens: u64) {
    usage.prompt_tokens += prompt_tokens;
    usage.total_tokens += prompt_tokens;
    if let Some(details) = &mut usage.prompt_tokens_details {
        details.cached_tokens += cached_tokens;
    }
}
