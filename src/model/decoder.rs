//! The forward pass of a decoder-only transformer (RMS norms, rotary positions, grouped-query
//! attention, gated MLP), written once for every family and device.

use std::sync::Arc;

use super::{Checkpoint, ModelConfig};
use crate::backend::{
    Adapters, AttentionShape, Backend, Embedding, KvShape, Linear, Norm, RopeTable,
};
use crate::delta::Delta;

/// A base model on a device.
pub struct Model<B: Backend> {
    embedding: Embedding<B>,
    layers: Vec<Layer<B>>,
    norm: Norm<B>,
    head: Linear<B>,
    rope: B::Rope,
}

struct Layer<B: Backend> {
    input_norm: Norm<B>,
    q: Linear<B>,
    k: Linear<B>,
    v: Linear<B>,
    qk_norms: Option<(Norm<B>, Norm<B>)>,
    attention: AttentionShape,
    o: Linear<B>,
    post_norm: Norm<B>,
    gate: Linear<B>,
    up: Linear<B>,
    down: Linear<B>,
}

impl<B: Backend> Model<B> {
    /// Copies the checkpoint's weights to the device. `positions_max` sizes the rotary tables;
    /// `loaded` hears the bytes of each weight as it arrives.
    pub fn load(
        checkpoint: &Checkpoint,
        backend: &B,
        positions_max: usize,
        loaded: &dyn Fn(u64),
    ) -> Self {
        let config = &checkpoint.config;
        let load = Load { checkpoint, backend, loaded };
        let embedding = load.embedding();
        let layers = (0..config.layers).map(|i| load.layer(i)).collect();
        let head_weight = config.tied.then(|| embedding.weight.clone());
        Self {
            head: load.linear("lm_head", head_weight),
            norm: load.norm("model.norm"),
            layers,
            embedding,
            rope: backend.upload_rope(rope_table(config, positions_max)),
        }
    }

    /// One step: the batch's rows → logits of its logit rows, `[m, vocabulary]`.
    pub fn forward(
        &self,
        b: &B,
        batch: &B::Batch,
        kv: &mut B::Kv,
        adapters: Adapters<'_, B>,
    ) -> B::Tensor {
        b.run(batch, adapters, || self.ops(b, batch, kv, adapters))
    }

    fn ops(&self, b: &B, batch: &B::Batch, kv: &mut B::Kv, adapters: Adapters<'_, B>) -> B::Tensor {
        let mut x = b.embed(&self.embedding, batch, adapters);
        for (index, layer) in self.layers.iter().enumerate() {
            let h = b.rms_norm(&x, &layer.input_norm, batch, adapters);
            let [mut q, mut k, v] = b.linears(&h, [&layer.q, &layer.k, &layer.v], batch, adapters);
            if let Some((q_norm, k_norm)) = &layer.qk_norms {
                q = b.rms_norm(&q, q_norm, batch, adapters);
                k = b.rms_norm(&k, k_norm, batch, adapters);
            }
            b.rope_and_store(&mut q, &mut k, &v, &self.rope, index, kv, batch);
            let h = b.attention(&q, &layer.attention, index, kv, batch);
            let [h] = b.linears(&h, [&layer.o], batch, adapters);
            b.add(&mut x, &h);

            let h = b.rms_norm(&x, &layer.post_norm, batch, adapters);
            let [gate, up] = b.linears(&h, [&layer.gate, &layer.up], batch, adapters);
            let h = b.silu_mul(&gate, &up);
            let [h] = b.linears(&h, [&layer.down], batch, adapters);
            b.add(&mut x, &h);
        }
        let x = b.rms_norm(&x, &self.norm, batch, adapters);
        let x = b.last_rows(&x, batch);
        b.head(&x, &self.head, batch, adapters)
    }

    /// Folds one adapter into copies of the weights (merged mode): rows then need no adapter.
    pub fn fold(&mut self, b: &B, delta: &Delta) {
        if let Some(change) = delta.site(self.embedding.site) {
            b.fold_embedding(&mut self.embedding, change, &delta.pool);
        }
        for layer in &mut self.layers {
            let Layer { q, k, v, o, gate, up, down, .. } = layer;
            for linear in [q, k, v, o, gate, up, down] {
                fold_linear(b, linear, delta);
            }
            fold_norm(b, &mut layer.input_norm, delta);
            fold_norm(b, &mut layer.post_norm, delta);
            if let Some((q_norm, k_norm)) = &mut layer.qk_norms {
                fold_norm(b, q_norm, delta);
                fold_norm(b, k_norm, delta);
            }
        }
        fold_norm(b, &mut self.norm, delta);
        fold_linear(b, &mut self.head, delta);
    }

    /// Takes back [`Model::fold`] of `delta`: the checkpoint's own bits are in place again.
    pub fn restore(&mut self, b: &B, checkpoint: &Checkpoint, delta: &Delta) {
        let original = Original { load: Load { checkpoint, backend: b, loaded: &|_| {} }, delta };
        for layer in &mut self.layers {
            let Layer { q, k, v, o, gate, up, down, .. } = layer;
            for linear in [q, k, v, o, gate, up, down] {
                original.linear(linear);
            }
            original.norm(&mut layer.input_norm);
            original.norm(&mut layer.post_norm);
            if let Some((q_norm, k_norm)) = &mut layer.qk_norms {
                original.norm(q_norm);
                original.norm(k_norm);
            }
        }
        original.norm(&mut self.norm);
        original.linear(&mut self.head);
        let Self { embedding, head, .. } = self;
        if delta.site(embedding.site).is_some() {
            embedding.shift = None;
            b.restore(&mut embedding.weight, checkpoint.weight(embedding.site));
        }
        // Folding either of two that share a weight parted them.
        if checkpoint.config.tied {
            head.weight = embedding.weight.clone();
        }
    }

