//! Whom the tokens of a request are counted to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prometheus_client::metrics::counter::Counter;

use super::caller::Caller;
use super::ledger::Counts;

/// A tenant's lines in the metrics.
#[derive(Clone)]
pub(super) struct Series {
    pub requests: Counter,
    pub prompt_tokens: Counter,
    pub cached_tokens: Counter,
    pub generation_tokens: Counter,
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
        self.count(&self.day.requests, |series| &series.requests, 1);
    }

    /// A prompt that waits for the engine: it counts against the limits from now on.
    pub fn asked(&self, prompt_tokens: u64) {
        self.caller.take_tokens(prompt_tokens);
    }

    /// A prompt that the engine has begun, and how much of it was there already.
    pub fn began(&self, prompt_tokens: u64, cached_tokens: u64) {
        self.count(&self.day.prompt_tokens, |series| &series.prompt_tokens, prompt_tokens);
        self.count(&self.day.cached_tokens, |series| &series.cached_tokens, cached_tokens);
    }

    /// A token more.
    pub fn drew(&self) {
        self.caller.take_tokens(1);
        self.count(&self.day.completion_tokens, |series| &series.generation_tokens, 1);
    }

    fn count(&self, day: &AtomicU64, of: impl Fn(&Series) -> &Counter, n: u64) {
        day.fetch_add(n, Ordering::Relaxed);
        if let Some(series) = &self.series {
            of(series).inc_by(n);
        }
    }
}
