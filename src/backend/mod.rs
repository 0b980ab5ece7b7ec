//! The op vocabulary: the only thing a model may ask of a device.
//!
//! A new op earns its place when a model family cannot be written without it. Shapes are in
//! brackets; `n` is the number of rows (tokens) of the step. Activations are row-major.
//!
//! Promise of every implementation: a row's result does not depend on which other rows are in the
//! batch, nor on how a prompt was cut into chunks: to the last bit on the CPU; on a GPU but for the
//! order in which cuBLASLt sums, which goes by the number of rows.

pub mod cpu;
pub mod cuda;

use std::sync::Arc;

use crate::delta::{Delta, SiteDelta};
use crate::dtype::{Dtype, Values};
use crate::ids::{BlockId, SiteId, Slot, TokenId};
use crate::request::SamplingParams;

/// Linears that read one x and come together at most.
pub const LINEARS_MAX: usize = 3;

/// A step that the device could not compute. Its rows have no result; what was resident before it
/// is as it was, unless the device is lost.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What failed, as the device put it.
    pub message: String,
    /// Whether nothing will ever run on the device again in this process.
    pub lost: bool,
}

/// Why an adapter is not in a slot.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SlotError {
    /// Others hold the memory; it fits once enough of them have left.
    #[error("the adapter needs {needed} bytes on the device, more than is free beside the others")]
    Full {
        /// Bytes of the adapter on the device.
        needed: u64,
    },
    /// It can never be there.
    #[error("{0}")]
    Refused(String),
}

