//! Random small models, and random adapters of them.

use std::sync::Arc;

use tessera::backend::{AttentionShape, KvShape, RopeTable};
use tessera::delta::{Delta, DeltaBuilder, Factor, LowRank, Pool, Side, SiteDelta};
use tessera::dtype::{Dtype, Values};
use tessera::ids::SiteId;
use tessera::site::{Site, SiteKind, SiteMap};

use crate::Rng;

/// Positions of a sequence at most: more than one split of a context.
pub const POSITIONS_MAX: usize = 320;
/// Positions of most, and sequences of a step.
pub const TOKENS_MAX: usize = 24;
pub const SEQUENCES_MAX: usize = 5;
/// Numbers of the pool that factors of several sites are gathered from.
const SHARED: usize = 2048;
/// The first linears of a [`Base`] are q, k, v, gate and up.
pub const QKV: [usize; 3] = [0, 1, 2];
pub const GATE_UP: [usize; 2] = [3, 4];
/// The first of three norms of a head's width; the last has another eps.
pub const HEAD_NORMS: usize = 5;

/// A linear `[out, in]`, or a table `[vocabulary, hidden]`.
pub struct Matrix {
    pub site: SiteId,
    pub weight: Values,
    pub rows: usize,
    pub cols: usize,
    /// `[out]`; of a table `[hidden]`.
    pub bias: Option<Vec<f32>>,
}

pub struct NormWeight {
    pub site: SiteId,
    pub weight: Vec<f32>,
    pub shift: Option<Vec<f32>>,
    pub eps: f32,
}

/// What programs are made of: frozen numbers, and the places where adapters change them.
pub struct Base {
    pub dtype: Dtype,
    pub sites: SiteMap,
    pub tables: Vec<Matrix>,
    pub norms: Vec<NormWeight>,
    pub linears: Vec<Matrix>,
    /// The second is tied to the first table.
    pub heads: Vec<Matrix>,
    pub shape: AttentionShape,
    pub kv: KvShape,
    pub rope: RopeTable,
}

fn scaled(rng: &mut Rng, n: usize, by: f32) -> Vec<f32> {
    rng.vec(n).into_iter().map(|x| x * by).collect()
}

/// From 0.5 to 1.5 in size, of either sign.
fn factors(rng: &mut Rng, n: usize) -> Vec<f32> {
    rng.vec(n).into_iter().map(|x| x.signum() * (1.0 + x.abs() - 0.5)).collect()
}

fn maybe(
    rng: &mut Rng,
    one_in: usize,
    make: impl FnOnce(&mut Rng) -> Vec<f32>,
) -> Option<Vec<f32>> {
    (rng.below(one_in) == 0).then(|| make(rng))
}

/// Collects a [`Base`]'s sites.
struct Maker<'a> {
    rng: &'a mut Rng,
    dtype: Dtype,
    sites: SiteMap,
}

impl Maker<'_> {
    fn site(&mut self, kind: SiteKind, in_features: usize, out: usize, has_bias: bool) -> SiteId {
        let name = self.sites.len().to_string();
        self.sites.add(Site { name, kind, in_features, out_features: out, has_bias })
    }

    fn linear(&mut self, cols: usize, rows: usize) -> Matrix {
        let bias = maybe(self.rng, 2, |rng| scaled(rng, rows, 0.5));
        let site = self.site(SiteKind::Linear, cols, rows, bias.is_some());
        let numbers = scaled(self.rng, rows * cols, 1.7 / (cols as f32).sqrt());
        Matrix { site, weight: Values::from_f32(numbers, self.dtype), rows, cols, bias }
    }

    fn table(&mut self, rows: usize, cols: usize) -> Matrix {
        let bias = maybe(self.rng, 3, |rng| scaled(rng, cols, 0.5));
        let site = self.site(SiteKind::Embedding, rows, cols, false);
        let weight = Values::from_f32(self.rng.vec(rows * cols), self.dtype);
        Matrix { site, weight, rows, cols, bias }
    }

    fn norm(&mut self, width: usize, eps: f32) -> NormWeight {
        let shift = maybe(self.rng, 3, |rng| scaled(rng, width, 0.5));
        let site = self.site(SiteKind::Norm, width, width, false);
        NormWeight { site, weight: factors(self.rng, width), shift, eps }
    }
}

