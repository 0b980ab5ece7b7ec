//! Merged mode: one adapter written into the weights on the card.

use std::sync::Arc;

use super::args::{Change, Fold};
use super::kernels;
use super::launch::{OpenError, Region};
use super::layout::{Content, Layout};
use super::{Cuda, Vector, Weight, lock};
use crate::backend::folding::scale_shift;
use crate::backend::{Embedding, Fault, Folding, HostMatrix, Linear, Norm};
use crate::delta::{Delta, DeltaBuilder, Factor, LowRank, Side, SiteDelta};
use crate::ids::SiteId;
use crate::site::SiteKind;

/// One site's change of the weight with parameters of its own: the rest of its pools stays on the
/// host.
fn alone(delta: &Delta, change: &SiteDelta) -> Delta {
    let SiteDelta { low_rank, scale, shift: _, weight } = change;
    let mut builder = DeltaBuilder::default();
    let mut dense = |side: Side, factor: &Factor, rank: usize| {
        let rows: Vec<f32> = (0..rank).flat_map(|r| delta.row(factor, r)).collect();
        builder.push_dense(side, &rows, rank).expect("This is a bug: a part is larger than all.")
    };
    let low_rank = low_rank.as_ref().map(|LowRank { rank, down, middle, up, end }| LowRank {
        rank: *rank,
        down: dense(Side::Down, down, *rank),
        middle: middle.clone(),
        up: dense(Side::Up, up, *rank),
        end: end.clone(),
    });
    *builder.site(SiteId(0)) =
        SiteDelta { low_rank, scale: scale.clone(), shift: None, weight: weight.clone() };
    let dtype = delta.pools.first().map(|pool| pool.values.dtype());
    builder.finish(dtype.unwrap_or(crate::dtype::Dtype::F32))
}

impl Folding for Cuda {
    fn fold_linear(&self, linear: &mut Linear<Cuda>, delta: &Delta, change: &SiteDelta) {
        let shape = [linear.out_features, linear.in_features];
        self.merge(&mut linear.weight, delta, change, shape, false);
        self.merge_vector(&mut linear.bias, change, linear.out_features);
    }

    fn fold_norm(&self, norm: &mut Norm<Cuda>, change: &SiteDelta) {
        let SiteDelta { low_rank, scale, shift: _, weight } = change;
        assert!(low_rank.is_none(), "This is a bug: a norm has no low-rank change.");
        let own = weight.as_ref().map(|weight| weight.to_f32());
        let mut weight = own.unwrap_or_else(|| norm.weight.values.clone());
        scale_shift(&mut weight, scale.as_deref(), None);
        norm.weight = self.vector(&weight);
        self.merge_vector(&mut norm.shift, change, norm.width);
    }

    fn fold_embedding(&self, table: &mut Embedding<Cuda>, delta: &Delta, change: &SiteDelta) {
        let shape = [table.vocabulary, table.hidden];
        self.merge(&mut table.weight, delta, change, shape, true);
        self.merge_vector(&mut table.shift, change, table.hidden);
    }

    /// In place.
    fn restore(&self, weight: &mut Arc<Weight>, matrix: HostMatrix) {
        let values = matrix.values.cast(self.dtype);
        let memory = &weight.memory;
        let to = memory.region(weight.address - memory.address(), weight.bytes);
        self.changed();
        self.attempt(|| self.stream.upload_now(values.as_bytes(), &to));
    }
}

impl Cuda {
    /// A weight that another linear shares keeps its bits: the merged one gets memory of its own.
    fn merge(
        &self,
        weight: &mut Arc<Weight>,
        delta: &Delta,
        change: &SiteDelta,
        [rows, cols]: [usize; 2],
        embedding: bool,
    ) {
        let SiteDelta { low_rank, scale, shift: _, weight: own } = change;
        if low_rank.is_none() && scale.is_none() && own.is_none() {
            return;
        }
        self.changed();
        self.attempt(|| {
            let delta = alone(delta, change);
            let layout = Layout::new(&delta, &[SiteKind::Linear], self.dtype);
            let what = "an adapter to be merged";
            let mend = "lower --gpu-memory-utilization";
            let out_of_memory = |e: OpenError| Fault { message: e.to_string(), lost: false };
            let allocate = |bytes| self.card.allocate(bytes, what, mend).map_err(out_of_memory);
            let mut pools = Vec::new();
            for pool in &delta.pools {
                let values = Content::Values(&pool.values, self.dtype);
                let memory = allocate(values.bytes())?;
                self.upload_content(&values, &memory.region(0, values.bytes()))?;
                pools.push(memory);
            }
            let bytes = layout.bytes + size_of::<Change>() as u64;
            let memory = allocate(bytes)?;
            for (at, content) in &layout.contents {
                self.upload_content(content, &memory.region(*at, content.bytes()))?;
            }
            let addresses: Vec<_> = pools.iter().map(|pool| pool.address()).collect();
            let row = layout.row(memory.address(), &addresses, 1);
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

    /// Captured steps read where weights and vectors were.
    pub(super) fn changed(&self) {
        lock(&self.recordings).clear();
    }

    fn upload_content(&self, content: &Content<'_>, to: &Region) -> Result<(), Fault> {
        content.with_bytes(|bytes| self.stream.upload_now(bytes, to))
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