/// One device.
pub trait Backend: Send + Sync + Sized + 'static {
    /// Activations `[n, cols]` on the device.
    type Tensor: Send;
    /// A frozen matrix in its own width.
    type Weight: Send + Sync;
    /// A frozen f32 vector.
    type Vector: Send + Sync;
    /// The paged keys and values of every layer.
    type Kv: Send;
    /// Adapters resident on the device, addressed by [`Slot`].
    type Pool: Send;
    /// One step's metadata on the device.
    type Batch: Send;
    /// Rotary cosines and sines.
    type Rope: Send + Sync;

    /// Copies a `[rows, cols]` matrix to the device in its width.
    fn upload(&self, matrix: HostMatrix) -> Self::Weight;
    /// Copies a vector to the device.
    fn upload_vector(&self, vector: &[f32]) -> Self::Vector;
    /// Copies rotary tables to the device.
    fn upload_rope(&self, rope: RopeTable) -> Self::Rope;
    /// Takes the memory of the whole KV cache at once.
    fn kv(&self, shape: KvShape) -> Self::Kv;
    /// An empty pool of `slots` places.
    fn pool(&self, slots: usize) -> Self::Pool;
    /// Puts an adapter into a slot, replacing what was there. Its rows may run once
    /// [`Backend::slot_ready`] says so.
    ///
    /// # Errors
    /// [`SlotError`]; the slot is then empty.
    fn write_slot(
        &self,
        pool: &mut Self::Pool,
        slot: Slot,
        delta: Arc<Delta>,
    ) -> Result<(), SlotError>;
    /// Whether a written slot's content has arrived.
    ///
    /// # Errors
    /// When it never will; the slot can be written again.
    fn slot_ready(&self, _pool: &Self::Pool, _slot: Slot) -> Result<bool, SlotError> {
        Ok(true)
    }
    /// Empties a slot.
    fn clear_slot(&self, pool: &mut Self::Pool, slot: Slot);
    /// Uploads one step's rows.
    fn batch(&self, rows: Rows) -> Self::Batch;
    /// Runs a step: `ops` are the batch's ops, up to the logits. A device that has recorded equal
    /// ops of an earlier step may run those and not call `ops`; one that cannot record them may
    /// call `ops` again.
    fn run(
        &self,
        _batch: &Self::Batch,
        _adapters: Adapters<'_, Self>,
        mut ops: impl FnMut() -> Self::Tensor,
    ) -> Self::Tensor {
        ops()
    }

    /// Table `[vocabulary, d]` → `[n, d]`: each row's token, then its adapter at the site.
    fn embed(
        &self,
        table: &Embedding<Self>,
        batch: &Self::Batch,
        adapters: Adapters<'_, Self>,
    ) -> Self::Tensor;

    /// `x [n, in]` → one `[n, out]` for each linear: `W x + bias`, then each row's adapter.
    /// Linears that read the same x come together (at most [`LINEARS_MAX`]), so that their adapters
    /// shrink x in one pass.
    fn linears<const N: usize>(
        &self,
        x: &Self::Tensor,
        linears: [&Linear<Self>; N],
        batch: &Self::Batch,
        adapters: Adapters<'_, Self>,
    ) -> [Self::Tensor; N];

    /// `[n, d]` → `[n, d]`: `x / sqrt(mean(x²) + eps) ⊙ w`, then each row's scale and shift.
    /// When `norm` is narrower than x (per-head norms), each group of its width is normed alone.
    fn rms_norm(
        &self,
        x: &Self::Tensor,
        norm: &Norm<Self>,
        batch: &Self::Batch,
        adapters: Adapters<'_, Self>,
    ) -> Self::Tensor;

    /// Rotates `q [n, heads·head_dim]` and `k [n, kv_heads·head_dim]` to their rows' positions
    /// (halves paired, as transformers does) and stores k and v in `layer`'s pages.
    #[allow(clippy::too_many_arguments)]
    fn rope_and_store(
        &self,
        q: &mut Self::Tensor,
        k: &mut Self::Tensor,
        v: &Self::Tensor,
        rope: &Self::Rope,
        layer: usize,
        kv: &mut Self::Kv,
        batch: &Self::Batch,
    );

    /// Causal attention of `q [n, heads·head_dim]` over `layer`'s pages → the same shape.
    fn attention(
        &self,
        q: &Self::Tensor,
        shape: &AttentionShape,
        layer: usize,
        kv: &Self::Kv,
        batch: &Self::Batch,
    ) -> Self::Tensor;

    /// `silu(gate) ⊙ up`, all `[n, d]`.
    fn silu_mul(&self, gate: &Self::Tensor, up: &Self::Tensor) -> Self::Tensor;
    /// `x += y`, both `[n, d]`.
    fn add(&self, x: &mut Self::Tensor, y: &Self::Tensor);
    /// The batch's [`Rows::logit_rows`] of `[n, d]` → `[m, d]`. The result's row → slot table is
    /// that of those rows: only [`Backend::head`] may follow.
    fn last_rows(&self, x: &Self::Tensor, batch: &Self::Batch) -> Self::Tensor;
    /// `[m, d]` → logits `[m, vocabulary]`, then each row's adapter at the head.
    fn head(
        &self,
        x: &Self::Tensor,
        head: &Linear<Self>,
        batch: &Self::Batch,
        adapters: Adapters<'_, Self>,
    ) -> Self::Tensor;
    /// Draws one token from each row of `[m, vocabulary]`.
    ///
    /// # Errors
    /// The first [`Fault`] since the last one was told: ops after it did nothing.
    fn sample(&self, logits: &Self::Tensor, rows: &[SampleRow]) -> Result<Vec<Sampled>, Fault>;
    /// Copies a tensor to the host, row-major.
    ///
    /// # Errors
    /// As [`Backend::sample`].
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>, Fault>;

    /// Gives a weight that was folded the base's numbers again.
    fn restore(&self, weight: &mut Arc<Self::Weight>, matrix: HostMatrix) {
        *weight = Arc::new(self.upload(matrix));
    }
    /// Folds one adapter's change into a copy of a linear (merged mode).
    fn fold_linear(&self, linear: &mut Linear<Self>, change: &SiteDelta, pool: &Values);
    /// Folds one adapter's change into a copy of a norm.
    fn fold_norm(&self, norm: &mut Norm<Self>, change: &SiteDelta);
    /// Folds one adapter's change into a copy of an embedding.
    fn fold_embedding(&self, table: &mut Embedding<Self>, change: &SiteDelta, pool: &Values);
}

