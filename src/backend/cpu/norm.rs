//! RMS norm (Zhang and Sennrich, 2019), as transformers' `LlamaRMSNorm` computes it, in f32.

use super::pool::{self, Batch, Pool};
use super::{Cpu, Matrix};
use crate::backend::Norm;
use crate::backend::scale_shift;

pub(super) fn rms_norm(
    cpu: &Cpu,
    x: &Matrix,
    norm: &Norm<Cpu>,
    batch: &Batch,
    pool: &Pool,
) -> Matrix {
    let width = norm.width;
    assert!(x.cols.is_multiple_of(width), "This is a bug: a norm of another width.");
    let changes = pool.changes(&batch.segments, norm.site);
    // Widened once an op, not once a row.
    let weights: Vec<Option<Vec<f32>>> =
        changes.iter().map(|c| c.site.weight.as_ref().map(|w| w.to_f32())).collect();
    let by_row = pool::by_row(&changes, x.rows());
    let weight_of = |row: usize| {
        let own = changes.iter().zip(&weights).find(|(change, weight)| {
            weight.is_some() && by_row[row].is_some_and(|c| std::ptr::eq(c, *change))
        });
        own.and_then(|(_, weight)| weight.as_ref()).unwrap_or(&norm.weight)
    };
    let mut out = Matrix::zeros(x.rows(), x.cols);
    cpu.each_rows(&mut out.data, x.cols, |first, ys| {
        for (row, y) in (first..).zip(ys.chunks_mut(x.cols)) {
            let weight = weight_of(row);
            for (y, x) in y.chunks_mut(width).zip(x.row(row).chunks(width)) {
                let mut squares = 0.0;
                cpu.level.dots(x, 1, |_| 0, &[x], |_, _, dot| squares = dot);
                let factor = 1.0 / (squares / width as f32 + norm.eps).sqrt();
                for ((y, x), w) in y.iter_mut().zip(x).zip(weight) {
                    *y = x * factor * w;
                }
                scale_shift(y, None, norm.shift.as_deref());
                if let Some(change) = by_row[row] {
                    scale_shift(y, change.site.scale.as_deref(), change.site.shift.as_deref());
                }
            }
        }
    });
    out
}
