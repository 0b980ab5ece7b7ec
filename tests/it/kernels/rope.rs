//! Rotary positions and the store of keys and values, with the linears' adapters and head norms.

use super::args::{RANK_TILE_BYTES, RopeInput, RopeStore};
use super::device::{Buffer, Kernels, Width, all_kernels};
use super::rows::{Linear, grid, linear_specs, norm_specs, normed};
use super::step::{Plan, Planes, World, assert_close, fresh, rows, values};
use crate::Rng;

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
}

const BLOCK_TOKENS: usize = 4;

fn check_rope(kernels: &Kernels, rng: &mut Rng, shape: Rope) {
    let Rope { n, heads, kv_heads, head_dim, half, norms, first_block } = shape;
    let widths = [heads, kv_heads, kv_heads].map(|h| h * head_dim);
    let mut specs = linear_specs(3, &widths);
    for (slot, norm) in specs.iter_mut().zip(norm_specs(head_dim)) {
        slot.extend(norm);
    }
    let world = World::new(rng, kernels.p, &specs, 0);
    let plan = Plan::new(rows(rng, n));
    let planes = Planes::random(rng, &world, &plan, &[0, 1, 2]);
    // q, k and v as one matrix, as one GEMM gives them.
    let stride: usize = widths.iter().sum();
    let qkv = values(rng, kernels.x, n * stride);
    let qkv_at = Buffer::of(kernels.x, &qkv);
    let biases = widths.map(|w| Some(rng.vec(w)));
    let bias_at = biases.each_ref().map(|b| Buffer::of(Width::F32, b.as_ref().unwrap()));
    let weight = rng.vec(head_dim);
    let weight_at = Buffer::of(Width::F32, &weight);
    let positions: Vec<u32> = (0..n).map(|_| rng.below(11) as u32).collect();
    let angles: Vec<f32> = rng.vec(11 * half);
    let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|a| (a.cos(), a.sin())).unzip();
    // Each row is its own sequence of three pages.
    let tables: Vec<u32> = (0..3 * n as u32).map(|i| first_block + i).rev().collect();
    let row_table: Vec<u32> = (0..n as u32).map(|i| 3 * i).collect();
    let cell = kv_heads * BLOCK_TOKENS * head_dim;
    let [keys, values] = [(); 2].map(|()| Buffer::poison(kernels.kv, 3 * n * cell));
    let pages_from = u64::from(first_block) * cell as u64;
    let starts = [0, widths[0], widths[0] + widths[1]];
    let input = |i: usize| RopeInput {
        x: qkv_at.at() + (starts[i] * kernels.x.bytes()) as u64,
        row_stride: stride as u64,
        bias: bias_at[i].at(),
        norm_weight: if norms && i < 2 { weight_at.at() } else { 0 },
        heads: [heads, kv_heads, kv_heads][i] as u32,
        site: i as u32,
        norm_site: 3,
        reserved: 0,
    };
    let block_heads = (1024 / head_dim).clamp(1, 2);
    let keep = [
        Buffer::of(Width::F32, &cos),
        Buffer::of(Width::F32, &sin),
        Buffer::raw(&positions),
        Buffer::raw(&row_table),
        Buffer::raw(&tables),
    ];
    let args = RopeStore {
        q: input(0),
        k: input(1),
        v: input(2),
        deltas: planes.deltas(&plan, &world, 0),
        cos: keep[0].at(),
        sin: keep[1].at(),
        positions: keep[2].at(),
        row_table: keep[3].at(),
        block_tables: keep[4].at(),
        keys: keys.as_if_from(pages_from),
        values: values.as_if_from(pages_from),
        block_tokens: BLOCK_TOKENS as u32,
        head_dim: head_dim as u32,
        half: half as u32,
        block_heads: block_heads as u32,
        eps: 1e-5,
        reserved: 0,
    };
    let tiles = heads.div_ceil(block_heads) + 2 * kv_heads.div_ceil(block_heads);
    let shared = RANK_TILE_BYTES + block_heads * head_dim * 4;
    kernels.launch("rope_store", grid(0, n, tiles), 128, shared, &args);

    let (qkv_after, pages) = (qkv_at.floats(), [keys.floats(), values.floats()]);
    let mut stored = [vec![false; pages[0].len()], vec![false; pages[1].len()]];
    for i in 0..3 {
        let part = |r: usize| &qkv[r * stride + starts[i]..][..widths[i]];
        let y: Vec<f32> = (0..n).flat_map(part).copied().collect();
        let linear = Linear {
            world: &world,
            plan: &plan,
            planes: &planes,
            y: &y,
            bias: &biases[i],
            cols: widths[i],
            linear: i,
        };
        for row in 0..n {
            let all = linear.row(row);
            for head in 0..widths[i] / head_dim {
                let raw = all[head * head_dim..][..head_dim].to_vec();
                // Rounding of what is normed is magnified where a head is small.
                let rounded: Vec<f64> =
                    raw.iter().map(|v| f64::from(kernels.x.round(v.0 as f32))).collect();
                let x: Vec<(f64, f64)> = if norms && i < 2 {
                    let of = |d| {
                        let (value, size) =
                            normed(&world, &plan.rows[row], 3, &rounded, d, &weight, None);
                        let blur = raw[d].1 / raw[d].0.abs().max(1e-3);
                        (value, size * (1.0 + blur))
                    };
                    (0..head_dim).map(of).collect()
                } else {
                    raw
                };
                for d in 0..head_dim {
                    let mut expected = x[d];
                    if i < 2 && d < 2 * half {
                        let at = positions[row] as usize * half + d % half;
                        let (c, s) = (f64::from(cos[at]), f64::from(sin[at]));
                        let other = x[(d + half) % (2 * half)];
                        let sign = if d < half { -1.0 } else { 1.0 };
                        let size = (x[d].1 * c).abs() + (other.1 * s).abs();
                        expected = (x[d].0 * c + sign * other.0 * s, size);
                    }
                    if i == 0 {
                        let actual = qkv_after[row * stride + head * head_dim + d];
                        assert_close(actual, expected, kernels.x, 3.0, "q");
                        continue;
                    }
                    let position = positions[row] as usize;
                    let page = tables[3 * row + position / BLOCK_TOKENS] - first_block;
                    let at = page as usize * cell
                        + (head * BLOCK_TOKENS + position % BLOCK_TOKENS) * head_dim
                        + d;
                    stored[i - 1][at] = true;
                    let wider = if kernels.x.half_step() > kernels.kv.half_step() {
                        kernels.x
                    } else {
                        kernels.kv
                    };
                    assert_close(pages[i - 1][at], expected, wider, 3.0, "k or v in its page");
                }
            }
        }
    }
    for (page, stored) in pages.iter().zip(&stored) {
        let strays = page.iter().zip(stored).filter(|(x, stored)| !**stored && !x.is_nan());
        assert_eq!(strays.count(), 0, "other cells of the pages are touched");
    }
}

#[test]
fn rope_rotates_q_and_k_and_stores_k_and_v_where_their_positions_are() {
    let rng = &mut fresh();
    let shape =
        Rope { n: 5, heads: 4, kv_heads: 2, head_dim: 8, half: 4, norms: false, first_block: 0 };
    for kernels in all_kernels("rope.cu") {
        check_rope(&kernels, rng, Rope { n: 0, ..shape });
        check_rope(&kernels, rng, Rope { n: 33, ..shape });
        check_rope(&kernels, rng, Rope { head_dim: 10, half: 3, ..shape });
        check_rope(&kernels, rng, Rope { heads: 3, kv_heads: 1, head_dim: 128, half: 64, ..shape });
        check_rope(&kernels, rng, Rope { norms: true, head_dim: 64, half: 32, ..shape });
        check_rope(&kernels, rng, Rope { first_block: 1_000_000_000, ..shape });
    }
}