/// A row-major matrix on the host.
#[derive(Clone, Debug)]
pub struct HostMatrix {
    /// `rows · cols` numbers.
    pub values: Values,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// A frozen linear of the base.
pub struct Linear<B: Backend> {
    /// `[out, in]`; shared with the embedding when the model ties them.
    pub weight: Arc<B::Weight>,
    /// `[out]`.
    pub bias: Option<B::Vector>,
    /// Where adapters find it.
    pub site: SiteId,
    /// Width of x.
    pub in_features: usize,
    /// Width of y.
    pub out_features: usize,
}

/// A frozen RMS norm of the base.
pub struct Norm<B: Backend> {
    /// `[d]`.
    pub weight: B::Vector,
    /// `[d]`, added last; only merged mode sets it.
    pub shift: Option<B::Vector>,
    /// Width of one norm.
    pub width: usize,
    /// Added to the mean square.
    pub eps: f32,
    /// Where adapters find it.
    pub site: SiteId,
}

/// The frozen token table of the base.
pub struct Embedding<B: Backend> {
    /// `[vocabulary, d]`.
    pub weight: Arc<B::Weight>,
    /// `[d]`, added to every row; only merged mode sets it.
    pub shift: Option<B::Vector>,
    /// Where adapters find it.
    pub site: SiteId,
    /// Rows of the table.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
}

/// What a step applies on top of the base: passed explicitly, never global.
pub struct Adapters<'a, B: Backend> {
    /// Resident adapters. Which row uses which is in the batch.
    pub pool: &'a B::Pool,
}

impl<B: Backend> Clone for Adapters<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for Adapters<'_, B> {}

/// Cosines and sines, `[positions, half]` each, row-major.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Half of the head's width.
    pub half: usize,
    /// cos(position · frequency).
    pub cos: Vec<f32>,
    /// sin(position · frequency).
    pub sin: Vec<f32>,
}

/// Size of the KV cache.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct KvShape {
    /// Decoder layers.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Pages.
    pub blocks: usize,
    /// Tokens in one page.
    pub block_tokens: usize,
    /// Width in which keys and values are kept.
    pub dtype: Dtype,
}

impl KvShape {
    /// Bytes of one page over all layers, keys and values.
    pub fn block_bytes(&self) -> usize {
        2 * self.layers * self.kv_heads * self.head_dim * self.block_tokens * self.dtype.bytes()
    }
}

/// Heads of one attention layer.
#[derive(Clone, Copy, Debug)]
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

/// One step's rows as flat arrays, in the order of the plan.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Token of each row.
    pub tokens: Vec<TokenId>,
    /// Position of each row in its sequence.
    pub positions: Vec<u32>,
    /// Adapter of each row.
    pub slots: Vec<Slot>,
    /// Each sequence's stretch of rows, in row order, covering all rows.
    pub spans: Vec<Span>,
    /// Rows whose logits are wanted, ascending.
    pub logit_rows: Vec<u32>,
}

/// The rows of one sequence: `len` consecutive positions from `start`.
#[derive(Clone, Debug)]
pub struct Span {
    /// First row.
    pub start: usize,
    /// Rows.
    pub len: usize,
    /// Pages that hold positions 0, 1, … of the sequence, up to its last row at least.
    pub block_table: Vec<BlockId>,
}

/// How to draw from one row of logits.
#[derive(Clone, Debug)]
pub struct SampleRow {
    /// Ranges and temperature.
    pub params: SamplingParams,
    /// Index of the token to draw within its completion: with the seed it fixes the draw.
    pub step: u64,
    /// Report this many alternatives beside the sampled token.
    pub logprobs: Option<u32>,
}

/// One drawn token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The token; `None` when the row held no finite logit, so nothing could be drawn.
    pub token: Option<TokenId>,
    /// Natural logarithm of its probability before temperature and filters.
    pub logprob: f32,
    /// The likeliest tokens and their logprobs, best first; empty unless asked for.
    pub top: Vec<(TokenId, f32)>,
}

/// `y ← scale ⊙ y + shift`, either of which may be absent.
fn scale_shift(y: &mut [f32], scale: Option<&[f32]>, shift: Option<&[f32]>) {
    if let Some(scale) = scale {
        y.iter_mut().zip(scale).for_each(|(y, s)| *y *= s);
    }
    if let Some(shift) = shift {
        y.iter_mut().zip(shift).for_each(|(y, t)| *y += t);
    }
}
