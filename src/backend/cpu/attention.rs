//! Causal attention over the pages.
//!
//! A query's scores are all kept and normalised once, in the order of positions, and its values are
//! summed in that order: so its bits depend on its own context alone, not on how the prompt was cut
//! or on who shares the block of queries.

use std::ops::Range;

use super::kv::Kv;
use super::matrix::Matrix;
use super::rows::norm_groups;
use super::slots::Step;
use super::threads::{Cpu, SERIAL_ELEMENTS_MAX};
use super::weight::{Elements, with_slice};
use crate::backend::{AttentionOps, AttentionShape, Norm, RopeTable, Span};

/// Scores kept by one task: they and the pages they come from fit the second-level cache.
const SCORE_BYTES_MAX: usize = 256 << 10;
/// Tokens of one task at most, so that a prompt makes enough tasks.
const QUERY_TOKENS_MAX: usize = 16;

/// Some consecutive tokens of one sequence, for the query heads of one key/value head.
struct Task<'a> {
    span: &'a Span,
    kv_head: usize,
    first_row: usize,
    /// One a token: `[group · head_dim]`.
    outs: Vec<&'a mut [f32]>,
}

impl AttentionOps for Cpu {
    fn head_norm(&self, x: Matrix, norm: &Norm<Cpu>, step: &Step<'_>) -> Matrix {
        norm_groups(self, &x, norm, step)
    }

    fn rope_and_store(
        &self,
        [mut q, mut k, v]: [Matrix; 3],
        rope: &RopeTable,
        layer: usize,
        kv: &mut Kv,
        step: &Step<'_>,
    ) -> Matrix {
        let head_dim = kv.shape().head_dim;
        rotate(self, &mut q, head_dim, rope, &step.rows.positions);
        rotate(self, &mut k, head_dim, rope, &step.rows.positions);
        kv.store(self, layer, &k, &v, step.rows);
        q
    }

    fn attention(
        &self,
        q: &Matrix,
        shape: &AttentionShape,
        layer: usize,
        kv: &Kv,
        step: &Step<'_>,
    ) -> Matrix {
        let rows = step.rows;
        let group_width = shape.heads / shape.kv_heads * shape.head_dim;
        assert!(q.cols == shape.kv_heads * group_width, "This is a bug: q of another width.");
        let mut out = Matrix::zeros(q.rows(), q.cols);
        let mut rest = out.data.as_mut_slice();
        let mut tasks = Vec::new();
        let mut work = 0;
        for span in &rows.spans {
            let (mine, others) = rest.split_at_mut(span.len * q.cols);
            rest = others;
            let last = rows.positions[span.start + span.len - 1] as usize;
            let token_bytes = (last + 1) * (shape.heads / shape.kv_heads) * size_of::<f32>();
            let tokens = (SCORE_BYTES_MAX / token_bytes).clamp(1, QUERY_TOKENS_MAX);
            work += span.len * (last + 1) * q.cols;
            for (i, chunk) in mine.chunks_mut(tokens * q.cols).enumerate() {
                let first_row = span.start + i * tokens;
                let mut heads: Vec<Task<'_>> = (0..shape.kv_heads)
                    .map(|kv_head| Task { span, kv_head, first_row, outs: Vec::new() })
                    .collect();
                for row in chunk.chunks_mut(q.cols) {
                    let parts = row.chunks_mut(group_width);
                    heads.iter_mut().zip(parts).for_each(|(task, part)| task.outs.push(part));
                }
                tasks.extend(heads);
            }
        }
        let positions = &rows.positions;
        let op = Op { cpu: self, q, shape, pages: kv.layer(layer), kv, positions };
        if work <= SERIAL_ELEMENTS_MAX {
            tasks.into_iter().for_each(|task| op.run(task));
        } else {
            // The last blocks see the most positions: handed out first, they do not end last.
            tasks.reverse();
            self.each(tasks, |task| op.run(task));
        }
        out
    }
}

/// Rotates every head of `x` to its row's position, pairing i with i + half (`rotate_half`).
fn rotate(cpu: &Cpu, x: &mut Matrix, head_dim: usize, rope: &RopeTable, positions: &[u32]) {
    let half = rope.half;
    let cols = x.cols;
    cpu.each_rows(&mut x.data, cols, |first, xs| {
        for (row, x) in (first..).zip(xs.chunks_mut(cols)) {
            let at = positions[row] as usize * half;
            let (cos, sin) = (&rope.cos[at..at + half], &rope.sin[at..at + half]);
            for head in x.chunks_mut(head_dim) {
                let (low, high) = head[..2 * half].split_at_mut(half);
                for (((a, b), c), s) in low.iter_mut().zip(high).zip(cos).zip(sin) {
                    (*a, *b) = (*a * c - *b * s, *b * c + *a * s);
                }
            }
        }
    });
}

