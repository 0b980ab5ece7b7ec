//! What the engine counts and times; whoever reads it stops nothing.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::histogram::Histogram;
use super::window::Window;

/// vLLM's bounds of the time between two tokens in seconds, and below them three for fast devices.
pub const TOKEN_S: [f64; 22] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
/// vLLM's bounds of a step's tokens.
const STEP_TOKENS: [f64; 13] =
    [1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];
/// Bounds of the time that an adapter takes to the host or to the device, in seconds.
pub const LOAD_S: [f64; 8] = [0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0];

/// Numbers the engine publishes after each step; read without stopping it.
#[derive(Debug, Default)]
pub struct Stats {
    /// Sequences waiting to run.
    pub waiting: AtomicUsize,
    /// Sequences running.
    pub running: AtomicUsize,
    /// KV pages in use by live sequences.
    pub blocks_used: AtomicUsize,
    /// KV pages in all.
    pub blocks_total: AtomicUsize,
    /// Tokens of prompts that were computed or found cached.
    pub prompt_tokens_total: AtomicU64,
    /// Of them, those found cached.
    pub cached_tokens_total: AtomicU64,
    /// Tokens drawn.
    pub generation_tokens_total: AtomicU64,
    /// Prompt tokens looked up in the prefix cache.
    pub prefix_query_tokens_total: AtomicU64,
    /// Prompt tokens found there.
    pub prefix_hit_tokens_total: AtomicU64,
    /// Sequences sent back to the queue: KV pages ran out, or another's turn had come.
    pub preemptions_total: AtomicU64,
    /// Steps run.
    pub steps_total: AtomicU64,
    /// Steps that failed.
    pub failed_steps_total: AtomicU64,
    /// Adapters in device slots.
    pub adapters_resident: AtomicUsize,
    /// Adapters put into a slot.
    pub adapter_loads_total: AtomicU64,
    /// Adapters that made room for others.
    pub adapter_evictions_total: AtomicU64,
    /// How its tokens were spread.
    pub spread: Spread,
    /// Where it shows its sequences.
    pub window: Window,
    /// What does not change while it runs; set when it starts.
    pub sizes: OnceLock<Sizes>,
    /// Whether steps go on.
    pub pulse: Pulse,
    /// Set when the engine thread has ended.
    pub stopped: AtomicBool,
}

/// Tells a step that never ends from an engine that has nothing to do.
#[derive(Debug)]
pub struct Pulse {
    since: Instant,
    /// Milliseconds after `since` at which the step that runs began, and 0 while none does.
    beat_ms: AtomicU64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { since: Instant::now(), beat_ms: AtomicU64::new(0) }
    }
}

impl Pulse {
    fn now_ms(&self) -> u64 {
        self.since.elapsed().as_millis() as u64 + 1
    }

    /// A step begins.
    pub fn beat(&self) {
        self.beat_ms.store(self.now_ms(), Ordering::Release);
    }

    /// There is nothing to do.
    pub fn rest(&self) {
        self.beat_ms.store(0, Ordering::Release);
    }

    /// How long the step that runs has been running, in milliseconds; 0 while none does.
    pub fn step_ms(&self) -> u64 {
        match self.beat_ms.load(Ordering::Acquire) {
            0 => 0,
            beat => self.now_ms().saturating_sub(beat),
        }
    }
}

/// How the engine's tokens were spread over time and steps.
#[derive(Debug)]
pub struct Spread {
    /// From a sequence's token to its next, in seconds.
    pub inter_token_s: Histogram,
    /// Tokens of prompts that a step computed, and tokens that it drew.
    pub step_tokens: Histogram,
}

impl Default for Spread {
    fn default() -> Self {
        Self { inter_token_s: Histogram::new(&TOKEN_S), step_tokens: Histogram::new(&STEP_TOKENS) }
    }
}

/// What an engine was started with.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Tokens of a KV page.
    pub block_tokens: usize,
    /// KV pages in all.
    pub blocks: usize,
    /// Width in which keys and values are kept.
    pub kv_dtype: &'static str,
    /// Whether pages are found again.
    pub prefix_cache: bool,
    /// Adapters on the device at once.
    pub adapter_slots: usize,
}

