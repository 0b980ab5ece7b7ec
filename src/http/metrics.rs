//! `GET /metrics` in Prometheus' text format, under vLLM's names where it has one, so that its
//! dashboards and the gateways that read them work as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::prometheus_text;
use prometheus_client::encoding::{DescriptorEncoder, EncodeGaugeValue, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::account::{Account, Series};
use crate::adapter::Catalog;
use crate::engine::EngineHandle;

pub(super) use prometheus_text::CONTENT_TYPE;

/// Adapters with lines of their own; later ones share the name `other`.
const ADAPTERS_LABELLED_MAX: usize = 256;
/// Tenants with lines of their own, likewise.
const TENANTS_LABELLED_MAX: usize = 256;
/// Pairs of tenant and adapter with lines of their own; a later one has those of its tenant and the
/// adapter `other`, of which there are as many as tenants at most.
const PAIRS_LABELLED_MAX: usize = 1024;
/// In place of names that came too late for lines of their own.
const OTHERS: &str = "other";
/// Unknown fields that are logged, each once.
const UNKNOWN_LOGGED_MAX: usize = 256;

/// vLLM's buckets, in seconds.
const TTFT_S: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's, and below them three for fast devices.
const ITL_S: [f64; 22] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const E2E_S: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
];

/// How a sequence ended.
#[derive(Clone, Copy)]
pub(super) enum Finish {
    Stop,
    Length,
    /// The client left, the engine failed, or the server shut down.
    Abort,
}

