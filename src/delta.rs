//! The canonical form every adapter method is lowered to: the waist between methods and kernels.
//!
//! At one site, for one row x of the batch:
//!
//! ```text
//! y = scale ⊙ (W x + bias + B (A x)) + shift
//! ```
//!
//! A and Bᵀ are stored as gathers from one pool, so a method that shares parameters between layers
//! (MoS) keeps its saving on the device, and plain LoRA is the case of one shard a row. Both are
//! rank-major: row r of A is `in` wide, row r of Bᵀ is `out` wide, whatever the rank.

use crate::dtype::{Dtype, Values};
use crate::ids::SiteId;

/// One adapter in canonical form.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Parameters the factors gather from.
    pub pool: Values,
    /// Changed sites only, sorted by id.
    pub sites: Vec<(SiteId, SiteDelta)>,
}

/// What an adapter does at one site; `None` means identity.
#[derive(Clone, Debug, Default)]
pub struct SiteDelta {
    /// A `[rank, in]`. At an embedding, `in` is the vocabulary and x is one-hot.
    pub down: Option<Factor>,
    /// Bᵀ `[rank, out]`; same rank as `down`.
    pub up: Option<Factor>,
    /// `[out]`. At a linear it multiplies the base's bias too.
    pub scale: Option<Vec<f32>>,
    /// `[out]`, added last.
    pub shift: Option<Vec<f32>>,
    /// Stands in for the base's own weight (`modules_to_save`): `[out, in]` at a linear, `[out]`
    /// at a norm, `[vocabulary, hidden]` at an embedding. Everything above applies on top of it.
    pub weight: Option<Values>,
}

/// A `[rank, width]` matrix; row r is the concatenation of its shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// Number of rows.
    pub rank: usize,
    /// Length of one shard, in elements.
    pub shard_len: usize,
    /// `[rank, width / shard_len]` offsets into the pool, in elements.
    pub offsets: Vec<u32>,
}

impl Factor {
    /// Shards in one row.
    pub fn shards_per_row(&self) -> usize {
        self.offsets.len() / self.rank
    }

    /// Width of one row.
    pub fn width(&self) -> usize {
        self.shards_per_row() * self.shard_len
    }

    /// Offsets of row `r`'s shards, left to right.
    pub fn row_offsets(&self, r: usize) -> &[u32] {
        let per_row = self.shards_per_row();
        &self.offsets[r * per_row..][..per_row]
    }

    /// Element `(r, column)`. For single look-ups (embedding columns, oracles), not inner loops.
    pub fn get(&self, pool: &Values, r: usize, column: usize) -> f32 {
        let shard = self.row_offsets(r)[column / self.shard_len] as usize;
        pool.get(shard + column % self.shard_len)
    }

    /// Row `r`, widened and copied through the gather. Load time only.
    pub fn row(&self, pool: &Values, r: usize) -> Vec<f32> {
        (0..self.width()).map(|c| self.get(pool, r, c)).collect()
    }
}

impl Delta {
    /// What this adapter does at `site`, if anything.
    pub fn site(&self, site: SiteId) -> Option<&SiteDelta> {
        let found = self.sites.binary_search_by_key(&site, |(id, _)| *id);
        found.ok().map(|index| &self.sites[index].1)
    }

    /// Bytes of parameters and offsets held.
    pub fn bytes(&self) -> usize {
        self.pool.bytes() + self.sites.iter().map(|(_, s)| s.bytes()).sum::<usize>()
    }

    /// The first site and part that does not hold finite numbers only, if any: rounding to f16 can
    /// overflow.
    pub fn not_finite(&self) -> Option<(SiteId, &'static str)> {
        let finite = |v: &Values| (0..v.len()).all(|i| v.get(i).is_finite());
        let vector = |v: &Option<Vec<f32>>| v.iter().flatten().all(|x| x.is_finite());
        // Sites share the pool: it is searched once, and by site only if something is wrong.
        let pool = finite(&self.pool);
        let row = |f: &Factor, r| f.row(&self.pool, r).into_iter().all(f32::is_finite);
        let factor =
            |f: &Option<Factor>| pool || f.as_ref().is_none_or(|f| (0..f.rank).all(|r| row(f, r)));
        let wrong = |s: &SiteDelta| {
            let checks = [
                ("A", factor(&s.down)),
                ("B, scaled,", factor(&s.up)),
                ("scale", vector(&s.scale)),
                ("shift", vector(&s.shift)),
                ("whole weight", s.weight.as_ref().is_none_or(finite)),
            ];
            checks.into_iter().find(|(_, fine)| !fine).map(|(part, _)| part)
        };
        self.sites.iter().find_map(|(id, s)| Some((*id, wrong(s)?)))
    }

    /// The largest rank at any site.
    pub fn rank_max(&self) -> usize {
        let rank = |(_, s): &(SiteId, SiteDelta)| s.down.as_ref().map_or(0, |f| f.rank);
        self.sites.iter().map(rank).max().unwrap_or(0)
    }
}

impl SiteDelta {
    fn bytes(&self) -> usize {
        let factor = |f: &Option<Factor>| f.as_ref().map_or(0, |f| f.offsets.len() * 4);
        let vector = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, |v| v.len() * 4);
        factor(&self.down)
            + factor(&self.up)
            + vector(&self.scale)
            + vector(&self.shift)
            + self.weight.as_ref().map_or(0, Values::bytes)
    }
}

/// Collects a [`Delta`] in f32 and rounds it once at the end.
#[derive(Debug, Default)]
pub struct DeltaBuilder {
    pool: Vec<f32>,
    sites: std::collections::BTreeMap<SiteId, SiteDelta>,
}

impl DeltaBuilder {
    /// Appends parameters to the pool; returns the offset of the first.
    pub fn push(&mut self, data: &[f32]) -> u32 {
        let start = self.pool.len() as u32;
        self.pool.extend_from_slice(data);
        start
    }

    /// Appends `data` as `[rank, width]` with one shard a row.
    pub fn push_dense(&mut self, data: &[f32], rank: usize) -> Factor {
        assert!(rank > 0 && data.len().is_multiple_of(rank), "This is a bug: ragged factor.");
        let shard_len = data.len() / rank;
        let start = self.push(data) as usize;
        let offsets = (0..rank).map(|r| (start + r * shard_len) as u32).collect();
        Factor { rank, shard_len, offsets }
    }

    /// The change at `site`, made empty if there was none.
    pub fn site(&mut self, site: SiteId) -> &mut SiteDelta {
        self.sites.entry(site).or_default()
    }

    /// Whether the site's own weight is replaced.
    pub fn site_has_weight(&self, site: SiteId) -> bool {
        self.sites.get(&site).is_some_and(|change| change.weight.is_some())
    }

    /// Whether the site has a low-rank part.
    pub fn has_factors(&self, site: SiteId) -> bool {
        self.sites.get(&site).is_some_and(|change| change.down.is_some())
    }

    /// Rounds the pool to `dtype`. Scales and shifts stay in f32: they are small and matter.
    pub fn finish(self, dtype: Dtype) -> Delta {
        let pool = Values::from_f32(self.pool, dtype);
        Delta { pool, sites: self.sites.into_iter().collect() }
    }
}
