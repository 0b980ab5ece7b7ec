//! What the engine remembers of one request while it runs: all but its text, which the scheduler
//! has.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use tokio::sync::mpsc;

use super::{Event, FinishReason, PromptScore, Stats, Ticket, ViewRow};
use crate::adapter::Adapter;
use crate::ids::{SequenceId, Slot, TokenId};
use crate::recipe::Recipe;
use crate::request::{Guide, Pooling, Terms, TokenMask};
use crate::scheduler::Extent;

/// Told to a client whose form is not at fault.
const GUIDE_PANICKED: &str =
    "the server failed to follow the form that was asked for. This is a bug.";

/// A guide that comes back from the thread that worked out its mask.
pub type Returned = (Box<dyn Guide>, Result<TokenMask, String>);

/// A request the engine has accepted.
pub struct InFlight {
    /// What is asked.
    pub terms: Terms,
    /// The contents it runs with, however their names change meanwhile.
    pub recipe: Recipe<Arc<Adapter>>,
    /// Their slots, pinned from the first step to the end, but while nothing runs.
    pub pinned: Vec<Slot>,
    /// Since when an adapter of it is on its way to the device, if one was not there.
    pub brings_since: Option<Instant>,
    /// Whether its adapters have been on the device, and how they came there is counted.
    pub is_placed: bool,
    /// Tokens of its prompt.
    pub prompt_tokens: u32,
    /// Of the prompt's second token, its third, … as far as they are known, if they are wanted.
    pub scores: Vec<PromptScore>,
    /// How many have been, told or not.
    pub scored: u32,
    /// Rows that are in `pooled_sum`.
    pub pooled: u32,
    /// The sum of hidden states, or the last, if the prompt's vector is wanted.
    pooled_sum: Vec<f64>,
    /// The tokens that may be drawn next, if not all; or why nobody can tell.
    pub mask: Option<Result<TokenMask, String>>,
    /// Where its guide comes back from, with a mask.
    pub away: Option<Receiver<Returned>>,
    /// The client went away or fell behind.
    pub cancelled: bool,
    events: mpsc::Sender<Event>,
    last_token: Option<Instant>,
    /// Its place in the queue, and where its times are told.
    pub ticket: Ticket,
}

impl InFlight {
    /// A request with nothing computed.
    pub fn new(
        terms: Terms,
        recipe: Recipe<Arc<Adapter>>,
        prompt_tokens: u32,
        events: mpsc::Sender<Event>,
        ticket: Ticket,
    ) -> Self {
        Self {
            terms,
            recipe,
            pinned: Vec::new(),
            brings_since: None,
            is_placed: false,
            prompt_tokens,
            scores: Vec::new(),
            scored: 0,
            pooled: 0,
            pooled_sum: Vec::new(),
            mask: None,
            away: None,
            cancelled: false,
            events,
            last_token: None,
            ticket,
        }
    }

    /// What its rows carry.
    pub fn slots(&self) -> Recipe<Slot> {
        let mut slots = self.pinned.iter();
        let mut next = || *slots.next().expect("This is a bug: rows run before their adapters.");
        self.recipe.map(|_| next())
    }

    /// Whether its tokens must be of a form, and which may come next is not known.
    pub fn needs_mask(&self) -> bool {
        self.mask.is_none() && (self.terms.guide.is_some() || self.is_guide_away())
    }

    /// Whether its mask is being worked out: what is drawn without it does not count.
    pub fn is_guide_away(&self) -> bool {
        self.away.is_some()
    }

    /// Takes its guide back with the mask, if they come before `deadline`.
    pub fn fetch_mask(&mut self, deadline: Instant) {
        let Some(away) = &self.away else { return };
        let (guide, mask) =
            match away.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok((guide, mask)) => (Some(guide), mask),
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => (None, Err(GUIDE_PANICKED.to_owned())),
            };
        self.away = None;
        self.terms.guide = guide;
        self.mask = Some(mask);
    }

    /// Takes in `token`, drawn after `generated` others; whether it is the last.
    ///
    /// # Errors
    /// Why the form that was asked for cannot be followed.
    pub fn take(
        &mut self,
        token: TokenId,
        generated: usize,
    ) -> Result<Option<FinishReason>, String> {
        if let Some(Err(why)) = self.mask.take() {
            return Err(why);
        }
        if self.terms.stop_tokens.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        let is_last = generated + 1 >= self.terms.tokens_max as usize;
        let is_whole = match &mut self.terms.guide {
            Some(guide) => caught(|| guide.accept(token))?,
            None => false,
        };
        let last = if is_last { Some(FinishReason::Length) } else { None };
        Ok(if is_whole { Some(FinishReason::Whole) } else { last })
    }

    /// Counts a token that is about to be told.
    pub fn drew(&mut self, now: Instant, stats: &Stats) {
        stats.generation_tokens_total.fetch_add(1, Ordering::Relaxed);
        if let Some(last) = self.last_token.replace(now) {
            stats.spread.inter_token_s.observe((now - last).as_secs_f64());
        }
        self.ticket.progress.token(now);
    }

    /// Counts how its adapters came to the device, when all of them are there.
    pub fn placed(&mut self) {
        if std::mem::replace(&mut self.is_placed, true) {
            return;
        }
        match (&self.ticket.used, self.brings_since) {
            (Some(used), Some(since)) => used.load_s.observe(since.elapsed().as_secs_f64()),
            (Some(used), None) => {
                used.hits.fetch_add(1, Ordering::Relaxed);
            }
            (None, _) => {}
        }
    }

    /// Takes in a hidden state of the prompt.
    pub fn add_hidden(&mut self, hidden: &[f32]) {
        if self.terms.pooling == Some(Pooling::Last) || self.pooled_sum.is_empty() {
            self.pooled_sum = vec![0.0; hidden.len()];
            self.pooled = 0;
        }
        self.pooled_sum.iter_mut().zip(hidden).for_each(|(sum, x)| *sum += f64::from(*x));
        self.pooled += 1;
    }

    /// The prompt's vector.
    pub fn embedding(&self) -> Vec<f32> {
        self.pooled_sum.iter().map(|sum| (sum / f64::from(self.pooled.max(1))) as f32).collect()
    }

    /// Its row has numbers that nothing can be drawn from. Where it has adapters, they are to
    /// blame.
    pub fn not_finite(&self) -> Event {
        match self.recipe.is_base() {
            true => {
                Event::Failed("the model produced no finite numbers for this request".to_owned())
            }
            false => Event::NotFinite,
        }
    }

    /// What a watcher sees of it.
    pub fn view(&self, id: SequenceId, extent: &Extent) -> ViewRow {
        ViewRow {
            id,
            caption: self.ticket.caption.clone(),
            tenant: self.terms.share.tenant,
            is_running: extent.is_running,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: extent.cached_tokens as u32,
            computed_tokens: extent.computed_tokens as u32,
            generated_tokens: extent.generated_tokens as u32,
            tokens_max: self.terms.tokens_max,
            blocks: extent.blocks as u32,
        }
    }

    /// Whether nobody listens any more.
    pub fn is_abandoned(&self) -> bool {
        self.cancelled || self.events.is_closed()
    }

    /// Sends without waiting.
    pub fn send(&mut self, event: Event) {
        self.cancelled |= self.events.try_send(event).is_err();
    }
}

/// What a guide does, kept from taking the other sequences of a step with it.
pub fn caught<T>(work: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    // One that has panicked is not asked again: its sequence ends.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(GUIDE_PANICKED.to_owned()))
}
