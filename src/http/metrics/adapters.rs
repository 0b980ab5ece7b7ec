//! What each adapter's requests add up to: a line for each of so many adapters, for as long as they
//! are loaded, and one for all others.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::encode::{counted, labelled_gauge, spread};
use super::labels::{Labels, Place};
use crate::adapter::Catalog;
use crate::engine::{AdapterUse, EngineHandle, Histogram, LOAD_S, Progress, Ticket};
use crate::http::account::Account;
use crate::http::clock::unix_now_s;

/// Adapters with lines of their own; further ones share the name `other`.
const ADAPTERS_LABELLED_MAX: usize = 256;
/// Fewer than for all adapters together: each adapter has a line for each.
const TTFT_S: [f64; 12] = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 40.0, 160.0];

/// All adapters, and the base among them.
pub struct Adapters {
    labels: Labels<Lines>,
    live: Arc<Live>,
    engine: EngineHandle,
    catalog: Arc<Catalog>,
    base_name: String,
}

/// What one adapter's requests add up to, or those of all that have no name here.
pub struct Lines {
    requests: AtomicU64,
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generation_tokens: AtomicU64,
    ttft_s: Histogram,
    host_load_s: Histogram,
    used: Arc<AdapterUse>,
}

impl Lines {
    fn new() -> Self {
        Self {
            requests: AtomicU64::new(0),
            prompt_tokens: AtomicU64::new(0),
            cached_tokens: AtomicU64::new(0),
            generation_tokens: AtomicU64::new(0),
            ttft_s: Histogram::new(&TTFT_S),
            host_load_s: Histogram::new(&LOAD_S),
            used: Arc::default(),
        }
    }

    /// Whether it was ever wanted in a slot: the base is not.
    fn has_slot(&self) -> bool {
        self.used.hits.load(Ordering::Relaxed) + self.used.load_s.count() > 0
    }
}

impl Adapters {
    pub fn new(
        base_name: &str,
        engine: &EngineHandle,
        catalog: &Arc<Catalog>,
        hidden_as: Option<&'static str>,
    ) -> Self {
        Self {
            labels: Labels::new(ADAPTERS_LABELLED_MAX, hidden_as),
            live: Arc::default(),
            engine: engine.clone(),
            catalog: catalog.clone(),
            base_name: base_name.to_owned(),
        }
    }

    /// What is counted under a name: its own lines for as long as they are held or it is loaded.
    pub fn place(&self, name: &str) -> Arc<Place<Lines>> {
        self.labels.of(name, Lines::new, |name, lines| self.stays(name, lines))
    }

    /// Whether an adapter can be asked for, or is still on the device in the name of a request.
    fn stays(&self, name: &str, lines: &Lines) -> bool {
        let is_loaded = name == self.base_name || self.catalog.has(name);
        is_loaded || Arc::strong_count(&lines.used) > 1
    }

    fn all(&self) -> Vec<Arc<Place<Lines>>> {
        self.labels.all(|name, lines| self.stays(name, lines))
    }

    /// Labels that adapters have now.
    pub fn labels(&self) -> Vec<String> {
        self.all().iter().map(|place| place.label.clone()).collect()
    }

    /// What a request counts in; with a slot it is for an adapter that is in no weights.
    pub fn counts(
        &self,
        place: Arc<Place<Lines>>,
        account: Account,
        has_slot: bool,
    ) -> AdapterCounts {
        let live = has_slot.then(|| self.live.clone());
        AdapterCounts { place, account, live }
    }

    /// An adapter came from its files into host memory.
    pub fn loaded(&self, name: &str, time: Duration) {
        self.place(name).counts.host_load_s.observe(time.as_secs_f64());
    }

    /// Bytes in host memory by label: of those that nobody has asked for yet under `other`.
    fn host_bytes(&self) -> BTreeMap<String, u64> {
        let mut bytes = BTreeMap::new();
        for named in self.catalog.list() {
            let label = self.labels.known(&named.alias.name);
            *bytes.entry(label).or_default() += named.adapter.delta.bytes() as u64;
        }
        bytes
    }

    /// As gateways read it: who runs and who waits now. The value is the time, by which the newest
    /// of several lines is known.
    fn encode_live(&self, to: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let Some(sizes) = self.engine.stats().sizes.get() else { return Ok(()) };
        let (running, waiting) = self.live.names();
        let list = |names: BTreeSet<String>| names.into_iter().collect::<Vec<_>>().join(",");
        let labels = [
            ("max_lora", sizes.adapter_slots.to_string()),
            ("running_lora_adapters", list(running)),
            ("waiting_lora_adapters", list(waiting)),
        ];
        let help = "Adapters of the sequences that run and that wait; the value is the time.";
        labelled_gauge(to, "vllm:lora_requests_info", help, &labels, unix_now_s())
    }
}

type AdapterPlace = Arc<Place<Lines>>;