struct Op<'a> {
    cpu: &'a Cpu,
    q: &'a Matrix,
    shape: &'a AttentionShape,
    pages: [Elements<'a>; 2],
    kv: &'a Kv,
    positions: &'a [u32],
}

impl Op<'_> {
    /// Positions that the query in `row` sees.
    fn visible(&self, row: usize) -> Range<usize> {
        let end = self.positions[row] as usize + 1;
        end - self.shape.window.map_or(end, |window| end.min(window as usize))..end
    }

    fn run(&self, task: Task<'_>) {
        let Task { span, kv_head, first_row, outs } = task;
        let head_dim = self.shape.head_dim;
        let group = self.shape.heads / self.shape.kv_heads;
        let rows = first_row..first_row + outs.len();
        // Rows ascend in position, so the first sees the furthest back and the last furthest on.
        let seen = self.visible(rows.start).start..self.visible(rows.end - 1).end;
        let from = seen.start;
        let pages = Pages { kv: self.kv, span, kv_head };

        let queries: Vec<&[f32]> = rows
            .clone()
            .flat_map(|row| {
                let width = group * head_dim;
                self.q.row(row)[kv_head * width..][..width].chunks(head_dim)
            })
            .collect();
        let mut scores = vec![0.0; queries.len() * seen.len()];
        let width = seen.len();
        for (positions, start) in pages.stretches(seen.clone()) {
            let first = positions.start - from;
            let put = |cell: usize, query: usize, dot: f32| {
                scores[query * width + first + cell] = dot * self.shape.scale;
            };
            let start = |cell: usize| start + cell * head_dim;
            with_slice!(self.pages[0], keys => {
                self.cpu.level.dots(keys, positions.len(), start, &queries, put);
            });
        }
        for (row, scores) in rows.clone().zip(scores.chunks_mut(group * width)) {
            let visible = self.visible(row);
            for scores in scores.chunks_mut(width) {
                self.cpu.level.softmax(&mut scores[visible.start - from..visible.end - from]);
            }
        }

        let mut ys: Vec<&mut [f32]> =
            outs.into_iter().flat_map(|out| out.chunks_mut(head_dim)).collect();
        let seen_by_all = self.visible(rows.end - 1).start..self.visible(rows.start).end;
        for (positions, start) in pages.stretches(seen.clone()) {
            let mut sum = |queries: Range<usize>, part: Range<usize>| {
                let weights =
                    |query: usize| &scores[query * width..][part.start - from..part.end - from];
                let weights: Vec<&[f32]> = queries.clone().map(weights).collect();
                let start = start + (part.start - positions.start) * head_dim;
                with_slice!(self.pages[1], values => {
                    let start = |cell: usize| start + cell * head_dim;
                    self.cpu.level.expand(&mut ys[queries], &weights, values, start);
                });
            };
            if seen_by_all.start <= positions.start && positions.end <= seen_by_all.end {
                sum(0..queries.len(), positions.clone());
                continue;
            }
            for (i, row) in rows.clone().enumerate() {
                let visible = self.visible(row);
                let part = positions.start.max(visible.start)..positions.end.min(visible.end);
                if !part.is_empty() {
                    sum(i * group..(i + 1) * group, part);
                }
            }
        }
    }
}

/// One head's pages of one sequence.
struct Pages<'a> {
    kv: &'a Kv,
    span: &'a Span,
    kv_head: usize,
}

impl Pages<'_> {
    /// `positions` cut at page boundaries: each stretch, and where its first cell starts.
    fn stretches(&self, positions: Range<usize>) -> impl Iterator<Item = (Range<usize>, usize)> {
        let shape = self.kv.shape();
        let (tokens, head_dim) = (shape.block_tokens, shape.head_dim);
        let pages = positions.start / tokens..positions.end.div_ceil(tokens);
        pages.map(move |page| {
            let start = positions.start.max(page * tokens);
            let end = positions.end.min((page + 1) * tokens);
            let block = self.span.block_table[page].0 as usize;
            let page_start = self.kv.page_start(self.kv_head, block);
            (start..end, page_start + (start - page * tokens) * head_dim)
        })
    }
}
