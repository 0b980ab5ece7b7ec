//! `GET /metrics` for Prometheus, under vLLM's names where it has one, so that its dashboards and
//! the gateways that read them work as they are. `docs/metrics.md` lists every name.

mod adapters;
mod encode;
mod engine;
mod format;
mod labels;
mod sequences;
mod traffic;

pub(super) use adapters::AdapterCounts;
pub(super) use sequences::{Finish, Timing};
pub(super) use traffic::{Exchanged, NO_ROUTE};

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use hyper::HeaderMap;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use self::adapters::Adapters;
use self::engine::Numbers;
use self::format::Format;
use self::labels::{Labels, OTHERS};
use self::sequences::Sequences;
use self::traffic::{LostLines, Traffic};
use super::account::Series;
use super::error::shown;
use super::settings::{HttpSettings, ServedModel};
use crate::adapter::Catalog;
use crate::engine::EngineHandle;

/// Tenants with lines of their own; later ones share the name `other`.
const TENANTS_LABELLED_MAX: usize = 256;
/// Pairs of tenant and adapter with lines of their own; a later one has those of its tenant and the
/// adapter `other`, of which there are as many as tenants at most.
const PAIRS_LABELLED_MAX: usize = 1024;
/// Unknown fields that are logged, each once.
const UNKNOWN_LOGGED_MAX: usize = 256;

/// Counters by tenant and adapter.
type Pairs = Family<[(&'static str, String); 2], Counter>;

/// What the server counts by itself, and where to read the engine's numbers.
pub(super) struct Metrics {
    registry: Registry,
    pub sequences: Arc<Sequences>,
    pub adapters: Arc<Adapters>,
    pub traffic: Traffic,
    unknown_fields: Counter,
    unknown_logged: Mutex<BTreeSet<String>>,
    tenant_labels: Labels,
    pairs_labelled: Mutex<BTreeSet<[String; 2]>>,
    /// Requests, prompt tokens, cached ones of them, and tokens drawn.
    tenants: [Pairs; 4],
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
        let mut metrics = Self {
            registry: Registry::with_labels(labels),
            sequences: Arc::new(Sequences::new(model.limits.context_tokens_max)),
            adapters: Arc::new(Adapters::new(engine, catalog, hidden_as("adapter"))),
            traffic: Traffic::default(),
            unknown_fields: Counter::default(),
            unknown_logged: Mutex::default(),
            tenant_labels: Labels::new(TENANTS_LABELLED_MAX, hidden_as("tenant")),
            pairs_labelled: Mutex::default(),
            tenants: Default::default(),
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
        self.traffic.register(to);
        to.register(
            "tessera:unknown_fields",
            "Fields of requests that are not known and were ignored",
            self.unknown_fields.clone(),
        );
        let [requests, prompt, cached, generation] = self.tenants.clone();
        let tenants = [
            ("tessera:tenant_requests", "Requests by key and adapter", requests),
            ("tessera:tenant_prompt_tokens", "Prompt tokens by key and adapter", prompt),
            ("tessera:tenant_cached_tokens", "Of them, those found in the prefix cache", cached),
            ("tessera:tenant_generation_tokens", "Tokens drawn by key and adapter", generation),
        ];
        tenants.into_iter().for_each(|(name, help, family)| to.register(name, help, family));
        self
    }

    /// The whole page and its type, in the form that a client wants.
    pub fn page(&self, headers: &HeaderMap) -> (&'static str, String) {
        let format = Format::of(headers);
        (format.content_type(), format.page(&self.registry))
    }

    /// The lines of a tenant that uses an adapter.
    pub fn tenant(&self, name: &str, adapter: &str) -> Series {
        let mut pair = [self.tenant_labels.of(name), self.adapters.labels.of(adapter)];
        let mut known = self.pairs_labelled.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= PAIRS_LABELLED_MAX && !known.contains(&pair) {
            pair[1] = OTHERS.to_owned();
        } else {
            known.insert(pair.clone());
        }
        drop(known);
        let [tenant, adapter] = pair;
        let label = [("tenant", tenant), ("adapter", adapter)];
        let [requests, prompt_tokens, cached_tokens, generation_tokens] =
            self.tenants.each_ref().map(|family| family.get_or_create_owned(&label));
        Series { requests, prompt_tokens, cached_tokens, generation_tokens }
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
