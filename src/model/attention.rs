//! The attention block: q, k and v, their norms and rotation, attention, o.

use super::config::ModelConfig;
use super::family::QkNorm;
use super::module::{Make, Part, linear, norm};
use crate::backend::{AttentionShape, Backend, Linear, Norm};
use crate::site::Site;

/// Attention of one layer.
pub struct Attention<N, L> {
    q: L,
    k: L,
    v: L,
    norms: Norms<N>,
    o: L,
    shape: AttentionShape,
    /// Which of the model's rotations.
    rope: Option<usize>,
}

/// RMS norms of q and of k.
enum Norms<N> {
    Absent,
    Head([N; 2]),
    Whole([N; 2]),
}

impl<N> Norms<N> {
    fn map<M>(&self, mut make: impl FnMut(&N) -> M) -> Norms<M> {
        match self {
            Norms::Absent => Norms::Absent,
            Norms::Head([q, k]) => Norms::Head([make(q), make(k)]),
            Norms::Whole([q, k]) => Norms::Whole([make(q), make(k)]),
        }
    }
}

impl Attention<Site, Site> {
    /// Of layer `index`, as a config says.
    pub fn of(config: &ModelConfig, index: usize, prefix: &str) -> Self {
        let ModelConfig { hidden, heads, kv_heads, head_dim, ref family, .. } = *config;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let name = |leaf: &str| format!("{prefix}.self_attn.{leaf}");
        let norms = |[q, k]: [usize; 2]| [norm(name("q_norm"), q), norm(name("k_norm"), k)];
        let norms = match family.qk_norm {
            QkNorm::Absent => Norms::Absent,
            QkNorm::Head => Norms::Head(norms([head_dim; 2])),
            QkNorm::Whole => Norms::Whole(norms([q, kv])),
        };
        Self {
            q: linear(name("q_proj"), hidden, q, family.qkv_bias),
            k: linear(name("k_proj"), hidden, kv, family.qkv_bias),
            v: linear(name("v_proj"), hidden, kv, family.qkv_bias),
            norms,
            o: linear(name("o_proj"), q, hidden, family.o_bias),
            shape: AttentionShape {
                heads,
                kv_heads,
                head_dim,
                scale: (head_dim as f32).sqrt().recip(),
                window: family.windows[index],
            },
            rope: config.rope_of_layer[index],
        }
    }
}

impl<N, L> Attention<N, L> {
    /// The same block of other modules.
    pub fn map<E, M: Make<E, N, L>>(&self, make: &mut M) -> Attention<M::Norm, M::Linear> {
        let Self { q, k, v, norms, o, shape, rope } = self;
        let (q, k, v) = (make.linear(q), make.linear(k), make.linear(v));
        let norms = norms.map(|norm| make.norm(norm));
        Attention { q, k, v, norms, o: make.linear(o), shape: *shape, rope: *rope }
    }

    /// Every module, in the order of the forward pass.
    pub fn each_mut<E>(&mut self, f: &mut dyn FnMut(Part<'_, E, N, L>)) {
        let Self { q, k, v, norms, o, shape: _, rope: _ } = self;
        [q, k, v].into_iter().for_each(|linear| f(Part::Linear(linear)));
        match norms {
            Norms::Absent => {}
            Norms::Head(norms) | Norms::Whole(norms) => {
                norms.iter_mut().for_each(|norm| f(Part::Norm(norm)));
            }
        }
        f(Part::Linear(o));
    }
}

/// What attention needs beside its own weights.
pub struct Cached<'a, B: Backend> {
    /// Keys and values of every layer.
    pub kv: &'a mut B::Kv,
    /// The model's rotations.
    pub ropes: &'a [B::Rope],
    /// One that rotates nothing.
    pub still: &'a B::Rope,
    /// Which layer's pages.
    pub layer: usize,
}

impl<B: Backend> Attention<Norm<B>, Linear<B>> {
    /// `x [n, hidden]` → the same.
    pub fn forward(
        &self,
        b: &B,
        x: &B::Tensor,
        cached: Cached<'_, B>,
        step: &B::Step<'_>,
    ) -> B::Tensor {
        let [mut q, mut k, v] = b.linears(x, [&self.q, &self.k, &self.v], step);
        match &self.norms {
            Norms::Absent => {}
            Norms::Head([q_norm, k_norm]) => {
                q = b.head_norm(q, q_norm, step);
                k = b.head_norm(k, k_norm, step);
            }
            Norms::Whole([q_norm, k_norm]) => {
                q = b.rms_norm(&q, q_norm, step);
                k = b.rms_norm(&k, k_norm, step);
            }
        }
        let Cached { kv, ropes, still, layer } = cached;
        let rope = self.rope.map_or(still, |index| &ropes[index]);
        let q = b.rope_and_store([q, k, v], rope, layer, kv, step);
        let seen = b.attention(&q, &self.shape, layer, kv, step);
        let [o] = b.linears(&seen, [&self.o], step);
        o
    }
}
