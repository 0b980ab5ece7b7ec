//! Everything on the card that is taken at start, and how much of it a step needs.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::arena::{ALIGNMENT_BYTES, Arena};
use super::args::Address;
use super::launch::{Card, Memory, OpenError, Pinned, Region};
use super::pool::{Pool, PoolMemory};
use super::sample::SampleMemory;
use super::step::Batch;
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{Fault, KvShape, Rows, Span};
use crate::dtype::{Dtype, Values};
use crate::ids::{BlockId, Slot};
use crate::site::SiteMap;

/// Vectors of a model are small: they share allocations of this size.
const VECTOR_CHUNK_BYTES: u64 = 4 << 20;

/// The weights' memory, filled from its start.
#[derive(Debug)]
pub(super) struct Bump {
    memory: Memory,
    used: u64,
}

impl Bump {
    pub fn new(memory: Memory) -> Self {
        Self { memory, used: 0 }
    }

    pub fn memory(&self) -> Memory {
        self.memory.clone()
    }

    /// Matrices that come one after another lie so: what reads them all may read them as one.
    pub fn take(&mut self, bytes: u64) -> Option<Region> {
        let next = (self.used + bytes).next_multiple_of(ALIGNMENT_BYTES);
        let fits = self.used + bytes <= self.memory.bytes();
        let place = fits.then(|| self.memory.region(self.used, bytes));
        self.used = next.min(self.memory.bytes());
        place
    }
}

/// Memory of f32 vectors.
#[derive(Debug, Default)]
pub(super) struct Vectors {
    chunk: Option<(Memory, u64)>,
    full: Vec<Memory>,
}

impl Vectors {
    pub fn take(&mut self, card: &Card, bytes: u64) -> Result<Region, Fault> {
        let fits = |(memory, used): &(Memory, u64)| used + bytes <= memory.bytes();
        if !self.chunk.as_ref().is_some_and(fits) {
            let mend = "a smaller model or a larger card is needed";
            let size = bytes.max(VECTOR_CHUNK_BYTES);
            let memory = card.allocate(size, "the model's vectors", mend);
            let memory = memory.map_err(|e| Fault { message: e.to_string(), lost: false })?;
            self.full.extend(self.chunk.replace((memory, 0)).map(|(memory, _)| memory));
        }
        let (memory, used) = self.chunk.as_mut().expect("This is a bug: it was just made.");
        let place = memory.region(*used, bytes);
        *used = (*used + bytes).next_multiple_of(ALIGNMENT_BYTES).min(memory.bytes());
        Ok(place)
    }
}

/// Where a step's tables go.
#[derive(Debug, Default)]
pub(super) struct StepTables {
    pub memory: Option<TableMemory>,
    /// The most that a step asked for.
    pub bytes_max: u64,
}

#[derive(Debug)]
pub(super) struct TableMemory {
    pub device: Region,
    pub pinned: Pinned,
    /// A copy from `pinned` may be under way.
    pub in_use: bool,
}

/// The largest steps there will be.
#[derive(Clone, Copy, Debug)]
pub struct StepLimits {
    /// Rows of one step.
    pub rows_max: usize,
    /// Sequences of one step: rows with logits, too.
    pub sequences_max: usize,
    /// Longest sequence.
    pub context_tokens_max: usize,
    /// Adapters of one step.
    pub adapter_slots: usize,
}

/// What to take beside the weights.
#[derive(Clone, Copy, Debug)]
pub struct DeviceMemory<'a> {
    /// Size of the KV cache.
    pub kv: KvShape,
    /// Bytes of resident adapters.
    pub adapter_bytes: u64,
    /// Adapters resident at once.
    pub adapter_slots: usize,
    /// Places that an adapter may change.
    pub sites: &'a SiteMap,
}

/// What was taken.
#[derive(Debug)]
pub(super) struct Taken {
    kv: Region,
    kv_shape: KvShape,
    pub adapters: Arc<PoolMemory>,
}

