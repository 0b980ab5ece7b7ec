//! Paged attention against softmax(q kᵀ · scale) v in f64.

use super::device::{Buffer, Kernels, Width, all_kernels};
use super::step::{assert_close, fresh, values};
use crate::Rng;
use tessera::backend::cuda::args::{Attention, Tile};

#[derive(Clone, Copy)]
struct Shape {
    /// Positions before the step, and rows of the step, of each sequence.
    spans: &'static [(usize, usize)],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    block_tokens: usize,
    window: usize,
    /// Of the sequences, in turn.
    split_tokens: &'static [u32],
    /// Pages pretend to be numbered from here.
    first_block: u32,
}

const SHAPE: Shape = Shape {
    spans: &[(0, 1), (70, 1), (300, 1), (15, 1)],
    heads: 8,
    kv_heads: 2,
    head_dim: 64,
    block_tokens: 16,
    window: 0,
    split_tokens: &[64],
    first_block: 0,
};

/// The widest head that a kernel takes, queries of a tile, bytes of shared memory.
fn kernel(name: &str, shape: &Shape) -> (usize, usize) {
    let queries = if name.contains("prefill") { 64 } else { 16 };
    let padded = match name.rsplit('_').next().unwrap() {
        "any" => return (queries, (2 * shape.head_dim + 128 + 32) * 4),
        width => width.parse::<usize>().unwrap(),
    };
    let stages = if padded == 256 { 1 } else { 2 };
    (queries, (queries + 2 * stages * 64) * (padded + 8) * 2)
}

