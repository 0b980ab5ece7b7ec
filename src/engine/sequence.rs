//! What the engine remembers of one request while it runs.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{Event, FinishReason, Generate, Ticket};
use crate::adapter::Adapter;
use crate::backend::SampleRow;
use crate::ids::{Slot, TokenId};
use crate::request::Request;

/// A request the engine has accepted.
pub struct Sequence {
    request: Request,
    /// The content it runs with, however its name changes meanwhile.
    pub adapter: Option<Arc<Adapter>>,
    /// Its adapter's slot, pinned from the first step to the end, but while nothing runs.
    pub pinned: Option<Slot>,
    /// Where events go.
    pub events: mpsc::Sender<Event>,
    /// Tokens drawn.
    pub generated: u32,
    /// The client went away or fell behind.
    pub cancelled: bool,
    _ticket: Ticket,
}

impl Sequence {
    /// A sequence with nothing drawn.
    pub fn new(generate: Generate) -> Self {
        let Generate { request, adapter, events, ticket } = generate;
        let (pinned, generated, cancelled) = (None, 0, false);
        Self { request, adapter, pinned, events, generated, cancelled, _ticket: ticket }
    }

    /// The slot its rows use.
    pub fn slot(&self) -> Slot {
        self.pinned.unwrap_or(Slot::BASE)
    }

    /// Tokens of its prompt.
    pub fn prompt_tokens(&self) -> usize {
        self.request.prompt().len()
    }

    /// How to draw its next token.
    pub fn sample_row(&self) -> SampleRow {
        SampleRow {
            params: self.request.sampling().clone(),
            step: u64::from(self.generated),
            logprobs: self.request.logprobs(),
        }
    }

    /// Whether `token`, just drawn, is its last.
    pub fn finish_reason(&self, token: TokenId) -> Option<FinishReason> {
        if self.request.stop_tokens().contains(&token) {
            return Some(FinishReason::Stop);
        }
        (self.generated >= self.request.tokens_max()).then_some(FinishReason::Length)
    }

    /// Sends without waiting.
    pub fn send(&mut self, event: Event) {
        self.cancelled |= self.events.try_send(event).is_err();
    }
}
