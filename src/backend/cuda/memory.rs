//! Everything on the card that is taken at start, and how much of it a step needs.

use std::sync::Arc;

use super::arena::ALIGNMENT_BYTES;
use super::args::Address;
use super::launch::{Card, Memory, Pinned, Region};
use super::slots::SlotMemory;
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{Fault, KvShape, Rows};
use crate::dtype::{Dtype, Values};
use crate::ids::{BlockId, Slot};
use crate::recipe::{Part, Recipe, Weight};
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
    /// Adapters of one row.
    pub recipe_parts_max: usize,
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
    pub kv: Region,
    pub kv_shape: KvShape,
    pub adapters: Arc<SlotMemory>,
}

/// The paged keys and values of every layer; one page more than asked for is no sequence's.
#[derive(Debug)]
pub struct Kv {
    pub(super) shape: KvShape,
    pub(super) address: Address,
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

/// A step of sequences with so many rows each, all at the end of the longest context, each with
/// adapters of its own; all that may have logits have some, and hidden states are wanted too.
pub(super) fn widest(limits: &StepLimits, lens: &[usize], block_tokens: usize) -> Rows {
    let StepLimits { sequences_max, context_tokens_max: context, adapter_slots, .. } = *limits;
    let pages = |tokens: usize| vec![BlockId(0); tokens.div_ceil(block_tokens).max(1)];
    let parts = limits.recipe_parts_max.min(adapter_slots);
    let recipe = |sequence: usize| {
        let slot = |part| Slot(((sequence * parts + part) % adapter_slots.max(1)) as u32);
        let part = |part| Part { adapter: slot(part), weight: Weight::ONE };
        Recipe::new((0..parts).map(part).collect())
    };
    let mut rows = Rows::default();
    let mut last = 0..0;
    for (sequence, &len) in lens.iter().enumerate() {
        let position = context.saturating_sub(len) as u32;
        let pages = pages(context.max(len));
        last = rows.push(&vec![0; len], position, &recipe(sequence), pages);
        rows.logit_rows.extend(last.clone().last().map(|row| row as u32));
    }
    // Logits of prompts may be wanted, as many at once as sequences draw.
    let more = last.rev().skip(1).take(sequences_max.saturating_sub(lens.len()));
    rows.logit_rows.extend(more.map(|row| row as u32));
    rows.logit_rows.sort_unstable();
    rows.hidden_rows = (0..rows.len() as u32).collect();
    rows
}

impl Cuda {
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
        self.dense(x);
        let dtype = if x.float { Dtype::F32 } else { self.dtype };
        let mut bytes = vec![0; x.rows * x.cols * dtype.bytes()];
        self.attempt(|| {
            let step = self.step_memory.get().expect("This is a bug: a step ran.");
            let start = x.at() - step.address();
            self.stream.download_now(&step.region(start, bytes.len() as u64), &mut bytes)
        });
        self.settled()?;
        Ok(Values::from_le_bytes(&bytes, dtype).to_f32())
    }
}
