//! `y = W x` for any number of rows, with each row's adapter in the epilogue.

use super::lowrank::{self, Hidden};
use super::pool::{Change, Pool, Segment};
use super::simd::Level;
use super::weight::{Elements, with_slice};
use super::{Cpu, Matrix};
use crate::backend::{Linear, scale_shift};

/// Weights of one task: they stay in the second-level cache while blocks of tokens pass.
const CHUNK_BYTES_MAX: usize = 384 << 10;
/// Tokens that pass at a time.
const TOKEN_BLOCK_BYTES_MAX: usize = 512 << 10;
/// Tasks a thread gets to balance with, when there is enough to do.
const TASKS_PER_THREAD: usize = 16;

/// A stretch of columns of every row, handed to one task.
pub(super) struct Columns<'a> {
    pub first: usize,
    pub width: usize,
    pub rows: Vec<&'a mut [f32]>,
}

/// Cuts a row-major matrix into stretches of `width` columns (the last may be narrower).
pub(super) fn columns(data: &mut [f32], cols: usize, width: usize) -> Vec<Columns<'_>> {
    let rows = data.len() / cols;
    let stretch = |i: usize| {
        let first = i * width;
        Columns { first, width: width.min(cols - first), rows: Vec::with_capacity(rows) }
    };
    let mut all: Vec<Columns<'_>> = (0..cols.div_ceil(width)).map(stretch).collect();
    for row in data.chunks_mut(cols) {
        all.iter_mut().zip(row.chunks_mut(width)).for_each(|(c, part)| c.rows.push(part));
    }
    all
}

/// One linear of a step.
struct Job<'a> {
    weight: Elements<'a>,
    bias: Option<&'a [f32]>,
    in_features: usize,
    changes: Vec<Change<'a>>,
    /// Rows that use the base's own weight; `None` when all do.
    base_rows: Option<Vec<usize>>,
}

/// `x [n, in]` → one `[n, out]` a linear. Two parallel passes: the adapters' shrinks (skipped when
/// there are none), then the base with everything else fused behind it while y is in cache.
pub(super) fn linears<const N: usize>(
    cpu: &Cpu,
    x: &Matrix,
    linears: [&Linear<Cpu>; N],
    segments: &[Segment],
    pool: &Pool,
) -> [Matrix; N] {
    let jobs: [Job<'_>; N] = std::array::from_fn(|i| {
        let linear = linears[i];
        assert!(linear.in_features == x.cols, "This is a bug: a linear of another width.");
        let changes = pool.changes(segments, linear.site);
        Job {
            weight: linear.weight.elements(),
            bias: linear.bias.as_deref(),
            in_features: linear.in_features,
            base_rows: base_rows(&changes, x.rows()),
            changes,
        }
    });
    let mut outs = linears.map(|linear| Matrix::zeros(x.rows(), linear.out_features));
    let outs_mut = outs.each_mut();
    cpu.scope(|| fill(cpu, x, &jobs, outs_mut));
    outs
}

