//! The gated MLP block (arXiv 2002.05202): `down(silu(gate x) ⊙ up x)`.

use super::config::ModelConfig;
use super::module::{Make, Part, linear};
use crate::backend::{Backend, Linear};
use crate::site::Site;

/// The MLP of one layer.
pub struct Mlp<L> {
    gate: L,
    up: L,
    down: L,
}

impl Mlp<Site> {
    /// As a config says.
    pub fn of(config: &ModelConfig, prefix: &str) -> Self {
        let ModelConfig { hidden, inner, ref family, .. } = *config;
        let name = |leaf: &str| format!("{prefix}.mlp.{leaf}");
        Self {
            gate: linear(name("gate_proj"), hidden, inner, family.mlp_bias),
            up: linear(name("up_proj"), hidden, inner, family.mlp_bias),
            down: linear(name("down_proj"), inner, hidden, family.mlp_bias),
        }
    }
}

impl<L> Mlp<L> {
    /// The same block of other modules.
    pub fn map<E, N, M: Make<E, N, L>>(&self, make: &mut M) -> Mlp<M::Linear> {
        let Self { gate, up, down } = self;
        Mlp { gate: make.linear(gate), up: make.linear(up), down: make.linear(down) }
    }

    /// Every module, in the order of the forward pass.
    pub fn each_mut<E, N>(&mut self, f: &mut dyn FnMut(Part<'_, E, N, L>)) {
        let Self { gate, up, down } = self;
        [gate, up, down].into_iter().for_each(|linear| f(Part::Linear(linear)));
    }
}

impl<B: Backend> Mlp<Linear<B>> {
    /// `x [n, hidden]` → the same.
    pub fn forward(&self, b: &B, x: &B::Tensor, step: &B::Step<'_>) -> B::Tensor {
        let [gate, up] = b.linears(x, [&self.gate, &self.up], step);
        let h = b.silu_mul(gate, up);
        let [down] = b.linears(&h, [&self.down], step);
        down
    }
}
