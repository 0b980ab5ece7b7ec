//! Activations on the card, with what is still to be done to them: a linear's bias and adapters run
//! inside of the kernel that reads its output next.

use std::cell::RefCell;
use std::sync::Arc;

use super::arena::Block;
use super::args::{Address, Deltas};

/// A stretch of the step's memory.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub address: Address,
    /// Keeps it; a recorded step's result has none.
    pub block: Option<Arc<Block>>,
}

/// Activations `[rows, cols]` on the card.
#[derive(Clone, Debug)]
pub struct Tensor {
    pub(super) place: Place,
    pub(super) rows: usize,
    pub(super) cols: usize,
    /// Elements from one row to the next.
    pub(super) stride: usize,
    /// f32 whatever the model's width: logits.
    pub(super) float: bool,
    /// Made by a linear: a norm of it is one of its heads.
    pub(super) of_linear: bool,
    pub(super) pending: RefCell<Pending>,
}

/// What a reader has to do first.
#[derive(Clone, Debug, Default)]
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
    pub _kept: Vec<Place>,
}

/// A norm of each head.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadNorm {
    /// `[head_dim]` in f32.
    pub weight: Address,
    /// `[head_dim]` in f32, or null.
    pub shift: Address,
    pub site: u32,
    pub eps: f32,
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
}

impl Tensor {
    pub(super) fn new(place: Place, rows: usize, cols: usize) -> Self {
        let pending = RefCell::default();
        Self { place, rows, cols, stride: cols, float: false, of_linear: false, pending }
    }

    /// Columns `from .. from + cols`, `bytes` each.
    pub(super) fn columns(&self, from: usize, cols: usize, bytes: usize) -> Self {
        let address = self.place.address + (from * bytes) as u64;
        let place = Place { address, block: self.place.block.clone() };
        Self { place, cols, pending: RefCell::default(), ..self.clone() }
    }

    /// What is still to be done, taken by whoever does it.
    pub(super) fn take_pending(&self) -> Pending {
        self.pending.take()
    }
}