/// The paged keys and values of every layer; one page more than asked for is no sequence's.
#[derive(Debug)]
pub struct Kv {
    pub(super) shape: KvShape,
    address: Address,
}

impl Kv {
    /// Where a layer's keys and values are: `[blocks + 1, kv_heads, block_tokens, head_dim]` each.
    pub(super) fn layer(&self, layer: usize) -> (Address, Address) {
        let bytes = side_bytes(&self.shape);
        let keys = self.address + 2 * layer as u64 * bytes;
        (keys, keys + bytes)
    }
}

fn side_bytes(shape: &KvShape) -> u64 {
    let page = shape.kv_heads * shape.block_tokens * shape.head_dim * shape.dtype.bytes();
    ((shape.blocks as u64 + 1) * page as u64).next_multiple_of(ALIGNMENT_BYTES)
}

/// Bytes of a KV cache on the card.
pub fn kv_bytes(shape: &KvShape) -> u64 {
    2 * shape.layers as u64 * side_bytes(shape)
}

/// A step of `limits`: decoding sequences, each with an adapter of its own, then a prompt.
fn widest(limits: &StepLimits, decoding: usize, prompt: usize, block_tokens: usize) -> Rows {
    let context = limits.context_tokens_max;
    let pages = |tokens: usize| vec![BlockId(0); tokens.div_ceil(block_tokens).max(1)];
    let mut rows = Rows::default();
    for _ in 0..decoding {
        let start = rows.tokens.len();
        rows.tokens.push(0);
        rows.positions.push(context as u32 - 1);
        rows.spans.push(Span { start, len: 1, block_table: pages(context) });
        rows.logit_rows.push(start as u32);
    }
    if prompt > 0 {
        let start = rows.tokens.len();
        rows.tokens.extend(std::iter::repeat_n(0, prompt));
        rows.positions.extend((0..prompt).map(|i| i.min(context - 1) as u32));
        rows.spans.push(Span { start, len: prompt, block_table: pages(prompt.max(context)) });
        let logits = prompt.min(limits.sequences_max - decoding.min(limits.sequences_max));
        rows.logit_rows.extend((start..start + prompt).rev().take(logits).map(|r| r as u32));
        rows.logit_rows.sort_unstable();
    }
    let slots = limits.adapter_slots;
    let slot = |row: usize| if slots == 0 { Slot::BASE } else { Slot((row % slots) as u32) };
    rows.slots = (0..rows.tokens.len()).map(slot).collect();
    rows
}

impl Cuda {
    /// Bytes that the largest step takes; `forward` computes one up to its logits. Nothing runs.
    pub fn measure(
        &self,
        limits: &StepLimits,
        kv: KvShape,
        forward: &dyn Fn(&Batch, &mut Kv, &Pool) -> Tensor,
    ) -> u64 {
        let arena = Arena::measuring();
        *lock(&self.arena) = arena.clone();
        self.dry.store(true, Ordering::Relaxed);
        let pool = Pool::measuring(limits.adapter_slots);
        let mut kv = Kv { shape: kv, address: 0 };
        let decoding = limits.sequences_max.min(limits.rows_max);
        let prompt = limits.rows_max - decoding;
        for (decoding, prompt) in [(decoding, 0), (decoding, prompt), (0, limits.rows_max)] {
            let rows = widest(limits, decoding, prompt, kv.shape.block_tokens);
            forward(&Batch::new(rows), &mut kv, &pool);
        }
        self.dry.store(false, Ordering::Relaxed);
        // Other mixes of rows leave other gaps between tensors.
        arena.peak() * 5 / 4
    }