fn base_rows(changes: &[Change<'_>], n: usize) -> Option<Vec<usize>> {
    let replaced = || changes.iter().filter(|change| change.site.weight.is_some());
    replaced().next()?;
    let mut is_base = vec![true; n];
    replaced().flat_map(|change| change.rows).for_each(|&row| is_base[row] = false);
    Some((0..n).filter(|&row| is_base[row]).collect())
}

fn fill<const N: usize>(cpu: &Cpu, x: &Matrix, jobs: &[Job<'_>; N], outs: [&mut Matrix; N]) {
    let xs = x.row_slices();
    let level = cpu.level;
    let mut hidden: Vec<Vec<Hidden>> =
        jobs.iter().map(|job| job.changes.iter().map(Hidden::new).collect()).collect();
    let mut tasks = Vec::new();
    for (job, hidden) in jobs.iter().zip(&mut hidden) {
        for (change, hidden) in job.changes.iter().zip(hidden) {
            tasks.extend(lowrank::shrinks(change, hidden, level));
        }
    }
    cpu.each(tasks, |shrink| shrink.run(level, &xs));

    let total: usize = outs.iter().map(|out| out.cols).sum();
    let share = total / (cpu.threads * TASKS_PER_THREAD);
    let mut tasks = Vec::new();
    let hidden: Vec<Vec<Vec<&[f32]>>> =
        hidden.iter().map(|job| job.iter().map(Hidden::rows).collect()).collect();
    for ((job, hidden), out) in jobs.iter().zip(&hidden).zip(outs) {
        let tile = level.tile_rows();
        let mut width = share.next_multiple_of(tile).max(tile);
        if xs.len() > token_block(job.in_features) {
            let row_bytes = job.in_features * job.weight.dtype().bytes();
            width = width.min(CHUNK_BYTES_MAX / row_bytes / tile * tile).max(tile);
        }
        let columns = columns(&mut out.data, out.cols, width);
        tasks.extend(columns.into_iter().map(|columns| (job, hidden, columns)));
    }
    cpu.each(tasks, |(job, hidden, columns)| job.run(level, &xs, hidden, columns));
}

/// Tokens that fit [`TOKEN_BLOCK_BYTES_MAX`], in whole tiles.
fn token_block(in_features: usize) -> usize {
    (TOKEN_BLOCK_BYTES_MAX / (4 * in_features)).next_multiple_of(4).max(4)
}

impl Job<'_> {
    /// One stretch of the linear's columns, from the base to the shift.
    fn run(&self, level: Level, xs: &[&[f32]], hidden: &[Vec<&[f32]>], columns: Columns<'_>) {
        let Columns { first, width, rows: mut ys } = columns;
        for change in &self.changes {
            if let Some(up) = &change.site.up {
                lowrank::prefetch(level, up, change.pool, first, width);
            }
        }
        match &self.base_rows {
            None => self.base(level, self.weight, xs, first, &mut ys),
            Some(rows) if rows.is_empty() => {}
            Some(rows) => {
                let xs: Vec<&[f32]> = rows.iter().map(|&row| xs[row]).collect();
                pick(&mut ys, rows, |ys| self.base(level, self.weight, &xs, first, ys));
            }
        }
        for (change, hs) in self.changes.iter().zip(hidden) {
            pick(&mut ys, change.rows, |ys| self.change(level, change, xs, hs, first, ys));
        }
    }

    /// What one adapter does to its rows of the stretch.
    fn change(
        &self,
        level: Level,
        change: &Change<'_>,
        xs: &[&[f32]],
        hs: &[&[f32]],
        first: usize,
        ys: &mut [&mut [f32]],
    ) {
        let Some(width) = ys.first().map(|y| y.len()) else { return };
        let site = change.site;
        if let Some(weight) = &site.weight {
            let xs: Vec<&[f32]> = change.rows.iter().map(|&row| xs[row]).collect();
            self.base(level, Elements::of(weight), &xs, first, ys);
        }
        if let Some(up) = &site.up {
            lowrank::expand(level, up, change.pool, first, ys, hs);
        }
        let part = first..first + width;
        let scale = site.scale.as_ref().map(|scale| &scale[part.clone()]);
        let shift = site.shift.as_ref().map(|shift| &shift[part]);
        ys.iter_mut().for_each(|y| scale_shift(y, scale, shift));
    }

    /// `y = W x + bias` in columns from `first`.
    fn base(
        &self,
        level: Level,
        weight: Elements<'_>,
        xs: &[&[f32]],
        first: usize,
        ys: &mut [&mut [f32]],
    ) {
        let Some(width) = ys.first().map(|y| y.len()) else { return };
        let stretch = [first, width];
        let block = token_block(self.in_features);
        for (xs, ys) in xs.chunks(block).zip(ys.chunks_mut(block)) {
            with_slice!(weight, weight => match self.bias.map(|bias| &bias[first..][..width]) {
                Some(bias) => level.stream_dots(weight, stretch, xs, |row, token, dot| {
                    ys[token][row] = dot + bias[row];
                }),
                None => level.stream_dots(weight, stretch, xs, |row, token, dot| {
                    ys[token][row] = dot;
                }),
            });
        }
    }
}

/// Calls `f` with the rows at `indices` (ascending, not empty).
fn pick(ys: &mut [&mut [f32]], indices: &[usize], f: impl FnOnce(&mut [&mut [f32]])) {
    let (first, last) = (indices[0], indices[indices.len() - 1]);
    if last - first + 1 == indices.len() {
        // One token, or a prompt's: nothing to collect.
        return f(&mut ys[first..=last]);
    }
    let mut wanted = indices.iter().copied().peekable();
    let rows = ys.iter_mut().enumerate();
    let mut picked: Vec<&mut [f32]> =
        rows.filter_map(|(row, y)| wanted.next_if_eq(&row).map(|_| &mut **y)).collect();
    f(&mut picked);
}
