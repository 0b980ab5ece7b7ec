//! The canonical form every adapter method is lowered to: the waist between methods and kernels.
//!
//! At one site, for one row x of the batch:
//!
//! ```text
//! y = scale ⊙ (W x + bias + end ⊙ B (middle ⊙ A x)) + shift
//! ```
//!
//! A and Bᵀ are stored as gathers from pools, so a method that shares parameters between layers
//! (MoS) or between adapters (a frozen A) keeps its saving on the device, and plain LoRA is the
//! case of one shard a row. Both are rank-major: row r of A is `in` wide, row r of Bᵀ is `out`
//! wide, whatever the rank. Of several adapters with weights w a row gets
//!
//! ```text
//! y = y_base + Σ w · (y_adapter − y_base)
//! ```
//!
//! Whoever reads a [`SiteDelta`] takes it apart whole, without `..`: a new part then fails to
//! compile wherever it is not handled.

use std::sync::Arc;

use crate::dtype::{Dtype, Values};
use crate::ids::{Digest, SiteId};

/// One adapter in canonical form, as [`DeltaBuilder::finish`] made and checked it.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Parameters the factors gather from. Adapters that hold equal pools share them.
    pub pools: Vec<Arc<Pool>>,
    /// Changed sites only, sorted by id.
    pub sites: Vec<(SiteId, SiteDelta)>,
}

/// Parameters that factors gather from, known by their content.
#[derive(Debug)]
pub struct Pool {
    /// BLAKE3 of width and numbers.
    pub digest: Digest,
    /// At most [`POOL_ELEMENTS_MAX`] numbers.
    pub values: Values,
}

/// What offsets of 32 bits reach. A larger adapter is refused when it is loaded.
pub const POOL_ELEMENTS_MAX: usize = u32::MAX as usize;

/// Which of its [`Delta::pools`] a factor gathers from.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PoolId(u32);

/// What an adapter does at one site; `None` means identity.
#[derive(Clone, Debug, Default)]
pub struct SiteDelta {
    /// `end ⊙ B (middle ⊙ A x)`, added to the base's output.
    pub low_rank: Option<LowRank>,
    /// `[out]`. At a linear it multiplies the base's bias too.
    pub scale: Option<Vec<f32>>,
    /// `[out]`, added last.
    pub shift: Option<Vec<f32>>,
    /// Stands in for the base's own weight (`modules_to_save`): `[out, in]` at a linear, `[out]`
    /// at a norm, `[vocabulary, hidden]` at an embedding. Everything above applies on top of it.
    pub weight: Option<Values>,
}

/// `end ⊙ B (middle ⊙ A x)`. At an embedding x is one-hot and `in` the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRank {
    /// Rows of A and of Bᵀ, at least 1.
    pub rank: usize,
    /// A `[rank, in]`.
    pub down: Factor,
    /// `[rank]`: VeRA's d.
    pub middle: Option<Vec<f32>>,
    /// Bᵀ `[rank, out]`.
    pub up: Factor,
    /// `[out]`: VeRA's b.
    pub end: Option<Vec<f32>>,
}

/// A `[rank, width]` matrix; row r is the concatenation of its shards.
#[derive(Clone, Debug, PartialEq)]
pub struct Factor {
    /// What it gathers from.
    pub pool: PoolId,
    /// Length of one shard, in elements.
    pub shard_len: usize,
    /// Shards in one row.
    pub shards: usize,
    /// `[rank, shards]` offsets into the pool, in elements.
    pub offsets: Vec<u32>,
}

impl PoolId {
    /// Its place in [`Delta::pools`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

impl Factor {
    /// Width of one row.
    pub fn width(&self) -> usize {
        self.shards * self.shard_len
    }

    /// Offsets of row `r`'s shards, left to right.
    pub fn row_offsets(&self, r: usize) -> &[u32] {
        &self.offsets[r * self.shards..][..self.shards]
    }

