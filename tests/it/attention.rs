//! Attention over pages against its definition in f64, and what must not change its bits.

use tessera::backend::cpu::{Cpu, Matrix};
use tessera::backend::{AttentionOps, AttentionShape, Device, KvShape, Rows};
use tessera::dtype::Dtype;
use tessera::ids::BlockId;
use tessera::recipe::Recipe;

use crate::Rng;
use crate::backend::{in_step, rope};

/// Two layers; the sequences' pages are dealt out in no order.
struct Case {
    kv_shape: KvShape,
    shape: AttentionShape,
    /// For each sequence: its pages, and q, k and v of every position.
    sequences: Vec<Sequence>,
}

struct Sequence {
    block_table: Vec<BlockId>,
    q: Vec<Vec<f32>>,
    k: Vec<Vec<f32>>,
    v: Vec<Vec<f32>>,
}

fn case(rng: &mut Rng, lens: &[usize], dtype: Dtype, window: Option<u32>) -> Case {
    let kv_heads = 1 + rng.below(3);
    let heads = kv_heads * (1 + rng.below(4));
    let head_dim = 2 * (1 + rng.below(40));
    let block_tokens = [4, 16, 7][rng.below(3)];
    let blocks = lens.iter().map(|len| len.div_ceil(block_tokens)).sum::<usize>() + 3;
    let mut free: Vec<u32> = (0..blocks as u32).collect();
    let mut block = |rng: &mut Rng| BlockId(free.swap_remove(rng.below(free.len())));
    let sequences = lens
        .iter()
        .map(|&len| Sequence {
            block_table: (0..len.div_ceil(block_tokens)).map(|_| block(rng)).collect(),
            q: (0..len).map(|_| rng.vec(heads * head_dim)).collect(),
            k: (0..len).map(|_| rng.vec(kv_heads * head_dim)).collect(),
            v: (0..len).map(|_| rng.vec(kv_heads * head_dim)).collect(),
        })
        .collect();
    let kv_shape = KvShape { layers: 2, kv_heads, head_dim, blocks, block_tokens, dtype };
    let scale = 2.0 / (head_dim as f32).sqrt();
    Case { kv_shape, shape: AttentionShape { heads, kv_heads, head_dim, scale, window }, sequences }
}

/// Runs steps, each a list of (sequence, positions from, to), on a cache full of NaN; returns the
/// output of every position of every sequence.
fn run(case: &Case, steps: &[Vec<(usize, usize, usize)>], threads: usize) -> Vec<Vec<Vec<f32>>> {
    let cpu = Cpu::new(threads);
    let head_dim = case.shape.head_dim;
    let longest = case.sequences.iter().map(|s| s.q.len()).max().unwrap();
    let table = cpu.upload_rope(rope(head_dim / 2, longest.max(case.kv_shape.block_tokens)));
    let mut kv = cpu.kv(case.kv_shape).unwrap();
    let slots = cpu.slots(0);
    let (q_width, width) = (case.shape.heads * head_dim, case.kv_shape.kv_heads * head_dim);
    for block in 0..case.kv_shape.blocks {
        for layer in 0..2 {
            let n = case.kv_shape.block_tokens;
            let mut rows = Rows::default();
            rows.push(&vec![0; n], 0, &Recipe::base(), vec![BlockId(block as u32)]);
            let nan = |cols: usize| Matrix::new(vec![f32::NAN; n * cols], cols);
            in_step(&cpu, &rows, &slots, |step| {
                let qkv = [nan(q_width), nan(width), nan(width)];
                cpu.rope_and_store(qkv, &table, layer, &mut kv, step)
            });
        }
    }
    let mut outs: Vec<Vec<Vec<f32>>> =
        case.sequences.iter().map(|s| vec![Vec::new(); s.q.len()]).collect();
    for step in steps {
        let mut rows = Rows::default();
        let [mut q, mut k, mut v] = [const { Vec::new() }; 3];
        for &(s, from, to) in step {
            let sequence = &case.sequences[s];
            q.extend(sequence.q[from..to].concat());
            k.extend(sequence.k[from..to].concat());
            v.extend(sequence.v[from..to].concat());
            let pages = sequence.block_table.clone();
            rows.push(&vec![0; to - from], from as u32, &Recipe::base(), pages);
        }
        let out = in_step(&cpu, &rows, &slots, |step| {
            let matrix = |values: &Vec<f32>, cols: usize| Matrix::new(values.clone(), cols);
            let qkv = [matrix(&q, q_width), matrix(&k, width), matrix(&v, width)];
            let q = cpu.rope_and_store(qkv, &table, 1, &mut kv, step);
            cpu.attention(&q, &case.shape, 1, &kv, step)
        });
        let mut row = 0;
        for &(s, from, to) in step {
            for position in from..to {
                outs[s][position] = out.row(row).to_vec();
                row += 1;
            }
        }
    }
    outs
}

