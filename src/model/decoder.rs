//! The forward pass of a decoder-only transformer, written once for every family and device.

use std::sync::Arc;

use super::attention::Cached;
use super::checkpoint::Checkpoint;
use super::config::ModelConfig;
use super::error::ModelError;
use super::module::{Make, Part};
use super::outline::{Layer, Outline};
use crate::backend::{
    Backend, Embedding, HostMatrix, KvShape, Linear, Norm, Outputs, RopeTable, Rows, Wanted,
};
use crate::delta::Delta;
use crate::dtype::Values;
use crate::ids::SiteId;
use crate::site::{Site, SiteKind};

/// A base model on a device.
pub struct Model<B: Backend> {
    modules: Outline<Embedding<B>, Norm<B>, Linear<B>>,
    ropes: Vec<B::Rope>,
    /// Rotates nothing.
    still: B::Rope,
}

impl<B: Backend> Model<B> {
    /// Copies the checkpoint's weights to the device. `positions_max` sizes the rotary tables;
    /// `loaded` hears the bytes of each weight as it arrives.
    ///
    /// # Errors
    /// [`ModelError::File`] when a file cannot be read, or has changed since it was opened.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: &B,
        positions_max: usize,
        loaded: &dyn Fn(u64),
    ) -> Result<Self, ModelError> {
        let mut failed = None;
        let model = Self::load_or_zeros(checkpoint, backend, positions_max, loaded, &mut failed);
        failed.map_or(Ok(model), Err)
    }

    /// As [`Model::load`], for those who need a model whatever happens: after a failure, which is
    /// told in `failed`, what could not be read is zeros.
    pub fn load_or_zeros(
        checkpoint: &Checkpoint,
        backend: &B,
        positions_max: usize,
        loaded: &dyn Fn(u64),
        failed: &mut Option<ModelError>,
    ) -> Self {
        let mut load = Loading { checkpoint, backend, loaded, table: None, failed };
        let modules = Outline::of(&checkpoint.config).map(&mut load);
        let rope = |table: RopeTable| backend.upload_rope(table);
        let ropes = checkpoint.config.ropes.iter().map(|r| rope(r.table(positions_max))).collect();
        let still = rope(RopeTable { half: 0, cos: Vec::new(), sin: Vec::new() });
        Self { modules, ropes, still }
    }

    /// One step: the rows' logits and hidden states, as wanted.
    pub fn forward(
        &self,
        b: &B,
        rows: &Rows,
        slots: &B::Slots,
        kv: &mut B::Kv,
    ) -> Outputs<B::Tensor> {
        b.run(rows, slots, |step| self.outputs(b, rows, kv, step))
    }

    /// The ops of one step.
    pub fn outputs(
        &self,
        b: &B,
        rows: &Rows,
        kv: &mut B::Kv,
        step: &B::Step<'_>,
    ) -> Outputs<B::Tensor> {
        let x = self.hidden(b, kv, step);
        let wanted =
            |list: &[u32], wanted| (!list.is_empty()).then(|| b.pick_rows(&x, wanted, step));
        let hidden = wanted(&rows.hidden_rows, Wanted::Hidden);
        let logits = wanted(&rows.logit_rows, Wanted::Logits);
        let logits = logits.map(|x| b.head(&x, &self.modules.head, step));
        Outputs { logits, hidden }
    }

    /// Hidden states after the last norm, `[n, hidden]`.
    fn hidden(&self, b: &B, kv: &mut B::Kv, step: &B::Step<'_>) -> B::Tensor {
        let Self { modules: Outline { embedding, layers, norm, head: _ }, ropes, still } = self;
        let mut x = b.embed(embedding, step);
        for (index, layer) in layers.iter().enumerate() {
            let cached = Cached { kv: &mut *kv, ropes, still, layer: index };
            x = layer.forward(b, x, cached, step);
        }
        b.rms_norm(&x, norm, step)
    }

    /// Folds one adapter into the weights (merged mode): rows then need no adapter.
    pub fn fold(&mut self, b: &B, delta: &Delta) {
        self.modules.each_mut(&mut |part| match part {
            Part::Embedding(table) => {
                if let Some(change) = delta.site(table.site) {
                    b.fold_embedding(table, delta, change);
                }
            }
            Part::Norm(norm) => {
                if let Some(change) = delta.site(norm.site) {
                    b.fold_norm(norm, change);
                }
            }
            Part::Linear(linear) => {
                if let Some(change) = delta.site(linear.site) {
                    b.fold_linear(linear, delta, change);
                }
            }
        });
    }

    /// Takes back [`Model::fold`] of `delta`: the checkpoint's own bits are in place again.
    ///
    /// # Errors
    /// As [`Model::load`]; the model is then not the checkpoint's any more.
    pub fn restore(
        &mut self,
        b: &B,
        checkpoint: &Checkpoint,
        delta: &Delta,
    ) -> Result<(), ModelError> {
        let mut failed = None;
        let mut load =
            Loading { checkpoint, backend: b, loaded: &|_| {}, table: None, failed: &mut failed };
        let changed = |site: SiteId| delta.site(site).is_some();
        self.modules.each_mut(&mut |part| match part {
            Part::Embedding(table) if changed(table.site) => {
                table.shift = None;
                b.restore(&mut table.weight, load.matrix(table.site));
            }
            Part::Norm(norm) if changed(norm.site) => {
                *norm = load.norm(checkpoint.sites.get(norm.site));
            }
            Part::Linear(linear) if changed(linear.site) => {
                b.restore(&mut linear.weight, load.matrix(linear.site));
                linear.bias = load.bias(linear.site);
            }
            Part::Embedding(_) | Part::Norm(_) | Part::Linear(_) => {}
        });
        // Folding either of two that share a weight parted them.
        if checkpoint.config.tied {
            self.modules.head.weight = self.modules.embedding.weight.clone();
        }
        failed.map_or(Ok(()), Err)
    }

    /// The KV cache this model needs for `blocks` pages of `block_tokens`.
    pub fn kv_shape(checkpoint: &Checkpoint, blocks: usize, block_tokens: usize) -> KvShape {
        let ModelConfig { layers, kv_heads, head_dim, .. } = checkpoint.config;
        KvShape { layers, kv_heads, head_dim, blocks, block_tokens, dtype: checkpoint.dtype }
    }
}

