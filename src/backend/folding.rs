//! Merged mode: one adapter written into the weights, for a single tenant.

use std::sync::Arc;

use super::device::{Device, HostMatrix};
use super::ops::{Embedding, Linear, Norm};
use crate::delta::{Delta, SiteDelta};

/// Writing an adapter's change into the base, and taking it back. `change` is the delta's at the
/// site.
pub trait Folding: Device {
    /// `W' = scale ⊙ (W + B A)`, `bias' = scale ⊙ bias + shift`.
    fn fold_linear(&self, linear: &mut Linear<Self>, delta: &Delta, change: &SiteDelta);
    /// `w' = scale ⊙ w`, `shift' = scale ⊙ shift + shift of the adapter`.
    fn fold_norm(&self, norm: &mut Norm<Self>, change: &SiteDelta);
    /// `E' = scale ⊙ (E + (B A)ᵀ)`, `shift' = scale ⊙ shift + shift of the adapter`.
    fn fold_embedding(&self, table: &mut Embedding<Self>, delta: &Delta, change: &SiteDelta);
    /// Gives a weight that was folded the base's numbers again.
    fn restore(&self, weight: &mut Arc<Self::Weight>, matrix: HostMatrix);
}

/// `y ← scale ⊙ y + shift`, either of which may be absent.
pub(super) fn scale_shift(y: &mut [f32], scale: Option<&[f32]>, shift: Option<&[f32]>) {
    if let Some(scale) = scale {
        y.iter_mut().zip(scale).for_each(|(y, s)| *y *= s);
    }
    if let Some(shift) = shift {
        y.iter_mut().zip(shift).for_each(|(y, t)| *y += t);
    }
}