impl Collector for Adapters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let to = &mut encoder;
        self.encode_live(to)?;
        let all = self.all();
        counters(to, "requests", "Sequences by adapter.", &all, |l| &l.requests)?;
        let help = "Prompt tokens by adapter.";
        counters(to, "prompt_tokens", help, &all, |l| &l.prompt_tokens)?;
        let help = "Prompt tokens found in the prefix cache by adapter.";
        counters(to, "cached_tokens", help, &all, |l| &l.cached_tokens)?;
        let help = "Tokens drawn by adapter.";
        counters(to, "generation_tokens", help, &all, |l| &l.generation_tokens)?;
        encode_first_tokens(to, &all)?;
        encode_loads(to, &all)?;
        let in_slots: Vec<AdapterPlace> =
            all.iter().filter(|place| place.counts.has_slot()).cloned().collect();
        let help = "Sequences that found their adapter on the device.";
        counters(to, "slot_hits", help, &in_slots, |l| &l.used.hits)?;
        let (name, help) = ("slot_misses", "Sequences that had it brought there.");
        each(to, name, help, &in_slots, |l| l.used.load_s.count())?;
        let help = "Times that an adapter left the device for another.";
        counters(to, "slot_evictions", help, &in_slots, |l| &l.used.evictions)?;
        let (name, help) =
            ("tessera:adapter_resident_bytes", "Bytes of adapters by where they are.");
        let mut metric = to.encode_descriptor(name, help, None, MetricType::Gauge)?;
        let device = in_slots.iter().map(|place| {
            let bytes = place.counts.used.device_bytes.load(Ordering::Relaxed);
            (place.label.clone(), "device", bytes)
        });
        let host = self.host_bytes().into_iter().map(|(label, bytes)| (label, "host", bytes));
        for (label, tier, bytes) in host.chain(device) {
            let labels = [("adapter", label.as_str()), ("tier", tier)];
            metric.encode_family(&labels)?.encode_gauge(&bytes)?;
        }
        Ok(())
    }
}

fn counters(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &[AdapterPlace],
    count: fn(&Lines) -> &AtomicU64,
) -> fmt::Result {
    each(to, name, help, all, |lines| count(lines).load(Ordering::Relaxed))
}

fn each(
    to: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    all: &[AdapterPlace],
    count: impl Fn(&Lines) -> u64,
) -> fmt::Result {
    if all.is_empty() {
        return Ok(());
    }
    let name = format!("tessera:adapter_{name}");
    let mut metric = to.encode_descriptor(&name, help, None, MetricType::Counter)?;
    for place in all {
        let label = [("adapter", place.label.as_str())];
        counted(metric.encode_family(&label)?, count(&place.counts))?;
    }
    Ok(())
}

fn encode_first_tokens(to: &mut DescriptorEncoder<'_>, all: &[AdapterPlace]) -> fmt::Result {
    let name = "tessera:adapter_time_to_first_token_seconds";
    let help = "Arrival to first token by adapter.";
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for place in all.iter().filter(|place| place.counts.ttft_s.count() > 0) {
        let label = [("adapter", place.label.as_str())];
        spread(metric.encode_family(&label)?, &place.counts.ttft_s)?;
    }
    Ok(())
}

fn encode_loads(to: &mut DescriptorEncoder<'_>, all: &[AdapterPlace]) -> fmt::Result {
    let name = "tessera:adapter_load_seconds";
    let help = "Time that an adapter took to host memory, and from there to the device.";
    let mut metric = to.encode_descriptor(name, help, None, MetricType::Histogram)?;
    for place in all {
        let (label, lines) = (&place.label, &place.counts);
        let tiers = [("host", &lines.host_load_s), ("device", &lines.used.load_s)];
        for (tier, times) in tiers.into_iter().filter(|(_, times)| times.count() > 0) {
            let labels = [("adapter", label.as_str()), ("tier", tier)];
            spread(metric.encode_family(&labels)?, times)?;
        }
    }
    Ok(())
}

impl fmt::Debug for Adapters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adapters").finish_non_exhaustive()
    }
}

/// What a request for an adapter, or for the base, counts in.
#[derive(Clone)]
pub struct AdapterCounts {
    place: Arc<Place<Lines>>,
    /// The request's tenant's.
    pub account: Account,
    live: Option<Arc<Live>>,
}

impl AdapterCounts {
    /// Once, when a request goes to the engine.
    pub fn request(&self) {
        self.account.request();
    }

    /// What becomes of the adapter on the device counts here.
    pub fn follow(&self, ticket: Ticket) -> Ticket {
        ticket.counting(self.place.counts.used.clone())
    }

    pub(super) fn sequence(&self, prompt_tokens: u64) {
        self.place.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.place.counts.prompt_tokens.fetch_add(prompt_tokens, Ordering::Relaxed);
    }

    /// Lists a sequence among those that wait or run, if it is for an adapter.
    pub(super) fn list(&self, progress: &Arc<Progress>) -> Option<Listed> {
        self.live.as_ref().map(|live| live.list(&self.place.label, progress))
    }

    pub(super) fn cached(&self, tokens: u64) {
        self.place.counts.cached_tokens.fetch_add(tokens, Ordering::Relaxed);
    }

    pub(super) fn first_token(&self, time: Duration) {
        self.place.counts.ttft_s.observe(time.as_secs_f64());
    }

    pub(super) fn token(&self) {
        self.place.counts.generation_tokens.fetch_add(1, Ordering::Relaxed);
    }
}

/// The sequences for adapters that wait or run: at most as many as the engine accepts.
#[derive(Default)]
struct Live {
    next: AtomicU64,
    sequences: Mutex<BTreeMap<u64, (String, Arc<Progress>)>>,
}

impl Live {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u64, (String, Arc<Progress>)>> {
        self.sequences.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn list(self: &Arc<Self>, label: &str, progress: &Arc<Progress>) -> Listed {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(id, (label.to_owned(), progress.clone()));
        Listed { live: self.clone(), id }
    }

    /// Of those that run, and of those that wait.
    fn names(&self) -> (BTreeSet<String>, BTreeSet<String>) {
        let (mut running, mut waiting) = (BTreeSet::new(), BTreeSet::new());
        for (label, progress) in self.lock().values() {
            let names = if progress.has_run() { &mut running } else { &mut waiting };
            names.insert(label.clone());
        }
        (running, waiting)
    }
}

/// A sequence in the list. Dropped, it leaves it.
pub(super) struct Listed {
    live: Arc<Live>,
    id: u64,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.live.lock().remove(&self.id);
    }
}
