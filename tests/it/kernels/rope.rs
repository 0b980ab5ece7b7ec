//! Rotary positions and the store of keys and values, with the linears' adapters and head norms.

use super::device::{Buffer, Kernels, Width, all_kernels};
use super::rows::{Linear, Tiles, grid, linear_specs, norm_specs, normed, plan};
use super::step::{MIXED_TILES, Plan, Planes, assert_close, fresh, values};
use super::world::World;
use crate::Rng;
use tessera::backend::cuda::args::{Deltas, RANK_TILE_BYTES, ROW_TILE, RopeInput, RopeStore};

#[derive(Clone, Copy)]
struct Rope {
    n: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    half: usize,
    norms: bool,
    /// Pages pretend to be numbered from here.
    first_block: u32,
    tiles: Tiles,
}

const BLOCK_TOKENS: usize = 4;

/// Made-up tables and places of the rows; each row is its own sequence of three pages.
struct Places {
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    positions: Vec<u32>,
    tables: Vec<u32>,
}

impl Places {
    fn random(rng: &mut Rng, shape: Rope) -> Self {
        let positions = (0..shape.n).map(|_| rng.below(11) as u32).collect();
        let angles: Vec<f32> = rng.vec(11 * shape.half);
        let (cos, sin) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
        let tables = (0..3 * shape.n as u32).map(|i| shape.first_block + i).rev().collect();
        Self { half: shape.half, cos, sin, positions, tables }
    }

    /// A head at its row's position; each number with the size of its terms.
    fn rotate(&self, row: usize, x: &[(f64, f64)]) -> Vec<(f64, f64)> {
        let half = self.half;
        let at = |d: usize| {
            if d >= 2 * half {
                return x[d];
            }
            let angle = self.positions[row] as usize * half + d % half;
            let (c, s) = (f64::from(self.cos[angle]), f64::from(self.sin[angle]));
            let other = x[(d + half) % (2 * half)];
            let sign = if d < half { -1.0 } else { 1.0 };
            (x[d].0 * c + sign * other.0 * s, (x[d].1 * c).abs() + (other.1 * s).abs())
        };
        (0..x.len()).map(at).collect()
    }

    /// Where a head's key or value of a row starts.
    fn cell(&self, shape: Rope, row: usize, head: usize) -> usize {
        let position = self.positions[row] as usize;
        let page = (self.tables[3 * row + position / BLOCK_TOKENS] - shape.first_block) as usize;
        let cell = (page * shape.kv_heads + head) * BLOCK_TOKENS + position % BLOCK_TOKENS;
        cell * shape.head_dim
    }
}

/// A step's q, k and v before adapters, norms and rotation.
struct Inputs {
    world: World,
    plan: Plan,
    planes: Planes,
    places: Places,
    /// Of q, k and v.
    widths: [usize; 3],
    /// `[n, all of q, k and v]`, as one product gives them.
    qkv: Vec<f32>,
    biases: [Option<Vec<f32>>; 3],
    /// Weight and shift.
    norm: [Vec<f32>; 2],
}

impl Inputs {
    fn random(kernels: &Kernels, rng: &mut Rng, shape: Rope) -> Self {
        let Rope { n, heads, kv_heads, head_dim, tiles, .. } = shape;
        let widths = [heads, kv_heads, kv_heads].map(|h| h * head_dim);
        let mut specs = linear_specs(3, &widths);
        for (slot, norm) in specs.iter_mut().zip(norm_specs(head_dim)) {
            slot.extend(norm);
        }
        let world = World::new(rng, kernels.p, &specs, 0);
        let plan = plan(rng, n, 0, tiles);
        Self {
            planes: Planes::random(rng, &world, &plan, &[0, 1, 2]),
            places: Places::random(rng, shape),
            qkv: values(rng, kernels.x, n * widths.iter().sum::<usize>()),
            biases: widths.map(|w| Some(rng.vec(w))),
            norm: [(); 2].map(|()| rng.vec(head_dim)),
            world,
            plan,
            widths,
        }
    }

