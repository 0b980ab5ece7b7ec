//! Adapters on the card: each in one stretch of the pool, copied there by a thread of its own from
//! page-locked memory while steps run.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use super::arena::{ALIGNMENT_BYTES, Extents};
use super::args::{Address, Change};
use super::launch::{Card, Memory, Pinned, Region, Stream};
use crate::backend::{Fault, SlotError};
use crate::delta::{Delta, Factor, SiteDelta};
use crate::dtype::{Dtype, Values};
use crate::ids::{SiteId, Slot};
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
pub struct Pool {
    slots: Vec<Option<Resident>>,
    extents: Extents,
    memory: Option<Arc<PoolMemory>>,
    /// Stands for the widest adapters there may be.
    measuring: bool,
}

/// The memory behind a pool, taken once.
#[derive(Debug)]
pub(super) struct PoolMemory {
    adapters: Memory,
    bytes: u64,
    /// `[slots, sites]` of [`Change`].
    changes: Memory,
    kinds: Vec<SiteKind>,
    dtype: Dtype,
    jobs: Mutex<Sender<Job>>,
}

#[derive(Debug)]
struct Resident {
    place: (u64, u64),
    rank: usize,
    /// Whether a linear's whole weight is replaced.
    own_weight: bool,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    progress: AtomicU8,
    error: Mutex<Option<Fault>>,
}

/// One adapter to copy.
struct Job {
    delta: Arc<Delta>,
    /// Where it goes, and where its row of the changes is.
    to: Region,
    changes: Region,
    kinds: Arc<[SiteKind]>,
    dtype: Dtype,
    state: Arc<State>,
}

impl PoolMemory {
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
        let (jobs, inbox) = channel();
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
        Ok(Self { adapters, bytes, changes, kinds, dtype, jobs: Mutex::new(jobs) })
    }
}

impl Pool {
    pub(super) fn new(slots: usize, memory: Option<Arc<PoolMemory>>) -> Self {
        let bytes = memory.as_ref().map_or(0, |memory| memory.bytes);
        let slots = (0..slots).map(|_| None).collect();
        let extents = Extents::new(bytes / ALIGNMENT_BYTES * ALIGNMENT_BYTES);
        Self { slots, extents, memory, measuring: false }
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
        if self.measuring {
            return RANK_MAX;
        }
        if slot == Slot::BASE { 0 } else { self.resident(slot).rank }
    }

    pub(super) fn own_weight(&self, slot: Slot) -> bool {
        slot != Slot::BASE && !self.measuring && self.resident(slot).own_weight
    }

    pub(super) fn write(&mut self, slot: Slot, delta: Arc<Delta>) -> Result<(), SlotError> {
        self.clear(slot);
        let Some(memory) = self.memory.clone() else {
            return Err(SlotError::Refused("the card has no memory for adapters".into()));
        };
        let needed = room_of_kinds(&delta, &memory.kinds, memory.dtype, memory.bytes);
        let needed = needed.map_err(SlotError::Refused)?;
        let start = self.extents.take(needed).ok_or(SlotError::Full { needed })?;
        let row = (self.sites() * size_of::<Change>()) as u64;
        let state = Arc::new(State { progress: COPYING.into(), error: Mutex::default() });
        let linear_weight = |(site, change): &(SiteId, SiteDelta)| {
            change.weight.is_some() && memory.kinds[site.0 as usize] == SiteKind::Linear
        };
        self.slots[slot.0 as usize] = Some(Resident {
            place: (start, needed),
            rank: delta.rank_max(),
            own_weight: delta.sites.iter().any(linear_weight),
            state: state.clone(),
        });
        let job = Job {
            to: memory.adapters.region(start, needed),
            changes: memory.changes.region(u64::from(slot.0) * row, row),
            kinds: memory.kinds.clone().into(),
            dtype: memory.dtype,
            delta,
            state,
        };
        let jobs = memory.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        jobs.send(job).map_err(|_| {
            SlotError::Refused("the thread that copies adapters to the card has ended".into())
        })
    }

    /// The copy may still be under way: a later one into the same place waits behind it.
    pub(super) fn clear(&mut self, slot: Slot) {
        if let Some(resident) = self.slots[slot.0 as usize].take() {
            let (start, bytes) = resident.place;
            self.extents.give(start, bytes);
        }
    }

    pub(super) fn ready(&self, slot: Slot) -> Result<bool, SlotError> {
        let state = &self.resident(slot).state;
        match state.progress.load(Ordering::Acquire) {
            COPYING => Ok(false),
            READY => Ok(true),
            _ => {
                let error = state.error.lock().unwrap_or_else(PoisonError::into_inner);
                let text = error.as_ref().map_or("unknown", |fault| &fault.message);
                Err(SlotError::Refused(format!("the adapter was not copied to the card: {text}")))
            }
        }
    }
}

/// Bytes that an adapter takes when it is resident among at most `bytes`.
///
/// # Errors
/// Why it can never be.
pub fn room(delta: &Delta, sites: &SiteMap, dtype: Dtype, bytes: u64) -> Result<u64, String> {
    let kinds: Vec<SiteKind> = sites.iter().map(|(_, site)| site.kind).collect();
    room_of_kinds(delta, &kinds, dtype, bytes)
}

