//! A step's tables as the host will build them.

use super::device::{Buffer, Width};
use super::world::World;
use crate::Rng;
use tessera::backend::cuda::args::{
    Deltas, ROW_TILE, RowParts, RowTile, SHRINK_RANKS, SHRINK_ROWS, Work,
};

/// Other inputs on every run; a failure says what it needs.
pub fn fresh() -> Rng {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Rng(now.as_nanos() as u64)
}

/// Bare rows, rows of one adapter of slots 0 … 2, and compositions.
pub fn rows(rng: &mut Rng, n: usize) -> Vec<Parts> {
    let kinds = [
        vec![],
        vec![(0, 1.0)],
        vec![(1, 1.0)],
        vec![(2, 1.0)],
        vec![(2, 0.5)],
        vec![(0, 0.75), (2, -0.5)],
        vec![(1, -0.25), (0, 1.0), (2, 1.5)],
    ];
    (0..n).map(|_| kinds[rng.below(kinds.len())].clone()).collect()
}

/// A row's (slot, weight) list.
pub type Parts = Vec<(usize, f32)>;

/// Lengths of tiles, in turn: full ones, single rows and others side by side.
pub const MIXED_TILES: &[usize] = &[ROW_TILE, 1, ROW_TILE - 1, 2];

/// A step's rows grouped by what they carry.
pub struct Plan {
    pub rows: Vec<Parts>,
    /// All tiles of one adapter's or no adapter's rows; each row of a composition has its own.
    pub tiles: Vec<RowTile>,
    entry_row: Vec<u32>,
    entry_slot: Vec<u32>,
    /// Of the first row of each group.
    groups: Vec<RowParts>,
    pub row_parts: Vec<RowParts>,
    order_at: Buffer,
    tiles_at: Buffer,
    tile_count_at: Buffer,
    pub entry_row_at: Buffer,
    pub entry_slot_at: Buffer,
    entry_weight_at: Buffer,
    row_parts_at: Buffer,
    first_row: u32,
}

impl Plan {
    /// `rows[i]`: (slot, weight) list of the kernel's row `first_row + i`.
    pub fn new(rows: Vec<Parts>, first_row: u32) -> Self {
        Self::tiled(rows, first_row, MIXED_TILES)
    }

    pub fn tiled(rows: Vec<Parts>, first_row: u32, tile_rows: &[usize]) -> Self {
        let mut kinds: Vec<(Parts, Vec<u32>)> = Vec::new();
        for (i, parts) in rows.iter().enumerate() {
            match kinds.iter_mut().find(|(kind, _)| kind == parts) {
                Some((_, members)) => members.push(i as u32),
                None => kinds.push((parts.clone(), vec![i as u32])),
            }
        }
        let (mut order, mut tiles, mut entry_row) = (Vec::new(), Vec::new(), Vec::new());
        let (mut entry_slot, mut entry_weight, mut groups) = (Vec::new(), Vec::new(), Vec::new());
        let mut row_parts = vec![RowParts::default(); rows.len()];
        let mut lengths = tile_rows.iter().copied().cycle();
        for (parts, members) in kinds {
            let (n, stride) = (members.len(), members.len() as u32);
            let (entry, first) = (entry_row.len() as u32, order.len() as u32);
            let parts_len = parts.len() as u32;
            for (i, &row) in members.iter().enumerate() {
                let entry = entry + i as u32;
                row_parts[row as usize] = RowParts { entry, stride, parts: parts_len };
            }
            groups.push(RowParts { entry, stride, parts: parts_len });
            let mut from = 0;
            while from < n {
                let wanted = if parts.len() > 1 { 1 } else { lengths.next().unwrap() };
                let (rows, at) = (wanted.min(n - from), from as u32);
                let (first, entry) = (first + at, entry + at);
                tiles.push(RowTile { first, rows: rows as u32, entry, stride, parts: parts_len });
                from += rows;
            }
            for &(slot, weight) in &parts {
                entry_row.extend(members.iter().map(|row| row + first_row));
                entry_slot.extend(members.iter().map(|_| slot as u32));
                entry_weight.extend(members.iter().map(|_| weight));
            }
            order.extend(members.iter().map(|row| row + first_row));
        }
        Self {
            order_at: Buffer::raw(&order),
            tiles_at: Buffer::raw(&tiles),
            tile_count_at: Buffer::raw(&[tiles.len() as u32]),
            entry_row_at: Buffer::raw(&entry_row),
            entry_slot_at: Buffer::raw(&entry_slot),
            entry_weight_at: Buffer::raw(&entry_weight),
            row_parts_at: Buffer::raw(&row_parts),
            rows,
            tiles,
            entry_row,
            entry_slot,
            groups,
            row_parts,
            first_row,
        }
    }

    /// Blocks of a kernel that takes tiles: more than there are, as in a recorded step.
    pub fn blocks(&self) -> u32 {
        self.tiles.len() as u32 + 2
    }