    /// The columns `first .. first + len` of every row, gathered from the same pool.
    pub fn columns(&self, first: usize, len: usize) -> Self {
        assert!(first + len <= self.width() && len > 0, "This is a bug: columns beyond a factor.");
        // Shards that the cut parts are split where all cuts fall.
        let shard_len = [self.shard_len, first % self.shard_len, len].into_iter().fold(0, gcd);
        let inside = first / self.shard_len == (first + len - 1) / self.shard_len;
        let shard_len = if inside { len } else { shard_len };
        let place = |row: &[u32], column: usize| {
            row[column / self.shard_len] + (column % self.shard_len) as u32
        };
        let columns = || (first..first + len).step_by(shard_len);
        let rows = self.offsets.chunks(self.shards);
        let offsets = rows.flat_map(|row| columns().map(move |c| place(row, c))).collect();
        Self { pool: self.pool, shard_len, shards: len / shard_len, offsets }
    }
}

/// Greatest common divisor; of 0 and b, b.
pub(crate) fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Delta {
    /// What this adapter does at `site`, if anything.
    pub fn site(&self, site: SiteId) -> Option<&SiteDelta> {
        let found = self.sites.binary_search_by_key(&site, |(id, _)| *id);
        found.ok().map(|index| &self.sites[index].1)
    }

    /// The numbers a factor gathers from.
    pub fn pool(&self, factor: &Factor) -> &Values {
        &self.pools[factor.pool.index()].values
    }

    /// Element `(r, column)` of a factor. For single look-ups (embedding columns, oracles), not
    /// inner loops.
    pub fn element(&self, factor: &Factor, r: usize, column: usize) -> f32 {
        let shard = factor.row_offsets(r)[column / factor.shard_len] as usize;
        self.pool(factor).get(shard + column % factor.shard_len)
    }

    /// Row `r` of a factor, widened and copied through the gather. Load time only.
    pub fn row(&self, factor: &Factor, r: usize) -> Vec<f32> {
        (0..factor.width()).map(|c| self.element(factor, r, c)).collect()
    }

    /// Bytes of all that it holds; pools that it shares with others are counted in full.
    pub fn bytes(&self) -> usize {
        let Self { pools, .. } = self;
        pools.iter().map(|pool| pool.values.bytes()).sum::<usize>() + self.own_bytes()
    }

    /// Bytes of what it cannot share: all but its pools.
    pub fn own_bytes(&self) -> usize {
        self.sites.iter().map(|(_, site)| site.bytes()).sum()
    }

    /// The same, with pools of equal content taken from `known`.
    pub fn sharing(self, mut known: impl FnMut(&Arc<Pool>) -> Arc<Pool>) -> Self {
        let Self { pools, sites } = self;
        Self { pools: pools.iter().map(&mut known).collect(), sites }
    }

    /// The first site and part that does not hold finite numbers only, if any: rounding to f16 can
    /// overflow.
    pub fn not_finite(&self) -> Option<(SiteId, &'static str)> {
        let finite = |v: &Values| (0..v.len()).all(|i| v.get(i).is_finite());
        let vector = |v: &Option<Vec<f32>>| v.iter().flatten().all(|x| x.is_finite());
        // Sites share pools: each is searched once, and by site only if something is wrong.
        let fine: Vec<bool> = self.pools.iter().map(|pool| finite(&pool.values)).collect();
        let factor = |f: &Factor, rank: usize| {
            fine[f.pool.index()]
                || (0..rank).all(|r| self.row(f, r).into_iter().all(f32::is_finite))
        };
        let wrong = |site: &SiteDelta| {
            let SiteDelta { low_rank, scale, shift, weight } = site;
            let of_rank = low_rank.as_ref().and_then(|low_rank| {
                let LowRank { rank, down, middle, up, end } = low_rank;
                let checks = [
                    ("A", factor(down, *rank)),
                    ("scale after A", vector(middle)),
                    ("B, scaled,", factor(up, *rank)),
                    ("scale after B", vector(end)),
                ];
                checks.into_iter().find(|(_, fine)| !fine)
            });
            let checks = [
                ("scale", vector(scale)),
                ("shift", vector(shift)),
                ("whole weight", weight.as_ref().is_none_or(finite)),
            ];
            let found = of_rank.or_else(|| checks.into_iter().find(|(_, fine)| !fine));
            found.map(|(part, _)| part)
        };
        self.sites.iter().find_map(|(id, site)| Some((*id, wrong(site)?)))
    }

    /// The largest rank at any site.
    pub fn rank_max(&self) -> usize {
        let ranks = self.sites.iter().filter_map(|(_, s)| s.low_rank.as_ref());
        ranks.map(|low_rank| low_rank.rank).max().unwrap_or(0)
    }
}

impl SiteDelta {
    fn bytes(&self) -> usize {
        let Self { low_rank, scale, shift, weight } = self;
        let vector = |v: &Option<Vec<f32>>| v.as_ref().map_or(0, |v| v.len() * 4);
        let of_rank = low_rank.as_ref().map_or(0, |low_rank| {
            let LowRank { rank: _, down, middle, up, end } = low_rank;
            (down.offsets.len() + up.offsets.len()) * 4 + vector(middle) + vector(end)
        });
        of_rank + vector(scale) + vector(shift) + weight.as_ref().map_or(0, Values::bytes)
    }
}

/// Why what was lowered is no [`Delta`].
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("the adapter holds more than {POOL_ELEMENTS_MAX} parameters of one side of its factors")]
pub struct TooLarge;