impl Finish {
    const ALL: [Self; 3] = [Self::Stop, Self::Length, Self::Abort];

    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// Counters that differ in one label.
type Counters<Value> = Family<[(&'static str, Value); 1], Counter>;

/// Counters by tenant and adapter.
type Pairs = Family<[(&'static str, String); 2], Counter>;

/// Names as they stand on the page.
struct Labels {
    /// What a name is numbered after, if names are hidden.
    hidden_as: Option<&'static str>,
    max: usize,
    known: Mutex<BTreeMap<String, String>>,
}

impl Labels {
    fn new(max: usize, hidden_as: Option<&'static str>) -> Self {
        Self { hidden_as, max, known: Mutex::default() }
    }

    fn of(&self, name: &str) -> String {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(label) = known.get(name) {
            return label.clone();
        }
        if known.len() >= self.max {
            return OTHERS.to_owned();
        }
        let label = match self.hidden_as {
            None => name.to_owned(),
            Some(what) => format!("{what}_{}", known.len() + 1),
        };
        known.insert(name.to_owned(), label.clone());
        label
    }
}

/// What one adapter's requests add up to.
pub(super) struct AdapterCounts {
    requests: Counter,
    prompt_tokens: Counter,
    cached_tokens: Counter,
    account: Account,
    generation_tokens: Counter,
}

/// What the server counts by itself, and where to read the engine's numbers.
pub(super) struct Metrics {
    registry: Registry,
    ttft: Histogram,
    itl: Histogram,
    e2e: Histogram,
    finished: Counters<&'static str>,
    unknown_fields: Counter,
    unknown_logged: Mutex<BTreeSet<String>>,
    adapter_labels: Labels,
    tenant_labels: Labels,
    pairs_labelled: Mutex<BTreeSet<[String; 2]>>,
    adapter_requests: Counters<String>,
    adapter_prompt_tokens: Counters<String>,
    adapter_cached_tokens: Counters<String>,
    adapter_generation_tokens: Counters<String>,
    /// Requests, prompt tokens, cached ones of them, and tokens drawn.
    tenants: [Pairs; 4],
}

impl Metrics {
    /// `base_name` is a label of every line.
    pub fn new(
        base_name: &str,
        engine: &EngineHandle,
        catalog: &Arc<Catalog>,
        hides_names: bool,
    ) -> Self {
        let hidden_as = |what| hides_names.then_some(what);
        let labels = [("model_name", base_name.to_owned()), ("engine", "0".to_owned())];
        let labels = labels.into_iter().map(|(name, value)| (name.into(), value.into()));
        let metrics = Self {
            registry: Registry::with_labels(labels),
            ttft: Histogram::new(TTFT_S),
            itl: Histogram::new(ITL_S),
            e2e: Histogram::new(E2E_S),
            finished: Family::default(),
            unknown_fields: Counter::default(),
            unknown_logged: Mutex::default(),
            adapter_labels: Labels::new(ADAPTERS_LABELLED_MAX, hidden_as("adapter")),
            tenant_labels: Labels::new(TENANTS_LABELLED_MAX, hidden_as("tenant")),
            pairs_labelled: Mutex::default(),
            adapter_requests: Family::default(),
            adapter_prompt_tokens: Family::default(),
            adapter_cached_tokens: Family::default(),
            adapter_generation_tokens: Family::default(),
            tenants: Default::default(),
        };
        // Each is there from the start, so that a rate over it has a beginning.
        for finish in Finish::ALL {
            drop(metrics.finished.get_or_create(&finish_label(finish)));
        }
        metrics.registered(engine.clone(), catalog.clone())
    }

    /// Gives every metric its name. The library ends a help text with a full stop and the name of
    /// a counter with `_total`.
    fn registered(mut self, engine: EngineHandle, catalog: Arc<Catalog>) -> Self {
        let to = &mut self.registry;
        to.register_collector(Box::new(Numbers { engine, catalog }));
        to.register("vllm:request_success", "Sequences by how they ended", self.finished.clone());
        to.register(
            "tessera:unknown_fields",
            "Fields of requests that are not known and were ignored",
            self.unknown_fields.clone(),
        );
        to.register(
            "tessera:adapter_requests",
            "Sequences by adapter",
            self.adapter_requests.clone(),
        );
        to.register(
            "tessera:adapter_prompt_tokens",
            "Prompt tokens by adapter",
            self.adapter_prompt_tokens.clone(),
        );
        to.register(
            "tessera:adapter_cached_tokens",
            "Prompt tokens found in the prefix cache by adapter",
            self.adapter_cached_tokens.clone(),
        );
        let [requests, prompt, cached, generation] = self.tenants.clone();
        let tenants = [
            ("tessera:tenant_requests", "Requests by key and adapter", requests),
            ("tessera:tenant_prompt_tokens", "Prompt tokens by key and adapter", prompt),
            ("tessera:tenant_cached_tokens", "Of them, those found in the prefix cache", cached),
            ("tessera:tenant_generation_tokens", "Tokens drawn by key and adapter", generation),
        ];
        tenants.into_iter().for_each(|(name, help, family)| to.register(name, help, family));
        to.register(
            "tessera:adapter_generation_tokens",
            "Tokens drawn by adapter",
            self.adapter_generation_tokens.clone(),
        );
        to.register(
            "vllm:time_to_first_token_seconds",
            "Arrival to first token",
            self.ttft.clone(),
        );
        to.register("vllm:inter_token_latency_seconds", "Token to token", self.itl.clone());
        to.register("vllm:e2e_request_latency_seconds", "Arrival to last token", self.e2e.clone());
        self
    }

    /// The whole page, whose type is [`CONTENT_TYPE`].
    pub fn page(&self) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = prometheus_text::encode(&mut page, &self.registry);
        page
    }

    /// The counts of an adapter by its name, or of all that came too late for a name; a request's
    /// are also its account's.
    pub fn adapter(&self, name: &str, account: Account) -> AdapterCounts {
        let label = [("adapter", self.adapter_labels.of(name))];
        AdapterCounts {
            requests: self.adapter_requests.get_or_create_owned(&label),
            prompt_tokens: self.adapter_prompt_tokens.get_or_create_owned(&label),
            cached_tokens: self.adapter_cached_tokens.get_or_create_owned(&label),
            generation_tokens: self.adapter_generation_tokens.get_or_create_owned(&label),
            account,
        }
    }

    /// The lines of a tenant that uses an adapter.
    pub fn tenant(&self, name: &str, adapter: &str) -> Series {
        let mut pair = [self.tenant_labels.of(name), self.adapter_labels.of(adapter)];
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
                tracing::warn!(field = ?name, "a request has a field that is not known; ignored");
            }
        }
    }
}

fn finish_label(finish: Finish) -> [(&'static str, &'static str); 1] {
    [("finished_reason", finish.name())]
}

impl AdapterCounts {
    /// Once, when a request goes to the engine.
    pub fn request(&self) {
        self.account.request();
    }
}

/// One sequence's share in the metrics and in its tenant's account. A sequence that is dropped
/// unfinished was aborted.
pub(super) struct Timing {
    metrics: Arc<Metrics>,
    cached_tokens: Counter,
    generation_tokens: Counter,
    account: Account,
    /// Tokens of the prompt, until they are on the account; of several samples the first pays.
    prompt_tokens: Option<u64>,
    arrived: Instant,
    last_token: Option<Instant>,
    is_finished: bool,
}

impl Timing {
    pub fn new(
        metrics: &Arc<Metrics>,
        counts: &AdapterCounts,
        arrived: Instant,
        prompt_tokens: usize,
        pays_prompt: bool,
    ) -> Self {
        let prompt_tokens = prompt_tokens as u64;
        counts.requests.inc();
        counts.prompt_tokens.inc_by(prompt_tokens);
        if pays_prompt {
            counts.account.asked(prompt_tokens);
        }
        Self {
            metrics: metrics.clone(),
            cached_tokens: counts.cached_tokens.clone(),
            generation_tokens: counts.generation_tokens.clone(),
            account: counts.account.clone(),
            prompt_tokens: pays_prompt.then_some(prompt_tokens),
            arrived,
            last_token: None,
            is_finished: false,
        }
    }

    /// The engine has begun it, with so much of its prompt found in the prefix cache.
    pub fn began(&mut self, cached_tokens: u32) {
        self.cached_tokens.inc_by(cached_tokens.into());
        if let Some(prompt_tokens) = self.prompt_tokens.take() {
            self.account.began(prompt_tokens, cached_tokens.into());
        }
    }

    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.metrics.ttft.observe((now - self.arrived).as_secs_f64()),
            Some(last) => self.metrics.itl.observe((now - last).as_secs_f64()),
        }
        self.generation_tokens.inc();
        self.account.drew();
    }

