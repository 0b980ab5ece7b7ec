//! Adapters on the card: their pools shared by content, the rest of each in one stretch, copied
//! there by a thread of its own from page-locked memory while steps run.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread;

use super::arena::{ALIGNMENT_BYTES, Extents};
use super::args::{Address, Change};
use super::launch::{Card, Memory, Pinned, Region, Stream};
use super::layout::{Content, Layout};
use crate::backend::{Fault, SlotError};
use crate::delta::{Delta, SiteDelta};
use crate::dtype::Dtype;
use crate::ids::{Digest, SiteId, Slot};
use crate::site::{SiteKind, SiteMap};

/// Bytes of page-locked memory that copies pass through.
const STAGING_BYTES: usize = 8 << 20;

/// Ranks of one adapter: a step's memory is measured with it.
pub(super) const RANK_MAX: usize = 512;

const COPYING: u8 = 0;
const READY: u8 = 1;
const FAILED: u8 = 2;

/// Resident adapters, addressed by slot.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Option<Resident>>,
    extents: Extents,
    /// Pools of parameters on the card, by content: adapters that hold equal ones share them.
    pools: HashMap<Digest, Weak<SharedPool>>,
    memory: Option<Arc<SlotMemory>>,
    /// Stands for the widest adapters there may be.
    measuring: bool,
}

/// The memory behind slots, taken once.
#[derive(Debug)]
pub(super) struct SlotMemory {
    adapters: Memory,
    bytes: u64,
    /// `[slots, sites]` of [`Change`].
    changes: Memory,
    kinds: Vec<SiteKind>,
    dtype: Dtype,
    uploads: Mutex<Sender<Upload>>,
}

#[derive(Debug)]
struct Resident {
    /// Start and bytes of what is this adapter's alone.
    own: (u64, u64),
    pools: Vec<Arc<SharedPool>>,
    rank: usize,
    /// Whether a linear's whole weight is replaced.
    own_weight: bool,
    state: Arc<State>,
}

/// Parameters on the card that any number of resident adapters gather from.
#[derive(Debug)]
struct SharedPool {
    digest: Digest,
    start: u64,
    bytes: u64,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    progress: AtomicU8,
    error: Mutex<Option<Fault>>,
}

impl State {
    fn copying() -> Arc<Self> {
        Arc::new(Self { progress: COPYING.into(), error: Mutex::default() })
    }

    fn failed(&self) -> Option<Fault> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// One adapter to be copied.
struct Upload {
    delta: Arc<Delta>,
    /// Its pools: where each is, and whether it is still to be copied.
    pools: Vec<(Region, bool, Arc<State>)>,
    /// Where the rest goes, and where its row of the changes is.
    to: Region,
    changes: Region,
    kinds: Arc<[SiteKind]>,
    dtype: Dtype,
    state: Arc<State>,
}

impl SlotMemory {
    /// Room for `bytes` of adapters in `slots` slots.
    ///
    /// # Errors
    /// Too little memory, as [`Card::allocate`]; or the copying thread cannot be started.
    pub(super) fn new(
        card: &Card,
        bytes: u64,
        slots: usize,
        sites: &SiteMap,
        dtype: Dtype,
    ) -> Result<Self, super::OpenError> {
        // One more, which no adapter changes.
        let row = (sites.len() + 1) * size_of::<Change>();
        let mend = "lower --adapter-gpu-bytes";
        let adapters = card.allocate(bytes.max(ALIGNMENT_BYTES), "the adapters' pool", mend)?;
        let table = "the table of adapters";
        let changes = card.allocate((slots * row) as u64, table, "lower --adapter-slots")?;
        let (uploads, inbox) = channel();
        let worker = Worker {
            card: card.clone(),
            stream: card.stream()?,
            staging: card.pinned(STAGING_BYTES)?,
            filled: 0,
            inbox,
        };
        let started = thread::Builder::new().name("adapters".into()).spawn(|| worker.run());
        started.map_err(|e| {
            super::OpenError::from(Fault {
                message: format!("the thread that copies adapters cannot be started: {e}"),
                lost: false,
            })
        })?;
        let kinds = sites.iter().map(|(_, site)| site.kind).collect();
        Ok(Self { adapters, bytes, changes, kinds, dtype, uploads: Mutex::new(uploads) })
    }
}

impl Slots {
    pub(super) fn new(slots: usize, memory: Option<Arc<SlotMemory>>) -> Self {
        let bytes = memory.as_ref().map_or(0, |memory| memory.bytes);
        let slots = (0..slots).map(|_| None).collect();
        let extents = Extents::new(bytes / ALIGNMENT_BYTES * ALIGNMENT_BYTES);
        Self { slots, extents, pools: HashMap::new(), memory, measuring: false }
    }

