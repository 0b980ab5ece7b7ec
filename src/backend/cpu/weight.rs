//! Frozen numbers in their width, and borrowed views of them.

use half::{bf16, f16};

use super::simd::{Element, Level};
use crate::backend::HostMatrix;
use crate::dtype::{Dtype, Values};

/// A frozen row-major matrix in its own width.
#[derive(Debug)]
pub struct Weight {
    values: Values,
}

impl Weight {
    pub(super) fn new(matrix: HostMatrix) -> Self {
        let HostMatrix { values, rows, cols } = matrix;
        assert!(values.len() == rows * cols, "This is a bug: a matrix that is not rows × cols.");
        Self { values }
    }

    /// The numbers.
    pub(super) fn elements(&self) -> Elements<'_> {
        Elements::of(&self.values)
    }
}

/// A slice in one of the widths.
#[derive(Clone, Copy, Debug)]
pub(super) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    BF16(&'a [bf16]),
}

/// Runs an expression with the slice of whatever width it is.
macro_rules! with_slice {
    ($elements:expr, $slice:ident => $body:expr) => {
        match $elements {
            $crate::backend::cpu::weight::Elements::F32($slice) => $body,
            $crate::backend::cpu::weight::Elements::F16($slice) => $body,
            $crate::backend::cpu::weight::Elements::BF16($slice) => $body,
        }
    };
}
pub(super) use with_slice;

impl<'a> Elements<'a> {
    pub(super) fn of(values: &'a Values) -> Self {
        match values {
            Values::F32(v) => Elements::F32(v),
            Values::F16(v) => Elements::F16(v),
            Values::BF16(v) => Elements::BF16(v),
        }
    }

    pub(super) fn dtype(self) -> Dtype {
        match self {
            Elements::F32(_) => Dtype::F32,
            Elements::F16(_) => Dtype::F16,
            Elements::BF16(_) => Dtype::BF16,
        }
    }

    /// Widens `out.len()` elements from `start`.
    pub(super) fn widen(self, level: Level, start: usize, out: &mut [f32]) {
        let end = start + out.len();
        with_slice!(self, slice => level.widen(&slice[start..end], out));
    }
}

/// Rounds `src` into `dst`.
pub(super) fn narrow<T: Element>(src: &[f32], dst: &mut [T]) {
    dst.iter_mut().zip(src).for_each(|(to, &from)| *to = T::round(from));
}
