//! Activations on the card, with what is still to be done to them: a linear's bias and adapters run
//! inside of the kernel that reads its output next.
//!
//! A tensor is not `Clone`, and what takes it by value may take over the rest of its work. What
//! takes it by `&` has that done first, in place, so that it can be read again.

use std::cell::RefCell;
use std::sync::Arc;

use super::arena::Block;
use super::args::{Address, Deltas};

/// A stretch of the step's memory.
#[derive(Clone, Debug)]
pub(super) struct Buffer {
    pub address: Address,
    /// Keeps it; the output of a captured step has none.
    pub block: Option<Arc<Block>>,
}

/// Activations `[rows, cols]` on the card.
#[derive(Debug)]
pub struct Tensor {
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// f32 whatever the model's width: logits.
    pub(super) float: bool,
    state: RefCell<State>,
}

/// Where the numbers are, and what a reader has to do first.
#[derive(Debug)]
pub(super) struct State {
    pub buffer: Buffer,
    /// Elements from one row to the next.
    pub stride: usize,
    pub pending: Pending,
}

/// What a reader has to do first.
#[derive(Debug, Default)]
#[expect(
    clippy::large_enum_variant,
    reason = "a step has few, and a box of each would be an allocation"
)]
pub(super) enum Pending {
    #[default]
    Nothing,
    /// This is W x: bias and adapters are missing.
    Linear(LinearPart),
    /// This is a residual stream to which the tensor is still to be added.
    Add(Box<Tensor>),
}

/// The rest of a linear.
#[derive(Clone, Debug, Default)]
pub(super) struct LinearPart {
    /// `[out]` in f32, or null.
    pub bias: Address,
    pub site: u32,
    /// Which of the linears that shared x.
    pub linear: u32,
    pub deltas: Deltas,
    /// For a kernel of its own that has nothing to do in bare rows.
    pub adapted_count: Address,
    pub tiles_max: usize,
    /// The norm of each head that comes after it.
    pub head_norm: Option<HeadNorm>,
    /// Keeps A x and the rows that it was computed from.
    pub _kept: Vec<Buffer>,
}

/// A norm of each head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadNorm {
    /// `[head_dim]` in f32.
    pub weight: Address,
    /// `[head_dim]` in f32, or null.
    pub shift: Address,
    pub site: u32,
    pub width: usize,
    pub eps: f32,
    /// The step's, without h.
    pub deltas: Deltas,
}

impl LinearPart {
    /// Whether a row may have an adapter: then kernels take tiles of rows.
    pub(super) fn adapted(&self) -> bool {
        self.deltas.rows != 0
    }

    /// Blocks along the rows of a kernel that does this.
    pub(super) fn blocks(&self, rows: usize) -> u32 {
        if self.adapted() { self.tiles_max as u32 } else { rows as u32 }
    }

    /// Whether it is linear `index` of the same call as `first`: one h, one list of tiles.
    pub(super) fn is_of(&self, first: &Self, index: u32) -> bool {
        let same = |d: &Deltas| (d.rows, d.tiles, d.h, d.linears);
        same(&self.deltas) == same(&first.deltas) && (self.deltas.h == 0 || self.linear == index)
    }
}

impl Tensor {
    /// Dense, with nothing left to do.
    pub(super) fn new(buffer: Buffer, rows: usize, cols: usize, float: bool) -> Self {
        let state = RefCell::new(State { buffer, stride: cols, pending: Pending::Nothing });
        Self { rows, cols, float, state }
    }

    /// Columns `from .. from + cols` of a product, `bytes` each, as a tensor of its own.
    pub(super) fn columns(&self, from: usize, cols: usize, bytes: usize) -> Self {
        let state = self.state.borrow();
        let address = state.buffer.address + (from * bytes) as u64;
        let buffer = Buffer { address, block: state.buffer.block.clone() };
        let own = State { buffer, stride: state.stride, pending: Pending::Nothing };
        Self { rows: self.rows, cols, float: self.float, state: RefCell::new(own) }
    }

    /// Where it starts.
    pub(super) fn at(&self) -> Address {
        self.state.borrow().buffer.address
    }

    /// What keeps its memory.
    pub(super) fn buffer(&self) -> Buffer {
        self.state.borrow().buffer.clone()
    }

    /// Elements from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.state.borrow().stride
    }

    /// Whether its rows lie behind one another.
    pub(super) fn is_dense(&self) -> bool {
        self.stride() == self.cols
    }

    /// What is still to be done, taken by whoever does it.
    pub(super) fn take_pending(&self) -> Pending {
        std::mem::take(&mut self.state.borrow_mut().pending)
    }

    /// Leaves work to the next reader.
    pub(super) fn leave(&self, pending: Pending) {
        self.state.borrow_mut().pending = pending;
    }

    /// The same numbers lie densely in `buffer` now.
    pub(super) fn moved(&self, buffer: Buffer) {
        let mut state = self.state.borrow_mut();
        state.stride = self.cols;
        state.buffer = buffer;
    }
}
