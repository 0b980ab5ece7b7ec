//! OpenAI's API over HTTP/1.1: the only module that knows HTTP, a client's JSON, or event streams.
//!
//! A request goes `server` (connection) → `routes` (which endpoint) → `body` (bytes) → `parse` and
//! `wire` (fields) → `completions` or `chat` (prompts and parameters) → `generate` (the engine) →
//! `sse` or one JSON object. What can go wrong on the way is one enum, [`error`].

mod adapters;
mod body;
mod chat;
mod completions;
mod error;
mod generate;
mod guard;
mod logprobs;
mod metrics;
mod models;
mod parse;
mod routes;
mod server;
mod sse;
mod unsupported;
mod wire;

pub use server::serve;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{Semaphore, watch};

use crate::adapter::{Load, Store};
use crate::engine::EngineHandle;
use crate::ids::TokenId;
use crate::request::Limits;
use crate::text::{ChatTemplate, Tokenizer};
use error::ApiError;
use metrics::Metrics;

/// What is served, and within which limits.
pub struct App {
    /// Where tokens come from.
    pub engine: EngineHandle,
    /// The adapters that requests may name.
    pub store: Arc<Store>,
    /// Reads adapters at run time.
    pub loader: Arc<dyn Load>,
    /// The base's tokenizer.
    pub tokenizer: Arc<Tokenizer>,
    /// The base's chat template; without one, chat requests are answered 400.
    pub template: Option<ChatTemplate>,
    /// What a request is validated against.
    pub limits: Limits,
    /// Tokens that end a sequence unless the request says `ignore_eos`.
    pub eos_tokens: Vec<TokenId>,
    /// The base's name in `model`.
    pub base_name: String,
    /// Seconds since 1970 when the base was loaded.
    pub created: u64,
    /// The one name served when an adapter is merged into the weights.
    pub merged: Option<String>,
    /// Whether clients may load and unload adapters.
    pub runtime_adapters: bool,
    /// The directory that adapters may be loaded from at run time; without one, none can.
    pub adapter_root: Option<PathBuf>,
    /// Names a request's `Host` may have, without port. `None` takes any, but only the names of
    /// the loopback address on a socket bound to it, so that a web page cannot reach the server
    /// through a domain that points there (DNS rebinding).
    pub hosts_allowed: Option<Vec<String>>,
    /// Limits of connections and bodies.
    pub http: HttpLimits,
}

/// Limits of connections and bodies; printed at start-up.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Connections at once. A further one is answered 503 and closed.
    pub connections_max: usize,
    /// For a request's whole head, and between two requests of a connection. Then it is closed.
    pub header_read_timeout_ms: u64,
    /// One request's body. A larger one is answered 413.
    pub body_bytes_max: usize,
    /// All bodies being read or parsed at once. Above it, requests are answered 503.
    pub bodies_bytes_max: usize,
    /// Between two pieces of a body. Then it is answered 408.
    pub body_idle_timeout_ms: u64,
    /// For a whole body. Then it is answered 408.
    pub body_timeout_ms: u64,
    /// For a client that reads nothing. Then its connection is closed and its sequences end.
    pub write_idle_timeout_ms: u64,
    /// Silence on an event stream after which a comment is sent, so that proxies keep it open; 0
    /// for never.
    pub keep_alive_ms: u64,
    /// How long requests are still taken after the shutdown signal while `/ready` says 503.
    pub drain_notice_ms: u64,
    /// How long requests in flight may go on after that. Then they end with an error.
    pub drain_timeout_ms: u64,
    /// Requests being parsed and tokenized at once. Further ones wait.
    pub text_tasks_max: usize,
    /// Adapters being loaded at once. Further ones wait.
    pub loads_max: usize,
}

impl HttpLimits {
    /// Limits that suit a server on two cores as well as on a hundred.
    pub fn standard() -> Self {
        Self {
            connections_max: 4096,
            // Above the 15 s that common clients keep an idle connection.
            header_read_timeout_ms: 20_000,
            body_bytes_max: 32 << 20,
            bodies_bytes_max: 256 << 20,
            body_idle_timeout_ms: 20_000,
            body_timeout_ms: 120_000,
            write_idle_timeout_ms: 30_000,
            keep_alive_ms: 15_000,
            drain_notice_ms: 0,
            drain_timeout_ms: 30_000,
            text_tasks_max: 8,
            loads_max: 2,
        }
    }
}

/// How far a shutdown has come.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Phase {
    Serving,
    /// Requests are taken, but load balancers are told to look elsewhere.
    Leaving,
    /// No new requests.
    Draining,
    /// Those in flight end with an error.
    Cancelling,
}

/// What all connections share.
struct State {
    app: App,
    metrics: Metrics,
    phase: watch::Sender<Phase>,
    /// Names that `Host` may have; `None` takes any.
    hosts: Option<Vec<String>>,
    /// [`App::adapter_root`] without symbolic links.
    adapter_root: Option<PathBuf>,
    /// KiB of bodies that may still be read.
    bodies_kib: Arc<Semaphore>,
    text_tasks: Arc<Semaphore>,
    loads: Arc<Semaphore>,
}

impl State {
    fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether new generations are taken.
    ///
    /// # Errors
    /// [`ApiError::Draining`] and [`ApiError::EngineGone`].
    fn check_open(&self) -> Result<(), ApiError> {
        if self.phase() >= Phase::Draining {
            return Err(ApiError::Draining);
        }
        match self.app.engine.stats().stopped.load(std::sync::atomic::Ordering::Acquire) {
            true => Err(ApiError::EngineGone),
            false => Ok(()),
        }
    }

    /// Runs work that may take long on a thread of its own, so that other clients are served
    /// meanwhile. At most as many at once as `permits` has.
    async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        permits: &Arc<Semaphore>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = permits.clone().acquire_owned().await.map_err(|_| ApiError::Internal)?;
        let state = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&state)
        });
        // The task fails only by a panic, which is on stderr.
        task.await.unwrap_or(Err(ApiError::Internal))
    }
}

/// Waits for a shutdown to come so far. Forever if the server itself is gone, which takes its
/// connections with it.
async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    let is_gone = phases.wait_for(|now| *now >= phase).await.is_err();
    if is_gone {
        std::future::pending::<()>().await;
    }
}

/// Seconds since 1970, as replies and model cards tell the time.
pub fn unix_now_s() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.unwrap_or_default().as_secs()
}