/// How far a sequence has come. The engine writes it without a lock; anybody may read it.
#[derive(Debug)]
pub struct Progress {
    since: Instant,
    /// Nanoseconds after `since`, and 0 for not yet: handed to the engine, first planned, prompt
    /// computed, last token.
    queued: AtomicU64,
    planned: AtomicU64,
    computed: AtomicU64,
    last: AtomicU64,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            queued: AtomicU64::new(0),
            planned: AtomicU64::new(0),
            computed: AtomicU64::new(0),
            last: AtomicU64::new(0),
        }
    }

    fn set(&self, stamp: &AtomicU64, now: Instant) {
        let nanos = now.saturating_duration_since(self.since).as_nanos() as u64;
        stamp.store(nanos.max(1), Ordering::Relaxed);
    }

    fn set_once(&self, stamp: &AtomicU64, now: Instant) {
        if stamp.load(Ordering::Relaxed) == 0 {
            self.set(stamp, now);
        }
    }

    pub(super) fn queued(&self, now: Instant) {
        self.set(&self.queued, now);
    }

    /// A step has rows of it. Only the first such step counts, whatever is preempted later.
    pub(super) fn planned(&self, now: Instant) {
        self.set_once(&self.planned, now);
    }

    pub(super) fn computed(&self, now: Instant) {
        self.set_once(&self.computed, now);
    }

    pub(super) fn token(&self, now: Instant) {
        self.set(&self.last, now);
    }

    fn between(&self, from: &AtomicU64, to: &AtomicU64) -> Option<Duration> {
        let (from, to) = (from.load(Ordering::Relaxed), to.load(Ordering::Relaxed));
        (from > 0 && to > 0).then(|| Duration::from_nanos(to.saturating_sub(from)))
    }

    /// Whether a step has had rows of it.
    pub fn has_run(&self) -> bool {
        self.planned.load(Ordering::Relaxed) > 0
    }

    /// From the hand-over to the first step with rows of it.
    pub fn queue(&self) -> Option<Duration> {
        self.between(&self.queued, &self.planned)
    }

    /// From there until its prompt was computed, and its first token drawn if any was wanted.
    pub fn prefill(&self) -> Option<Duration> {
        self.between(&self.planned, &self.computed)
    }

    /// From the first token to the last.
    pub fn decode(&self) -> Option<Duration> {
        self.between(&self.computed, &self.last)
    }
}

/// What became of requests for one adapter on the device, added up over all who have a clone.
#[derive(Debug)]
pub struct AdapterUse {
    /// Sequences that found the adapter in a slot.
    pub hits: AtomicU64,
    /// Times that it left for another.
    pub evictions: AtomicU64,
    /// How long sequences that did not find it waited for it, in seconds.
    pub load_s: Histogram,
    /// Bytes of what was brought and has not left.
    pub device_bytes: AtomicU64,
}

impl Default for AdapterUse {
    fn default() -> Self {
        Self {
            hits: AtomicU64::new(0),
            evictions: AtomicU64::new(0),
            load_s: Histogram::new(&LOAD_S),
            device_bytes: AtomicU64::new(0),
        }
    }
}

/// An adapter in a slot, in the count of who brought it.
#[derive(Debug)]
pub(super) struct Brought {
    used: Arc<AdapterUse>,
    bytes: u64,
}

impl Brought {
    pub fn new(used: Arc<AdapterUse>, bytes: u64) -> Self {
        used.device_bytes.fetch_add(bytes, Ordering::Relaxed);
        Self { used, bytes }
    }

    /// It makes room for another.
    pub fn evicted(self) {
        self.used.evictions.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Brought {
    fn drop(&mut self) {
        self.used.device_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_that_is_preempted_keeps_its_first_start_and_what_has_not_come_has_no_time() {
        let progress = Progress::new();
        assert_eq!((progress.queue(), progress.has_run()), (None, false));
        let at = |ms: u64| progress.since + Duration::from_millis(ms);
        progress.queued(at(10));
        progress.planned(at(30));
        progress.planned(at(70));
        let ms = |time: Option<Duration>| time.map(|time| time.as_millis());
        assert_eq!((ms(progress.queue()), ms(progress.prefill())), (Some(20), None));
        progress.computed(at(100));
        assert_eq!((ms(progress.prefill()), ms(progress.decode())), (Some(70), None));
        progress.token(at(100));
        assert_eq!(ms(progress.decode()), Some(0), "one token");
        progress.token(at(250));
        assert_eq!((ms(progress.decode()), progress.has_run()), (Some(150), true));
    }

    #[test]
    fn bytes_of_an_adapter_count_until_it_leaves_for_whatever_reason() {
        let used = Arc::new(AdapterUse::default());
        let (first, second) = (Brought::new(used.clone(), 10), Brought::new(used.clone(), 5));
        assert_eq!(used.device_bytes.load(Ordering::Relaxed), 15);
        first.evicted();
        drop(second);
        assert_eq!(used.device_bytes.load(Ordering::Relaxed), 0);
        assert_eq!(used.evictions.load(Ordering::Relaxed), 1);
    }
}
