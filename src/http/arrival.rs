//! A request from its first byte on: when it came, and what becomes known of it until its end, for
//! its line in the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::spans::RanFor;
use crate::ids::Digest;

/// A request that has come. Clones are of the same.
#[derive(Clone)]
pub(super) struct Arrival {
    pub at: Instant,
    received_bytes: Arc<AtomicU64>,
    known: Arc<Mutex<Known>>,
}

/// What is known of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Whose key it has.
    pub tenant: Option<String>,
    /// The path that leads to what answers it, as the table of routes has it.
    pub route: Option<&'static str>,
    /// Whether that only tells how the server is.
    pub is_probe: bool,
    /// The name that it asks for.
    pub model: Option<String>,
    /// The content behind the name, if it is an adapter.
    pub adapter: Option<Digest>,
    /// `code` of the error that it was answered with, or that ended its stream.
    pub error: Option<&'static str>,
    /// All its sequences together, if there were any.
    pub ran: Option<RanFor>,
}

impl Arrival {
    pub fn now() -> Self {
        Self { at: Instant::now(), received_bytes: Arc::default(), known: Arc::default() }
    }

    /// Bytes of its body that came.
    pub fn received(&self, bytes: usize) {
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub fn received_bytes(&self) -> u64 {
        self.received_bytes.load(Ordering::Relaxed)
    }

    /// Something more is known.
    pub fn learn(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// A sequence of it has ended. Of several the shortest times count, and the last end.
    pub fn ran(&self, one: RanFor) {
        let least = |a: Option<Duration>, b: Option<Duration>| a.into_iter().chain(b).min();
        self.learn(|known| {
            known.ran = Some(match known.ran {
                None => one,
                Some(all) => RanFor {
                    prompt_tokens: all.prompt_tokens + one.prompt_tokens,
                    cached_tokens: all.cached_tokens + one.cached_tokens,
                    generation_tokens: all.generation_tokens + one.generation_tokens,
                    queue: least(all.queue, one.queue),
                    first_token: least(all.first_token, one.first_token),
                    finish: one.finish,
                },
            });
        });
    }

    /// All that is known so far.
    pub fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
