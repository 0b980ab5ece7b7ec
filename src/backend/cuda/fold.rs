//! Merged mode: one adapter written into the weights on the card.

use std::sync::Arc;

use super::args::Fold;
use super::kernels;
use super::launch::Region;
use super::pool::{Layout, Piece};
use super::{Cuda, Vector, Weight, lock};
use crate::backend::{Embedding, Fault, HostMatrix, Linear, Norm, scale_shift};
use crate::delta::{Delta, DeltaBuilder, SiteDelta};
use crate::dtype::Values;
use crate::ids::SiteId;
use crate::site::SiteKind;

/// One site's change with parameters of its own: the rest of a pool stays where it is.
fn alone(change: &SiteDelta, pool: &Values) -> Delta {
    let mut builder = DeltaBuilder::default();
    let mut dense = |factor: &Option<crate::delta::Factor>| {
        factor.as_ref().map(|f| {
            let rows: Vec<f32> = (0..f.rank).flat_map(|r| f.row(pool, r)).collect();
            builder.push_dense(&rows, f.rank)
        })
    };
    let (down, up) = (dense(&change.down), dense(&change.up));
    let scale = change.scale.clone();
    *builder.site(SiteId(0)) =
        SiteDelta { down, up, scale, shift: None, weight: change.weight.clone() };
    builder.finish(pool.dtype())
}

impl Cuda {
    /// `W' = scale ⊙ (W + B A)`, `bias' = scale ⊙ bias + shift`.
    pub(super) fn merge_linear(
        &self,
        linear: &mut Linear<Cuda>,
        change: &SiteDelta,
        pool: &Values,
    ) {
        let shape = [linear.out_features, linear.in_features];
        self.merge(&mut linear.weight, change, pool, shape, false);
        self.merge_vector(&mut linear.bias, change, linear.out_features);
    }

    /// `E' = scale ⊙ (E + (B A)ᵀ)`, `shift' = scale ⊙ shift + shift of the adapter`.
    pub(super) fn merge_embedding(
        &self,
        table: &mut Embedding<Cuda>,
        change: &SiteDelta,
        pool: &Values,
    ) {
        let shape = [table.vocabulary, table.hidden];
        self.merge(&mut table.weight, change, pool, shape, true);
        self.merge_vector(&mut table.shift, change, table.hidden);
    }

    /// `w' = scale ⊙ w`, `shift' = scale ⊙ shift + shift of the adapter`.
    pub(super) fn merge_norm(&self, norm: &mut Norm<Cuda>, change: &SiteDelta) {
        let own = change.weight.as_ref().map(Values::to_f32);
        let mut weight = own.unwrap_or_else(|| norm.weight.values.clone());
        scale_shift(&mut weight, change.scale.as_deref(), None);
        norm.weight = self.vector(&weight);
        self.merge_vector(&mut norm.shift, change, norm.width);
    }

    /// A weight that another linear shares keeps its bits: the merged one gets memory of its own.
    fn merge(
        &self,
        weight: &mut Arc<Weight>,
        change: &SiteDelta,
        pool: &Values,
        [rows, cols]: [usize; 2],
        embedding: bool,
    ) {
        if change.down.is_none() && change.scale.is_none() && change.weight.is_none() {
            return;
        }
        self.changed();
        self.attempt(|| {
            let delta = alone(change, pool);
            let layout = Layout::new(&delta, &[SiteKind::Linear], self.dtype);
            let bytes = layout.bytes + size_of::<super::args::Change>() as u64;
            let what = "an adapter to be merged";
            let mend = "lower --gpu-memory-utilization";
            let out_of_memory = |e: super::OpenError| Fault { message: e.to_string(), lost: false };
            let memory = self.card.allocate(bytes, what, mend).map_err(out_of_memory)?;
            for (at, piece) in &layout.pieces {
                self.upload_piece(piece, &memory.region(*at, piece.bytes()))?;
            }
            let row = layout.row(memory.address(), 1);
            let to = memory.region(layout.bytes, bytes - layout.bytes);
            self.stream.upload_now(bytemuck::cast_slice(&row), &to)?;
            let from = weight.address;
            if Arc::get_mut(weight).is_none() {
                let copy = self.card.allocate(weight.bytes, "a merged weight", mend);
                let copy = copy.map_err(out_of_memory)?;
                let (address, bytes) = (copy.address(), copy.bytes());
                *weight = Arc::new(Weight { address, bytes, memory: copy });
            }
            let args = Fold {
                from,
                to: weight.address,
                change: to.address(),
                cols: cols as u32,
                embedding: embedding.into(),
            };
            let grid = [rows as u32, kernels::column_blocks(cols), 1];
            self.start_kernel(&self.stream, kernels::FOLD, grid, &args)?;
            // The change's memory is given back at the end of this block.
            self.stream.synchronize()
        });
    }

    /// In place.
    pub(super) fn restore_weight(&self, weight: &mut Arc<Weight>, matrix: HostMatrix) {
        let values = matrix.values.cast(self.dtype);
        let memory = &weight.memory;
        let to = memory.region(weight.address - memory.address(), weight.bytes);
        self.changed();
        self.attempt(|| self.stream.upload_now(values.as_bytes(), &to));
    }

    /// Recorded steps read where weights and vectors were.
    pub(super) fn changed(&self) {
        lock(&self.recordings).clear();
    }

    fn upload_piece(&self, piece: &Piece<'_>, to: &Region) -> Result<(), Fault> {
        piece.with_bytes(|bytes| self.stream.upload_now(bytes, to))
    }

    /// `vector' = scale ⊙ vector + shift`; an absent vector is zero.
    fn merge_vector(&self, vector: &mut Option<Vector>, change: &SiteDelta, len: usize) {
        if vector.is_none() && change.shift.is_none() {
            return;
        }
        let mut values = vector.as_ref().map_or_else(|| vec![0.0; len], |v| v.values.clone());
        scale_shift(&mut values, change.scale.as_deref(), change.shift.as_deref());
        *vector = Some(self.vector(&values));
    }
}
