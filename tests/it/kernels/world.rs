//! Random adapters, and the definition of what they make of a site's output in f64.

use super::device::{Address, Buffer, Width};
use crate::Rng;
use tessera::backend::cuda::args::Change;

/// Elements of one pool of an adapter: rows of any width tested fit, and overlap.
const POOL_LEN: usize = 5003;

/// What to make up for one adapter at one site.
#[derive(Clone, Copy, Default)]
pub struct Spec {
    pub rank: usize,
    pub input: usize,
    pub out: usize,
    pub down_shards: usize,
    pub up_shards: usize,
    /// Scales after A and after B.
    pub middle: bool,
    pub end: bool,
    pub scale: bool,
    pub shift: bool,
    /// Width and length of an own weight.
    pub weight: Option<(Width, usize)>,
}

/// One adapter at one site; a gathered row is the concatenation of shards at these offsets.
pub struct Site {
    pub spec: Spec,
    down: Vec<u32>,
    up: Vec<u32>,
    middle: Option<Vec<f32>>,
    end: Option<Vec<f32>>,
    pub scale: Option<Vec<f32>>,
    pub shift: Option<Vec<f32>>,
    pub weight: Option<Vec<f32>>,
}

pub struct Adapter {
    /// Of A, and of B.
    pools: [Vec<f32>; 2],
    pub sites: Vec<Option<Site>>,
}

/// Adapters in their slots.
pub struct World {
    pub adapters: Vec<Adapter>,
    pub sites: usize,
    pub changes: Buffer,
    /// Everything that `changes` points to.
    _memory: Vec<Buffer>,
}

fn vector(rng: &mut Rng, wanted: bool, len: usize) -> Option<Vec<f32>> {
    wanted.then(|| rng.vec(len))
}

fn at(vector: &Option<Vec<f32>>, index: usize, absent: f64) -> f64 {
    vector.as_ref().map_or(absent, |v| f64::from(v[index]))
}

impl Site {
    fn random(rng: &mut Rng, spec: &Spec) -> Self {
        let mut offsets = |width: usize, shards: usize| -> Vec<u32> {
            if shards == 0 {
                return Vec::new();
            }
            // Odd places too: not every shard starts at 16 bytes.
            let start = |rng: &mut Rng| rng.below(POOL_LEN - width / shards + 1) as u32;
            (0..spec.rank * shards)
                .map(|i| if i % 3 == 0 { start(rng) } else { start(rng) / 8 * 8 })
                .collect()
        };
        let down = offsets(spec.input, spec.down_shards);
        let up = offsets(spec.out, spec.up_shards);
        let weight = spec.weight.map(|(width, len)| {
            rng.vec(len).into_iter().map(|x| width.round(x)).collect::<Vec<f32>>()
        });
        Site {
            spec: *spec,
            down,
            up,
            middle: vector(rng, spec.middle, spec.rank),
            end: vector(rng, spec.end, spec.out),
            scale: vector(rng, spec.scale, spec.out),
            shift: vector(rng, spec.shift, spec.out),
            weight,
        }
    }
}

impl Adapter {
    fn random(rng: &mut Rng, p: Width, specs: &[Option<Spec>]) -> Self {
        let mut pool =
            || -> Vec<f32> { rng.vec(POOL_LEN).into_iter().map(|x| p.round(x)).collect() };
        let pools = [pool(), pool()];
        let site = |spec: &Option<Spec>| spec.as_ref().map(|spec| Site::random(rng, spec));
        Self { pools, sites: specs.iter().map(site).collect() }
    }

    /// Element `(r, column)` of A, or of Bᵀ when `up`.
    pub fn factor(&self, site: &Site, up: bool, r: usize, column: usize) -> f64 {
        let (offsets, width, shards) = if up {
            (&site.up, site.spec.out, site.spec.up_shards)
        } else {
            (&site.down, site.spec.input, site.spec.down_shards)
        };
        let (len, pool) = (width / shards, &self.pools[usize::from(up)]);
        f64::from(pool[offsets[r * shards + column / len] as usize + column % len])
    }
}

/// Puts what a site points to into memory.
struct Placing {
    memory: Vec<Buffer>,
    /// Offsets count from this element.
    pool_from: u32,
}

impl Placing {
    fn keep(&mut self, buffer: Buffer) -> Address {
        let at = buffer.at();
        self.memory.push(buffer);
        at
    }

    fn offsets(&mut self, offsets: &[u32]) -> Address {
        if offsets.is_empty() {
            return 0;
        }
        let moved: Vec<u32> = offsets.iter().map(|o| o + self.pool_from).collect();
        self.keep(Buffer::raw(&moved))
    }

    fn floats(&mut self, values: &Option<Vec<f32>>, width: Width) -> Address {
        values.as_ref().map_or(0, |v| self.keep(Buffer::of(width, v)))
    }

