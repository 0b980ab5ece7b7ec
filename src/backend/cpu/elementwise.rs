//! Ops on each row alone: embedding, rotary positions, gated activation, residual.

use super::pool::{self, Batch, Change, Pool};
use super::weight::Elements;
use super::{Cpu, Matrix, lowrank};
use crate::backend::scale_shift;
use crate::backend::{Embedding, RopeTable};

pub(super) fn embed(cpu: &Cpu, table: &Embedding<Cpu>, batch: &Batch, pool: &Pool) -> Matrix {
    let rows = &batch.rows;
    let hidden = table.hidden;
    let changes = pool.changes(&batch.segments, table.site);
    let by_row = pool::by_row(&changes, rows.tokens.len());
    let base = table.weight.elements();
    let mut out = Matrix::zeros(rows.tokens.len(), hidden);
    cpu.each_rows(&mut out.data, hidden, |first, ys| {
        for (row, y) in (first..).zip(ys.chunks_mut(hidden)) {
            let token = rows.tokens[row] as usize;
            let own = by_row[row].and_then(|change| change.site.weight.as_ref());
            own.map_or(base, Elements::of).widen(cpu.level, token * hidden, y);
            scale_shift(y, None, table.shift.as_deref());
            if let Some(change) = by_row[row] {
                change_embedding(cpu, change, token, y);
            }
        }
    });
    out
}

/// `y ← scale ⊙ (y + B A[:, token]) + shift`: x is one-hot, so A x is a column of A.
fn change_embedding(cpu: &Cpu, change: &Change<'_>, token: usize, y: &mut [f32]) {
    let site = change.site;
    if let (Some(down), Some(up)) = (&site.down, &site.up) {
        let h: Vec<f32> = (0..down.rank).map(|r| down.get(change.pool, r, token)).collect();
        lowrank::expand(cpu.level, up, change.pool, 0, &mut [y], &[&h]);
    }
    scale_shift(y, site.scale.as_deref(), site.shift.as_deref());
}

/// Rotates every head of `x` to its row's position, pairing i with i + half (`rotate_half`).
pub(super) fn rotate(
    cpu: &Cpu,
    x: &mut Matrix,
    head_dim: usize,
    rope: &RopeTable,
    positions: &[u32],
) {
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

pub(super) fn silu_mul(cpu: &Cpu, gate: &Matrix, up: &Matrix) -> Matrix {
    assert!(gate.data.len() == up.data.len(), "This is a bug: gate and up differ in shape.");
    let mut out = gate.clone();
    cpu.each_rows(&mut out.data, gate.cols, |first, ys| {
        let start = first * gate.cols;
        cpu.level.silu_mul(ys, &up.data[start..start + ys.len()]);
    });
    out
}

pub(super) fn add(cpu: &Cpu, x: &mut Matrix, y: &Matrix) {
    assert!(x.data.len() == y.data.len(), "This is a bug: the sum of unequal shapes.");
    let cols = x.cols;
    cpu.each_rows(&mut x.data, cols, |first, xs| {
        xs.iter_mut().zip(&y.data[first * cols..]).for_each(|(x, y)| *x += y);
    });
}
