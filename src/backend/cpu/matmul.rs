//! `y = W x` for any number of rows, with each row's adapters in the epilogue.

use super::columns::{Columns, columns};
use super::lowrank::{self, Hidden};
use super::matrix::Matrix;
use super::simd::Level;
use super::slots::{self, Change, Group, PartChange, Step};
use super::threads::Cpu;
use super::weight::{Elements, with_slice};
use crate::backend::folding::scale_shift;
use crate::backend::{Linear, LinearOps};
use crate::delta::SiteDelta;

/// Weights of one task: they stay in the second-level cache while blocks of tokens pass.
const CHUNK_BYTES_MAX: usize = 384 << 10;
/// Tokens that pass at a time.
const TOKEN_BLOCK_BYTES_MAX: usize = 512 << 10;
/// Tasks a thread gets to balance with, when there is enough to do.
const TASKS_PER_THREAD: usize = 16;

impl LinearOps for Cpu {
    fn linears<const N: usize>(
        &self,
        x: &Matrix,
        linears: [&Linear<Cpu>; N],
        step: &Step<'_>,
    ) -> [Matrix; N] {
        multiply(self, x, linears, &step.groups)
    }

    fn head(&self, x: &Matrix, head: &Linear<Cpu>, step: &Step<'_>) -> Matrix {
        let [logits] = multiply(self, x, [head], &step.logit_groups);
        logits
    }
}

/// One linear of a step.
struct LinearTask<'a> {
    weight: Elements<'a>,
    bias: Option<&'a [f32]>,
    in_features: usize,
    changes: Vec<Change<'a>>,
    /// Rows that use the base's own weight; `None` when all do.
    base_rows: Option<Vec<usize>>,
}

/// h of each part of each change.
type Hiddens<'a> = Vec<Vec<Vec<&'a [f32]>>>;

/// `x [n, in]` → one `[n, out]` a linear. Two parallel passes: the adapters' shrinks (skipped when
/// there are none), then the base with everything else fused behind it while y is in cache.
fn multiply<const N: usize>(
    cpu: &Cpu,
    x: &Matrix,
    linears: [&Linear<Cpu>; N],
    groups: &[Group<'_>],
) -> [Matrix; N] {
    let tasks: [LinearTask<'_>; N] = linears.map(|linear| {
        assert!(linear.in_features == x.cols, "This is a bug: a linear of another width.");
        let changes = slots::changes(groups, linear.site);
        LinearTask {
            weight: linear.weight.elements(),
            bias: linear.bias.as_deref(),
            in_features: linear.in_features,
            base_rows: base_rows(&changes, x.rows()),
            changes,
        }
    });
    let mut outs = linears.map(|linear| Matrix::zeros(x.rows(), linear.out_features));
    let outs_mut = outs.each_mut();
    cpu.scope(|| fill(cpu, x, &tasks, outs_mut));
    outs
}

fn base_rows(changes: &[Change<'_>], n: usize) -> Option<Vec<usize>> {
    let replaced = || changes.iter().filter(|change| change.own_weight().is_some());
    replaced().next()?;
    let mut is_base = vec![true; n];
    replaced().flat_map(|change| change.rows).for_each(|&row| is_base[row] = false);
    Some((0..n).filter(|&row| is_base[row]).collect())
}

fn fill<const N: usize>(
    cpu: &Cpu,
    x: &Matrix,
    linears: &[LinearTask<'_>; N],
    outs: [&mut Matrix; N],
) {
    let xs = x.row_slices();
    let level = cpu.level;
    let of_change = |change: &Change<'_>| -> Vec<Hidden> {
        change.parts.iter().map(|part| Hidden::new(part, change.rows.len())).collect()
    };
    let mut hidden: Vec<Vec<Vec<Hidden>>> =
        linears.iter().map(|linear| linear.changes.iter().map(of_change).collect()).collect();
    let mut tasks = Vec::new();
    for (linear, hidden) in linears.iter().zip(&mut hidden) {
        for (change, hidden) in linear.changes.iter().zip(hidden) {
            for (part, hidden) in change.parts.iter().zip(hidden) {
                tasks.extend(lowrank::shrinks(part, change.rows, hidden, level));
            }
        }
    }
    cpu.each(tasks, |shrink| shrink.run(level, &xs));

    let total: usize = outs.iter().map(|out| out.cols).sum();
    let share = total / (cpu.threads * TASKS_PER_THREAD);
    let mut tasks = Vec::new();
    let hidden: Vec<Hiddens<'_>> = hidden.iter().map(|linear| rows_of(linear)).collect();
    for ((linear, hidden), out) in linears.iter().zip(&hidden).zip(outs) {
        let tile = level.tile_rows();
        let mut width = share.next_multiple_of(tile).max(tile);
        if xs.len() > token_block(linear.in_features) {
            let row_bytes = linear.in_features * linear.weight.dtype().bytes();
            width = width.min(CHUNK_BYTES_MAX / row_bytes / tile * tile).max(tile);
        }
        let columns = columns(&mut out.data, out.cols, width);
        tasks.extend(columns.into_iter().map(|columns| (linear, hidden, columns)));
    }
    cpu.each(tasks, |(linear, hidden, columns)| linear.run(level, &xs, hidden, columns));
}

/// The rows of every part of every change.
fn rows_of(hidden: &[Vec<Hidden>]) -> Hiddens<'_> {
    hidden.iter().map(|parts| parts.iter().map(Hidden::rows).collect()).collect()
}

/// Tokens that fit [`TOKEN_BLOCK_BYTES_MAX`], in whole tiles.
fn token_block(in_features: usize) -> usize {
    (TOKEN_BLOCK_BYTES_MAX / (4 * in_features)).next_multiple_of(4).max(4)
}

impl LinearTask<'_> {
    /// One stretch of the linear's columns, from the base to the shift.
    fn run(&self, level: Level, xs: &[&[f32]], hidden: &Hiddens<'_>, columns: Columns<'_>) {
        let Columns { first, width, rows: mut ys } = columns;
        for part in self.changes.iter().flat_map(|change| &change.parts) {
            if let Some(low_rank) = &part.site.low_rank {
                lowrank::prefetch(level, &low_rank.up, part.delta, first, width);
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
            let xs = || change.rows.iter().map(|&row| xs[row]).collect::<Vec<_>>();
            pick(&mut ys, change.rows, |ys| match change.alone {
                true => self.part(level, &change.parts[0], &xs, &hs[0], first, ys),
                false => slots::mix(&change.parts, ys, |i, part, ys| {
                    self.part(level, part, &xs, &hs[i], first, ys);
                }),
            });
        }
    }

    /// `y ← scale ⊙ (y + end ⊙ B h) + shift`, y from the adapter's own weight where it has one.
    fn part<'x>(
        &self,
        level: Level,
        part: &PartChange<'_>,
        xs: &dyn Fn() -> Vec<&'x [f32]>,
        hs: &[&[f32]],
        first: usize,
        ys: &mut [&mut [f32]],
    ) {
        let Some(width) = ys.first().map(|y| y.len()) else { return };
        let SiteDelta { low_rank, scale, shift, weight } = part.site;
        if let Some(weight) = weight {
            self.base(level, Elements::of(weight), &xs(), first, ys);
        }
        if let Some(low_rank) = low_rank {
            lowrank::expand(level, low_rank, part.delta, first, ys, hs);
        }
        let columns = first..first + width;
        let scale = scale.as_ref().map(|scale| &scale[columns.clone()]);
        let shift = shift.as_ref().map(|shift| &shift[columns]);
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
