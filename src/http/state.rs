//! What all connections share.

use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use tokio::sync::{Semaphore, watch};

use super::adapter_root::AdapterRoot;
use super::connection::cors::Cors;
use super::connection::guard::LOOPBACK_HOSTS;
use super::error::{ApiError, RequestError, ServerError};
use super::ledger::Ledger;
use super::metrics::Metrics;
use super::phase::Phase;
use super::room::{Bodies, SMALL_BODY_BYTES};
use super::settings::{App, HttpSettings, ServedModel};
use super::watchers::Watchers;
use crate::adapter::{Catalog, LoadAdapter};
use crate::engine::EngineHandle;
use crate::structured::Forms;
use crate::text::AdapterTexts;

/// For requests being parsed and tokenized: of `all` places those with large bodies get no more
/// than `large`, so that no number of them keeps small ones waiting.
pub(super) struct TextTasks {
    all: Arc<Semaphore>,
    large: Arc<Semaphore>,
}

impl TextTasks {
    fn new(tasks_max: usize) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count));
        Self { all: places(tasks_max), large: places((tasks_max / 2).max(1)) }
    }
}

/// A running server.
pub(super) struct State {
    pub engine: EngineHandle,
    pub catalog: Arc<Catalog>,
    pub loader: Arc<dyn LoadAdapter>,
    pub texts: Arc<AdapterTexts>,
    pub model: ServedModel,
    pub http: HttpSettings,
    pub metrics: Arc<Metrics>,
    pub ledger: Ledger,
    /// What `/openapi.json` and `/docs` answer, once somebody has asked.
    pub openapi: OnceLock<[Bytes; 2]>,
    /// What forms answers may have.
    pub forms: Forms,
    pub phase: watch::Sender<Phase>,
    /// Names that `Host` may have; `None` takes any.
    pub hosts: Option<Vec<String>>,
    pub cors: Cors,
    pub adapter_root: Option<AdapterRoot>,
    /// For bodies that are read or parsed.
    pub bodies: Bodies,
    /// For requests being parsed and tokenized.
    pub text_tasks: TextTasks,
    /// For adapters being loaded.
    pub loads: Arc<Semaphore>,
    /// For clients that watch the batch.
    pub watchers: Arc<Watchers>,
}

impl State {
    /// A server on a socket that is or is not bound to the loopback address.
    ///
    /// # Errors
    /// When `adapter_root` is no directory.
    pub fn new(app: App, is_loopback: bool) -> io::Result<Self> {
        let App { engine, catalog, loader, texts, model, http } = app;
        let hosts = match &http.hosts_allowed {
            Some(hosts) => Some(hosts.clone()),
            None => {
                let names = LOOPBACK_HOSTS.iter().map(|host| (*host).to_owned());
                is_loopback.then(|| names.collect())
            }
        };
        Ok(Self {
            metrics: Arc::new(Metrics::new(&model, &engine, &catalog, &http)),
            ledger: Ledger::new(),
            phase: watch::Sender::new(Phase::Serving),
            openapi: OnceLock::new(),
            forms: Forms::new(model.limits.vocabulary_tokens),
            hosts,
            cors: Cors::new(http.origins_allowed.clone()),
            adapter_root: http.adapter_root.as_deref().map(AdapterRoot::new).transpose()?,
            bodies: Bodies::new(http.bodies_bytes_max),
            text_tasks: TextTasks::new(http.text_tasks_max),
            loads: Arc::new(Semaphore::new(http.loads_max)),
            watchers: Watchers::new(http.watchers_max),
            engine,
            catalog,
            loader,
            texts,
            model,
            http,
        })
    }

    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Whether the step that runs has been running for longer than any should.
    pub fn is_stuck(&self) -> bool {
        self.engine.stats().pulse.step_ms() > self.http.step_ms_max
    }

    /// Whether new generations are taken.
    ///
    /// # Errors
    /// [`ServerError::Draining`] and [`ServerError::EngineGone`].
    pub fn check_open(&self) -> Result<(), ServerError> {
        if self.phase() >= Phase::Draining {
            return Err(ServerError::Draining);
        }
        match self.engine.stats().stopped.load(Ordering::Acquire) {
            true => Err(ServerError::EngineGone),
            false => Ok(()),
        }
    }

    /// Counts fields that nobody knows, or refuses the first of them.
    ///
    /// # Errors
    /// [`RequestError::Unknown`] if that is what the operator wants.
    pub fn check_unknown(&self, names: &[String]) -> Result<(), RequestError> {
        self.metrics.unknown_fields(names);
        match names.first().filter(|_| self.http.strict_fields) {
            Some(name) => Err(RequestError::Unknown(name.clone())),
            None => Ok(()),
        }
    }

    /// Runs work on a request's text of so many bytes, as [`State::off_thread`] does.
    pub async fn on_text<T: Send + 'static>(
        self: &Arc<Self>,
        bytes: usize,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let TextTasks { all, large } = &self.text_tasks;
        let large = match bytes > SMALL_BODY_BYTES {
            true => {
                let place = large.clone().acquire_owned().await;
                Some(place.map_err(|_| ServerError::Internal)?)
            }
            false => None,
        };
        let work = move |state: &Self| {
            let _large = large;
            work(state)
        };
        self.off_thread(all, work).await
    }

    /// Runs work that may take long on a thread of its own, so that other clients are served
    /// meanwhile. At most as many at once as `permits` has.
    pub async fn off_thread<T: Send + 'static>(
        self: &Arc<Self>,
        permits: &Arc<Semaphore>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = permits.clone().acquire_owned().await.map_err(|_| ServerError::Internal)?;
        let state = self.clone();
        let task = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&state)
        });
        // The task fails only by a panic, which is on stderr.
        task.await.unwrap_or(Err(ServerError::Internal.into()))
    }
}