    pub(super) fn measuring(slots: usize) -> Self {
        Self { measuring: true, ..Self::new(slots, None) }
    }

    /// Sites of one slot; the last is never changed.
    fn sites(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.kinds.len() + 1)
    }

    /// Where the changes of all slots are, and how many sites each has.
    pub(super) fn changes(&self) -> (Address, u32) {
        let at = self.memory.as_ref().map_or(0, |memory| memory.changes.address());
        (at, self.sites() as u32)
    }

    fn resident(&self, slot: Slot) -> &Resident {
        let resident = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
        // Serving the base in its place would be silently wrong.
        resident
            .unwrap_or_else(|| panic!("This is a bug: a row uses slot {}, which is empty.", slot.0))
    }

    pub(super) fn rank(&self, slot: Slot) -> usize {
        if self.measuring { RANK_MAX } else { self.resident(slot).rank }
    }

    pub(super) fn own_weight(&self, slot: Slot) -> bool {
        !self.measuring && self.resident(slot).own_weight
    }

    pub(super) fn write(&mut self, slot: Slot, delta: Arc<Delta>) -> Result<(), SlotError> {
        self.clear(slot);
        let Some(memory) = self.memory.clone() else {
            return Err(SlotError::Refused("the card has no memory for adapters".into()));
        };
        let layout = Layout::new(&delta, &memory.kinds, memory.dtype);
        let rank = delta.rank_max();
        let needed = room_of(&layout, rank, memory.bytes).map_err(SlotError::Refused)?;
        let full = || SlotError::Full { needed };
        let own = self.extents.take(layout.bytes).ok_or_else(full)?;
        let mut pools = Vec::new();
        for (pool, bytes) in delta.pools.iter().zip(&layout.pool_bytes) {
            match self.pool(pool.digest, *bytes) {
                Some(pool) => pools.push(pool),
                None => {
                    self.extents.give(own, layout.bytes);
                    pools.into_iter().for_each(|(pool, _)| self.let_go(pool));
                    return Err(full());
                }
            }
        }
        let row = (self.sites() * size_of::<Change>()) as u64;
        let state = State::copying();
        let linear_weight = |(site, change): &(SiteId, SiteDelta)| {
            change.weight.is_some() && memory.kinds[site.0 as usize] == SiteKind::Linear
        };
        let place = |(pool, is_new): &(Arc<SharedPool>, bool)| {
            (memory.adapters.region(pool.start, pool.bytes), *is_new, pool.state.clone())
        };
        let upload = Upload {
            pools: pools.iter().map(place).collect(),
            to: memory.adapters.region(own, layout.bytes),
            changes: memory.changes.region(u64::from(slot.0) * row, row),
            kinds: memory.kinds.clone().into(),
            dtype: memory.dtype,
            delta: delta.clone(),
            state: state.clone(),
        };
        self.slots[slot.0 as usize] = Some(Resident {
            own: (own, layout.bytes),
            pools: pools.into_iter().map(|(pool, _)| pool).collect(),
            rank,
            own_weight: delta.sites.iter().any(linear_weight),
            state,
        });
        let uploads = memory.uploads.lock().unwrap_or_else(PoisonError::into_inner);
        uploads.send(upload).map_err(|_| {
            SlotError::Refused("the thread that copies adapters to the card has ended".into())
        })
    }

    /// The pool of this content, and whether it is new there; `None` where it does not fit.
    fn pool(&mut self, digest: Digest, bytes: u64) -> Option<(Arc<SharedPool>, bool)> {
        let known = self.pools.get(&digest).and_then(Weak::upgrade);
        // One whose copy failed is as good as none.
        if let Some(known) = known.filter(|pool| pool.state.failed().is_none()) {
            return Some((known, false));
        }
        let start = self.extents.take(bytes)?;
        let pool = Arc::new(SharedPool { digest, start, bytes, state: State::copying() });
        self.pools.insert(digest, Arc::downgrade(&pool));
        Some((pool, true))
    }

    /// Gives a pool's memory back with its last holder.
    fn let_go(&mut self, pool: Arc<SharedPool>) {
        let Some(SharedPool { digest, start, bytes, .. }) = Arc::into_inner(pool) else { return };
        self.extents.give(start, bytes);
        if self.pools.get(&digest).is_some_and(|known| known.strong_count() == 0) {
            self.pools.remove(&digest);
        }
    }

    /// The copy may still be under way: a later one into the same memory waits behind it.
    pub(super) fn clear(&mut self, slot: Slot) {
        if let Some(Resident { own: (start, bytes), pools, .. }) =
            self.slots[slot.0 as usize].take()
        {
            self.extents.give(start, bytes);
            pools.into_iter().for_each(|pool| self.let_go(pool));
        }
    }

