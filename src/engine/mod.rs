//! The engine's door: what the rest of the server may ask of the one thread that owns the model,
//! the KV cache and every sequence.

mod base;
mod batch;
mod gpu;
mod guides;
mod histogram;
mod in_flight;
mod residents;
mod stats;
mod step;
mod window;

pub use base::CheckpointBase;
pub use gpu::{Gpu, GpuSettings, LoadedGpu, wait_until_ready};
pub use histogram::Histogram;
pub use stats::{AdapterUse, LOAD_S, Progress, Sizes, Stats, TOKEN_S};
pub use step::Engine;
pub use window::{Caption, View, ViewRow, Window};

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::adapter::Adapter;
use crate::ids::{Digest, TokenId};
use crate::recipe::Recipe;
use crate::request::Request;

/// Why a sequence ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum FinishReason {
    /// The token drawn is a stop token, which is no part of the text.
    Stop,
    /// The form that the request asks for is whole with this token, which is a part of the text.
    Whole,
    /// `tokens_max` was reached.
    Length,
}

/// How likely a prompt's token is, given those before it.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptScore {
    /// The token.
    pub token: TokenId,
    /// Its logprob.
    pub logprob: f32,
    /// 1 and the number of likelier tokens.
    pub rank: u32,
    /// The likeliest tokens, best first, as many as asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// What a client of the engine receives, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The first event: the prompt has been computed.
    Started {
        /// Prompt tokens whose KV was found in the prefix cache.
        cached_tokens: u32,
    },
    /// Of the prompt's second token and all that follow, if they were asked for. The last event
    /// where nothing is to be generated.
    Scores(Vec<PromptScore>),
    /// The prompt's vector, if it was asked for; the last event.
    Embedding(Vec<f32>),
    /// One more token.
    Token {
        /// The token.
        token: TokenId,
        /// Its logprob before temperature and filters.
        logprob: f32,
        /// The likeliest alternatives, best first, if asked for.
        top: Vec<(TokenId, f32)>,
        /// Why the sequence ends with this token. No event follows such a token.
        finish: Option<FinishReason>,
    },
    /// The last event of a sequence that the engine could not finish; the server's fault.
    Failed(String),
    /// The last event of a sequence whose own rules allow none of the tokens that could come next.
    NoTokenLeft,
    /// The last event of a sequence whose adapters make numbers that are not finite.
    NotFinite,
    /// The last event of a sequence whose form could not be followed any further; the request's.
    Astray(String),
}

/// A request on its way to the engine.
pub struct Generate {
    /// What to do.
    pub request: Request,
    /// The contents to do it with, pinned until the sequence ends.
    pub recipe: Recipe<Arc<Adapter>>,
    /// Where events go. Full or closed cancels the sequence.
    pub events: mpsc::Sender<Event>,
    /// Its place in the bounded queue, given back on drop.
    pub ticket: Ticket,
}

/// Everything the engine can be asked to do; a closed set.
pub enum Command {
    /// Generate, sending events until done or until the receiver is dropped.
    Generate(Box<Generate>),
    /// Free the slot of an adapter that no name points at any more.
    Forget(Digest),
}

/// Why an engine could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The limits contradict each other.
    #[error(transparent)]
    Limits(#[from] crate::scheduler::InvalidConfig),
    /// No thread could be had.
    #[error("the engine's thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
    /// The device has no room for the KV cache, or failed on the first step.
    #[error("the first step failed: {0}")]
    Device(#[from] crate::backend::Fault),
    /// The thread ended by a panic, which it has told.
    #[error("the engine's thread ended before its first step")]
    Ended,
}

/// The queue is full: 429 for the client.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error("the server is at its limit of {requests_max} requests in flight; retry later")]
pub struct Busy {
    /// Running plus waiting requests that are accepted.
    pub requests_max: usize,
}

/// One request's place in the bounded queue.
#[derive(Debug)]
pub struct Ticket {
    in_flight: Arc<AtomicUsize>,
    progress: Arc<Progress>,
    used: Option<Arc<AdapterUse>>,
    caption: Option<Arc<Caption>>,
}

impl Ticket {
    /// How far the request has come, from now on and after its end.
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }

    /// Counts what becomes of its adapters on the device there.
    pub fn counting(mut self, used: Arc<AdapterUse>) -> Self {
        self.used = Some(used);
        self
    }

    /// Is called so for those who watch the batch.
    pub fn captioned(mut self, caption: Arc<Caption>) -> Self {
        self.caption = Some(caption);
        self
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// A cloneable, non-generic door to the engine thread. The thread ends when the last one drops.
#[derive(Clone)]
pub struct EngineHandle {
    commands: mpsc::UnboundedSender<Command>,
    in_flight: Arc<AtomicUsize>,
    requests_max: usize,
    stats: Arc<Stats>,
}

/// Events a slow client may fall behind before its sequence is cancelled.
const EVENTS_BUFFERED_MAX: usize = 1024;

impl EngineHandle {
    /// A door and the engine's end of it. Requests in flight are bounded by `requests_max`, which
    /// is what bounds the channel.
    pub fn new(requests_max: usize) -> (Self, mpsc::UnboundedReceiver<Command>) {
        let (commands, inbox) = mpsc::unbounded_channel();
        let in_flight = Arc::default();
        (Self { commands, in_flight, requests_max, stats: Arc::default() }, inbox)
    }

    /// Whether `count` places could be taken now. It takes none: who has work to do before is told
    /// at once that it would be in vain.
    ///
    /// # Errors
    /// [`Busy`] when fewer are free.
    pub fn check_places(&self, count: usize) -> Result<(), Busy> {
        let max = self.requests_max;
        match self.in_flight().saturating_add(count) <= max {
            true => Ok(()),
            false => Err(Busy { requests_max: max }),
        }
    }

    /// Takes `count` places at once, all or none.
    ///
    /// # Errors
    /// [`Busy`] when fewer are free.
    pub fn reserve(&self, count: usize) -> Result<Vec<Ticket>, Busy> {
        let max = self.requests_max;
        let take = |n: usize| (n + count <= max).then_some(n + count);
        let taken = self.in_flight.fetch_update(Ordering::AcqRel, Ordering::Acquire, take);
        taken.map_err(|_| Busy { requests_max: max })?;
        let ticket = |_| Ticket {
            in_flight: self.in_flight.clone(),
            progress: Arc::new(Progress::new()),
            used: None,
            caption: None,
        };
        Ok((0..count).map(ticket).collect())
    }

    /// Places in all: a [`reserve`](Self::reserve) of more never succeeds.
    pub fn requests_max(&self) -> usize {
        self.requests_max
    }

    /// Starts a request; drop the receiver to cancel it. A receiver that is closed before a last
    /// event came means that the engine is gone.
    pub fn generate(
        &self,
        ticket: Ticket,
        request: Request,
        recipe: Recipe<Arc<Adapter>>,
    ) -> mpsc::Receiver<Event> {
        let (events, receiver) = mpsc::channel(EVENTS_BUFFERED_MAX);
        ticket.progress.queued(Instant::now());
        let generate = Box::new(Generate { request, recipe, events, ticket });
        // A send to an engine that is gone drops the sender: the receiver then reads closed.
        let _ = self.commands.send(Command::Generate(generate));
        receiver
    }

    /// Lets go of an adapter's place on the device once nothing runs on it.
    pub fn forget(&self, digest: Digest) {
        // An engine that is gone holds nothing.
        let _ = self.commands.send(Command::Forget(digest));
    }

    /// The engine's numbers.
    pub fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Requests accepted and not yet finished.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }
}