/// Which side of low-rank factors a pool is for. They are kept apart because adapters that train
/// only B share their A (LoRA-FA, arXiv 2308.03303).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Side {
    /// A.
    Down,
    /// B.
    Up,
}

/// Collects a [`Delta`] in f32 and rounds it once at the end.
#[derive(Debug, Default)]
pub struct DeltaBuilder {
    /// By [`Side`].
    pools: [Vec<f32>; 2],
    sites: std::collections::BTreeMap<SiteId, SiteDelta>,
}

impl DeltaBuilder {
    /// Appends parameters to a pool; returns the offset of the first.
    ///
    /// # Errors
    /// When offsets of 32 bits do not reach the last.
    pub fn push(&mut self, side: Side, data: &[f32]) -> Result<u32, TooLarge> {
        let pool = &mut self.pools[side as usize];
        let start = pool.len();
        if start + data.len() > POOL_ELEMENTS_MAX {
            return Err(TooLarge);
        }
        pool.extend_from_slice(data);
        Ok(start as u32)
    }

    /// A factor of `shards` shards a row, which stand at `offsets` of a pool.
    pub fn gather(side: Side, shard_len: usize, shards: usize, offsets: Vec<u32>) -> Factor {
        Factor { pool: PoolId(side as u32), shard_len, shards, offsets }
    }

    /// Appends `data` as `[rank, width]` with one shard a row.
    ///
    /// # Errors
    /// As [`DeltaBuilder::push`].
    pub fn push_dense(
        &mut self,
        side: Side,
        data: &[f32],
        rank: usize,
    ) -> Result<Factor, TooLarge> {
        assert!(rank > 0 && data.len().is_multiple_of(rank), "This is a bug: ragged factor.");
        let shard_len = data.len() / rank;
        let start = self.push(side, data)?;
        // Checked above: the last offset is within 32 bits.
        let offsets = (0..rank).map(|r| start + (r * shard_len) as u32).collect();
        Ok(Self::gather(side, shard_len, 1, offsets))
    }

    /// The change at `site`, made empty if there was none.
    pub fn site(&mut self, site: SiteId) -> &mut SiteDelta {
        self.sites.entry(site).or_default()
    }

    /// The change at `site`, if there is one.
    pub fn get(&self, site: SiteId) -> Option<&SiteDelta> {
        self.sites.get(&site)
    }

