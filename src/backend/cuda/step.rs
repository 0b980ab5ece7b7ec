//! One step on the card: its tables in one upload.

use std::cell::OnceCell;

use super::args::{Address, Deltas};
use super::tables::{self, DeltaTables, Fixed, Shape, Tables};
use super::tensor::Tensor;
use super::{Cuda, Pool, lock};
use crate::backend::{Fault, Rows};
use crate::ids::{BlockId, Slot};

/// Columns of x from which a shrink is split once more.
const SPLIT_COLUMNS: usize = 512;
const SPLITS_MAX: usize = 8;

/// One step's rows; what they become on the card is known when they run.
#[derive(Debug)]
pub struct Batch {
    pub(super) rows: Rows,
    pub(super) step: OnceCell<Step>,
    /// Runs as if a row had an adapter of so many ranks.
    rehearsed: Option<usize>,
}

impl Batch {
    pub(super) fn new(rows: Rows) -> Self {
        Self { rows, step: OnceCell::new(), rehearsed: None }
    }

    pub(super) fn step(&self) -> &Step {
        self.step.get().expect("This is a bug: ops are called outside of a run.")
    }
}

/// A step's tables on the card.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub tables: Tables,
    /// The longest context of a short span, or of its class.
    pub context: usize,
    rows: RowTables,
    logit_rows: RowTables,
    base: Address,
}

/// What kernels read of the adapters of some rows.
#[derive(Clone, Debug)]
pub(super) struct RowTables {
    /// `rows` is 0 when no row has an adapter.
    pub deltas: Deltas,
    pub entry_row: Address,
    /// Room for entries.
    pub entries: usize,
    /// The count of tiles with adapters alone.
    pub adapted_count: Address,
    pub tiles_max: usize,
    /// An adapter has a linear's whole weight.
    pub own_weights: bool,
    /// `None`: no adapter has a low-rank part.
    pub factors: Option<Factors>,
}

/// The work of a step's shrinks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Factors {
    pub work: Address,
    pub work_count: Address,
    pub works: usize,
    pub rank_stride: usize,
    pub splits: usize,
}

impl Step {
    pub(super) fn at(&self, word: usize) -> Address {
        self.base + 4 * word as u64
    }

    pub(super) fn rows(&self) -> &RowTables {
        &self.rows
    }

    pub(super) fn logit_rows(&self) -> &RowTables {
        &self.logit_rows
    }
}

/// What a step's rows carry, all together.
pub(super) struct Carried {
    /// The most of one adapter.
    pub ranks: usize,
    pub adapters: bool,
    pub own_weights: bool,
}

impl Carried {
    fn of(slots: &[Slot], pool: &Pool) -> Self {
        let mut distinct: Vec<Slot> =
            slots.iter().copied().filter(|&slot| slot != Slot::BASE).collect();
        distinct.sort_unstable();
        distinct.dedup();
        Self {
            ranks: distinct.iter().map(|&slot| pool.rank(slot)).max().unwrap_or(0),
            adapters: !distinct.is_empty(),
            own_weights: distinct.iter().any(|&slot| pool.own_weight(slot)),
        }
    }
}

impl Cuda {
    /// A decode step of `rows` rows that nobody asked for: run twice, it is recorded, and steps
    /// like it are replayed from the first request on. `ranks`: as if a row had an adapter of so
    /// many.
    pub fn rehearsal(&self, rows: usize, ranks: Option<usize>) -> Batch {
        let spare = BlockId(self.spare_page());
        let rows = tables::padded(&Rows::default(), rows, spare);
        Batch { rehearsed: ranks, ..Batch::new(rows) }
    }