fn room_of_kinds(
    delta: &Delta,
    kinds: &[SiteKind],
    dtype: Dtype,
    bytes: u64,
) -> Result<u64, String> {
    let (rank, needed) = (delta.rank_max(), Layout::new(delta, kinds, dtype).bytes);
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

/// What one piece of an adapter's memory is filled with.
pub(super) enum Piece<'a> {
    Values(&'a Values, Dtype),
    Words(&'a [u32]),
    Floats(&'a [f32]),
}

impl Piece<'_> {
    /// What to copy.
    pub(super) fn with_bytes<R>(&self, f: impl FnOnce(&[u8]) -> R) -> R {
        match self {
            Piece::Words(words) => f(bytemuck::cast_slice(words)),
            Piece::Floats(floats) => f(bytemuck::cast_slice(floats)),
            Piece::Values(values, dtype) if values.dtype() == *dtype => f(values.as_bytes()),
            Piece::Values(values, dtype) => f(Values::clone(values).cast(*dtype).as_bytes()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        let bytes = match self {
            Piece::Values(values, dtype) => values.len() * dtype.bytes(),
            Piece::Words(words) => size_of_val(*words),
            Piece::Floats(floats) => size_of_val(*floats),
        };
        bytes as u64
    }
}

/// Where an adapter's parts stand within its memory.
pub(super) struct Layout<'a> {
    pub(super) pieces: Vec<(u64, Piece<'a>)>,
    /// By site; addresses count from the start of the memory, plus 1: 0 stays null.
    changes: Vec<(SiteId, Change)>,
    pub(super) bytes: u64,
}

impl<'a> Layout<'a> {
    pub(super) fn new(delta: &'a Delta, kinds: &[SiteKind], dtype: Dtype) -> Self {
        let mut layout = Self { pieces: Vec::new(), changes: Vec::new(), bytes: 0 };
        let pool = layout.put(Piece::Values(&delta.pool, dtype));
        for (site, change) in &delta.sites {
            let norm = kinds[site.0 as usize] == SiteKind::Norm;
            // Kernels read a norm's weight in f32, as they read the base's.
            let weight_dtype = if norm { Dtype::F32 } else { dtype };
            let shard = |f: &Option<Factor>| f.as_ref().map_or(0, |f| f.shard_len as u32);
            let shards = |f: &Option<Factor>| f.as_ref().map_or(0, |f| f.shards_per_row() as u32);
            let ranks = change.down.as_ref().or(change.up.as_ref()).map_or(0, |f| f.rank as u32);
            let offsets = |layout: &mut Self, f: &'a Option<Factor>| {
                f.as_ref().map_or(0, |f| layout.put(Piece::Words(&f.offsets)))
            };
            let floats = |layout: &mut Self, v: &'a Option<Vec<f32>>| {
                v.as_ref().map_or(0, |v| layout.put(Piece::Floats(v)))
            };
            let lowered = Change {
                pool,
                down: offsets(&mut layout, &change.down),
                up: offsets(&mut layout, &change.up),
                scale: floats(&mut layout, &change.scale),
                shift: floats(&mut layout, &change.shift),
                weight: change
                    .weight
                    .as_ref()
                    .map_or(0, |w| layout.put(Piece::Values(w, weight_dtype))),
                rank: ranks,
                down_shard: shard(&change.down),
                down_shards: shards(&change.down),
                up_shard: shard(&change.up),
                up_shards: shards(&change.up),
                reserved: 0,
            };
            layout.changes.push((*site, lowered));
        }
        layout
    }

    fn put(&mut self, piece: Piece<'a>) -> u64 {
        let at = self.bytes;
        self.bytes = (at + piece.bytes()).next_multiple_of(ALIGNMENT_BYTES);
        self.pieces.push((at, piece));
        at + 1
    }

    /// One slot's row of the table of changes, for an adapter that starts at `base`.
    pub(super) fn row(&self, base: Address, sites: usize) -> Vec<Change> {
        let mut row = vec![Change::default(); sites];
        let absolute = |at: u64| if at == 0 { 0 } else { base + at - 1 };
        for (site, change) in &self.changes {
            row[site.0 as usize] = Change {
                pool: absolute(change.pool),
                down: absolute(change.down),
                up: absolute(change.up),
                scale: absolute(change.scale),
                shift: absolute(change.shift),
                weight: absolute(change.weight),
                ..*change
            };
        }
        row
    }
}

/// Copies adapters one after another.
struct Worker {
    card: Card,
    stream: Stream,
    staging: Pinned,
    /// Bytes of the staging memory whose copy is not waited for yet.
    filled: usize,
    inbox: Receiver<Job>,
}

impl Worker {
    fn run(mut self) {
        while let Ok(job) = self.inbox.recv() {
            let copied = self.card.bind().and_then(|()| self.copy(&job));
            let progress = match copied {
                Ok(()) => READY,
                Err(fault) => {
                    tracing::error!("an adapter was not copied to the card: {fault}");
                    *job.state.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(fault);
                    FAILED
                }
            };
            job.state.progress.store(progress, Ordering::Release);
        }
    }

    fn copy(&mut self, job: &Job) -> Result<(), Fault> {
        let layout = Layout::new(&job.delta, &job.kinds, job.dtype);
        for (at, piece) in &layout.pieces {
            let to = job.to.sub(*at, piece.bytes());
            piece.with_bytes(|bytes| self.send(bytes, &to))?;
        }
        let row = layout.row(job.to.address(), job.kinds.len() + 1);
        self.send(bytemuck::cast_slice(&row), &job.changes)?;
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
