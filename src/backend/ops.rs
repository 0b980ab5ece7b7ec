//! What a model is computed with.

use std::sync::Arc;

use super::device::Device;
use crate::ids::SiteId;

/// Linears that read one x and come together at most.
pub const LINEARS_MAX: usize = 3;

/// Ops on each row alone.
pub trait RowOps: Device {
    /// Table `[vocabulary, d]` → `[n, d]`: each row's token, then its adapters at the site.
    fn embed(&self, table: &Embedding<Self>, step: &Self::Step<'_>) -> Self::Tensor;

    /// `[n, d]` → `[n, d]`: `x / sqrt(mean(x²) + eps) ⊙ w`, then each row's adapters. The norm is
    /// as wide as x.
    fn rms_norm(&self, x: &Self::Tensor, norm: &Norm<Self>, step: &Self::Step<'_>) -> Self::Tensor;

    /// `silu(gate) ⊙ up`, all `[n, d]`.
    fn silu_mul(&self, gate: Self::Tensor, up: Self::Tensor) -> Self::Tensor;

    /// `x + y`, both `[n, d]`.
    fn add(&self, x: Self::Tensor, y: Self::Tensor) -> Self::Tensor;

    /// The wanted rows of `[n, d]` → `[m, d]`, bit for bit. Of [`Wanted::Logits`] only
    /// [`LinearOps::head`] may follow.
    fn pick_rows(&self, x: &Self::Tensor, wanted: Wanted, step: &Self::Step<'_>) -> Self::Tensor;
}

/// One of a step's lists of rows.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Wanted {
    /// [`Rows::logit_rows`](super::Rows::logit_rows).
    Logits,
    /// [`Rows::hidden_rows`](super::Rows::hidden_rows).
    Hidden,
}

/// Products with frozen matrices.
pub trait LinearOps: Device {
    /// `x [n, in]` → one `[n, out]` for each linear: `W x + bias`, then each row's adapters.
    /// Linears that read the same x come together (at most [`LINEARS_MAX`]), so that their adapters
    /// shrink x in one pass.
    fn linears<const N: usize>(
        &self,
        x: &Self::Tensor,
        linears: [&Linear<Self>; N],
        step: &Self::Step<'_>,
    ) -> [Self::Tensor; N];

    /// `[m, d]` → logits `[m, vocabulary]` in f32: of the step's
    /// [`logit_rows`](super::Rows::logit_rows), each with its adapters at the head.
    fn head(&self, x: &Self::Tensor, head: &Linear<Self>, step: &Self::Step<'_>) -> Self::Tensor;
}

/// Ops on heads, and on what rows see of others.
pub trait AttentionOps: Device {
    /// `[n, heads · d]` → the same: an RMS norm of width d of each head alone, then each row's
    /// adapters.
    fn head_norm(&self, x: Self::Tensor, norm: &Norm<Self>, step: &Self::Step<'_>) -> Self::Tensor;

    /// Rotates `q [n, heads · head_dim]` and `k [n, kv_heads · head_dim]` to their rows' positions
    /// (halves paired, as transformers does), stores k and v in `layer`'s pages and returns q.
    fn rope_and_store(
        &self,
        qkv: [Self::Tensor; 3],
        rope: &Self::Rope,
        layer: usize,
        kv: &mut Self::Kv,
        step: &Self::Step<'_>,
    ) -> Self::Tensor;

    /// Causal attention of `q [n, heads · head_dim]` over `layer`'s pages → the same shape.
    fn attention(
        &self,
        q: &Self::Tensor,
        shape: &AttentionShape,
        layer: usize,
        kv: &Self::Kv,
        step: &Self::Step<'_>,
    ) -> Self::Tensor;
}

/// A frozen linear of the base.
pub struct Linear<D: Device> {
    /// `[out, in]`; shared with the embedding when the model ties them.
    pub weight: Arc<D::Weight>,
    /// `[out]`.
    pub bias: Option<D::Vector>,
    /// Where adapters find it.
    pub site: SiteId,
    /// Width of x.
    pub in_features: usize,
    /// Width of y.
    pub out_features: usize,
}

/// A frozen RMS norm of the base.
pub struct Norm<D: Device> {
    /// `[d]`.
    pub weight: D::Vector,
    /// `[d]`, added last; only merged mode sets it.
    pub shift: Option<D::Vector>,
    /// Width of one norm.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Where adapters find it.
    pub site: SiteId,
}

/// The frozen token table of the base.
pub struct Embedding<D: Device> {
    /// `[vocabulary, d]`.
    pub weight: Arc<D::Weight>,
    /// `[d]`, added to every row; only merged mode sets it.
    pub shift: Option<D::Vector>,
    /// Where adapters find it.
    pub site: SiteId,
    /// Rows of the table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
}

/// Heads of one attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Multiplies q·k.
    pub scale: f32,
    /// A query sees only this many positions, its own included; `None` sees all.
    pub window: Option<u32>,
}
