//! The modules of a decoder, listed once. What is done to all of them — naming, loading, folding,
//! taking back — walks this list: [`Outline::map`] and [`Outline::each_mut`].

use super::attention::Attention;
use super::config::ModelConfig;
use super::mlp::Mlp;
use super::module::{Make, Part, linear, norm};
use crate::site::{Site, SiteKind, SiteMap};

/// A decoder of embeddings `E`, norms `N` and linears `L`.
pub struct Outline<E, N, L> {
    /// Of tokens.
    pub embedding: E,
    /// In order.
    pub layers: Vec<Layer<N, L>>,
    /// After the last layer.
    pub norm: N,
    /// Hidden states → logits.
    pub head: L,
}

/// One layer.
pub struct Layer<N, L> {
    /// See [`NormPlaces`](super::NormPlaces).
    pub before_attention: Option<N>,
    /// What rows see of others.
    pub attention: Attention<N, L>,
    /// See [`NormPlaces`](super::NormPlaces).
    pub after_attention: Option<N>,
    /// See [`NormPlaces`](super::NormPlaces).
    pub before_mlp: Option<N>,
    /// What a row is made into.
    pub mlp: Mlp<L>,
    /// See [`NormPlaces`](super::NormPlaces).
    pub after_mlp: Option<N>,
}

impl<E, N, L> Outline<E, N, L> {
    /// The same decoder of other modules, made in the order of the forward pass.
    pub fn map<M: Make<E, N, L>>(&self, make: &mut M) -> Outline<M::Embedding, M::Norm, M::Linear> {
        let embedding = make.embedding(&self.embedding);
        let layers = self.layers.iter().map(|layer| layer.map(make)).collect();
        Outline { embedding, layers, norm: make.norm(&self.norm), head: make.linear(&self.head) }
    }

    /// Every module, in the order of the forward pass.
    pub fn each_mut(&mut self, f: &mut dyn FnMut(Part<'_, E, N, L>)) {
        f(Part::Embedding(&mut self.embedding));
        for layer in &mut self.layers {
            layer.each_mut(f);
        }
        f(Part::Norm(&mut self.norm));
        f(Part::Linear(&mut self.head));
    }
}

impl<N, L> Layer<N, L> {
    fn map<E, M: Make<E, N, L>>(&self, make: &mut M) -> Layer<M::Norm, M::Linear> {
        Layer {
            before_attention: self.before_attention.as_ref().map(|norm| make.norm(norm)),
            attention: self.attention.map(make),
            after_attention: self.after_attention.as_ref().map(|norm| make.norm(norm)),
            before_mlp: self.before_mlp.as_ref().map(|norm| make.norm(norm)),
            mlp: self.mlp.map(make),
            after_mlp: self.after_mlp.as_ref().map(|norm| make.norm(norm)),
        }
    }

    fn each_mut<E>(&mut self, f: &mut dyn FnMut(Part<'_, E, N, L>)) {
        self.before_attention.iter_mut().for_each(|norm| f(Part::Norm(norm)));
        self.attention.each_mut(f);
        self.after_attention.iter_mut().for_each(|norm| f(Part::Norm(norm)));
        self.before_mlp.iter_mut().for_each(|norm| f(Part::Norm(norm)));
        self.mlp.each_mut(f);
        self.after_mlp.iter_mut().for_each(|norm| f(Part::Norm(norm)));
    }
}

impl Outline<Site, Site, Site> {
    /// As a config says.
    pub fn of(config: &ModelConfig) -> Self {
        let ModelConfig { vocabulary, hidden, layers, .. } = *config;
        Self {
            embedding: Site {
                name: "model.embed_tokens".into(),
                kind: SiteKind::Embedding,
                in_features: vocabulary,
                out_features: hidden,
                has_bias: false,
            },
            layers: (0..layers).map(|index| layer(config, index)).collect(),
            norm: norm("model.norm".into(), hidden),
            head: linear("lm_head".into(), hidden, vocabulary, false),
        }
    }
}

fn layer(config: &ModelConfig, index: usize) -> Layer<Site, Site> {
    let prefix = format!("model.layers.{index}");
    let places = config.family.norms;
    let norm_at = |leaf: Option<&str>| leaf.map(|l| norm(format!("{prefix}.{l}"), config.hidden));
    Layer {
        before_attention: norm_at(places.before_attention),
        attention: Attention::of(config, index, &prefix),
        after_attention: norm_at(places.after_attention),
        before_mlp: norm_at(places.before_mlp),
        mlp: Mlp::of(config, &prefix),
        after_mlp: norm_at(places.after_mlp),
    }
}

/// The sites of a decoder, in the order of the forward pass.
pub fn sites(config: &ModelConfig) -> SiteMap {
    let mut sites = SiteMap::default();
    let mut add = |site: &Site| {
        sites.add(site.clone());
    };
    Outline::of(config).each_mut(&mut |part| match part {
        Part::Embedding(site) | Part::Norm(site) | Part::Linear(site) => add(site),
    });
    sites
}
