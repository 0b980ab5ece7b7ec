//! Merged mode: one adapter written into a copy of the base, for a single tenant.
//!
//! The original is shared (an embedding and a tied head are one matrix), so it is never written.

use std::sync::Arc;

use super::lowrank;
use super::threads::Cpu;
use super::weight::{Elements, Weight};
use crate::backend::folding::scale_shift;
use crate::backend::{Device, Embedding, Folding, HostMatrix, Linear, Norm};
use crate::delta::{Delta, LowRank, SiteDelta};
use crate::dtype::Values;

impl Folding for Cpu {
    fn fold_linear(&self, linear: &mut Linear<Cpu>, delta: &Delta, change: &SiteDelta) {
        let SiteDelta { low_rank, scale, shift, weight } = change;
        // Row o of B A is Σ_r Bᵀ[r, o] · A[r]: an expand whose coefficients are a column of Bᵀ.
        let merge_row = |row: usize, y: &mut [f32]| {
            if let Some(low_rank) = low_rank {
                let LowRank { rank, down, middle: _, up, end } = low_rank;
                let mut column: Vec<f32> = (0..*rank).map(|r| delta.element(up, r, row)).collect();
                lowrank::scale_middle(low_rank, 0, &mut column);
                let end = end.as_ref().map_or(1.0, |end| end[row]);
                column.iter_mut().for_each(|c| *c *= end);
                lowrank::sum_rows(self.level, down, delta, 0, &mut [&mut *y], &[&column]);
            }
            if let Some(scale) = scale {
                y.iter_mut().for_each(|y| *y *= scale[row]);
            }
        };
        let (rows, cols) = (linear.out_features, linear.in_features);
        if low_rank.is_some() || scale.is_some() || weight.is_some() {
            merge(self, &mut linear.weight, weight.as_ref(), [rows, cols], merge_row);
        }
        merge_vector(&mut linear.bias, scale.as_deref(), shift.as_deref());
    }

    fn fold_embedding(&self, table: &mut Embedding<Cpu>, delta: &Delta, change: &SiteDelta) {
        let SiteDelta { low_rank, scale, shift, weight } = change;
        let merge_row = |token: usize, y: &mut [f32]| {
            if let Some(low_rank) = low_rank {
                lowrank::add_column(self.level, low_rank, delta, token, y);
            }
            scale_shift(y, scale.as_deref(), None);
        };
        let (rows, cols) = (table.vocabulary, table.hidden);
        if low_rank.is_some() || scale.is_some() || weight.is_some() {
            merge(self, &mut table.weight, weight.as_ref(), [rows, cols], merge_row);
        }
        merge_vector(&mut table.shift, scale.as_deref(), shift.as_deref());
    }

    fn fold_norm(&self, norm: &mut Norm<Cpu>, change: &SiteDelta) {
        let SiteDelta { low_rank, scale, shift, weight } = change;
        assert!(low_rank.is_none(), "This is a bug: a norm has no low-rank change.");
        if let Some(weight) = weight {
            norm.weight = weight.to_f32();
        }
        scale_shift(&mut norm.weight, scale.as_deref(), None);
        merge_vector(&mut norm.shift, scale.as_deref(), shift.as_deref());
    }

    fn restore(&self, weight: &mut Arc<Weight>, matrix: HostMatrix) {
        *weight = Arc::new(self.upload(matrix));
    }
}

/// Puts a merged copy in the place of `weight`, computed in f32 and rounded once to its width.
fn merge(
    cpu: &Cpu,
    weight: &mut Arc<Weight>,
    own: Option<&Values>,
    [rows, cols]: [usize; 2],
    merge_row: impl Fn(usize, &mut [f32]) + Send + Sync,
) {
    let base = weight.elements();
    let from = own.map_or(base, Elements::of);
    let mut merged = vec![0.0; rows * cols];
    cpu.each_rows(&mut merged, cols, |first, ys| {
        for (row, y) in (first..).zip(ys.chunks_mut(cols)) {
            from.widen(cpu.level, row * cols, y);
            merge_row(row, y);
        }
    });
    let values = Values::from_f32(merged, base.dtype());
    *weight = Arc::new(Weight::new(HostMatrix { values, rows, cols }));
}

/// `vector' = scale ⊙ vector + shift`; an absent vector is zero.
fn merge_vector(vector: &mut Option<Vec<f32>>, scale: Option<&[f32]>, shift: Option<&[f32]>) {
    if let Some(shift) = shift {
        vector.get_or_insert_with(|| vec![0.0; shift.len()]);
    }
    if let Some(vector) = vector {
        scale_shift(vector, scale, shift);
    }
}