    /// The KV cache this model needs for `blocks` pages of `block_tokens`.
    pub fn kv_shape(checkpoint: &Checkpoint, blocks: usize, block_tokens: usize) -> KvShape {
        let ModelConfig { layers, kv_heads, head_dim, .. } = checkpoint.config;
        KvShape { layers, kv_heads, head_dim, blocks, block_tokens, dtype: checkpoint.dtype }
    }
}

fn fold_linear<B: Backend>(b: &B, linear: &mut Linear<B>, delta: &Delta) {
    if let Some(change) = delta.site(linear.site) {
        b.fold_linear(linear, change, &delta.pool);
    }
}

fn fold_norm<B: Backend>(b: &B, norm: &mut Norm<B>, delta: &Delta) {
    if let Some(change) = delta.site(norm.site) {
        b.fold_norm(norm, change);
    }
}

/// What taking back a fold needs.
struct Original<'a, B: Backend> {
    load: Load<'a, B>,
    delta: &'a Delta,
}

impl<B: Backend> Original<'_, B> {
    fn linear(&self, linear: &mut Linear<B>) {
        if self.delta.site(linear.site).is_none() {
            return;
        }
        let Load { checkpoint, backend, .. } = self.load;
        backend.restore(&mut linear.weight, checkpoint.weight(linear.site));
        linear.bias = checkpoint.bias(linear.site).map(|bias| backend.upload_vector(&bias));
    }

    fn norm(&self, norm: &mut Norm<B>) {
        if self.delta.site(norm.site).is_some() {
            *norm = self.load.norm(&self.load.checkpoint.sites.get(norm.site).name);
        }
    }
}

/// What loading a module needs.
struct Load<'a, B: Backend> {
    checkpoint: &'a Checkpoint,
    backend: &'a B,
    loaded: &'a dyn Fn(u64),
}

impl<B: Backend> Load<'_, B> {
    fn linear(&self, name: &str, tied: Option<Arc<B::Weight>>) -> Linear<B> {
        let id = self.checkpoint.site(name);
        let site = self.checkpoint.sites.get(id);
        let weight = tied.unwrap_or_else(|| {
            let matrix = self.checkpoint.weight(id);
            let bytes = matrix.values.bytes() as u64;
            let weight = Arc::new(self.backend.upload(matrix));
            (self.loaded)(bytes);
            weight
        });
        let bias = self.checkpoint.bias(id).map(|bias| self.backend.upload_vector(&bias));
        let (in_features, out_features) = (site.in_features, site.out_features);
        Linear { weight, bias, site: id, in_features, out_features }
    }

    fn norm(&self, name: &str) -> Norm<B> {
        let site = self.checkpoint.site(name);
        let values = self.checkpoint.weight(site).values.to_f32();
        let weight = self.backend.upload_vector(&values);
        let eps = self.checkpoint.config.eps;
        Norm { weight, shift: None, width: values.len(), eps, site }
    }

    fn embedding(&self) -> Embedding<B> {
        let site = self.checkpoint.site("model.embed_tokens");
        let matrix = self.checkpoint.weight(site);
        let (vocabulary, hidden) = (matrix.rows, matrix.cols);
        let bytes = matrix.values.bytes() as u64;
        let weight = Arc::new(self.backend.upload(matrix));
        (self.loaded)(bytes);
        Embedding { weight, shift: None, site, vocabulary, hidden }
    }

    fn layer(&self, index: usize) -> Layer<B> {
        let name = |leaf: &str| format!("model.layers.{index}.{leaf}");
        let linear = |leaf: &str| self.linear(&name(leaf), None);
        let norm = |leaf: &str| self.norm(&name(leaf));
        let config = &self.checkpoint.config;
        let head_norms = || (norm("self_attn.q_norm"), norm("self_attn.k_norm"));
        Layer {
            input_norm: norm("input_layernorm"),
            q: linear("self_attn.q_proj"),
            k: linear("self_attn.k_proj"),
            v: linear("self_attn.v_proj"),
            qk_norms: config.family.qk_norm.then(head_norms),
            attention: AttentionShape {
                heads: config.heads,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                scale: (config.head_dim as f32).sqrt().recip(),
                window: config.family.windows[index],
            },
            o: linear("self_attn.o_proj"),
            post_norm: norm("post_attention_layernorm"),
            gate: linear("mlp.gate_proj"),
            up: linear("mlp.up_proj"),
            down: linear("mlp.down_proj"),
        }
    }
}

/// Angles are rounded to f32 before the cosine, as transformers does.
fn rope_table(config: &ModelConfig, positions: usize) -> RopeTable {
    let frequencies: Vec<f32> = config.rope_frequencies().iter().map(|&f| f as f32).collect();
    let half = frequencies.len();
    let angles = |p: usize| frequencies.iter().map(move |f| f64::from(p as f32 * f));
    let cos = (0..positions).flat_map(|p| angles(p).map(|a| a.cos() as f32)).collect();
    let sin = (0..positions).flat_map(|p| angles(p).map(|a| a.sin() as f32)).collect();
    RopeTable { half, cos, sin }
}
