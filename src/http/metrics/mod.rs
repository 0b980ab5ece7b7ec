//! `GET /metrics` for Prometheus, under vLLM's names where it has one, so that its dashboards and
//! the gateways that read them work as they are. `docs/metrics.md` lists every name.

mod adapters;
mod encode;
mod engine;
mod format;
mod labels;
mod sequences;
mod tenants;
mod traffic;

pub(super) use adapters::AdapterCounts;
pub(super) use sequences::{Finish, Timing};
pub(super) use traffic::{Exchanged, NO_ROUTE};

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;

use self::adapters::Adapters;
use self::engine::Numbers;
use self::format::Format;
use self::sequences::Sequences;
use self::tenants::Tenants;
use self::traffic::{LostLines, Traffic};
use super::error::shown;
use super::settings::{HttpSettings, ServedModel};
use crate::adapter::Catalog;
use crate::engine::EngineHandle;

/// Unknown fields that are logged, each once.
const UNKNOWN_LOGGED_MAX: usize = 256;

/// What the server counts by itself, and where to read the engine's numbers.
pub(super) struct Metrics {
    registry: Registry,
    pub sequences: Arc<Sequences>,
    pub adapters: Arc<Adapters>,
    pub tenants: Arc<Tenants>,
    pub traffic: Traffic,
    unknown_fields: Counter,
    unknown_logged: Mutex<BTreeSet<String>>,
}

impl Metrics {
    /// The base's name is a label of every line.
    pub fn new(
        model: &ServedModel,
        engine: &EngineHandle,
        catalog: &Arc<Catalog>,
        http: &HttpSettings,
    ) -> Self {
        let hidden_as = |what| http.metrics_hide_names.then_some(what);
        let labels = [("model_name", model.base_name.clone()), ("engine", "0".to_owned())];
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let adapters = Adapters::new(&model.base_name, engine, catalog, hidden_as("adapter"));
        let adapters = Arc::new(adapters);
        let tenants = Tenants::new(http.keys.clone(), &adapters, hidden_as("tenant"));
        let mut metrics = Self {
            registry: Registry::with_labels(labels),
            sequences: Arc::new(Sequences::new(model.limits.context_tokens_max)),
            adapters,
            tenants: Arc::new(tenants),
            traffic: Traffic::default(),
            unknown_fields: Counter::default(),
            unknown_logged: Mutex::default(),
        };
        let numbers = Numbers { engine: engine.clone(), catalog: catalog.clone() };
        metrics.registry.register_collector(Box::new(numbers));
        if let Some(lost) = &http.log_lines_lost {
            metrics.registry.register_collector(Box::new(LostLines(lost.clone())));
        }
        metrics.registered()
    }

    /// Gives every metric its name. The library ends a help text with a full stop and the name of
    /// a counter with `_total`.
    fn registered(mut self) -> Self {
        let to = &mut self.registry;
        to.register_collector(Box::new(self.sequences.clone()));
        to.register_collector(Box::new(self.adapters.clone()));
        to.register_collector(Box::new(self.tenants.clone()));
        self.traffic.register(to);
        to.register(
            "tessera:unknown_fields",
            "Fields of requests that are not known and were ignored",
            self.unknown_fields.clone(),
        );
        self
    }

    /// The whole page and its type, in the form that a client wants.
    pub fn page(&self, headers: &HeaderMap) -> (&'static str, String) {
        let format = Format::of(headers);
        (format.content_type(), format.page(&self.registry))
    }

    /// Counts fields that nobody knows, and logs each name once.
    pub fn unknown_fields(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        self.unknown_fields.inc_by(names.len() as u64);
        let mut logged = self.unknown_logged.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if logged.len() < UNKNOWN_LOGGED_MAX && logged.insert(name.clone()) {
                let name = shown(name);
                tracing::warn!(
                    field = name.as_str(),
                    "a request has a field that is not known; ignored"
                );
            }
        }
    }
}