    pub fn finish(&mut self, finish: Finish) {
        if !std::mem::replace(&mut self.is_finished, true) {
            self.metrics.finished.get_or_create(&finish_label(finish)).inc();
            self.metrics.e2e.observe(self.arrived.elapsed().as_secs_f64());
        }
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        self.finish(Finish::Abort);
    }
}

/// The numbers of the engine and of the adapters, read when a page is asked for.
struct Numbers {
    engine: EngineHandle,
    catalog: Arc<Catalog>,
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Numbers").finish_non_exhaustive()
    }
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let Self { engine, catalog } = self;
        let (stats, to) = (engine.stats(), &mut encoder);
        let of = |number: &AtomicUsize| number.load(Ordering::Relaxed);
        gauge(to, "vllm:num_requests_running", "Sequences running.", of(&stats.running))?;
        gauge(to, "vllm:num_requests_waiting", "Sequences waiting.", of(&stats.waiting))?;
        let (used, total) = (of(&stats.blocks_used), of(&stats.blocks_total));
        let usage = if total == 0 { 0.0 } else { used as f64 / total as f64 };
        gauge(to, "vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.", usage)?;
        let loaded = catalog.names().len();
        gauge(to, "tessera:adapters_loaded", "Names of adapters in host memory.", loaded)?;
        gauge(to, "tessera:adapters_bytes", "Bytes of adapters in host memory.", catalog.bytes())?;
        let resident = of(&stats.adapters_resident);
        gauge(to, "tessera:adapters_resident", "Adapters in device slots.", resident)?;
        let in_flight = engine.in_flight();
        gauge(to, "tessera:requests_in_flight", "Sequences accepted, not finished.", in_flight)?;
        let counters = [
            ("vllm:prompt_tokens", "Prompt tokens processed.", &stats.prompt_tokens_total),
            ("vllm:generation_tokens", "Tokens drawn.", &stats.generation_tokens_total),
            ("tessera:failed_steps", "Steps that failed.", &stats.failed_steps_total),
            ("tessera:adapter_loads", "Adapters put on the device.", &stats.adapter_loads_total),
            (
                "tessera:adapter_evictions",
                "Adapters that left the device for others.",
                &stats.adapter_evictions_total,
            ),
            (
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache.",
                &stats.prefix_query_tokens_total,
            ),
            (
                "vllm:prefix_cache_hits",
                "Prompt tokens found in the prefix cache.",
                &stats.prefix_hit_tokens_total,
            ),
            ("vllm:num_preemptions", "Sequences preempted.", &stats.preemptions_total),
            ("tessera:steps", "Steps of the engine.", &stats.steps_total),
        ];
        counters.into_iter().try_for_each(|(name, help, count)| counter(to, name, help, count))
    }
}

fn gauge(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: impl EncodeGaugeValue,
) -> fmt::Result {
    to.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
}

/// `name` is without the `_total` that the page has.
fn counter(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    count: &AtomicU64,
) -> fmt::Result {
    let count = count.load(Ordering::Relaxed);
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Counter)?;
    metric.encode_counter::<NoLabelSet, _, u64>(&count, None)
}