impl Base {
    pub fn random(rng: &mut Rng, dtype: Dtype) -> Self {
        let (kv_heads, group) = (1 + rng.below(3), 1 + rng.below(3));
        // Half of all bases have widths whose linears lie behind one another on a card.
        let even = rng.below(2) == 0;
        let head_dim =
            if even { [8, 16, 32][rng.below(3)] } else { [2, 4, 6, 10, 24][rng.below(5)] };
        let mut width =
            |max: usize| if even { 16 * (1 + rng.below(max / 16)) } else { 1 + rng.below(max) };
        let (hidden, mut inner) = (width(48), width(64));
        if rng.below(8) == 0 {
            // A shrink of it is split.
            inner = 1030;
        }
        let (q, kv) = (kv_heads * group * head_dim, kv_heads * head_dim);
        let vocabulary = 5 + rng.below(80);
        let mut maker = Maker { rng, dtype, sites: SiteMap::default() };
        let shapes = [
            (hidden, q),
            (hidden, kv),
            (hidden, kv),
            (hidden, inner),
            (hidden, inner),
            (hidden, hidden),
            (inner, hidden),
            (inner, q),
            (q, hidden),
            (q, inner),
            (kv, hidden),
            (kv, kv),
        ];
        let linears = shapes.map(|(cols, rows)| maker.linear(cols, rows)).into();
        let tables: Vec<_> = (0..2).map(|_| maker.table(vocabulary, hidden)).collect();
        let widths = [(hidden, 1e-5), (hidden, 1e-2), (inner, 1e-6), (q, 1e-5), (kv, 1e-5)];
        let heads = [(head_dim, 1e-5), (head_dim, 1e-5), (head_dim, 1e-3), (2, 1e-5)];
        let norms =
            widths.iter().chain(&heads).map(|&(width, eps)| maker.norm(width, eps)).collect();
        let mut lm_heads: Vec<_> = (0..2).map(|_| maker.linear(hidden, vocabulary)).collect();
        lm_heads[1].weight = tables[0].weight.clone();
        let sites = maker.sites;
        let block_tokens = 1 + rng.below(8);
        let rope = rope(rng, head_dim);
        Self {
            dtype,
            sites,
            tables,
            norms,
            linears,
            heads: lm_heads,
            shape: AttentionShape {
                heads: kv_heads * group,
                kv_heads,
                head_dim,
                scale: 1.0 / (head_dim as f32).sqrt(),
                window: None,
            },
            kv: KvShape {
                layers: 2,
                kv_heads,
                head_dim,
                blocks: (POSITIONS_MAX + SEQUENCES_MAX * TOKENS_MAX).div_ceil(block_tokens) + 9,
                block_tokens,
                dtype,
            },
            rope,
        }
    }
}

/// Of all of a head, half of it or nothing.
fn rope(rng: &mut Rng, head_dim: usize) -> RopeTable {
    let half = [head_dim / 2, head_dim / 2, head_dim / 4, 0][rng.below(4)];
    let angles = scaled(rng, POSITIONS_MAX * half, 3.2);
    let (cos, sin) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
    RopeTable { half, cos, sin }
}

/// Low-rank factors that are rows of their own, or put together from a pool that sites share.
fn factor(
    rng: &mut Rng,
    builder: &mut DeltaBuilder,
    side: Side,
    [rank, width]: [usize; 2],
    size: f32,
) -> Factor {
    let shards: Vec<usize> = (1..=4).filter(|shards| width.is_multiple_of(*shards)).collect();
    let shards = shards[rng.below(shards.len())];
    let shard_len = width / shards;
    if rng.below(2) == 0 || shard_len > SHARED / 2 {
        return builder.push_dense(side, &scaled(rng, rank * width, size), rank).unwrap();
    }
    // The shared pool comes first.
    let offset = |_| rng.below(SHARED - shard_len) as u32;
    DeltaBuilder::gather(side, shard_len, shards, (0..rank * shards).map(offset).collect())
}

