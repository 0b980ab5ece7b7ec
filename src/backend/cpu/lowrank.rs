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
    pub data: Vec<f32>,
    pub rank: usize,
}

impl Hidden {
    pub(super) fn new(change: &Change<'_>) -> Self {
        let rank = change.site.down.as_ref().map_or(0, |down| down.rank);
        Self { data: vec![0.0; change.rows.len() * rank], rank }
    }

    pub(super) fn row(&self, index: usize) -> &[f32] {
        &self.data[index * self.rank..][..self.rank]
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
        for shard in 0..down.shards_per_row() {
            let columns = shard * down.shard_len..(shard + 1) * down.shard_len;
            let tokens: Vec<&[f32]> = rows.iter().map(|&row| &xs[row][columns.clone()]).collect();
            let start = |r: usize| down.row_offsets(first + r)[shard] as usize;
            let put = |r: usize, token: usize, dot: f32| hs[token][r] += dot;
            with_slice!(Elements::of(pool), pool => level.dots(pool, width, start, &tokens, put));
        }
    }
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
    let mut done = 0;
    while done < width {
        let (shard, within) = ((first + done) / up.shard_len, (first + done) % up.shard_len);
        let take = (up.shard_len - within).min(width - done);
        let mut ys: Vec<&mut [f32]> = ys.iter_mut().map(|y| &mut y[done..done + take]).collect();
        let start = |r: usize| up.row_offsets(r)[shard] as usize + within;
        with_slice!(Elements::of(pool), pool => level.expand(&mut ys, hs, pool, start));
        done += take;
    }
}
