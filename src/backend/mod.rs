//! The op vocabulary: the only thing a model may ask of a device, in parts that each device
//! implements beside the code that does it.
//!
//! A new op earns its place when a model family cannot be written without it. Shapes are in
//! brackets; `n` is the number of rows (tokens) of the step. Activations are row-major.
//!
//! What an op consumes it takes by value: a device may put off the rest of its work into whatever
//! reads it next, and only one op does. What it takes by `&` is whole afterwards and may be read
//! again, as often as wanted.
//!
//! Promise of every implementation: a row's result does not depend on which other rows are in the
//! batch, nor on how a prompt was cut into chunks: to the last bit on the CPU; on a GPU but for the
//! order in which cuBLASLt sums, which goes by the number of rows.

pub mod cpu;
pub mod cuda;
mod device;
mod folding;
mod ops;
mod rows;
mod sampling;

pub use device::{Device, Fault, HostMatrix, KvShape, Outputs, RopeTable, SlotError};
pub use folding::Folding;
pub use ops::{
    AttentionOps, AttentionShape, Embedding, LINEARS_MAX, Linear, LinearOps, Norm, RowOps, Wanted,
};
pub use rows::{Rows, Span};
pub use sampling::{Changes, Draw, Edit, Sampled, Sampling, Score, Want, repeated};

/// All that an engine asks of a device.
pub trait Backend: AttentionOps + Folding + LinearOps + RowOps + Sampling {}

impl<B: AttentionOps + Folding + LinearOps + RowOps + Sampling> Backend for B {}