    fn stride(&self) -> usize {
        self.widths.iter().sum()
    }

    fn starts(&self) -> [usize; 3] {
        [0, self.widths[0], self.widths[0] + self.widths[1]]
    }

    /// Every row of q, k or v as it has to be.
    fn finished(&self, kernels: &Kernels, shape: Rope, linear: usize) -> Vec<Vec<(f64, f64)>> {
        let (start, cols) = (self.starts()[linear], self.widths[linear]);
        let rows = self.qkv.chunks(self.stride());
        let y: Vec<f32> = rows.flat_map(|row| &row[start..][..cols]).copied().collect();
        let linear = Linear {
            world: &self.world,
            plan: &self.plan,
            planes: &self.planes,
            y: &y,
            bias: &self.biases[linear],
            cols,
            linear,
        };
        let norm = shape.norms.then_some(&self.norm);
        let row = |row| finished(kernels, &self.places, &linear, row, shape.head_dim, norm);
        (0..shape.n).map(row).collect()
    }
}

/// What a kernel leaves of q, and in the pages.
struct Stored {
    q: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

fn rope_and_store(kernels: &Kernels, shape: Rope, inputs: &Inputs) -> Stored {
    let Rope { n, heads, kv_heads, head_dim, half, norms, first_block, tiles } = shape;
    let Inputs { world, plan, planes, places, qkv, biases, norm, .. } = inputs;
    let (stride, starts) = (inputs.stride(), inputs.starts());
    let qkv_at = Buffer::of(kernels.x, qkv);
    let bias_at = biases.each_ref().map(|b| Buffer::of(Width::F32, b.as_ref().unwrap()));
    let [weight_at, shift_at] = norm.each_ref().map(|v| Buffer::of(Width::F32, v));
    let row_table: Vec<u32> = (0..n as u32).map(|i| 3 * i).collect();
    let block = kv_heads * BLOCK_TOKENS * head_dim;
    let [keys, values] = [(); 2].map(|()| Buffer::poison(kernels.kv, 3 * n * block));
    let pages_from = u64::from(first_block) * block as u64;
    let input = |i: usize| RopeInput {
        x: qkv_at.at() + (starts[i] * kernels.x.bytes()) as u64,
        row_stride: stride as u64,
        bias: bias_at[i].at(),
        norm_weight: if norms && i < 2 { weight_at.at() } else { 0 },
        norm_shift: if norms && i < 2 { shift_at.at() } else { 0 },
        heads: [heads, kv_heads, kv_heads][i] as u32,
        site: i as u32,
        norm_site: 3,
        reserved: 0,
    };
    let block_heads = (1024 / head_dim).clamp(1, 2);
    let [cos, sin] = [&places.cos, &places.sin].map(|v| Buffer::of(Width::F32, v));
    let [positions, row_table, tables] =
        [&places.positions, &row_table, &places.tables].map(|v| Buffer::raw(v));
    let args = RopeStore {
        q: input(0),
        k: input(1),
        v: input(2),
        deltas: tiles.map_or(Deltas::default(), |_| planes.deltas(plan, world)),
        cos: cos.at(),
        sin: sin.at(),
        positions: positions.at(),
        row_table: row_table.at(),
        block_tables: tables.at(),
        keys: keys.as_if_from(pages_from),
        values: values.as_if_from(pages_from),
        block_tokens: BLOCK_TOKENS as u32,
        head_dim: head_dim as u32,
        half: half as u32,
        block_heads: block_heads as u32,
        eps: 1e-5,
        reserved: 0,
    };
    let head_tiles = heads.div_ceil(block_heads) + 2 * kv_heads.div_ceil(block_heads);
    let row_bytes = block_heads * head_dim * 4;
    if tiles.is_some() {
        let grid = [plan.blocks(), head_tiles as u32, 1];
        let shared = (RANK_TILE_BYTES + row_bytes) * ROW_TILE;
        kernels.launch("rope_store_tiles", grid, 128, shared, &args);
    } else {
        kernels.launch("rope_store", grid(0, n, head_tiles), 128, row_bytes, &args);
    }
    Stored { q: qkv_at.floats(), keys: keys.floats(), values: values.floats() }
}

fn check_rope(kernels: &Kernels, rng: &mut Rng, shape: Rope) {
    let inputs = Inputs::random(kernels, rng, shape);
    let stored = rope_and_store(kernels, shape, &inputs);
    let [q, k, v] = [0, 1, 2].map(|linear| inputs.finished(kernels, shape, linear));
    for (row, expected) in q.iter().enumerate() {
        for (d, expected) in expected.iter().enumerate() {
            assert_close(stored.q[row * inputs.stride() + d], *expected, kernels.x, 3.0, "q");
        }
    }
    check_pages(kernels, &stored.keys, shape, &inputs.places, &k);
    check_pages(kernels, &stored.values, shape, &inputs.places, &v);
}

/// A row of q, k or v (linear 0, 1, 2) after adapters, norm of each head and rotation.
fn finished(
    kernels: &Kernels,
    places: &Places,
    linear: &Linear<'_>,
    row: usize,
    head_dim: usize,
    norm: Option<&[Vec<f32>; 2]>,
) -> Vec<(f64, f64)> {
    if linear.linear == 2 {
        return linear.row(row);
    }
    let head = |raw: &[(f64, f64)]| {
        let Some([weight, shift]) = norm else { return places.rotate(row, raw) };
        let stored: Vec<f64> = raw.iter().map(|v| f64::from(kernels.x.round(v.0 as f32))).collect();
        let parts = &linear.plan.rows[row];
        let normed: Vec<(f64, f64)> = (0..raw.len())
            .map(|d| {
                let (value, size) = normed(linear.world, parts, 3, &stored, d, weight, Some(shift));
                // An error of what is normed counts as a share of it.
                (value, size * (1.0 + raw[d].1 / raw[d].0.abs().max(1e-3)))
            })
            .collect();
        places.rotate(row, &normed)
    };
    linear.row(row).chunks(head_dim).flat_map(head).collect()
}

/// Every row's cells of the pages hold its heads, and no other cell is touched.
fn check_pages(
    kernels: &Kernels,
    pages: &[f32],
    shape: Rope,
    places: &Places,
    rows: &[Vec<(f64, f64)>],
) {
    let coarser =
        if kernels.x.half_step() > kernels.kv.half_step() { kernels.x } else { kernels.kv };
    let mut stored = vec![false; pages.len()];
    for (row, heads) in rows.iter().enumerate() {
        for (head, expected) in heads.chunks(shape.head_dim).enumerate() {
            let cell = places.cell(shape, row, head);
            for (d, expected) in expected.iter().enumerate() {
                stored[cell + d] = true;
                assert_close(pages[cell + d], *expected, coarser, 3.0, "k or v in its page");
            }
        }
    }
    let strays = pages.iter().zip(&stored).filter(|(x, stored)| !**stored && !x.is_nan());
    assert_eq!(strays.count(), 0, "other cells of the pages are touched");
}

#[test]
fn rope_rotates_q_and_k_and_stores_k_and_v_where_their_positions_are() {
    let rng = &mut fresh();
    let shape = Rope {
        n: 5,
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        half: 4,
        norms: false,
        first_block: 0,
        tiles: None,
    };
    let all = all_kernels("rope.cu");
    let each = all.iter().flat_map(|kernels| [None, Some(MIXED_TILES)].map(|t| (kernels, t)));
    for (kernels, tiles) in each {
        let shape = Rope { tiles, ..shape };
        check_rope(kernels, rng, Rope { n: 0, ..shape });
        check_rope(kernels, rng, Rope { n: 33, ..shape });
        check_rope(kernels, rng, Rope { head_dim: 10, half: 3, ..shape });
        check_rope(kernels, rng, Rope { heads: 3, kv_heads: 1, head_dim: 128, half: 64, ..shape });
        check_rope(kernels, rng, Rope { norms: true, head_dim: 64, half: 32, ..shape });
        check_rope(kernels, rng, Rope { first_block: 1_000_000_000, ..shape });
    }
}
