//! One module of a decoder, whatever it is made of.

use crate::site::{Site, SiteKind};

/// One module of an outline.
pub enum Part<'a, E, N, L> {
    /// The table.
    Embedding(&'a mut E),
    /// One norm.
    Norm(&'a mut N),
    /// One linear.
    Linear(&'a mut L),
}

/// What makes modules of others.
pub trait Make<E, N, L> {
    /// Of tokens.
    type Embedding;
    /// Any norm.
    type Norm;
    /// Any linear.
    type Linear;
    /// The table.
    fn embedding(&mut self, module: &E) -> Self::Embedding;
    /// One norm.
    fn norm(&mut self, module: &N) -> Self::Norm;
    /// One linear.
    fn linear(&mut self, module: &L) -> Self::Linear;
}

/// A norm's site.
pub fn norm(name: String, width: usize) -> Site {
    let (in_features, out_features) = (width, width);
    Site { name, kind: SiteKind::Norm, in_features, out_features, has_bias: false }
}

/// A linear's site.
pub fn linear(name: String, in_features: usize, out_features: usize, has_bias: bool) -> Site {
    Site { name, kind: SiteKind::Linear, in_features, out_features, has_bias }
}