    /// Takes the memory of a step; `step_bytes` is from [`Cuda::measure`].
    ///
    /// # Errors
    /// [`OpenError::Memory`]: says of which buffer.
    pub fn take_step(&self, limits: &StepLimits, step_bytes: u64) -> Result<(), OpenError> {
        let mend = "lower --max-num-batched-tokens or --max-num-seqs";
        let step = self.card.allocate(step_bytes, "the tensors of a step", mend)?;
        *lock(&self.arena) = Arena::at(step.address(), step.bytes());
        let mut tables = lock(&self.tables);
        let table_bytes = tables.bytes_max * 5 / 4 + 4096;
        let device = self.card.allocate(table_bytes, "the tables of a step", mend)?;
        let device = device.region(0, table_bytes);
        let pinned = self.card.pinned(table_bytes as usize)?;
        tables.memory = Some(TableMemory { device, pinned, in_use: false });
        // Tests ask for the logits of whole prompts.
        let drawn = limits.rows_max.max(limits.sequences_max).next_power_of_two();
        *lock(&self.sampling) = Some(SampleMemory::new(&self.card, drawn)?);
        assert!(self.step_memory.set(step).is_ok(), "This is a bug: memory is taken once.");
        Ok(())
    }

    /// Takes the memory of adapters and of the KV cache.
    ///
    /// # Errors
    /// [`OpenError::Memory`]: says of which buffer.
    pub fn take(&self, wanted: &DeviceMemory<'_>) -> Result<(), OpenError> {
        let DeviceMemory { kv, adapter_bytes, adapter_slots, sites } = *wanted;
        let adapters =
            PoolMemory::new(&self.card, adapter_bytes, adapter_slots, sites, self.dtype)?;
        let bytes = kv_bytes(&kv);
        let mend = "lower --gpu-memory-utilization, --kv-cache-bytes or --max-model-len";
        let memory = self.card.allocate(bytes, "the KV cache", mend)?;
        let kv_memory = memory.region(0, bytes);
        let taken = Taken { kv: kv_memory, kv_shape: kv, adapters: Arc::new(adapters) };
        assert!(self.taken.set(taken).is_ok(), "This is a bug: memory is taken once.");
        Ok(())
    }

    /// Free bytes of the card, and all.
    ///
    /// # Errors
    /// When the card does not answer.
    pub fn memory(&self) -> Result<(u64, u64), Fault> {
        self.card.memory()
    }

    /// All of the cache that was taken, whatever part is asked for: strides and the spare page are
    /// those of one shape.
    pub(super) fn taken_kv(&self, asked: KvShape) -> Kv {
        let taken = self.taken.get().expect("This is a bug: memory is taken before it is used.");
        let all = taken.kv_shape;
        let fits = asked.blocks <= all.blocks && KvShape { blocks: all.blocks, ..asked } == all;
        assert!(fits, "This is a bug: {asked:?} of a KV cache of {all:?}.");
        Kv { shape: all, address: taken.kv.address() }
    }

    /// The page that rows of no sequence use.
    pub(super) fn spare_page(&self) -> u32 {
        self.taken.get().map_or(0, |taken| taken.kv_shape.blocks as u32)
    }

    /// Whether steps can be recorded.
    pub(super) fn records(&self) -> bool {
        self.is_dry() || (self.taken.get().is_some() && !self.is_profiled())
    }

    /// The stream has been waited for, or never will be.
    pub(super) fn step_is_over(&self) {
        if let (true, Some(memory)) = (self.is_well(), &mut lock(&self.tables).memory) {
            memory.in_use = false;
        }
    }

    /// A tensor's numbers, widened.
    pub(super) fn read(&self, x: &Tensor) -> Result<Vec<f32>, Fault> {
        self.settle(x);
        assert_eq!(x.stride, x.cols, "This is a bug: what is read is not dense.");
        let dtype = if x.float { Dtype::F32 } else { self.dtype };
        let mut bytes = vec![0; x.rows * x.cols * dtype.bytes()];
        self.attempt(|| {
            let step = self.step_memory.get().expect("This is a bug: a step ran.");
            let start = x.place.address - step.address();
            self.stream.download_now(&step.region(start, bytes.len() as u64), &mut bytes)
        });
        self.settled()?;
        Ok(Values::from_le_bytes(&bytes, dtype).to_f32())
    }
}