impl<B: Backend> Layer<Norm<B>, Linear<B>> {
    /// `x [n, hidden]` → the same: see [`NormPlaces`](super::NormPlaces).
    fn forward(&self, b: &B, x: B::Tensor, cached: Cached<'_, B>, step: &B::Step<'_>) -> B::Tensor {
        let h = self.before_attention.as_ref().map(|norm| b.rms_norm(&x, norm, step));
        let seen = self.attention.forward(b, h.as_ref().unwrap_or(&x), cached, step);
        // Its memory serves what follows.
        drop(h);
        let seen = match &self.after_attention {
            Some(norm) => b.rms_norm(&seen, norm, step),
            None => seen,
        };
        let x = b.add(x, seen);
        let h = self.before_mlp.as_ref().map(|norm| b.rms_norm(&x, norm, step));
        let made = self.mlp.forward(b, h.as_ref().unwrap_or(&x), step);
        drop(h);
        let made = match &self.after_mlp {
            Some(norm) => b.rms_norm(&made, norm, step),
            None => made,
        };
        b.add(x, made)
    }
}

/// Copies modules to a device.
struct Loading<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    backend: &'a B,
    loaded: &'a dyn Fn(u64),
    /// The embedding's, for a head that shares it.
    table: Option<Arc<B::Weight>>,
    /// The first that could not be read.
    failed: &'a mut Option<ModelError>,
}

impl<B: Backend> Loading<'_, B> {
    fn site(&self, site: &Site) -> SiteId {
        let found = self.checkpoint.sites.find(&site.name);
        found.unwrap_or_else(|| panic!("This is a bug: no site {} in this family.", site.name))
    }

    /// A site's weight, or zeros where it cannot be read.
    fn matrix(&mut self, id: SiteId) -> HostMatrix {
        self.checkpoint.weight(id).unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            let Site { kind, in_features, out_features, .. } = *self.checkpoint.sites.get(id);
            let (rows, cols) = match kind {
                SiteKind::Norm => (1, out_features),
                SiteKind::Linear => (out_features, in_features),
                SiteKind::Embedding => (in_features, out_features),
            };
            let zeros = Values::F32(vec![0.0; rows * cols]);
            HostMatrix { values: zeros.cast(self.checkpoint.dtype), rows, cols }
        })
    }

    /// A site's bias on the device, if it has one that can be read.
    fn bias(&mut self, id: SiteId) -> Option<B::Vector> {
        let bias = self.checkpoint.bias(id).unwrap_or_else(|error| {
            self.failed.get_or_insert(error);
            None
        });
        bias.map(|bias| self.backend.upload_vector(&bias))
    }

    fn weight(&mut self, site: SiteId) -> Arc<B::Weight> {
        let matrix = self.matrix(site);
        let bytes = matrix.values.bytes() as u64;
        let weight = Arc::new(self.backend.upload(matrix));
        (self.loaded)(bytes);
        weight
    }
}

impl<B: Backend> Make<Site, Site, Site> for Loading<'_, B> {
    type Embedding = Embedding<B>;
    type Norm = Norm<B>;
    type Linear = Linear<B>;

    fn embedding(&mut self, module: &Site) -> Embedding<B> {
        let site = self.site(module);
        let weight = self.weight(site);
        self.table = self.checkpoint.config.tied.then(|| weight.clone());
        let (vocabulary, hidden) = (module.in_features, module.out_features);
        Embedding { weight, shift: None, site, vocabulary, hidden }
    }

    fn norm(&mut self, module: &Site) -> Norm<B> {
        let site = self.site(module);
        let values = self.matrix(site).values.to_f32();
        let weight = self.backend.upload_vector(&values);
        let eps = self.checkpoint.config.eps;
        Norm { weight, shift: None, width: values.len(), eps, site }
    }

    fn linear(&mut self, module: &Site) -> Linear<B> {
        let site = self.site(module);
        let is_head = module.name == "lm_head";
        let shared = if is_head { self.table.take() } else { None };
        let weight = shared.unwrap_or_else(|| self.weight(site));
        let bias = self.bias(site);
        let (in_features, out_features) = (module.in_features, module.out_features);
        Linear { weight, bias, site, in_features, out_features }
    }
}