    /// Rounds the pools to `dtype`. Scales and shifts stay in f32: they are small and matter.
    pub fn finish(self, dtype: Dtype) -> Delta {
        let pool = |values: Vec<f32>| Arc::new(Pool::new(Values::from_f32(values, dtype)));
        let lens = self.pools.each_ref().map(Vec::len);
        for low_rank in self.sites.values().filter_map(|site| site.low_rank.as_ref()) {
            low_rank.check(&lens);
        }
        let pools = self.pools.map(pool).into();
        Delta { pools, sites: self.sites.into_iter().collect() }
    }
}

impl LowRank {
    /// # Panics
    /// When the factors have other ranks, or gather from outside of their pools.
    fn check(&self, pool_lens: &[usize]) {
        let Self { rank, down, middle, up, end } = self;
        let within = |f: &Factor| {
            let len = pool_lens[f.pool.index()];
            let ends = |offset: &u32| *offset as usize + f.shard_len <= len;
            f.offsets.len() == rank * f.shards && f.offsets.iter().all(ends)
        };
        let lens = [(middle, *rank), (end, up.width())];
        let fit = lens.iter().all(|(v, len)| v.as_ref().is_none_or(|v| v.len() == *len));
        assert!(*rank > 0 && within(down) && within(up) && fit, "This is a bug: ragged factors.");
    }
}

impl Pool {
    /// Hashes the numbers.
    pub fn new(values: Values) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(values.dtype().name().as_bytes()).update(b":").update(values.as_bytes());
        Self { digest: Digest(hash.finalize().into()), values }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two rows of `shards` shards of `shard_len` from a pool of other rows.
    fn factor(shards: usize, shard_len: usize) -> (Delta, Factor) {
        let mut builder = DeltaBuilder::default();
        let numbers: Vec<f32> = (0..200).map(|i| i as f32).collect();
        builder.push(Side::Up, &numbers).unwrap();
        let offsets = (0..2 * shards as u32).map(|i| (i * 37) % 100).collect();
        (builder.finish(Dtype::F32), DeltaBuilder::gather(Side::Up, shard_len, shards, offsets))
    }

    #[test]
    fn columns_of_a_factor_are_the_same_numbers_wherever_the_cuts_fall() {
        for (shards, shard_len) in [(1, 12), (3, 4), (4, 6), (2, 5)] {
            let (delta, whole) = factor(shards, shard_len);
            for first in 0..whole.width() {
                for len in 1..=whole.width() - first {
                    let part = whole.columns(first, len);
                    assert_eq!(part.width(), len);
                    for r in 0..2 {
                        let expected = &delta.row(&whole, r)[first..first + len];
                        assert_eq!(delta.row(&part, r), expected, "{shards} {first} {len}");
                    }
                }
            }
        }
        let (_, dense) = factor(1, 12);
        assert_eq!(dense.columns(3, 5).shards, 1, "no copy, no splitting");
    }

    #[test]
    fn equal_parameters_have_equal_digests_and_the_width_counts() {
        let pool = |values: &[f32], dtype| Pool::new(Values::from_f32(values.to_vec(), dtype));
        let one = pool(&[1.0, 2.0], Dtype::F16).digest;
        assert_eq!(one, pool(&[1.0, 2.0], Dtype::F16).digest);
        assert_ne!(one, pool(&[1.0, 2.5], Dtype::F16).digest);
        let [f16, bf16] = [Dtype::F16, Dtype::BF16].map(|dtype| pool(&[0.0], dtype).digest);
        assert_ne!(f16, bf16);
    }

    #[test]
    #[should_panic(expected = "ragged factors")]
    fn a_factor_beyond_its_pool_is_a_bug() {
        let mut builder = DeltaBuilder::default();
        let down = builder.push_dense(Side::Down, &[0.0; 6], 2).unwrap();
        let up = DeltaBuilder::gather(Side::Up, 3, 1, vec![0, 1]);
        builder.site(SiteId(0)).low_rank =
            Some(LowRank { rank: 2, down, middle: None, up, end: None });
        builder.finish(Dtype::F32);
    }
}