    fn change(&mut self, site: &Site, [down_pool, up_pool]: [Address; 2]) -> Change {
        let Site { spec, down, up, middle, end, scale, shift, weight } = site;
        let weight_width = spec.weight.map_or(Width::F32, |(width, _)| width);
        Change {
            down_pool,
            up_pool,
            down: self.offsets(down),
            up: self.offsets(up),
            middle: self.floats(middle, Width::F32),
            end: self.floats(end, Width::F32),
            scale: self.floats(scale, Width::F32),
            shift: self.floats(shift, Width::F32),
            weight: self.floats(weight, weight_width),
            rank: spec.rank as u32,
            down_shard: (spec.input / spec.down_shards.max(1)) as u32,
            down_shards: spec.down_shards as u32,
            up_shard: (spec.out / spec.up_shards.max(1)) as u32,
            up_shards: spec.up_shards as u32,
            reserved: 0,
        }
    }
}

impl World {
    /// `specs[slot][site]`; `pool_from`: pools pretend to be the part of a larger memory that
    /// begins at this element, and offsets count from there.
    pub fn new(rng: &mut Rng, p: Width, specs: &[Vec<Option<Spec>>], pool_from: u32) -> Self {
        let adapters: Vec<Adapter> = specs.iter().map(|s| Adapter::random(rng, p, s)).collect();
        let mut placing = Placing { memory: Vec::new(), pool_from };
        let mut changes = Vec::new();
        for Adapter { pools, sites } in &adapters {
            let pools = pools.each_ref().map(|pool| {
                let pool = Buffer::of(p, pool);
                let at = pool.as_if_from(u64::from(pool_from));
                placing.keep(pool);
                at
            });
            let change = |site: &Option<Site>| {
                site.as_ref().map_or(Change::default(), |site| placing.change(site, pools))
            };
            changes.extend(sites.iter().map(change));
        }
        let changes = Buffer::raw(&changes);
        let sites = adapters.first().map_or(0, |a| a.sites.len());
        Self { adapters, sites, changes, _memory: placing.memory }
    }

    pub fn site(&self, slot: usize, site: usize) -> Option<&Site> {
        self.adapters[slot].sites[site].as_ref()
    }

    pub fn rank(&self, slot: usize, site: usize) -> usize {
        self.site(slot, site).map_or(0, |s| if s.down.is_empty() { 0 } else { s.spec.rank })
    }

    /// A x by definition, with the sum of the terms' sizes.
    pub fn hidden(&self, slot: usize, site: usize, x: &[f32]) -> Vec<(f64, f64)> {
        let adapter = &self.adapters[slot];
        let term = |r: usize, k: usize| {
            adapter.factor(self.site(slot, site).unwrap(), false, r, k) * f64::from(x[k])
        };
        let sum = |r: usize| {
            (0..x.len()).fold((0.0, 0.0), |(v, s), k| (v + term(r, k), s + term(r, k).abs()))
        };
        (0..self.rank(slot, site)).map(sum).collect()
    }

    /// What one adapter makes of y = W x + bias at a column, and the size of its terms; `h` is A x.
    fn part(
        &self,
        slot: usize,
        site: usize,
        column: usize,
        y: (f64, f64),
        h: &[f64],
    ) -> Option<(f64, f64)> {
        let of = self.site(slot, site)?;
        let (mut value, mut size) = y;
        let end = at(&of.end, column, 1.0);
        for (r, h) in h.iter().enumerate().filter(|_| !of.up.is_empty()) {
            let middle = at(&of.middle, r, 1.0);
            let term = end * (middle * h) * self.adapters[slot].factor(of, true, r, column);
            value += term;
            size += term.abs();
        }
        let (scale, shift) = (at(&of.scale, column, 1.0), at(&of.shift, column, 0.0));
        Some((scale * value + shift, scale.abs() * size + shift.abs()))
    }

    /// A composition's output at a column: y + Σ w · (part − y). `h[part]` is A x.
    pub fn output(
        &self,
        parts: &[(usize, f32)],
        site: usize,
        column: usize,
        y: f64,
        h: &[Vec<f64>],
    ) -> (f64, f64) {
        self.output_of(parts, site, column, (y, y.abs()), h, &|_| None)
    }

    /// The same where `own(slot)` is W' x + bias of a weight of the adapter's own; each number with
    /// the size of its terms.
    pub fn output_of(
        &self,
        parts: &[(usize, f32)],
        site: usize,
        column: usize,
        y: (f64, f64),
        h: &[Vec<f64>],
        own: &dyn Fn(usize) -> Option<(f64, f64)>,
    ) -> (f64, f64) {
        let mut all = y;
        for (i, &(slot, weight)) in parts.iter().enumerate() {
            let from = own(slot).unwrap_or(y);
            if let Some((value, size)) = self.part(slot, site, column, from, &h[i]) {
                let weight = f64::from(weight);
                all.0 += weight * (value - y.0);
                all.1 += weight.abs() * (size + y.1);
            }
        }
        all
    }
}
