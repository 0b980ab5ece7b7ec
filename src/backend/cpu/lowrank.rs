//! The low-rank half of an adapter: `h = A x` and `y += B h`, gathered from the pool as they stand.

use super::matmul::{self, Columns};
use super::pool::Change;
use super::simd::Level;
use super::weight::{Elements, with_slice};
use crate::delta::Factor;
use crate::dtype::Values;

/// Multiply-adds worth a task of its own.
const SHRINK_TASK_MACS: usize = 1 << 17;

/// One change's `h [rows, rank]`.
pub(super) struct Hidden {
    data: Vec<f32>,
    rank: usize,
}

impl Hidden {
    pub(super) fn new(change: &Change<'_>) -> Self {
        let rank = change.site.down.as_ref().map_or(0, |down| down.rank);
        Self { data: vec![0.0; change.rows.len() * rank], rank }
    }

    /// One a row; nothing where the rank is 0.
    pub(super) fn rows(&self) -> Vec<&[f32]> {
        self.data.chunks(self.rank.max(1)).collect()
    }
}

/// A stretch of one change's ranks: `h[.., first..] = A[first..] x`.
pub(super) struct Shrink<'a> {
    down: &'a Factor,
    pool: &'a Values,
    rows: &'a [usize],
    out: Columns<'a>,
}

/// Cuts one change's shrink into tasks.
pub(super) fn shrinks<'a>(
    change: &Change<'a>,
    hidden: &'a mut Hidden,
    level: Level,
) -> Vec<Shrink<'a>> {
    let Some(down) = &change.site.down else { return Vec::new() };
    let tile = level.tile_rows();
    let ranks = SHRINK_TASK_MACS / (change.rows.len() * down.width());
    let width = ranks.next_multiple_of(tile).clamp(tile, hidden.rank.next_multiple_of(tile));
    let shrink = |out| Shrink { down, pool: change.pool, rows: change.rows, out };
    matmul::columns(&mut hidden.data, hidden.rank, width).into_iter().map(shrink).collect()
}

impl Shrink<'_> {
    /// `xs`: every row of the step.
    pub(super) fn run(mut self, level: Level, xs: &[&[f32]]) {
        let Self { down, pool, rows, .. } = self;
        let Columns { first, width, rows: ref mut hs } = self.out;
        let (shards, len) = (down.shards_per_row(), down.shard_len);
        with_slice!(Elements::of(pool), pool => {
            for &offset in &down.offsets[first * shards..(first + width) * shards] {
                level.prefetch(&pool[offset as usize..][..len]);
            }
            for shard in 0..shards {
                let columns = shard * len..(shard + 1) * len;
                let tokens: Vec<&[f32]> =
                    rows.iter().map(|&row| &xs[row][columns.clone()]).collect();
                let start = |r: usize| down.offsets[(first + r) * shards + shard] as usize;
                level.dots(pool, width, start, &tokens, |r, token, dot| hs[token][r] += dot);
            }
        });
    }
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
pub(super) fn prefetch(level: Level, up: &Factor, pool: &Values, first: usize, width: usize) {
    let per_row = up.shards_per_row();
    with_slice!(Elements::of(pool), pool => for [shard, within, len] in shards(up, first, width) {
        for offsets in up.offsets.chunks(per_row) {
            level.prefetch(&pool[offsets[shard] as usize + within..][..len]);
        }
    });
}

/// `y[t] += Σ_r h[t][r] · Bᵀ[r]` in columns `first..` of Bᵀ, as wide as the ys are.
pub(super) fn expand(
    level: Level,
    up: &Factor,
    pool: &Values,
    first: usize,
    ys: &mut [&mut [f32]],
    hs: &[&[f32]],
) {
    let Some(width) = ys.first().map(|y| y.len()) else { return };
    let per_row = up.shards_per_row();
    let mut done = 0;
    with_slice!(Elements::of(pool), pool => for [shard, within, len] in shards(up, first, width) {
        let start = |r: usize| up.offsets[r * per_row + shard] as usize + within;
        let part = done..done + len;
        match &mut *ys {
            ys if len == width => level.expand(ys, hs, pool, start),
            [y] => level.expand(&mut [&mut y[part]], hs, pool, start),
            ys => {
                let mut ys: Vec<_> = ys.iter_mut().map(|y| &mut y[part.clone()]).collect();
                level.expand(&mut ys, hs, pool, start);
            }
        }
        done += len;
    });
}