/// Rotated by the textbook: each pair (i, i + half) as a complex number.
fn rotated(x: &[f32], position: usize, head_dim: usize) -> Vec<f64> {
    let half = head_dim / 2;
    let mut out = vec![0.0; x.len()];
    for (at, out) in out.iter_mut().enumerate() {
        let (head, i) = (at / head_dim, at % head_dim);
        let x = |i: usize| f64::from(x[head * head_dim + i]);
        let angle = position as f64 * 10000f64.powf(-((i % half) as f64) / half as f64);
        *out = if i < half {
            x(i) * angle.cos() - x(i + half) * angle.sin()
        } else {
            x(i) * angle.cos() + x(i - half) * angle.sin()
        };
    }
    out
}

fn exact(case: &Case, sequence: &Sequence, position: usize) -> Vec<f64> {
    let AttentionShape { heads, kv_heads, head_dim, scale, window } = case.shape;
    let q = rotated(&sequence.q[position], position, head_dim);
    let first = window.map_or(0, |window| (position + 1).saturating_sub(window as usize));
    let keys: Vec<Vec<f64>> =
        (first..=position).map(|p| rotated(&sequence.k[p], p, head_dim)).collect();
    let mut out = Vec::new();
    for head in 0..heads {
        let kv_head = head / (heads / kv_heads);
        let q = &q[head * head_dim..][..head_dim];
        let score = |k: &Vec<f64>| {
            let k = &k[kv_head * head_dim..][..head_dim];
            (q.iter().zip(k).map(|(a, b)| a * b).sum::<f64>() * f64::from(scale)).exp()
        };
        let weights: Vec<f64> = keys.iter().map(score).collect();
        let sum: f64 = weights.iter().sum();
        for d in 0..head_dim {
            let value = |(i, w): (usize, &f64)| {
                w / sum * f64::from(sequence.v[first + i][kv_head * head_dim + d])
            };
            out.push(weights.iter().enumerate().map(value).sum());
        }
    }
    out
}

fn whole(case: &Case) -> Vec<Vec<(usize, usize, usize)>> {
    vec![case.sequences.iter().enumerate().map(|(s, q)| (s, 0, q.q.len())).collect()]
}

/// Every sequence alone or with others, in chunks of random length.
fn random_steps(rng: &mut Rng, case: &Case) -> Vec<Vec<(usize, usize, usize)>> {
    let mut done = vec![0; case.sequences.len()];
    let mut steps = Vec::new();
    while (0..done.len()).any(|s| done[s] < case.sequences[s].q.len()) {
        let mut step = Vec::new();
        for (s, done) in done.iter_mut().enumerate() {
            let left = case.sequences[s].q.len() - *done;
            if left > 0 && rng.below(3) > 0 {
                let most = 1 + rng.below(30);
                let take = (1 + rng.below(most)).min(left);
                step.push((s, *done, *done + take));
                *done += take;
            }
        }
        if !step.is_empty() {
            steps.push(step);
        }
    }
    steps
}

#[test]
fn attention_agrees_with_f64_and_never_reads_beyond_a_sequence() {
    let mut rng = Rng(1);
    for round in 0..12 {
        let (dtype, tolerance) =
            [(Dtype::F32, 2e-5), (Dtype::F16, 4e-3), (Dtype::BF16, 3e-2)][round % 3];
        let window = [None, Some(5), Some(1), Some(40)][round % 4];
        let lens = [1 + rng.below(60), 1, 1 + rng.below(20)];
        let case = case(&mut rng, &lens, dtype, window);
        // The cache held NaN everywhere: any read of a cell not written would show.
        let outs = run(&case, &whole(&case), 2);
        for (s, sequence) in case.sequences.iter().enumerate() {
            for (position, found) in outs[s].iter().enumerate() {
                let exact = exact(&case, sequence, position);
                for (found, exact) in found.iter().zip(exact) {
                    let error = (f64::from(*found) - exact).abs();
                    assert!(error < tolerance, "round {round}: {found}, expected {exact}");
                }
            }
        }
    }
}

#[test]
fn attention_has_the_same_bits_however_a_prompt_is_cut_and_whoever_shares_the_step() {
    let mut rng = Rng(2);
    for round in 0..15 {
        let dtype = [Dtype::F32, Dtype::F16, Dtype::BF16][round % 3];
        let window = [None, Some(9)][round % 2];
        let lens = [40 + rng.below(90), 1 + rng.below(50), 1 + rng.below(20)];
        let case = case(&mut rng, &lens, dtype, window);
        let at_once = run(&case, &whole(&case), 2);
        let cut = run(&case, &random_steps(&mut rng, &case), 1 + round % 3);
        assert_eq!(at_once, cut, "round {round}");
    }
}
