//! Merged mode: one adapter written into a copy of the base, for a single tenant.
//!
//! The original is shared (an embedding and a tied head are one matrix), so it is never written.

use std::sync::Arc;

use super::weight::{Elements, Weight};
use super::{Cpu, lowrank};
use crate::backend::scale_shift;
use crate::backend::{Embedding, HostMatrix, Linear, Norm};
use crate::delta::SiteDelta;
use crate::dtype::Values;

/// `W' = scale ⊙ (W + B A)`, `bias' = scale ⊙ bias + shift`.
pub(super) fn linear(cpu: &Cpu, linear: &mut Linear<Cpu>, change: &SiteDelta, pool: &Values) {
    // Row o of B A is Σ_r Bᵀ[r, o] · A[r]: an expand whose coefficients are a column of Bᵀ.
    let merge_row = |row: usize, y: &mut [f32]| {
        if let (Some(down), Some(up)) = (&change.down, &change.up) {
            let column: Vec<f32> = (0..up.rank).map(|r| up.get(pool, r, row)).collect();
            lowrank::expand(cpu.level, down, pool, 0, &mut [&mut *y], &[&column]);
        }
        if let Some(scale) = &change.scale {
            y.iter_mut().for_each(|y| *y *= scale[row]);
        }
    };
    let (rows, cols) = (linear.out_features, linear.in_features);
    merge(cpu, &mut linear.weight, change, [rows, cols], merge_row);
    merge_vector(&mut linear.bias, change, rows);
}

/// `E' = scale ⊙ (E + (B A)ᵀ)`, `shift' = scale ⊙ shift + shift of the adapter`.
pub(super) fn embedding(cpu: &Cpu, table: &mut Embedding<Cpu>, change: &SiteDelta, pool: &Values) {
    let merge_row = |token: usize, y: &mut [f32]| {
        if let (Some(down), Some(up)) = (&change.down, &change.up) {
            let column: Vec<f32> = (0..down.rank).map(|r| down.get(pool, r, token)).collect();
            lowrank::expand(cpu.level, up, pool, 0, &mut [&mut *y], &[&column]);
        }
        scale_shift(y, change.scale.as_deref(), None);
    };
    let (rows, cols) = (table.vocabulary, table.hidden);
    merge(cpu, &mut table.weight, change, [rows, cols], merge_row);
    merge_vector(&mut table.shift, change, cols);
}

/// `w' = scale ⊙ w`, `shift' = scale ⊙ shift + shift of the adapter`.
pub(super) fn norm(norm: &mut Norm<Cpu>, change: &SiteDelta) {
    if let Some(weight) = &change.weight {
        norm.weight = weight.to_f32();
    }
    scale_shift(&mut norm.weight, change.scale.as_deref(), None);
    merge_vector(&mut norm.shift, change, norm.width);
}

/// Puts a merged copy in the place of `weight`, computed in f32 and rounded once to its width.
fn merge(
    cpu: &Cpu,
    weight: &mut Arc<Weight>,
    change: &SiteDelta,
    [rows, cols]: [usize; 2],
    merge_row: impl Fn(usize, &mut [f32]) + Send + Sync,
) {
    if change.down.is_none() && change.scale.is_none() && change.weight.is_none() {
        return;
    }
    let merged = {
        let base = weight.elements();
        let from = change.weight.as_ref().map_or(base, Elements::of);
        let mut merged = vec![0.0; rows * cols];
        cpu.each_rows(&mut merged, cols, |first, ys| {
            for (row, y) in (first..).zip(ys.chunks_mut(cols)) {
                from.widen(cpu.level, row * cols, y);
                merge_row(row, y);
            }
        });
        HostMatrix { values: Values::from_f32(merged, base.dtype()), rows, cols }
    };
    *weight = Arc::new(Weight::new(merged));
}

/// `vector' = scale ⊙ vector + shift`; an absent vector is zero.
fn merge_vector(vector: &mut Option<Vec<f32>>, change: &SiteDelta, len: usize) {
    if change.shift.is_some() {
        vector.get_or_insert_with(|| vec![0.0; len]);
    }
    if let Some(vector) = vector {
        scale_shift(vector, change.scale.as_deref(), change.shift.as_deref());
    }
}
