//! The places in a model that an adapter may change, twice: *sites* are what the forward pass
//! computes, *modules* are what a training library wraps and an adapter's file names. Mostly they
//! are the same; where a checkpoint fuses matrices (`qkv_proj`), one module is rows of several
//! sites.

use std::collections::HashMap;

use crate::dtype::Values;
use crate::ids::{ModuleId, SiteId};

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

/// One output of the forward pass that an adapter may change.
#[derive(Clone, Debug)]
pub struct Site {
    /// As the forward pass names it, e.g. `model.layers.3.self_attn.q_proj`.
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
    /// The extents of its weight: `[out, in]` at a linear, `[vocabulary, hidden]` at an embedding,
    /// `[out]` at a norm.
    pub fn weight_shape(&self) -> Vec<usize> {
        weight_shape(self.kind, self.in_features, self.out_features)
    }
}

fn weight_shape(kind: SiteKind, in_features: usize, out_features: usize) -> Vec<usize> {
    match kind {
        SiteKind::Linear => vec![out_features, in_features],
        SiteKind::Embedding => vec![in_features, out_features],
        SiteKind::Norm => vec![out_features],
    }
}

/// Every site of one model, numbered in load order.
#[derive(Clone, Debug, Default)]
pub struct SiteMap {
    sites: Vec<Site>,
    by_name: HashMap<String, SiteId>,
}

impl SiteMap {
    /// Registers a site; called once for each while a model loads.
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

    /// One module for each site, of the same name and all its rows.
    pub fn as_modules(&self) -> ModuleMap {
        let mut modules = ModuleMap::default();
        for (id, site) in self.iter() {
            let Site { name, kind, in_features, out_features, has_bias } = site.clone();
            let parts = vec![ModulePart { site: id, rows: RowSet::all(out_features) }];
            modules.add(Module { name, kind, in_features, out_features, has_bias, parts });
        }
        modules
    }
}

/// What a training library wraps: a module of the checkpoint, and the sites it is made of.
#[derive(Clone, Debug)]
pub struct Module {
    /// Path in the checkpoint, e.g. `model.layers.3.self_attn.q_proj`.
    pub name: String,
    /// Of its sites, which are all of one kind.
    pub kind: SiteKind,
    /// Width of the input.
    pub in_features: usize,
    /// Width of the output: all parts together.
    pub out_features: usize,
    /// True where the base adds a bias of its own.
    pub has_bias: bool,
    /// Each site and its rows of the module's output.
    pub parts: Vec<ModulePart>,
}

/// One site of a module.
#[derive(Clone, Debug, PartialEq)]
pub struct ModulePart {
    /// What the forward pass computes.
    pub site: SiteId,
    /// Which of the module's outputs the site's outputs are, in order.
    pub rows: RowSet,
}

/// `groups` groups of `len` consecutive rows, one every `stride` rows from `first` on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct RowSet {
    /// The first row.
    pub first: usize,
    /// Rows of a group.
    pub len: usize,
    /// From the start of one group to the next.
    pub stride: usize,
    /// Groups.
    pub groups: usize,
}

impl RowSet {
    /// All of `rows` rows.
    pub fn all(rows: usize) -> Self {
        Self { first: 0, len: rows, stride: rows, groups: 1 }
    }

    /// Rows in it.
    pub fn rows(&self) -> usize {
        self.len * self.groups
    }

    /// Where its rows stand among all, stretch by stretch.
    pub fn stretches(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let Self { first, len, stride, groups } = *self;
        (0..groups).map(move |group| first + group * stride..first + group * stride + len)
    }

    /// Its rows of a vector or of a row-major matrix whose rows are `width` wide.
    pub fn pick<T: Copy>(&self, all: &[T], width: usize) -> Vec<T> {
        self.stretches()
            .flat_map(|rows| &all[rows.start * width..rows.end * width])
            .copied()
            .collect()
    }
}

impl RowSet {
    /// Its rows of a row-major matrix in any width.
    pub fn pick_values(&self, all: &Values, width: usize) -> Values {
        match all {
            Values::F32(all) => Values::F32(self.pick(all, width)),
            Values::F16(all) => Values::F16(self.pick(all, width)),
            Values::BF16(all) => Values::BF16(self.pick(all, width)),
        }
    }
}

impl Module {
    /// The last part of the name, e.g. `q_proj`.
    pub fn leaf(&self) -> &str {
        self.name.rsplit('.').next().unwrap_or(&self.name)
    }

    /// The extents of its weight in a checkpoint.
    pub fn weight_shape(&self) -> Vec<usize> {
        weight_shape(self.kind, self.in_features, self.out_features)
    }
}

/// Every module of one model, in the order of the forward pass.
#[derive(Clone, Debug, Default)]
pub struct ModuleMap {
    modules: Vec<Module>,
    by_name: HashMap<String, ModuleId>,
}

impl ModuleMap {
    /// Registers a module; called once for each while a model loads.
    pub fn add(&mut self, module: Module) -> ModuleId {
        let rows: usize = module.parts.iter().map(|part| part.rows.rows()).sum();
        assert_eq!(rows, module.out_features, "This is a bug: parts do not make {}.", module.name);
        let id = ModuleId(self.modules.len() as u32);
        let previous = self.by_name.insert(module.name.clone(), id);
        assert!(previous.is_none(), "This is a bug: module {} added twice.", module.name);
        self.modules.push(module);
        id
    }

    /// All modules with their ids, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ModuleId, &Module)> {
        self.modules.iter().enumerate().map(|(i, m)| (ModuleId(i as u32), m))
    }

    /// The module with this id.
    pub fn get(&self, id: ModuleId) -> &Module {
        &self.modules[id.0 as usize]
    }

    /// The module of this name.
    pub fn find(&self, name: &str) -> Option<ModuleId> {
        self.by_name.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_set_picks_groups_of_rows() {
        let all: Vec<usize> = (0..24).collect();
        // The second two of every four rows, two numbers a row.
        let rows = RowSet { first: 2, len: 2, stride: 4, groups: 3 };
        assert_eq!(rows.pick(&all, 2), [4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23]);
        assert_eq!((rows.rows(), RowSet::all(12).pick(&all, 2).len()), (6, 24));
    }
}
