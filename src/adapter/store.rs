//! The host store of loaded adapters: names are aliases, the digest is the identity.
//!
//! A request takes an `Arc` of its adapter when it arrives, so replacing or removing a name never
//! changes what a running request computes with; the content is freed at the last reference.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry as Place;

use super::Report;
use crate::delta::Delta;
use crate::ids::Digest;

/// An adapter ready to serve.
#[derive(Debug)]
pub struct Adapter {
    /// BLAKE3 of its content.
    pub digest: Digest,
    /// The canonical form.
    pub delta: Arc<Delta>,
    /// The method that read it, e.g. `LORA`.
    pub method: &'static str,
    /// Each tensor and where it went.
    pub report: Report,
}

/// A name and what it points at.
#[derive(Debug)]
pub struct Named {
    /// What requests put into `model`.
    pub name: String,
    /// Its content now.
    pub adapter: Arc<Adapter>,
    /// Order of loading, ascending.
    pub order: u64,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
}

/// Why a name could not be added.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum StoreError {
    /// The name points at something already and replacing was not asked for.
    #[error("the adapter name '{0}' is already loaded")]
    Taken(String),
    /// A name with characters or a form that is not served.
    #[error(
        "an adapter name must be 1 to 256 of the characters A-Z a-z 0-9 . _ : / - , must not start \
         with '/' and must not hold '..'; got '{0}'"
    )]
    Name(String),
    /// The store's byte budget would be exceeded.
    #[error(
        "the adapter needs {needed} bytes and {used} of {max} are in use; unload an adapter or \
         raise --adapter-host-bytes"
    )]
    Full {
        /// Bytes of this adapter.
        needed: u64,
        /// Bytes held by others.
        used: u64,
        /// The budget.
        max: u64,
    },
}

/// Names → adapters.
#[derive(Debug)]
pub struct Store {
    names: DashMap<String, Arc<Named>>,
    /// Bytes of parameters over all names. At the limit a further load is refused.
    adapter_host_bytes_max: u64,
    order: AtomicU64,
}

impl Store {
    /// An empty store.
    pub fn new(adapter_host_bytes_max: u64) -> Self {
        Self { names: DashMap::new(), adapter_host_bytes_max, order: AtomicU64::new(0) }
    }

    /// What `name` points at now.
    pub fn get(&self, name: &str) -> Option<Arc<Named>> {
        self.names.get(name).map(|named| named.clone())
    }

    /// Points `name` at `adapter`; with `replace`, also when it pointed elsewhere.
    ///
    /// # Errors
    /// [`StoreError`]; the store is then as it was.
    pub fn insert(
        &self,
        name: &str,
        adapter: Arc<Adapter>,
        created: u64,
        replace: bool,
    ) -> Result<(), StoreError> {
        check_name(name)?;
        let used = self.bytes_without(name);
        let needed = adapter.delta.bytes() as u64;
        if used.saturating_add(needed) > self.adapter_host_bytes_max {
            return Err(StoreError::Full { needed, used, max: self.adapter_host_bytes_max });
        }
        let order = self.order.fetch_add(1, Ordering::Relaxed);
        let named = Arc::new(Named { name: name.to_owned(), adapter, order, created });
        match self.names.entry(name.to_owned()) {
            Place::Occupied(_) if !replace => Err(StoreError::Taken(name.to_owned())),
            Place::Occupied(mut place) => {
                place.insert(named);
                Ok(())
            }
            Place::Vacant(place) => {
                place.insert(named);
                Ok(())
            }
        }
    }

    /// Forgets `name`; false if it was not there.
    pub fn remove(&self, name: &str) -> bool {
        self.names.remove(name).is_some()
    }

    /// Whether any name points at this content.
    pub fn holds(&self, digest: Digest) -> bool {
        self.names.iter().any(|named| named.adapter.digest == digest)
    }

    /// Every name, in the order of loading.
    pub fn list(&self) -> Vec<Arc<Named>> {
        let mut all: Vec<_> = self.names.iter().map(|n| n.value().clone()).collect();
        all.sort_by_key(|named| named.order);
        all
    }

    /// Bytes of parameters held over all names.
    pub fn bytes(&self) -> u64 {
        self.bytes_without("")
    }

    fn bytes_without(&self, name: &str) -> u64 {
        let others = self.names.iter().filter(|n| n.key() != name);
        others.map(|n| n.adapter.delta.bytes() as u64).sum()
    }
}

/// Names end up in URLs, metrics and logs: a small alphabet keeps all three harmless.
///
/// # Errors
/// [`StoreError::Name`].
pub fn check_name(name: &str) -> Result<(), StoreError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    let fine = (1..=256).contains(&name.len())
        && name.chars().all(legal)
        && !name.starts_with('/')
        && !name.contains("..");
    if fine { Ok(()) } else { Err(StoreError::Name(name.chars().take(64).collect())) }
}
