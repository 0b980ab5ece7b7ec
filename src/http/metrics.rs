//! `GET /metrics` in Prometheus' text format, under vLLM's names where it has one, so that its
//! dashboards and the gateways that read them work as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::State;

/// Adapters with lines of their own; later ones share the name `other`.
const ADAPTERS_LABELLED_MAX: usize = 256;
/// Unknown fields that are logged, each once.
const UNKNOWN_LOGGED_MAX: usize = 256;

/// vLLM's buckets, in seconds.
const TTFT_S: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
];
/// vLLM's, and below them three for fast devices.
const ITL_S: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
    5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const E2E_S: &[f64] = &[
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

const FINISHES: [Finish; 3] = [Finish::Stop, Finish::Length, Finish::Abort];

impl Finish {
    pub fn name(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }
}

/// What one adapter's requests added up to.
#[derive(Debug, Default)]
pub(super) struct AdapterCounts {
    requests: AtomicU64,
    prompt_tokens: AtomicU64,
    generation_tokens: AtomicU64,
}

struct Histogram {
    bounds_s: &'static [f64],
    /// One for each bound and one for what is above.
    counts: Vec<AtomicU64>,
    sum_ns: AtomicU64,
}

impl Histogram {
    fn new(bounds_s: &'static [f64]) -> Self {
        let counts = (0..=bounds_s.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_s, counts, sum_ns: AtomicU64::new(0) }
    }

    fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds_s.partition_point(|&bound| bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(duration.as_nanos() as u64, Ordering::Relaxed);
    }
}

/// What the server counts by itself; the engine's numbers are its own.
pub(super) struct Metrics {
    ttft: Histogram,
    itl: Histogram,
    e2e: Histogram,
    finished: [AtomicU64; 3],
    unknown_fields: AtomicU64,
    unknown_logged: Mutex<BTreeSet<String>>,
    adapters: Mutex<BTreeMap<String, Arc<AdapterCounts>>>,
}

impl Metrics {
    pub fn new() -> Self {
        Self {
            ttft: Histogram::new(TTFT_S),
            itl: Histogram::new(ITL_S),
            e2e: Histogram::new(E2E_S),
            finished: Default::default(),
            unknown_fields: AtomicU64::new(0),
            unknown_logged: Mutex::default(),
            adapters: Mutex::default(),
        }
    }

    /// The counts of an adapter by its name, or of all that came too late for a name.
    pub fn adapter(&self, name: &str) -> Arc<AdapterCounts> {
        let mut adapters = self.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(counts) = adapters.get(name) {
            return counts.clone();
        }
        let name = if adapters.len() < ADAPTERS_LABELLED_MAX { name } else { "other" };
        adapters.entry(name.to_owned()).or_default().clone()
    }

    /// Counts fields that nobody knows, and logs each name once.
    pub fn unknown_fields(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        self.unknown_fields.fetch_add(names.len() as u64, Ordering::Relaxed);
        let mut logged = self.unknown_logged.lock().unwrap_or_else(PoisonError::into_inner);
        for name in names {
            if logged.len() < UNKNOWN_LOGGED_MAX && logged.insert(name.clone()) {
                tracing::warn!(field = ?name, "a request has a field that is not known; ignored");
            }
        }
    }
}

/// One sequence's share in the metrics. A sequence that is dropped unfinished was aborted.
pub(super) struct Timing {
    state: Arc<State>,
    counts: Arc<AdapterCounts>,
    arrived: Instant,
    last_token: Option<Instant>,
    is_finished: bool,
}

impl Timing {
    pub fn new(
        state: &Arc<State>,
        counts: &Arc<AdapterCounts>,
        arrived: Instant,
        prompt_tokens: usize,
    ) -> Self {
        counts.requests.fetch_add(1, Ordering::Relaxed);
        counts.prompt_tokens.fetch_add(prompt_tokens as u64, Ordering::Relaxed);
        let (state, counts) = (state.clone(), counts.clone());
        Self { state, counts, arrived, last_token: None, is_finished: false }
    }

    pub fn token(&mut self) {
        let now = Instant::now();
        match self.last_token.replace(now) {
            None => self.state.metrics.ttft.observe(now - self.arrived),
            Some(last) => self.state.metrics.itl.observe(now - last),
        }
        self.counts.generation_tokens.fetch_add(1, Ordering::Relaxed);
    }

    pub fn finish(&mut self, finish: Finish) {
        if !std::mem::replace(&mut self.is_finished, true) {
            let metrics = &self.state.metrics;
            metrics.finished[finish as usize].fetch_add(1, Ordering::Relaxed);
            metrics.e2e.observe(self.arrived.elapsed());
        }
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        self.finish(Finish::Abort);
    }
}

/// The whole page.
pub(super) fn page(state: &State) -> String {
    let (app, metrics) = (&state.app, &state.metrics);
    let stats = app.engine.stats();
    let model = format!("model_name=\"{}\",engine=\"0\"", escaped(&app.base_name));
    let mut page = Page { text: String::new(), model };
    let relaxed = Ordering::Relaxed;
    let (used, total) = (stats.blocks_used.load(relaxed), stats.blocks_total.load(relaxed));
    let bytes = app.store.bytes();
    page.gauge("vllm:num_requests_running", "Sequences running.", stats.running.load(relaxed));
    page.gauge("vllm:num_requests_waiting", "Sequences waiting.", stats.waiting.load(relaxed));
    let usage = if total == 0 { 0.0 } else { used as f64 / total as f64 };
    page.gauge("vllm:kv_cache_usage_perc", "KV cache in use; 1 is all of it.", usage);
    let loaded = app.store.list().len();
    page.gauge("tessera:adapters_loaded", "Names of adapters in host memory.", loaded);
    page.gauge("tessera:adapters_bytes", "Bytes of adapters in host memory.", bytes);
    let resident = stats.adapters_resident.load(relaxed);
    page.gauge("tessera:adapters_resident", "Adapters in device slots.", resident);
    let in_flight = app.engine.in_flight();
    page.gauge("tessera:requests_in_flight", "Sequences accepted, not finished.", in_flight);
    let counters = [
        ("vllm:prompt_tokens_total", "Prompt tokens processed.", &stats.prompt_tokens_total),
        ("vllm:generation_tokens_total", "Tokens drawn.", &stats.generation_tokens_total),
        ("tessera:failed_steps_total", "Steps that failed.", &stats.failed_steps_total),
        ("tessera:adapter_loads_total", "Adapters put on the device.", &stats.adapter_loads_total),
        (
            "tessera:adapter_evictions_total",
            "Adapters that left the device for others.",
            &stats.adapter_evictions_total,
        ),
        (
            "vllm:prefix_cache_queries_total",
            "Prompt tokens looked up in the prefix cache.",
            &stats.prefix_query_tokens_total,
        ),
        (
            "vllm:prefix_cache_hits_total",
            "Prompt tokens found in the prefix cache.",
            &stats.prefix_hit_tokens_total,
        ),
        ("vllm:num_preemptions_total", "Sequences preempted.", &stats.preemptions_total),
        ("tessera:steps_total", "Steps of the engine.", &stats.steps_total),
        (
            "tessera:unknown_fields_total",
            "Fields of requests that are not known and were ignored.",
            &metrics.unknown_fields,
        ),
    ];
    for (name, help, counter) in counters {
        page.head(name, help, "counter");
        page.line(name, "", counter.load(relaxed));
    }
    page.head("vllm:request_success_total", "Sequences by how they ended.", "counter");
    for finish in FINISHES {
        let label = format!("finished_reason=\"{}\"", finish.name());
        let count = metrics.finished[finish as usize].load(relaxed);
        page.line("vllm:request_success_total", &label, count);
    }
    page.adapters(metrics);
    page.histogram("vllm:time_to_first_token_seconds", "Arrival to first token.", &metrics.ttft);
    page.histogram("vllm:inter_token_latency_seconds", "Token to token.", &metrics.itl);
    page.histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", &metrics.e2e);
    page.text
}

struct Page {
    text: String,
    /// Labels of every line.
    model: String,
}

impl Page {
    // Writing to a string does not fail.
    fn head(&mut self, name: &str, help: &str, kind: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, label: &str, value: impl std::fmt::Display) {
        let comma = if label.is_empty() { "" } else { "," };
        let _ = writeln!(self.text, "{name}{{{}{comma}{label}}} {value}", self.model);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, help, "gauge");
        self.line(name, "", value);
    }

    fn adapters(&mut self, metrics: &Metrics) {
        type Of = fn(&AdapterCounts) -> &AtomicU64;
        let adapters = metrics.adapters.lock().unwrap_or_else(PoisonError::into_inner);
        let series: [(&str, &str, Of); 3] = [
            ("tessera:adapter_requests_total", "Sequences by adapter.", |c| &c.requests),
            ("tessera:adapter_prompt_tokens_total", "Prompt tokens by adapter.", |c| {
                &c.prompt_tokens
            }),
            ("tessera:adapter_generation_tokens_total", "Tokens drawn by adapter.", |c| {
                &c.generation_tokens
            }),
        ];
        for (name, help, of) in series {
            self.head(name, help, "counter");
            for (adapter, counts) in adapters.iter() {
                let label = format!("adapter=\"{}\"", escaped(adapter));
                self.line(name, &label, of(counts).load(Ordering::Relaxed));
            }
        }
    }

    fn histogram(&mut self, name: &str, help: &str, histogram: &Histogram) {
        self.head(name, help, "histogram");
        let mut sum = 0;
        let bounds = histogram.bounds_s.iter().map(f64::to_string);
        let bounds = bounds.chain(["+Inf".to_owned()]);
        for (bound, count) in bounds.zip(&histogram.counts) {
            sum += count.load(Ordering::Relaxed);
            self.line(&format!("{name}_bucket"), &format!("le=\"{bound}\""), sum);
        }
        let seconds = histogram.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
        self.line(&format!("{name}_sum"), "", seconds);
        self.line(&format!("{name}_count"), "", sum);
    }
}

/// A label's value.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