    pub(super) fn ready(&self, slot: Slot) -> Result<bool, SlotError> {
        let state = &self.resident(slot).state;
        match state.progress.load(Ordering::Acquire) {
            COPYING => Ok(false),
            READY => Ok(true),
            _ => {
                let text = state.failed().map_or_else(|| "unknown".into(), |fault| fault.message);
                Err(SlotError::Refused(format!("the adapter was not copied to the card: {text}")))
            }
        }
    }
}

/// What a stretch of `bytes` takes.
fn aligned(bytes: u64) -> u64 {
    bytes.max(1).next_multiple_of(ALIGNMENT_BYTES)
}

/// Bytes that an adapter takes when it is resident alone, of at most `bytes`.
///
/// # Errors
/// Why it can never be.
pub fn room(delta: &Delta, sites: &SiteMap, dtype: Dtype, bytes: u64) -> Result<u64, String> {
    let kinds: Vec<SiteKind> = sites.iter().map(|(_, site)| site.kind).collect();
    room_of(&Layout::new(delta, &kinds, dtype), delta.rank_max(), bytes)
}

fn room_of(layout: &Layout<'_>, rank: usize, bytes: u64) -> Result<u64, String> {
    let pools = layout.pool_bytes.iter().map(|bytes| aligned(*bytes)).sum::<u64>();
    let needed = aligned(layout.bytes) + pools;
    if rank > RANK_MAX {
        return Err(format!("the adapter has rank {rank} and a GPU serves at most {RANK_MAX}"));
    }
    if needed > bytes {
        return Err(format!(
            "the adapter takes {needed} bytes on the GPU and {bytes} are set aside for adapters; \
             raise --adapter-gpu-bytes"
        ));
    }
    Ok(needed)
}

/// Copies adapters one after another.
struct Worker {
    card: Card,
    stream: Stream,
    staging: Pinned,
    /// Bytes of the staging memory whose copy is not waited for yet.
    filled: usize,
    inbox: Receiver<Upload>,
}

impl Worker {
    fn run(mut self) {
        while let Ok(upload) = self.inbox.recv() {
            let copied = self.card.bind().and_then(|()| self.copy(&upload));
            if let Err(fault) = &copied {
                tracing::error!("an adapter was not copied to the card: {fault}");
            }
            let new = upload.pools.iter().filter(|(_, is_new, _)| *is_new).map(|(.., state)| state);
            for state in new.chain([&upload.state]) {
                let progress = match &copied {
                    Ok(()) => READY,
                    Err(fault) => {
                        let mut error = state.error.lock().unwrap_or_else(PoisonError::into_inner);
                        *error = Some(fault.clone());
                        FAILED
                    }
                };
                state.progress.store(progress, Ordering::Release);
            }
        }
    }

    fn copy(&mut self, upload: &Upload) -> Result<(), Fault> {
        let layout = Layout::new(&upload.delta, &upload.kinds, upload.dtype);
        for (pool, (to, is_new, state)) in upload.delta.pools.iter().zip(&upload.pools) {
            // Copies go in order: one that is not new has been copied, or has failed.
            match (is_new, state.failed()) {
                (true, _) => {
                    let values = Content::Values(&pool.values, upload.dtype);
                    values.with_bytes(|bytes| self.send(bytes, to))?;
                }
                (false, Some(fault)) => return Err(fault),
                (false, None) => {}
            }
        }
        for (at, content) in &layout.contents {
            let to = upload.to.sub(*at, content.bytes());
            content.with_bytes(|bytes| self.send(bytes, &to))?;
        }
        let pools: Vec<Address> = upload.pools.iter().map(|(at, ..)| at.address()).collect();
        let row = layout.row(upload.to.address(), &pools, upload.kinds.len() + 1);
        self.send(bytemuck::cast_slice(&row), &upload.changes)?;
        self.flush()
    }

    /// Copies `bytes` to `to` through the staging memory.
    fn send(&mut self, bytes: &[u8], to: &Region) -> Result<(), Fault> {
        let mut done = 0;
        while done < bytes.len() {
            if self.filled == STAGING_BYTES {
                self.flush()?;
            }
            let len = (bytes.len() - done).min(STAGING_BYTES - self.filled);
            let range = self.filled..self.filled + len;
            self.staging.bytes_mut()[range.clone()].copy_from_slice(&bytes[done..done + len]);
            self.stream.upload(&self.staging, range, &to.sub(done as u64, len as u64))?;
            self.filled += len;
            done += len;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fault> {
        self.filled = 0;
        self.stream.synchronize()
    }
}
