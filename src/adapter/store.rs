//! The host store of loaded adapters, by content: the digest is the identity, each content is kept
//! once however many names point at it, and pools of equal parameters are kept once over all.
//!
//! A request takes an `Arc` of its adapter when it arrives, so replacing or removing a name never
//! changes what a running request computes with; the content is freed at the last reference.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use super::error::AdapterError;
use super::report::Report;
use crate::delta::{Delta, Pool};
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

/// The store's byte budget would be exceeded.
#[derive(Debug, PartialEq, thiserror::Error)]
#[error(
    "the adapter needs {needed} bytes and {used} of {max} are in use; unload an adapter or raise \
     --adapter-host-bytes"
)]
pub struct Full {
    /// Bytes of this adapter that are not held already.
    pub needed: u64,
    /// Bytes held by others.
    pub used: u64,
    /// The budget.
    pub max: u64,
}

/// Why a content is not held.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum HoldError {
    /// It does not fit.
    #[error(transparent)]
    Full(#[from] Full),
    /// It was refused while it was lowered.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

/// Digest → content.
#[derive(Debug)]
pub struct Store {
    contents: Mutex<HashMap<Digest, Content>>,
    /// A load has ended.
    loaded: Condvar,
    /// Bytes of all contents. At the limit a further load is refused.
    adapter_host_bytes_max: u64,
}

#[derive(Debug)]
enum Content {
    /// Somebody lowers it; others that want it wait.
    Loading,
    Held {
        adapter: Arc<Adapter>,
        /// Names that point at it.
        holds: usize,
    },
}

impl Store {
    /// An empty store.
    pub fn new(adapter_host_bytes_max: u64) -> Self {
        Self { contents: Mutex::default(), loaded: Condvar::new(), adapter_host_bytes_max }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, Content>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content of this digest, if it is held.
    pub fn get(&self, digest: Digest) -> Option<Arc<Adapter>> {
        match self.lock().get(&digest)? {
            Content::Loading => None,
            Content::Held { adapter, .. } => Some(adapter.clone()),
        }
    }

    /// Holds a content once more: what `lower` makes, where it is not there yet. Of several that
    /// want the same content at once, one lowers it and the others wait. `replaced`, which loses a
    /// hold afterwards, is not counted if that is its last.
    ///
    /// # Errors
    /// [`HoldError`]; the store is then as it was.
    pub fn hold(
        &self,
        digest: Digest,
        replaced: Option<Digest>,
        lower: impl FnOnce() -> Result<Adapter, AdapterError>,
    ) -> Result<Arc<Adapter>, HoldError> {
        let mut contents = self.lock();
        loop {
            match contents.get_mut(&digest) {
                Some(Content::Held { adapter, holds }) => {
                    *holds += 1;
                    return Ok(adapter.clone());
                }
                Some(Content::Loading) => {
                    let waited = self.loaded.wait(contents);
                    contents = waited.unwrap_or_else(PoisonError::into_inner);
                }
                None => break,
            }
        }
        contents.insert(digest, Content::Loading);
        drop(contents);
        // Whatever happens meanwhile, a panic too, nobody waits for ever.
        let loading = Loading { store: self, digest };
        let adapter = lower()?;
        let mut contents = self.lock();
        let adapter = Arc::new(share_pools(adapter, &contents));
        let others = used(&contents, replaced);
        let (needed, used) = (others.more(&adapter.delta), others.bytes);
        let max = self.adapter_host_bytes_max;
        if used.saturating_add(needed) > max {
            return Err(Full { needed, used, max }.into());
        }
        contents.insert(digest, Content::Held { adapter: adapter.clone(), holds: 1 });
        drop(contents);
        drop(loading);
        Ok(adapter)
    }

    /// Gives one hold back. Whether it was the last: nothing points at the content any more.
    pub fn release(&self, digest: Digest) -> bool {
        let mut contents = self.lock();
        let Some(Content::Held { holds, .. }) = contents.get_mut(&digest) else { return false };
        *holds -= 1;
        if *holds > 0 {
            return false;
        }
        contents.remove(&digest);
        true
    }

    /// Bytes held, shared pools once.
    pub fn bytes(&self) -> u64 {
        used(&self.lock(), None).bytes
    }
}

/// Ends the wait of others, and forgets a load that came to nothing.
struct Loading<'a> {
    store: &'a Store,
    digest: Digest,
}

impl Drop for Loading<'_> {
    fn drop(&mut self) {
        let mut contents = self.store.lock();
        if matches!(contents.get(&self.digest), Some(Content::Loading)) {
            contents.remove(&self.digest);
        }
        self.store.loaded.notify_all();
    }
}

fn held(contents: &HashMap<Digest, Content>) -> impl Iterator<Item = (&Adapter, usize)> {
    contents.values().filter_map(|content| match content {
        Content::Loading => None,
        Content::Held { adapter, holds } => Some((&**adapter, *holds)),
    })
}

/// Takes pools that others hold already from them.
fn share_pools(adapter: Adapter, contents: &HashMap<Digest, Content>) -> Adapter {
    let known = held(contents).flat_map(|(adapter, _)| &adapter.delta.pools);
    let known: HashMap<Digest, &Arc<Pool>> = known.map(|pool| (pool.digest, pool)).collect();
    let Adapter { digest, delta, method, report } = adapter;
    let shared = |pool: &Arc<Pool>| Arc::clone(known.get(&pool.digest).unwrap_or(&pool));
    let delta = Arc::new(Arc::unwrap_or_clone(delta).sharing(shared));
    Adapter { digest, delta, method, report }
}

/// What contents take.
#[derive(Default)]
struct Used {
    /// The pools they gather from.
    pools: HashSet<Digest>,
    /// Of those, each once, and of all else.
    bytes: u64,
}

impl Used {
    /// What one more adapter adds.
    fn more(&self, delta: &Delta) -> u64 {
        let mut new = HashSet::new();
        let pools = delta
            .pools
            .iter()
            .filter(|pool| !self.pools.contains(&pool.digest) && new.insert(pool.digest));
        let pools: usize = pools.map(|pool| pool.values.bytes()).sum();
        (pools + delta.own_bytes()) as u64
    }
}

fn used(contents: &HashMap<Digest, Content>, replaced: Option<Digest>) -> Used {
    let mut used = Used::default();
    for (adapter, holds) in held(contents) {
        if replaced == Some(adapter.digest) && holds == 1 {
            continue;
        }
        used.bytes += used.more(&adapter.delta);
        used.pools.extend(adapter.delta.pools.iter().map(|pool| pool.digest));
    }
    used
}
