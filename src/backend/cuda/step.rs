//! One step on the card: its tables in one upload.

use super::args::{Address, Deltas};
use super::slots::Slots;
use super::tables::{self, DeltaTables, Fixed, Shape, Tables};
use super::tensor::Tensor;
use super::{Cuda, lock};
use crate::backend::{Fault, Outputs, Rows};
use crate::ids::BlockId;
use crate::recipe::Weight;

/// Columns of x from which a shrink is split once more.
const SPLIT_COLUMNS: usize = 512;
const SPLITS_MAX: usize = 8;

/// A step's tables on the card.
#[derive(Clone, Debug)]
pub struct Step {
    pub(super) tables: Tables,
    /// The longest context of a short span, or of its class.
    pub(super) context: usize,
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
    /// A row carries one adapter as it is, and that has a linear's whole weight.
    pub own_weights: bool,
    /// A row carries such an adapter otherwise: with others, or with another weight than 1.
    pub mixed_weights: bool,
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
    /// Stretches of x that are summed apart (split-K).
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
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    /// The most of one adapter.
    pub ranks: usize,
    /// The most adapters of one row.
    pub parts: usize,
    pub own_weights: bool,
    pub mixed_weights: bool,
}

impl Carried {
    fn of(rows: &Rows, slots: &Slots) -> Self {
        let mut carried = Self::default();
        for recipe in rows.recipes() {
            let parts = recipe.parts();
            let alone = matches!(parts, [part] if part.weight == Weight::ONE);
            let own = parts.iter().any(|part| slots.own_weight(part.adapter));
            let ranks = parts.iter().map(|part| slots.rank(part.adapter)).max();
            carried.parts = carried.parts.max(parts.len());
            carried.ranks = carried.ranks.max(ranks.unwrap_or(0));
            carried.own_weights |= own && alone;
            carried.mixed_weights |= own && !alone;
        }
        carried
    }
}

impl Cuda {
    /// Runs the ops of rows, or replays what was captured of equal ones.
    pub(super) fn run_rows(
        &self,
        rows: &Rows,
        slots: &Slots,
        ops: impl FnMut(&Step) -> Outputs<Tensor>,
    ) -> Outputs<Tensor> {
        self.run_carrying(rows, slots, Carried::of(rows, slots), ops)
    }

    /// A decode step of `count` rows that nobody asked for (warm-up): run twice, it is captured,
    /// and steps like it are replayed from the first request on. `ranks`: as if a row had an
    /// adapter of so many.
    pub fn warm_up(
        &self,
        count: usize,
        ranks: Option<usize>,
        slots: &Slots,
        mut ops: impl FnMut(&Rows, &Step) -> Outputs<Tensor>,
    ) -> Outputs<Tensor> {
        let rows = tables::padded(&Rows::default(), count, BlockId(self.spare_page()));
        let carried = match ranks {
            Some(ranks) => Carried { ranks, parts: 1, ..Carried::default() },
            None => Carried::default(),
        };
        self.run_carrying(&rows, slots, carried, |step| ops(&rows, step))
    }

    fn run_carrying(
        &self,
        rows: &Rows,
        slots: &Slots,
        carried: Carried,
        mut ops: impl FnMut(&Step) -> Outputs<Tensor>,
    ) -> Outputs<Tensor> {
        let Some(class) = self.class(rows, &carried) else {
            return ops(&self.upload_step(rows, None, &carried, slots));
        };
        let padded = tables::padded(rows, class.rows, BlockId(self.spare_page()));
        let fixed = Fixed { pages: class.pages, ranks: class.ranks, parts: class.parts };
        let step = self.upload_step(&padded, Some(fixed), &carried, slots);
        let mut logits = || {
            let logits = ops(&step).logits;
            logits.expect("This is a bug: a step of decode rows has logits.")
        };
        let mut logits = if self.is_dry() { logits() } else { self.run_class(class, logits) };
        logits.rows = rows.logit_rows.len();
        Outputs { logits: Some(logits), hidden: None }
    }

    fn upload_step(
        &self,
        rows: &Rows,
        fixed: Option<Fixed>,
        carried: &Carried,
        slots: &Slots,
    ) -> Step {
        let shape =
            Shape { group: self.model_group(), prefill_kernel: self.has_prefill_kernel(), fixed };
        let (words, tables) = tables::build(rows, &shape, &|slot| slots.rank(slot));
        let base = self.upload_words(&words.words);
        let context = match fixed {
            Some(fixed) => fixed.pages * self.block_tokens(),
            None => tables.context,
        };
        let at = |t: &DeltaTables| self.row_tables(t, base, fixed, carried, slots);
        let (of_rows, logit_rows) = (at(&tables.deltas), at(&tables.logit_deltas));
        Step { tables, context, rows: of_rows, logit_rows, base }
    }

    fn row_tables(
        &self,
        t: &DeltaTables,
        base: Address,
        fixed: Option<Fixed>,
        carried: &Carried,
        slots: &Slots,
    ) -> RowTables {
        let at = |word: usize| base + 4 * word as u64;
        let (changes, sites) = slots.changes();
        let deltas = Deltas {
            changes,
            entry_slot: at(t.entry_slot),
            entry_weight: at(t.entry_weight),
            rows: if carried.parts > 0 { at(t.rows) } else { 0 },
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
            mixed_weights: carried.mixed_weights,
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
