//! What the requests of each tenant add up to, by the adapter they name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::MetricType;

use super::adapters::Adapters;
use super::encode::counted;
use super::labels::{Labels, OTHERS};
use crate::http::account::{Counts, Series};
use crate::http::keys::Keys;

/// Tenants with lines of their own; further ones share the name `other`.
const TENANTS_LABELLED_MAX: usize = 256;
/// Pairs of tenant and adapter with lines of their own; a further one has those of its tenant and
/// the adapter `other`, of which there are as many as tenants at most.
const PAIRS_LABELLED_MAX: usize = 1024;

/// Labels of a tenant and an adapter.
type Pair = [String; 2];

/// All tenants.
pub struct Tenants {
    labels: Labels<()>,
    pairs: Mutex<BTreeMap<Pair, Arc<Counts>>>,
    keys: Option<Arc<Keys>>,
    adapters: Arc<Adapters>,
}

impl Tenants {
    pub fn new(
        keys: Option<Arc<Keys>>,
        adapters: &Arc<Adapters>,
        hidden_as: Option<&'static str>,
    ) -> Self {
        let labels = Labels::new(TENANTS_LABELLED_MAX, hidden_as);
        Self { labels, pairs: Mutex::default(), keys, adapters: adapters.clone() }
    }

    /// The lines of a tenant that uses the adapter of a label, which somebody holds.
    pub fn series(&self, tenant: &str, adapter: &str) -> Series {
        let place = self.labels.of(tenant, || (), |name, ()| self.stays(name));
        let mut pair = [place.label.clone(), adapter.to_owned()];
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        if pairs.len() >= PAIRS_LABELLED_MAX && !pairs.contains_key(&pair) {
            self.give_up(&mut pairs);
            if pairs.len() >= PAIRS_LABELLED_MAX {
                pair[1] = OTHERS.to_owned();
            }
        }
        let counts = pairs.entry(pair).or_default().clone();
        Series { counts, _label: place }
    }

    /// Whether a tenant's keys are known.
    fn stays(&self, tenant: &str) -> bool {
        self.keys.as_ref().is_some_and(|keys| keys.has(tenant))
    }

    /// Lines go with those of their tenant and of their adapter.
    fn give_up(&self, pairs: &mut BTreeMap<Pair, Arc<Counts>>) {
        let tenants = self.labels.all(|name, ()| self.stays(name));
        let tenants: BTreeSet<&str> = tenants.iter().map(|place| place.label.as_str()).collect();
        let adapters = self.adapters.labels();
        let is_there =
            |labels: &BTreeSet<&str>, label: &str| label == OTHERS || labels.contains(label);
        let adapters: BTreeSet<&str> = adapters.iter().map(String::as_str).collect();
        pairs.retain(|[tenant, adapter], counts| {
            let are_there = is_there(&tenants, tenant) && is_there(&adapters, adapter);
            are_there || Arc::strong_count(counts) > 1
        });
    }
}

impl Collector for Tenants {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut pairs = self.pairs.lock().unwrap_or_else(PoisonError::into_inner);
        self.give_up(&mut pairs);
        let all: Vec<(Pair, Arc<Counts>)> =
            pairs.iter().map(|(pair, counts)| (pair.clone(), counts.clone())).collect();
        drop(pairs);
        if all.is_empty() {
            return Ok(());
        }
        type Of = fn(&Counts) -> &AtomicU64;
        let families: [(&str, &str, Of); 4] = [
            ("requests", "Requests by key and adapter.", |c| &c.requests),
            ("prompt_tokens", "Prompt tokens by key and adapter.", |c| &c.prompt_tokens),
            ("cached_tokens", "Of them, those found in the prefix cache.", |c| &c.cached_tokens),
            ("generation_tokens", "Tokens drawn by key and adapter.", |c| &c.completion_tokens),
        ];
        for (name, help, of) in families {
            let name = format!("tessera:tenant_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for ([tenant, adapter], counts) in &all {
                let labels = [("tenant", tenant.as_str()), ("adapter", adapter.as_str())];
                counted(metric.encode_family(&labels)?, of(counts).load(Ordering::Relaxed))?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Tenants {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tenants").finish_non_exhaustive()
    }
}
