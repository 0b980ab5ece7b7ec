//! What a device holds, and how a step runs on it.

use std::sync::Arc;

use super::rows::Rows;
use crate::delta::Delta;
use crate::dtype::{Dtype, Values};
use crate::ids::Slot;

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
pub trait Device: Send + Sync + Sized + 'static {
    /// Activations `[n, cols]` on the device. It is not `Clone`: what consumes it is its last
    /// reader.
    type Tensor: Send;
    /// A frozen matrix in its own width.
    type Weight: Send + Sync;
    /// A frozen f32 vector.
    type Vector: Send + Sync;
    /// The paged keys and values of every layer.
    type Kv: Send;
    /// Adapters resident on the device, addressed by [`Slot`].
    type Slots: Send;
    /// One step on the device: its rows, and the adapters that they carry.
    type Step<'a>;
    /// Rotary cosines and sines.
    type Rope: Send + Sync;

    /// Copies a `[rows, cols]` matrix to the device in its width.
    fn upload(&self, matrix: HostMatrix) -> Self::Weight;
    /// Copies a vector to the device.
    fn upload_vector(&self, vector: &[f32]) -> Self::Vector;
    /// Copies rotary tables to the device.
    fn upload_rope(&self, rope: RopeTable) -> Self::Rope;
    /// Takes the memory of the whole KV cache at once, and touches it.
    ///
    /// # Errors
    /// When there is not so much.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv, Fault>;
    /// `count` empty slots.
    fn slots(&self, count: usize) -> Self::Slots;
    /// Puts an adapter into a slot, replacing what was there. Its rows may run once
    /// [`Device::slot_ready`] says so.
    ///
    /// # Errors
    /// [`SlotError`]; the slot is then empty.
    fn write_slot(
        &self,
        slots: &mut Self::Slots,
        slot: Slot,
        delta: Arc<Delta>,
    ) -> Result<(), SlotError>;
    /// Whether a written slot's content has arrived.
    ///
    /// # Errors
    /// When it never will; the slot can be written again.
    fn slot_ready(&self, slots: &Self::Slots, slot: Slot) -> Result<bool, SlotError>;
    /// Empties a slot.
    fn clear_slot(&self, slots: &mut Self::Slots, slot: Slot);
    /// Puts a step's rows on the device and computes `ops` of them. A device that has captured
    /// equal ops of an earlier step (a CUDA graph) may replay those and not call `ops`; one that
    /// fails to capture them may call `ops` again.
    fn run(
        &self,
        rows: &Rows,
        slots: &Self::Slots,
        ops: impl FnMut(&Self::Step<'_>) -> Outputs<Self::Tensor>,
    ) -> Outputs<Self::Tensor>;
    /// Waits until all that was asked for is done.
    ///
    /// # Errors
    /// The first [`Fault`] since the last one was told: ops after it did nothing.
    fn finish(&self) -> Result<(), Fault>;
    /// Copies a tensor to the host, row-major.
    ///
    /// # Errors
    /// As [`Device::finish`].
    fn download(&self, x: &Self::Tensor) -> Result<Vec<f32>, Fault>;
}

/// What a step computed.
pub struct Outputs<T> {
    /// `[m, vocabulary]` of the step's [`Rows::logit_rows`], if it has any.
    pub logits: Option<T>,
    /// `[k, hidden]` of the step's [`Rows::hidden_rows`], if it has any.
    pub hidden: Option<T>,
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

/// Cosines and sines, `[positions, half]` each, row-major.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// Pairs of columns that are rotated, at most half of the head's width; 0 rotates nothing.
    pub half: usize,
    /// cos(position · frequency).
    pub cos: Vec<f32>,
    /// sin(position · frequency).
    pub sin: Vec<f32>,
}

/// Size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq)]
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
