//! Names the places in a model that an adapter may change.

use std::collections::HashMap;

use crate::ids::SiteId;

/// What stands at a site.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SiteKind {
    /// `y = W x + bias`, W `[out, in]`.
    Linear,
    /// `y = x / rms(x) ⊙ w`, w `[out]`; `in_features` equals `out_features`.
    Norm,
    /// `y = E[token]`, E `[in = vocabulary, out = hidden]`.
    Embedding,
}

/// One module whose output an adapter may change.
#[derive(Clone, Debug)]
pub struct Site {
    /// Checkpoint path, e.g. `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// What stands there.
    pub kind: SiteKind,
    /// Width of the input.
    pub in_features: usize,
    /// Width of the output.
    pub out_features: usize,
    /// True where the base adds a bias of its own.
    pub has_bias: bool,
}

impl Site {
    /// The last part of the name, e.g. `q_proj`.
    pub fn leaf(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The extents of its weight in a checkpoint: `[out, in]` at a linear, `[vocabulary, hidden]`
    /// at an embedding, `[out]` at a norm.
    pub fn weight_shape(&self) -> Vec<usize> {
        match self.kind {
            SiteKind::Linear => vec![self.out_features, self.in_features],
            SiteKind::Embedding => vec![self.in_features, self.out_features],
            SiteKind::Norm => vec![self.out_features],
        }
    }
}

/// Every site of one model, numbered in load order.
#[derive(Clone, Debug, Default)]
pub struct SiteMap {
    sites: Vec<Site>,
    by_name: HashMap<String, SiteId>,
}

impl SiteMap {
    /// Registers a site; called once a module while a model loads.
    pub fn add(&mut self, site: Site) -> SiteId {
        let id = SiteId(self.sites.len() as u32);
        let previous = self.by_name.insert(site.name.clone(), id);
        assert!(previous.is_none(), "This is a bug: site {} added twice.", site.name);
        self.sites.push(site);
        id
    }

    /// All sites with their ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SiteId, &Site)> {
        self.sites.iter().enumerate().map(|(i, s)| (SiteId(i as u32), s))
    }

    /// The site with this id.
    pub fn get(&self, id: SiteId) -> &Site {
        &self.sites[id.0 as usize]
    }

    /// The site of this name.
    pub fn find(&self, name: &str) -> Option<SiteId> {
        self.by_name.get(name).copied()
    }

    /// The number of sites.
    pub fn len(&self) -> usize {
        self.sites.len()
    }

    /// True before the first site is added.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }
}
