//! The low-rank half of an adapter: `h = middle ⊙ A x` and `y += end ⊙ B h`, gathered from the
//! pools as they stand.

use super::columns::{Columns, columns};
use super::simd::Level;
use super::slots::PartChange;
use super::weight::{Elements, with_slice};
use crate::delta::{Delta, Factor, LowRank};
use crate::dtype::Values;

/// Multiply-adds worth a task of its own.
const SHRINK_TASK_MACS: usize = 1 << 17;

/// One part's `h [rows, rank]`.
pub(super) struct Hidden {
    data: Vec<f32>,
    rank: usize,
}

impl Hidden {
    pub(super) fn new(part: &PartChange<'_>, rows: usize) -> Self {
        let rank = part.site.low_rank.as_ref().map_or(0, |low_rank| low_rank.rank);
        Self { data: vec![0.0; rows * rank], rank }
    }

    /// One a row; nothing where the rank is 0.
    pub(super) fn rows(&self) -> Vec<&[f32]> {
        self.data.chunks(self.rank.max(1)).collect()
    }
}

/// A stretch of one part's ranks: `h[.., first..] = middle ⊙ A[first..] x`.
pub(super) struct Shrink<'a> {
    low_rank: &'a LowRank,
    pool: &'a Values,
    rows: &'a [usize],
    out: Columns<'a>,
}

/// Cuts one part's shrink into tasks.
pub(super) fn shrinks<'a>(
    part: &PartChange<'a>,
    rows: &'a [usize],
    hidden: &'a mut Hidden,
    level: Level,
) -> Vec<Shrink<'a>> {
    let Some(low_rank) = &part.site.low_rank else { return Vec::new() };
    let tile = level.tile_rows();
    let ranks = SHRINK_TASK_MACS / (rows.len() * low_rank.down.width());
    let width = ranks.next_multiple_of(tile).clamp(tile, hidden.rank.next_multiple_of(tile));
    let pool = part.delta.pool(&low_rank.down);
    let shrink = |out| Shrink { low_rank, pool, rows, out };
    columns(&mut hidden.data, hidden.rank, width).into_iter().map(shrink).collect()
}

impl Shrink<'_> {
    /// `xs`: every row of the step.
    pub(super) fn run(mut self, level: Level, xs: &[&[f32]]) {
        let Self { low_rank, pool, rows, .. } = self;
        let Columns { first, width, rows: ref mut hs } = self.out;
        let Factor { pool: _, shard_len: len, shards, offsets } = &low_rank.down;
        let (len, shards) = (*len, *shards);
        with_slice!(Elements::of(pool), pool => {
            for &offset in &offsets[first * shards..(first + width) * shards] {
                level.prefetch(&pool[offset as usize..][..len]);
            }
            for shard in 0..shards {
                let columns = shard * len..(shard + 1) * len;
                let tokens: Vec<&[f32]> =
                    rows.iter().map(|&row| &xs[row][columns.clone()]).collect();
                let start = |r: usize| offsets[(first + r) * shards + shard] as usize;
                level.dots(pool, width, start, &tokens, |r, token, dot| hs[token][r] += dot);
            }
        });
        hs.iter_mut().for_each(|h| scale_middle(low_rank, first, h));
    }
}

/// `h ← middle ⊙ h` for ranks from `first`.
pub(super) fn scale_middle(low_rank: &LowRank, first: usize, h: &mut [f32]) {
    if let Some(middle) = &low_rank.middle {
        h.iter_mut().zip(&middle[first..]).for_each(|(h, d)| *h *= d);
    }
}

/// `y += end ⊙ B (middle ⊙ A[:, column])`: what a one-hot x, a token, takes from the factors.
pub(super) fn add_column(
    level: Level,
    low_rank: &LowRank,
    delta: &Delta,
    column: usize,
    y: &mut [f32],
) {
    let LowRank { rank, down, middle: _, up: _, end: _ } = low_rank;
    let mut h: Vec<f32> = (0..*rank).map(|r| delta.element(down, r, column)).collect();
    scale_middle(low_rank, 0, &mut h);
    expand(level, low_rank, delta, 0, &mut [y], &[&h]);
}

/// The shards under `width` columns of a factor from `first` on: (shard, where in it, how many).
fn shards(factor: &Factor, first: usize, width: usize) -> impl Iterator<Item = [usize; 3]> {
    let len = factor.shard_len;
    (first / len..(first + width).div_ceil(len)).map(move |shard| {
        let start = first.max(shard * len);
        let end = (first + width).min((shard + 1) * len);
        [shard, start - shard * len, end - start]
    })
}

/// Asks for what [`expand`] will read: short pieces of many rows, which no processor foresees.
pub(super) fn prefetch(level: Level, up: &Factor, delta: &Delta, first: usize, width: usize) {
    let pool = Elements::of(delta.pool(up));
    with_slice!(pool, pool => for [shard, within, len] in shards(up, first, width) {
        for offsets in up.offsets.chunks(up.shards) {
            level.prefetch(&pool[offsets[shard] as usize + within..][..len]);
        }
    });
}

/// `y[t] += end ⊙ Σ_r h[t][r] · Bᵀ[r]` in columns `first..` of Bᵀ, as wide as the ys are.
pub(super) fn expand(
    level: Level,
    low_rank: &LowRank,
    delta: &Delta,
    first: usize,
    ys: &mut [&mut [f32]],
    hs: &[&[f32]],
) {
    let LowRank { rank: _, down: _, middle: _, up, end } = low_rank;
    let Some(end) = end else { return sum_rows(level, up, delta, first, ys, hs) };
    for (y, h) in ys.iter_mut().zip(hs) {
        let mut bh = vec![0.0; y.len()];
        sum_rows(level, up, delta, first, &mut [&mut bh], &[h]);
        for ((y, bh), end) in y.iter_mut().zip(&bh).zip(&end[first..]) {
            *y += end * bh;
        }
    }
}

/// `y[t] += Σ_r coefficients[t][r] · row r` of a factor, in its columns `first..`.
pub(super) fn sum_rows(
    level: Level,
    factor: &Factor,
    delta: &Delta,
    first: usize,
    ys: &mut [&mut [f32]],
    coefficients: &[&[f32]],
) {
    let Some(width) = ys.first().map(|y| y.len()) else { return };
    let pool = Elements::of(delta.pool(factor));
    let mut done = 0;
    with_slice!(pool, pool => for [shard, within, len] in shards(factor, first, width) {
        let start = |r: usize| factor.offsets[r * factor.shards + shard] as usize + within;
        let part = done..done + len;
        match &mut *ys {
            ys if len == width => level.expand(ys, coefficients, pool, start),
            [y] => level.expand(&mut [&mut y[part]], coefficients, pool, start),
            ys => {
                let mut ys: Vec<_> = ys.iter_mut().map(|y| &mut y[part.clone()]).collect();
                level.expand(&mut ys, coefficients, pool, start);
            }
        }
        done += len;
    });
}
