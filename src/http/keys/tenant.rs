//! Whose a key is, and what it may do.

use std::sync::Arc;
use std::time::Instant;

use super::glob::Glob;
use super::meter::{Left, Limited, Meter, Place, Rates};
use crate::ids::Digest;
use crate::request::{Share, ShareWeight};

/// What the keys of a tenant may do.
#[derive(Debug)]
pub(super) struct Policy {
    pub name: String,
    /// Names of adapters that it may use.
    pub adapters: Vec<Glob>,
    /// Whether it may use the base model.
    pub base: bool,
    /// Whether it may load and unload adapters, and see everybody's usage.
    pub admin: bool,
    pub rates: Rates,
    /// What it gets against other tenants of its priority.
    pub weight: ShareWeight,
    /// Tenants of a lower number go before it.
    pub priority: i64,
}

impl Policy {
    /// All of it on one line.
    pub fn describe(&self) -> String {
        let globs: Vec<&str> = self.adapters.iter().map(Glob::text).collect();
        let adapters = if globs.is_empty() { "none".to_owned() } else { globs.join(" ") };
        let mut all = vec![format!("adapters {adapters}")];
        all.push(if self.base { "the base" } else { "not the base" }.to_owned());
        if self.admin {
            all.push("may administer".to_owned());
        }
        let Rates { requests_per_minute, tokens_per_minute, concurrency } = self.rates;
        let limits = [
            (requests_per_minute, "requests a minute"),
            (tokens_per_minute, "tokens a minute"),
            (concurrency, "requests at once"),
        ];
        all.extend(limits.iter().filter_map(|(n, what)| n.map(|n| format!("{n} {what}"))));
        if self.weight != ShareWeight::ONE || self.priority != 0 {
            all.push(format!("weight {}, priority {}", self.weight.get(), self.priority));
        }
        format!("key {}: {}", self.name, all.join(", "))
    }
}

/// A tenant: what it may do, and what it has taken.
#[derive(Debug)]
pub(in crate::http) struct Tenant {
    pub(super) policy: Policy,
    pub(super) meter: Arc<Meter>,
}

impl Tenant {
    pub fn name(&self) -> &str {
        &self.policy.name
    }

    pub fn is_admin(&self) -> bool {
        self.policy.admin
    }

    pub fn may_use_base(&self) -> bool {
        self.policy.base
    }

    pub fn may_use(&self, adapter: &str) -> bool {
        self.policy.adapters.iter().any(|glob| glob.fits(adapter))
    }

    pub fn share(&self) -> Share {
        let Policy { name, weight, priority, .. } = &self.policy;
        let tenant = Digest(blake3::hash(name.as_bytes()).into());
        Share { tenant, weight: *weight, priority: *priority }
    }

    /// Begins a request.
    ///
    /// # Errors
    /// [`Limited`].
    pub fn begin(&self) -> Result<Place, Limited> {
        self.meter.begin(&self.policy.rates, Instant::now())
    }

    pub fn take_tokens(&self, tokens: u64) {
        self.meter.take_tokens(&self.policy.rates, tokens, Instant::now());
    }

    pub fn left(&self) -> Vec<Left> {
        self.meter.left(&self.policy.rates, Instant::now())
    }
}
