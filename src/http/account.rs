//! Whom the tokens of a request are counted to.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::caller::Caller;

/// Requests and tokens of a day or of a line of the metrics.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub requests: AtomicU64,
    /// Of prompts, each once for all of its samples.
    pub prompt_tokens: AtomicU64,
    /// Of those, the ones that were found computed.
    pub cached_tokens: AtomicU64,
    /// Drawn.
    pub completion_tokens: AtomicU64,
}

/// A tenant's lines in the metrics.
#[derive(Clone)]
pub(super) struct Series {
    pub counts: Arc<Counts>,
    /// Held so that its label stays its own.
    pub _label: Arc<dyn Any + Send + Sync>,
}

/// One request's: its tenant's limits, day and lines.
#[derive(Clone)]
pub(super) struct Account {
    caller: Caller,
    day: Arc<Counts>,
    series: Option<Series>,
}

impl Account {
    /// `series` is for a tenant, if there are any.
    pub fn new(caller: &Caller, day: Arc<Counts>, series: Option<Series>) -> Self {
        Self { caller: caller.clone(), day, series }
    }

    /// Once, when a request goes to the engine.
    pub fn request(&self) {
        self.count(|counts| &counts.requests, 1);
    }

    /// A prompt that waits for the engine: it counts against the limits from now on.
    pub fn asked(&self, prompt_tokens: u64) {
        self.caller.take_tokens(prompt_tokens);
    }

    /// A prompt that the engine has begun, and how much of it was there already.
    pub fn began(&self, prompt_tokens: u64, cached_tokens: u64) {
        self.count(|counts| &counts.prompt_tokens, prompt_tokens);
        self.count(|counts| &counts.cached_tokens, cached_tokens);
    }

    /// A token more.
    pub fn drew(&self) {
        self.caller.take_tokens(1);
        self.count(|counts| &counts.completion_tokens, 1);
    }

    fn count(&self, of: impl Fn(&Counts) -> &AtomicU64, n: u64) {
        let series = self.series.iter().map(|series| &series.counts);
        for counts in series.chain([&self.day]) {
            of(counts).fetch_add(n, Ordering::Relaxed);
        }
    }
}