struct Cache {
    tables: Vec<u32>,
    row_table: Vec<u32>,
    positions: Vec<u32>,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Pages in a shuffled order; NaN where no position is.
fn cache(rng: &mut Rng, kv: Width, shape: &Shape) -> Cache {
    let Shape { kv_heads, head_dim, block_tokens, .. } = *shape;
    let pages_of = |&(before, len): &(usize, usize)| (before + len).div_ceil(block_tokens);
    let pages: usize = shape.spans.iter().map(pages_of).sum();
    let mut order: Vec<u32> = (0..pages as u32).collect();
    (0..pages).for_each(|i| order.swap(i, rng.below(pages)));
    let cells = pages * kv_heads * block_tokens * head_dim;
    let mut all = Cache {
        tables: order.iter().map(|block| block + shape.first_block).collect(),
        row_table: Vec::new(),
        positions: Vec::new(),
        keys: vec![f32::NAN; cells],
        values: vec![f32::NAN; cells],
    };
    let mut start = 0;
    for span in shape.spans {
        let &(before, len) = span;
        for position in 0..before + len {
            for head in 0..kv_heads {
                let at = at(&all.tables[start..], shape, head, position);
                all.keys[at..at + head_dim].copy_from_slice(&values(rng, kv, head_dim));
                all.values[at..at + head_dim].copy_from_slice(&values(rng, kv, head_dim));
            }
        }
        all.positions.extend((before..before + len).map(|p| p as u32));
        all.row_table.extend((0..len).map(|_| start as u32));
        start += pages_of(span);
    }
    all
}

fn at(table: &[u32], shape: &Shape, head: usize, position: usize) -> usize {
    let page = (table[position / shape.block_tokens] - shape.first_block) as usize;
    let cell = (page * shape.kv_heads + head) * shape.block_tokens;
    (cell + position % shape.block_tokens) * shape.head_dim
}

fn tiles(shape: &Shape, queries: usize) -> Vec<Tile> {
    let group = shape.heads / shape.kv_heads;
    let mut row = 0;
    let (mut all, mut before) = (Vec::new(), 0);
    for (&(_, len), &split_tokens) in shape.spans.iter().zip(shape.split_tokens.iter().cycle()) {
        let firsts = (0..(len * group) as u32).step_by(queries);
        let tile =
            |first| Tile { row, rows: len as u32, first, before: before + first, split_tokens };
        all.extend(firsts.map(tile));
        before += (len * group) as u32;
        row += len as u32;
    }
    all
}

/// Elements from one row of q to the next: more than needed, as in a matrix that holds k and v too.
fn q_stride(shape: &Shape) -> usize {
    shape.heads * shape.head_dim + 8
}

/// What a kernel gives.
fn attend(kernels: &Kernels, name: &str, shape: &Shape, cache: &Cache, q: &[f32]) -> Vec<f32> {
    let Shape { heads, kv_heads, head_dim, .. } = *shape;
    let (queries, shared) = kernel(name, shape);
    let n = cache.positions.len();
    let tiles = tiles(shape, queries);
    let longest = cache.positions.iter().max().map_or(1, |p| *p as usize + 1);
    let splits_max = longest.div_ceil(64) + 1;
    let block = kv_heads * shape.block_tokens * head_dim;
    let pages_from = u64::from(shape.first_block) * block as u64;
    let [keys, values] = [&cache.keys, &cache.values].map(|values| Buffer::of(kernels.kv, values));
    let keep = [
        Buffer::raw(&cache.positions),
        Buffer::raw(&cache.row_table),
        Buffer::raw(&cache.tables),
        Buffer::raw(&tiles),
        Buffer::raw(&[tiles.len() as u32]),
        Buffer::of(kernels.x, q),
    ];
    let out = Buffer::poison(kernels.x, n * heads * head_dim);
    let partial = Buffer::poison(Width::F32, n * heads * splits_max * head_dim);
    let sums = Buffer::poison(Width::F32, n * heads * splits_max * 2);
    let args = Attention {
        q: keep[5].at(),
        q_stride: q_stride(shape) as u64,
        out: out.at(),
        keys: keys.as_if_from(pages_from),
        values: values.as_if_from(pages_from),
        positions: keep[0].at(),
        row_table: keep[1].at(),
        block_tables: keep[2].at(),
        tiles: keep[3].at(),
        tile_count: keep[4].at(),
        partial: partial.at(),
        partial_sums: sums.at(),
        heads: heads as u32,
        kv_heads: kv_heads as u32,
        head_dim: head_dim as u32,
        block_tokens: shape.block_tokens as u32,
        window: shape.window as u32,
        splits_max: splits_max as u32,
        scale: scale(shape),
        reserved: 0,
    };
    // Fewer blocks than splits and tiles: both are taken in turn.
    kernels.launch(name, [2, kv_heads as u32, 3], 128, shared, &args);
    kernels.launch("attention_combine", [64, kv_heads as u32, 2], 128, 0, &args);
    let (out, _, _) = (out.floats(), partial.floats(), sums.floats());
    out
}

fn scale(shape: &Shape) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

/// softmax(q kᵀ · scale) v of one head in one row; each number with the size of its terms.
fn exact(shape: &Shape, cache: &Cache, row: usize, head: usize, q: &[f64]) -> Vec<(f64, f64)> {
    let last = cache.positions[row] as usize;
    let first = if shape.window == 0 { 0 } else { (last + 1).saturating_sub(shape.window) };
    let table = &cache.tables[cache.row_table[row] as usize..];
    let cell = |position| at(table, shape, head * shape.kv_heads / shape.heads, position);
    let score = |position: usize| {
        let key = &cache.keys[cell(position)..][..shape.head_dim];
        let dot = q.iter().zip(key).map(|(q, k)| q * f64::from(*k)).sum::<f64>();
        dot * f64::from(scale(shape))
    };
    let scores: Vec<f64> = (first..=last).map(score).collect();
    let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - highest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let at = |d: usize| {
        let of = |(position, weight): (usize, &f64)| {
            weight / sum * f64::from(cache.values[cell(position) + d])
        };
        let terms = (first..=last).zip(&weights).map(of);
        terms.fold((0.0, 0.0), |(value, size), term| (value + term, size + term.abs()))
    };
    (0..shape.head_dim).map(at).collect()
}

fn check(kernels: &Kernels, rng: &mut Rng, name: &str, shape: Shape) {
    let Shape { heads, head_dim, .. } = shape;
    let cache = cache(rng, kernels.kv, &shape);
    let (n, stride) = (cache.positions.len(), q_stride(&shape));
    let q = values(rng, kernels.x, n * stride);
    let q: Vec<f32> = q.into_iter().map(|x| kernels.x.round(3.0 * x)).collect();
    let out = attend(kernels, name, &shape, &cache, &q);
    let tensor_cores = name != "attention_any";
    // Tensor cores take q in the width of the keys, and the weights in that of the values.
    let taken = |&x: &f32| f64::from(if tensor_cores { kernels.kv.round(x) } else { x });
    let blur = if tensor_cores { 2.0 * kernels.kv.half_step() } else { 0.0 };
    for row in 0..n {
        for head in 0..heads {
            let q: Vec<f64> =
                q[row * stride + head * head_dim..][..head_dim].iter().map(taken).collect();
            for (d, (value, size)) in exact(&shape, &cache, row, head, &q).into_iter().enumerate() {
                let what = format!("{name} row {row} head {head} d {d}");
                let actual = out[(row * heads + head) * head_dim + d];
                let error = (f64::from(actual) - value).abs() - blur * size;
                if error > 0.0 {
                    // Scores of some tens, in f32.
                    assert_close(actual, (value, 4.0 * size * (1.0 + blur)), kernels.x, 1.0, &what);
                }
                assert!(actual.is_finite(), "{what}: {actual}");
            }
        }
    }
}

/// Split lengths side by side in one launch.
const MIXED: &[u32] = &[128, 64, 192, 1 << 30];
/// Ragged steps: single tokens, prompts, chunks of prompts.
const RAGGED: &[(usize, usize)] = &[(0, 33), (90, 1), (64, 20), (0, 1), (129, 7)];

#[test]
fn decode_sums_the_splits_of_every_context_in_order() {
    let rng = &mut fresh();
    for kernels in all_kernels("attention.cu").into_iter().filter(|k| k.kv != Width::F32) {
        let check = |rng: &mut Rng, name: &str, shape| check(&kernels, rng, name, shape);
        check(rng, "attention_decode_64", SHAPE);
        check(rng, "attention_decode_64", Shape { spans: &[], ..SHAPE });
        check(rng, "attention_decode_64", Shape { window: 50, ..SHAPE });
        check(rng, "attention_decode_64", Shape { head_dim: 40, block_tokens: 5, ..SHAPE });
        // More heads share a key than a tile has queries.
        check(rng, "attention_decode_64", Shape { heads: 20, kv_heads: 1, ..SHAPE });
        check(rng, "attention_decode_64", Shape { first_block: 2_000_000_000, ..SHAPE });
        check(rng, "attention_decode_64", Shape { split_tokens: &[1 << 30], ..SHAPE });
        check(rng, "attention_decode_64", Shape { spans: RAGGED, window: 40, ..SHAPE });
        check(rng, "attention_decode_64", Shape { split_tokens: MIXED, ..SHAPE });
        check(rng, "attention_decode_64", Shape { split_tokens: MIXED, window: 150, ..SHAPE });
        let wide = Shape { heads: 4, kv_heads: 2, spans: &[(70, 1), (3, 1)], ..SHAPE };
        check(rng, "attention_decode_128", Shape { head_dim: 128, ..wide });
        check(rng, "attention_decode_256", Shape { head_dim: 256, ..wide });
    }
}

#[test]
fn prefill_sees_each_rows_own_past_and_window() {
    let rng = &mut fresh();
    for kernels in all_kernels("attention.cu").into_iter().filter(|k| k.kv != Width::F32) {
        let check = |rng: &mut Rng, name: &str, shape| check(&kernels, rng, name, shape);
        let shape = Shape { spans: RAGGED, split_tokens: &[1 << 30], ..SHAPE };
        check(rng, "attention_prefill_64", shape);
        check(rng, "attention_prefill_64", Shape { window: 30, ..shape });
        check(
            rng,
            "attention_prefill_64",
            Shape { split_tokens: &[64, 1 << 30], window: 100, ..shape },
        );
        check(rng, "attention_prefill_64", Shape { head_dim: 24, block_tokens: 3, ..shape });
        let wide = Shape { heads: 4, kv_heads: 2, spans: &[(20, 40), (3, 1)], ..shape };
        check(rng, "attention_prefill_128", Shape { head_dim: 128, ..wide });
        check(rng, "attention_prefill_256", Shape { head_dim: 256, split_tokens: &[64], ..wide });
    }
}

#[test]
fn attention_without_tensor_cores_takes_every_width_and_head() {
    let rng = &mut fresh();
    for kernels in all_kernels("attention.cu") {
        let check = |rng: &mut Rng, shape| check(&kernels, rng, "attention_any", shape);
        check(rng, SHAPE);
        check(rng, Shape { split_tokens: MIXED, ..SHAPE });
        check(rng, Shape { head_dim: 17, block_tokens: 3, window: 100, ..SHAPE });
        check(rng, Shape { spans: &[(130, 9), (0, 2)], head_dim: 33, ..SHAPE });
        check(rng, Shape { first_block: 2_000_000_000, heads: 2, ..SHAPE });
    }
}