fn low_rank(rng: &mut Rng, builder: &mut DeltaBuilder, site: &Site) -> LowRank {
    let rank = [1, 2, 3, 5, 8, 16, 17, 40, 70][rng.below(9)];
    let size = match site.kind {
        SiteKind::Embedding => 0.7,
        _ => 1.5 / (site.in_features as f32).sqrt(),
    };
    let down = factor(rng, builder, Side::Down, [rank, site.in_features], size);
    let size = 1.0 / (rank as f32).sqrt();
    let up = factor(rng, builder, Side::Up, [rank, site.out_features], size);
    let middle = maybe(rng, 3, |rng| factors(rng, rank));
    let end = maybe(rng, 3, |rng| factors(rng, site.out_features));
    LowRank { rank, down, middle, up, end }
}

fn change(
    rng: &mut Rng,
    builder: &mut DeltaBuilder,
    site: &Site,
    base: &Base,
    whole: bool,
) -> SiteDelta {
    let mut change = SiteDelta::default();
    let out = site.out_features;
    if site.kind != SiteKind::Norm && rng.below(3) > 0 {
        change.low_rank = Some(low_rank(rng, builder, site));
    }
    change.scale = maybe(rng, 3, |rng| factors(rng, out));
    change.shift = maybe(rng, 3, |rng| scaled(rng, out, 0.5));
    if (whole || site.kind != SiteKind::Linear) && rng.below(5) == 0 {
        let len = site.weight_shape().iter().product();
        let (numbers, dtype) = match site.kind {
            SiteKind::Linear => {
                (scaled(rng, len, 1.7 / (site.in_features as f32).sqrt()), base.dtype)
            }
            SiteKind::Embedding => (rng.vec(len), base.dtype),
            // Norms are computed in f32 from whatever width.
            SiteKind::Norm => {
                (factors(rng, len), [Dtype::F32, Dtype::F16, Dtype::BF16][rng.below(3)])
            }
        };
        change.weight = Some(Values::from_f32(numbers, dtype));
    }
    change
}

fn adapter(rng: &mut Rng, base: &Base, whole: bool) -> Delta {
    let mut builder = DeltaBuilder::default();
    for side in [Side::Down, Side::Up] {
        builder.push(side, &scaled(rng, SHARED, 0.3)).unwrap();
    }
    let kept = 1 + rng.below(4);
    for (id, site) in base.sites.iter() {
        if rng.below(4) < kept {
            let change = change(rng, &mut builder, site, base, whole);
            *builder.site(id) = change;
        }
    }
    builder.finish(base.dtype)
}

/// Some adapters of a base. One in three shares the A of the one before it and has another B. In
/// two of three lists none has the whole weight of a linear: then a card leaves more of its work to
/// the next reader, and records steps.
pub fn adapters(rng: &mut Rng, base: &Base, count: usize) -> Vec<Arc<Delta>> {
    let whole = rng.below(3) == 0;
    let mut all: Vec<Arc<Delta>> = Vec::new();
    for _ in 0..count {
        let delta = match all.last().filter(|_| rng.below(3) == 0) {
            None => adapter(rng, base, whole),
            Some(other) => {
                let up = &other.pools[Side::Up as usize].values;
                let values = Values::from_f32(scaled(rng, up.len(), 0.3), base.dtype);
                let pools =
                    vec![other.pools[Side::Down as usize].clone(), Arc::new(Pool::new(values))];
                Delta { pools, sites: other.sites.clone() }
            }
        };
        all.push(Arc::new(delta));
    }
    all
}