    pub fn entries(&self) -> usize {
        self.entry_row.len()
    }

    /// The entry of a row's part.
    pub fn entry(&self, row: usize, part: usize) -> usize {
        let parts = self.row_parts[row];
        parts.entry as usize + part * parts.stride as usize
    }

    /// The work of one shrink.
    pub fn work(&self, world: &World) -> Vec<Work> {
        let mut all = Vec::new();
        for &RowParts { entry, stride: rows, parts } in &self.groups {
            for part in 0..parts {
                let start = entry + part * rows;
                let slot = self.entry_slot[start as usize] as usize;
                let ranks = (0..world.sites).map(|site| world.rank(slot, site)).max().unwrap();
                // A tile more than the rank asks for: it must cost nothing and write nothing.
                for rank in (0..=ranks).step_by(SHRINK_RANKS) {
                    for first in (0..rows).step_by(SHRINK_ROWS) {
                        all.push(Work {
                            entry: start + first,
                            rows: (rows - first).min(SHRINK_ROWS as u32),
                            rank_first: rank as u32,
                        });
                    }
                }
            }
        }
        all
    }

    /// For a kernel that reads no h.
    pub fn deltas(&self, world: &World) -> Deltas {
        Deltas {
            changes: world.changes.at(),
            entry_slot: self.entry_slot_at.at(),
            entry_weight: self.entry_weight_at.at(),
            // Three words a row.
            rows: self.row_parts_at.as_if_from(3 * u64::from(self.first_row)),
            order: self.order_at.at(),
            tiles: self.tiles_at.at(),
            tile_count: self.tile_count_at.at(),
            sites: world.sites as u32,
            ..Deltas::default()
        }
    }
}

/// Made-up results of a shrink; NaN where no rank is.
pub struct Planes {
    values: Vec<f32>,
    at: Buffer,
    planes: usize,
    plane_stride: usize,
    rank_stride: usize,
    linears: usize,
}

impl Planes {
    pub fn random(rng: &mut Rng, world: &World, plan: &Plan, sites: &[usize]) -> Self {
        let (planes, rank_stride) = (3, 67);
        let plane_stride = plan.entries() * sites.len() * rank_stride + 5;
        let mut values = vec![f32::NAN; planes * plane_stride];
        for plane in 0..planes {
            for (entry, &slot) in plan.entry_slot.iter().enumerate() {
                for (linear, &site) in sites.iter().enumerate() {
                    let at = plane * plane_stride + (entry * sites.len() + linear) * rank_stride;
                    let rank = world.rank(slot as usize, site);
                    values[at..at + rank].copy_from_slice(&rng.vec(rank));
                }
            }
        }
        let at = Buffer::of(Width::F32, &values);
        Self { values, at, planes, plane_stride, rank_stride, linears: sites.len() }
    }

    pub fn deltas(&self, plan: &Plan, world: &World) -> Deltas {
        Deltas {
            h: self.at.at(),
            plane_stride: self.plane_stride as u64,
            rank_stride: self.rank_stride as u32,
            linears: self.linears as u32,
            planes: self.planes as u32,
            ..plan.deltas(world)
        }
    }

    /// h of each part of a row at a linear whose site has the same number.
    pub fn row(&self, world: &World, plan: &Plan, row: usize, linear: usize) -> Vec<Vec<f64>> {
        let part = |(part, &(slot, _)): (usize, &(usize, f32))| {
            self.hidden(plan.entry(row, part), linear, world.rank(slot, linear))
        };
        plan.rows[row].iter().enumerate().map(part).collect()
    }

    /// h of an entry at a linear: the planes' sum.
    fn hidden(&self, entry: usize, linear: usize, rank: usize) -> Vec<f64> {
        let at = (entry * self.linears + linear) * self.rank_stride;
        let of =
            |r: usize, plane: usize| f64::from(self.values[plane * self.plane_stride + at + r]);
        (0..rank).map(|r| (0..self.planes).map(|plane| of(r, plane)).sum()).collect()
    }
}

/// `n` numbers that `width` holds exactly.
pub fn values(rng: &mut Rng, width: Width, n: usize) -> Vec<f32> {
    rng.vec(n).into_iter().map(|x| width.round(x)).collect()
}

/// |actual − expected| within f32 sums over terms of `size`, and within the stored width.
/// `roundings`: how often the result passed through the stored width.
#[track_caller]
pub fn assert_close(actual: f32, expected: (f64, f64), width: Width, roundings: f64, what: &str) {
    let (value, size) = expected;
    let tolerance = 4e-6 * size + roundings * width.half_step() * size.max(value.abs()) + 1e-7;
    let error = (f64::from(actual) - value).abs();
    // Not `>`: NaN must fail.
    assert!(error <= tolerance, "{what}: got {actual}, expected {value} ± {tolerance}");
}