    /// Runs a batch's ops, or what was recorded of equal ones.
    pub(super) fn run_batch(
        &self,
        batch: &Batch,
        pool: &Pool,
        mut ops: impl FnMut() -> Tensor,
    ) -> Tensor {
        let carried = match batch.rehearsed {
            Some(ranks) => Carried { ranks, adapters: true, own_weights: false },
            None => Carried::of(&batch.rows.slots, pool),
        };
        let class = self.class(&batch.rows, &carried);
        let (rows, fixed) = match &class {
            None => (None, None),
            Some(class) => {
                let spare = BlockId(self.spare_page());
                let padded = tables::padded(&batch.rows, class.rows, spare);
                (Some(padded), Some(Fixed { pages: class.pages, ranks: class.ranks }))
            }
        };
        let rows = rows.as_ref().unwrap_or(&batch.rows);
        let step = self.upload_step(rows, fixed, &carried, pool);
        let wanted = batch.rows.logit_rows.len();
        assert!(batch.step.set(step).is_ok(), "This is a bug: a batch runs once.");
        let mut logits = match class {
            Some(class) if !self.is_dry() => self.run_class(class, ops),
            _ => ops(),
        };
        logits.rows = wanted;
        logits
    }

    fn upload_step(
        &self,
        rows: &Rows,
        fixed: Option<Fixed>,
        carried: &Carried,
        pool: &Pool,
    ) -> Step {
        let shape =
            Shape { group: self.model_group(), prefill_kernel: self.has_prefill_kernel(), fixed };
        let (words, tables) = tables::build(rows, &shape, &|slot| pool.rank(slot));
        let base = self.upload_words(&words.words);
        let context = match fixed {
            Some(fixed) => fixed.pages * self.block_tokens(),
            None => tables.context,
        };
        let at = |t: &DeltaTables| self.row_tables(t, base, fixed, carried, pool);
        let (of_rows, logit_rows) = (at(&tables.deltas), at(&tables.logit_deltas));
        Step { tables, context, rows: of_rows, logit_rows, base }
    }

    fn row_tables(
        &self,
        t: &DeltaTables,
        base: Address,
        fixed: Option<Fixed>,
        carried: &Carried,
        pool: &Pool,
    ) -> RowTables {
        let at = |word: usize| base + 4 * word as u64;
        let (changes, sites) = pool.changes();
        let deltas = Deltas {
            changes,
            entry_slot: at(t.entry_slot),
            entry_weight: at(t.entry_weight),
            rows: if carried.adapters { at(t.rows) } else { 0 },
            order: at(t.order),
            tiles: at(t.tiles),
            tile_count: at(t.tile_count),
            sites,
            ..Deltas::default()
        };
        let rank_stride = fixed.map_or(carried.ranks, |fixed| fixed.ranks);
        let factors = Factors {
            work: at(t.work),
            work_count: at(t.work_count),
            works: t.works,
            rank_stride,
            splits: (self.width_max() / SPLIT_COLUMNS).clamp(1, SPLITS_MAX),
        };
        RowTables {
            deltas,
            entry_row: at(t.entry_row),
            entries: t.entries,
            adapted_count: at(t.adapted_count),
            tiles_max: t.tiles_max,
            own_weights: carried.own_weights,
            factors: (rank_stride > 0).then_some(factors),
        }
    }

    /// Puts a step's words where the kernels look for them.
    fn upload_words(&self, words: &[u32]) -> Address {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let mut tables = lock(&self.tables);
        tables.bytes_max = tables.bytes_max.max(bytes.len() as u64);
        let tables = &mut *tables;
        let Some(memory) = &mut tables.memory else { return 0 };
        let address = memory.device.address();
        self.attempt(|| {
            if bytes.len() as u64 > memory.device.bytes() {
                return Err(Fault {
                    message: "a step has more tables than the one measured at start".into(),
                    lost: false,
                });
            }
            if memory.in_use {
                self.stream.synchronize()?;
            }
            memory.pinned.bytes_mut()[..bytes.len()].copy_from_slice(bytes);
            memory.in_use = true;
            let to = memory.device.sub(0, bytes.len() as u64);
            self.stream.upload(&memory.pinned, 0..bytes.len(), &to)
        });
        address
    }
}
