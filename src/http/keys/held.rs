//! The keys in use, read again when their file changes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use super::file::{self, Entry};
use super::glob::Glob;
use super::hash::KeyHash;
use super::meter::{Meter, Rates};
use super::tenant::{Policy, Tenant};
use crate::http::seen::{Seen, seen};
use crate::request::ShareWeight;

/// Between two looks at the file.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// The tenant of the keys of the command line.
const OWN: &str = "default";

/// Every key that is known, and whose it is.
pub struct Keys {
    /// Keys of the command line: these may do everything.
    own: Vec<KeyHash>,
    file: Option<PathBuf>,
    held: Mutex<Held>,
}

struct Held {
    ring: Arc<Ring>,
    /// What the file was when it was last read, or refused.
    seen: Option<Seen>,
}

#[derive(Default)]
struct Ring {
    keys: Vec<(KeyHash, Arc<Tenant>)>,
    /// The same, to find doubles.
    known: BTreeMap<KeyHash, String>,
    tenants: BTreeMap<String, Arc<Tenant>>,
}

impl Keys {
    /// Keys of the command line and of a TOML file.
    ///
    /// # Errors
    /// One line without any part of a key.
    pub fn open(own: Vec<KeyHash>, file: Option<PathBuf>) -> Result<Self, String> {
        let seen = file.as_deref().and_then(seen);
        let ring = Arc::new(Ring::read(&own, file.as_deref(), &Ring::default())?);
        Ok(Self { own, file, held: Mutex::new(Held { ring, seen }) })
    }

    /// What each tenant may do, a line each.
    pub fn describe(&self) -> Vec<String> {
        let ring = self.held().ring.clone();
        ring.tenants.values().map(|tenant| tenant.policy.describe()).collect()
    }

    /// Whether there is such a tenant.
    pub(in crate::http) fn has(&self, tenant: &str) -> bool {
        self.held().ring.tenants.contains_key(tenant)
    }

    /// Whose a key is. Every key is looked at, whichever it is.
    pub(in crate::http) fn find(&self, key: &[u8]) -> Option<Arc<Tenant>> {
        let (asked, ring) = (KeyHash::of(key), self.held().ring.clone());
        let mut found = None;
        for (hash, tenant) in &ring.keys {
            if hash.is(&asked) {
                found = Some(tenant.clone());
            }
        }
        found
    }

    /// Reads the file again whenever it has changed and on SIGHUP, for as long as it is polled.
    pub(in crate::http) fn watch(self: Arc<Self>) -> impl Future<Output = ()> + Send {
        // From now on, not from when it is polled first: SIGHUP would end the process.
        let hangup = self.file.as_ref().and_then(|_| signal(SignalKind::hangup()).ok());
        self.watching(hangup)
    }

    async fn watching(self: Arc<Self>, mut hangup: Option<Signal>) {
        while self.file.is_some() {
            let is_asked = tokio::select! {
                () = received(&mut hangup) => true,
                () = sleep(LOOK_AFTER) => false,
            };
            let keys = self.clone();
            // It fails only by a panic, which is on stderr.
            let _ = spawn_blocking(move || keys.look(is_asked)).await;
        }
    }

    /// A file that cannot be used leaves the keys as they are.
    fn look(&self, is_asked: bool) {
        let Some(file) = &self.file else { return };
        let now = seen(file);
        let before = {
            let mut held = self.held();
            if now == held.seen && !is_asked {
                return;
            }
            held.seen = now;
            held.ring.clone()
        };
        match Ring::read(&self.own, Some(file), &before) {
            Ok(ring) => {
                tracing::info!(keys = ring.keys.len(), "the keys have been read again");
                self.held().ring = Arc::new(ring);
            }
            Err(error) => tracing::warn!("the keys in use stay, the new ones are not: {error}"),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Whatever happened while it was held, each field is whole.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keys stay out of logs.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("file", &self.file).finish_non_exhaustive()
    }
}

async fn received(hangup: &mut Option<Signal>) {
    match hangup {
        Some(hangup) => drop(hangup.recv().await),
        None => std::future::pending().await,
    }
}

impl Ring {
    /// What tenants have taken stays taken.
    fn read(own: &[KeyHash], file: Option<&Path>, before: &Self) -> Result<Self, String> {
        let mut ring = Self::default();
        if !own.is_empty() {
            let glob = Glob::new("*")?;
            let policy = Policy {
                name: OWN.to_owned(),
                adapters: vec![glob],
                base: true,
                admin: true,
                rates: Rates::default(),
                weight: ShareWeight::ONE,
                priority: 0,
            };
            ring.add(Entry { hashes: own.to_vec(), policy }, before)?;
        }
        if let Some(file) = file {
            let wrong = |what: String| format!("the keys of {}: {what}", file.display());
            let text = fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
            for entry in file::parse(&text).map_err(wrong)? {
                ring.add(entry, before).map_err(wrong)?;
            }
        }
        Ok(ring)
    }

    fn add(&mut self, entry: Entry, before: &Self) -> Result<(), String> {
        let Entry { hashes, policy } = entry;
        let name = policy.name.clone();
        if self.tenants.contains_key(&name) {
            let why = if name == OWN { "; that of --api-key has this one" } else { "" };
            return Err(format!("two have the name '{name}'; each needs its own{why}"));
        }
        let meter = before.tenants.get(&name).map(|tenant| tenant.meter.clone());
        let meter = meter.unwrap_or_else(|| Arc::new(Meter::default()));
        let tenant = Arc::new(Tenant { policy, meter });
        for hash in hashes {
            if let Some(other) = self.known.insert(hash.clone(), name.clone()) {
                return Err(format!("'{other}' and '{name}' have the same key"));
            }
            self.keys.push((hash, tenant.clone()));
        }
        self.tenants.insert(name, tenant);
        Ok(())
    }
}
