//! Ops on each row alone: embedding, RMS norm (Zhang and Sennrich, 2019), gated activation,
//! residual.

use super::lowrank;
use super::matrix::Matrix;
use super::slots::{self, Change, PartChange, Step};
use super::threads::Cpu;
use super::weight::Elements;
use crate::backend::folding::scale_shift;
use crate::backend::{Embedding, Norm, RowOps, Wanted};
use crate::delta::SiteDelta;

impl RowOps for Cpu {
    fn embed(&self, table: &Embedding<Cpu>, step: &Step<'_>) -> Matrix {
        let (rows, hidden) = (step.rows, table.hidden);
        let changes = slots::changes(&step.groups, table.site);
        let by_row = slots::by_row(&changes, rows.len());
        let mut out = Matrix::zeros(rows.len(), hidden);
        self.each_rows(&mut out.data, hidden, |first, ys| {
            for (row, y) in (first..).zip(ys.chunks_mut(hidden)) {
                let token = rows.tokens[row] as usize;
                let look_up = |table_of: Elements<'_>, y: &mut [f32]| {
                    table_of.widen(self.level, token * hidden, y);
                    scale_shift(y, None, table.shift.as_deref());
                };
                let own = by_row[row].and_then(Change::own_weight);
                look_up(own.map_or(table.weight.elements(), Elements::of), y);
                let Some(Change { parts, alone, .. }) = by_row[row] else { continue };
                if *alone {
                    parts.iter().for_each(|part| embedding_change(self, part, token, y));
                    continue;
                }
                slots::mix(parts, &mut [y], |_, part, ys| {
                    let y = &mut *ys[0];
                    if let Some(weight) = &part.site.weight {
                        look_up(Elements::of(weight), y);
                    }
                    embedding_change(self, part, token, y);
                });
            }
        });
        out
    }

    /// As transformers' `LlamaRMSNorm` computes it, in f32.
    fn rms_norm(&self, x: &Matrix, norm: &Norm<Cpu>, step: &Step<'_>) -> Matrix {
        assert!(x.cols == norm.width, "This is a bug: a norm of another width.");
        norm_groups(self, x, norm, step)
    }

    fn silu_mul(&self, mut gate: Matrix, up: Matrix) -> Matrix {
        assert!(gate.data.len() == up.data.len(), "This is a bug: gate and up differ in shape.");
        let cols = gate.cols;
        self.each_rows(&mut gate.data, cols, |first, ys| {
            let start = first * cols;
            self.level.silu_mul(ys, &up.data[start..start + ys.len()]);
        });
        gate
    }

    fn add(&self, mut x: Matrix, y: Matrix) -> Matrix {
        assert!(x.data.len() == y.data.len(), "This is a bug: the sum of unequal shapes.");
        let cols = x.cols;
        self.each_rows(&mut x.data, cols, |first, xs| {
            xs.iter_mut().zip(&y.data[first * cols..]).for_each(|(x, y)| *x += y);
        });
        x
    }

    fn pick_rows(&self, x: &Matrix, wanted: Wanted, step: &Step<'_>) -> Matrix {
        let rows = match wanted {
            Wanted::Logits => &step.rows.logit_rows,
            Wanted::Hidden => &step.rows.hidden_rows,
        };
        Matrix::new(rows.iter().flat_map(|&row| x.row(row as usize)).copied().collect(), x.cols)
    }
}

/// `y ← scale ⊙ (y + end ⊙ B (middle ⊙ A[:, token])) + shift`: x is one-hot, so A x is a column of
/// A.
fn embedding_change(cpu: &Cpu, part: &PartChange<'_>, token: usize, y: &mut [f32]) {
    let SiteDelta { low_rank, scale, shift, weight: _ } = part.site;
    if let Some(low_rank) = low_rank {
        lowrank::add_column(cpu.level, low_rank, part.delta, token, y);
    }
    scale_shift(y, scale.as_deref(), shift.as_deref());
}

/// Norms every group of the norm's width of x alone.
pub(super) fn norm_groups(cpu: &Cpu, x: &Matrix, norm: &Norm<Cpu>, step: &Step<'_>) -> Matrix {
    let width = norm.width;
    assert!(x.cols.is_multiple_of(width), "This is a bug: a norm of another width.");
    let changes = slots::changes(&step.groups, norm.site);
    // Widened once an op, not once a row.
    let own = |change: &Change<'_>| -> Vec<Option<Vec<f32>>> {
        change.parts.iter().map(|part| part.site.weight.as_ref().map(|w| w.to_f32())).collect()
    };
    let owns: Vec<_> = changes.iter().map(own).collect();
    let mut by_row = vec![None; x.rows()];
    for (change, own) in changes.iter().zip(&owns) {
        change.rows.iter().for_each(|&row| by_row[row] = Some((change, own)));
    }
    let mut out = Matrix::zeros(x.rows(), x.cols);
    cpu.each_rows(&mut out.data, x.cols, |first, ys| {
        for (row, y) in (first..).zip(ys.chunks_mut(x.cols)) {
            for (y, x) in y.chunks_mut(width).zip(x.row(row).chunks(width)) {
                let mut squares = 0.0;
                cpu.level.dots(x, 1, |_| 0, &[x], |_, _, dot| squares = dot);
                let factor = 1.0 / (squares / width as f32 + norm.eps).sqrt();
                let weigh = |weight: &[f32], y: &mut [f32]| {
                    for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                        *y = x * factor * w;
                    }
                    scale_shift(y, None, norm.shift.as_deref());
                };
                let after = |part: &PartChange<'_>, y: &mut [f32]| {
                    let SiteDelta { low_rank, scale, shift, weight: _ } = part.site;
                    assert!(low_rank.is_none(), "This is a bug: a norm has no low-rank change.");
                    scale_shift(y, scale.as_deref(), shift.as_deref());
                };
                match by_row[row] {
                    Some((Change { alone: true, parts, .. }, own)) => {
                        weigh(own[0].as_ref().unwrap_or(&norm.weight), y);
                        after(&parts[0], y);
                    }
                    Some((Change { parts, .. }, own)) => {
                        weigh(&norm.weight, y);
                        slots::mix(parts, &mut [y], |i, part, ys| {
                            if let Some(weight) = &own[i] {
                                weigh(weight, ys[0]);
                            }
                            after(part, ys[0]);
                        });
                    }
                    None => weigh(&norm.weight, y),
                }
            }
        }
    });
    out
}
