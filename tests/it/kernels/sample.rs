//! The sampler against its rules, applied one token after the other, and against the CPU's.

use tessera::backend::cpu::{Cpu, Matrix};
use tessera::backend::{Backend, SampleRow};
use tessera::request::SamplingParams;

use super::device::{Buffer, Grid, Kernels, Width, kernels};
use super::step::fresh;
use crate::Rng;
use crate::cuda::card::is_real;
use tessera::backend::cuda::args::{Sample, SampleParams};

/// The exponential both samplers use (Cephes' polynomial): a draw is defined by its bits.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0 + 127.0;
    let x = x.clamp(-88.0, 89.0);
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let coefficients: [f32; 5] = [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5];
    let p = coefficients.iter().fold(1.987_569_1e-4_f32, |p, c| p.mul_add(r, *c));
    (p.mul_add(r * r, r) + 1.0) * f32::from_bits(shifted.to_bits() << 23)
}

fn uniform(seed: u64, step: u64) -> f64 {
    let mix = |z: u64| {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let golden = 0x9E37_79B9_7F4A_7C15_u64;
    let stream = mix(seed.wrapping_add(golden));
    let bits = mix(stream.wrapping_add(step.wrapping_add(1).wrapping_mul(golden)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

struct Expected {
    token: Option<usize>,
    logprob: f64,
    top: Vec<(usize, f64)>,
}

fn expected(logits: &[f32], p: &SampleParams) -> Expected {
    let clean = |&l: &f32| if l.is_finite() { l + 0.0 } else { f32::NEG_INFINITY };
    let logits: Vec<f32> = logits.iter().map(clean).collect();
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if best == f32::NEG_INFINITY {
        return Expected { token: None, logprob: f64::NEG_INFINITY, top: Vec::new() };
    }
    let sum: f64 = logits.iter().map(|l| f64::from(l - best).exp()).sum();
    let logprob = |id: usize| f64::from(logits[id] - best) - sum.ln();
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let top = ranked.iter().take(p.top as usize).map(|&id| (id, logprob(id)));
    let top = top.filter(|(_, logprob)| logprob.is_finite()).collect();
    let token = if p.temperature == 0.0 {
        ranked[0]
    } else {
        let weight = |id: usize| {
            let below = logits[id] - best;
            exp(if p.temperature == 1.0 { below } else { below / p.temperature })
        };
        draw(ranked, |id| f64::from(weight(id)), p)
    };
    Expected { token: Some(token), logprob: logprob(token), top }
}

fn draw(mut ranked: Vec<usize>, weight: impl Fn(usize) -> f64, p: &SampleParams) -> usize {
    let vocabulary = ranked.len();
    let top_k = if p.top_k == 0 { vocabulary } else { vocabulary.min(p.top_k as usize) };
    if top_k == vocabulary && p.top_p >= 1.0 && p.min_p == 0.0 {
        ranked.sort_unstable();
    } else {
        ranked.truncate(top_k);
        let mass: f64 = ranked.iter().map(|&id| weight(id)).sum();
        let mut reached = 0.0;
        let mut kept = 0;
        for &id in &ranked {
            let enough = p.top_p < 1.0 && reached >= f64::from(p.top_p) * mass;
            if kept > 0 && (enough || weight(id) < f64::from(p.min_p)) {
                break;
            }
            reached += weight(id);
            kept += 1;
        }
        ranked.truncate(kept);
    }
    let target = uniform(p.seed, p.step) * ranked.iter().map(|&id| weight(id)).sum::<f64>();
    let mut reached = 0.0;
    let passes = |&&id: &&usize| {
        reached += weight(id);
        reached > target
    };
    *ranked.iter().find(passes).unwrap_or_else(|| ranked.last().unwrap())
}

fn cpu_token(cpu: &Cpu, logits: &[f32], p: &SampleParams) -> Option<u32> {
    let SampleParams { temperature, top_p, top_k, min_p, seed, .. } = *p;
    let params = SamplingParams { temperature, top_p, top_k, min_p, seed };
    let row = SampleRow { params, step: p.step, logprobs: None };
    cpu.sample(&Matrix::new(logits.to_vec(), logits.len()), &[row]).unwrap().remove(0).token
}

fn check(
    kernels: &Kernels,
    threads: u32,
    vocabulary: usize,
    first_row: u32,
    rows: &[(Vec<f32>, SampleParams)],
) {
    let m = rows.len();
    let top_max = 5;
    let logits: Vec<f32> = rows.iter().flat_map(|(logits, _)| logits).copied().collect();
    let params: Vec<SampleParams> = rows.iter().map(|(_, p)| *p).collect();
    let (logits_at, params_at) = (Buffer::of(Width::F32, &logits), Buffer::raw(&params));
    let [tokens, logprobs] = [(); 2].map(|()| Buffer::poison(Width::F32, m));
    let [top_tokens, top_logprobs] = [(); 2].map(|()| Buffer::poison(Width::F32, m * top_max));
    let first = u64::from(first_row);
    let params_words = (size_of::<SampleParams>() / 4) as u64;
    let args = Sample {
        logits: logits_at.as_if_from(first * vocabulary as u64),
        params: params_at.as_if_from(first * params_words),
        tokens: tokens.as_if_from(first),
        logprobs: logprobs.as_if_from(first),
        top_tokens: top_tokens.as_if_from(first * top_max as u64),
        top_logprobs: top_logprobs.as_if_from(first * top_max as u64),
        vocabulary: vocabulary as u32,
        top_max: top_max as u32,
    };
    let end = [first_row + m as u32, 1, 1];
    let grid = Grid { size: end, first: [first_row, 0, 0], end };
    kernels.launch("sample", grid, threads, 24_856, &args);
    let (tokens, logprobs) = (tokens.integers(), logprobs.floats());
    let (top_tokens, top_logprobs) = (top_tokens.integers(), top_logprobs.floats());
    let close =
        |a: f32, b: f64| f64::from(a) == b || (f64::from(a) - b).abs() <= 1e-5 * (1.0 + b.abs());
    let cpu = Cpu::new(1);
    for (i, (logits, p)) in rows.iter().enumerate() {
        assert_eq!(tokens[i], cpu_token(&cpu, logits, p).unwrap_or(u32::MAX), "the CPU: {p:?}");
        let expected = expected(logits, p);
        let token = expected.token.map_or(u32::MAX, |t| t as u32);
        assert_eq!(tokens[i], token, "row {i} of {vocabulary}, {threads} threads, {p:?}");
        assert!(close(logprobs[i], expected.logprob), "logprob {} {p:?}", logprobs[i]);
        for j in 0..top_max {
            let (id, logprob) = expected
                .top
                .get(j)
                .map_or((u32::MAX, f64::NEG_INFINITY), |&(id, logprob)| (id as u32, logprob));
            let actual = top_logprobs[i * top_max + j];
            assert_eq!(top_tokens[i * top_max + j], id, "alternative {j} {p:?}");
            assert!(close(actual, logprob), "alternative {j}: {actual} {p:?}");
        }
    }
}

fn params(rng: &mut Rng) -> Vec<SampleParams> {
    let plain = SampleParams { temperature: 1.0, top_p: 1.0, ..SampleParams::default() };
    let kinds = [
        SampleParams { temperature: 0.0, top: 5, ..plain },
        plain,
        SampleParams { temperature: 0.7, top: 3, ..plain },
        SampleParams { top_k: 1, ..plain },
        SampleParams { top_k: 7, temperature: 1.3, ..plain },
        SampleParams { top_k: 1_000_000, ..plain },
        SampleParams { top_p: 0.9, ..plain },
        SampleParams { top_p: 0.3, temperature: 2.0, ..plain },
        SampleParams { top_p: 1e-6, ..plain },
        SampleParams { min_p: 0.05, ..plain },
        SampleParams { min_p: 1.0, ..plain },
        SampleParams { top_k: 40, top_p: 0.95, min_p: 0.02, temperature: 0.8, top: 1, ..plain },
        SampleParams { temperature: 1e-4, top_p: 0.5, ..plain },
    ];
    kinds
        .map(|p| SampleParams {
            seed: rng.below(usize::MAX) as u64,
            step: rng.below(1000) as u64,
            ..p
        })
        .to_vec()
}

/// Peaked, flat, tied, and broken rows of logits.
fn logits(rng: &mut Rng, vocabulary: usize, kind: usize) -> Vec<f32> {
    let mut row: Vec<f32> = rng.vec(vocabulary);
    match kind {
        0 => row.iter_mut().for_each(|l| *l *= 12.0),
        1 => row.iter_mut().for_each(|l| *l *= 0.1),
        // Few different numbers, both zeros among them.
        2 => row.iter_mut().for_each(|l| *l = -(*l * 2.0).round()),
        3 => row.fill(2.5),
        _ => {
            for l in &mut row {
                *l = match rng.below(5) {
                    0 => f32::NAN,
                    1 => f32::INFINITY,
                    2 => f32::NEG_INFINITY,
                    _ => *l * 30.0,
                };
            }
        }
    }
    row
}

#[test]
fn a_draw_follows_the_rules_and_the_seed() {
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        for (vocabulary, threads) in [(1, 32), (33, 64), (1000, 128), (3001, 256), (5000, 1024)] {
            // A thousand fibers take their time: the kinds that differ most will do.
            for kind in (0..5).step_by(if threads == 1024 { 2 } else { 1 }) {
                let row = |rng: &mut Rng, p| (logits(rng, vocabulary, kind), p);
                let rows: Vec<_> = params(rng).into_iter().map(|p| row(rng, p)).collect();
                check(&kernels, threads, vocabulary, 0, &rows);
            }
        }
    }
}

#[test]
fn a_row_without_a_finite_logit_gives_no_token() {
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        let broken = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].map(|l| vec![l; 50]);
        let rows: Vec<_> = broken.into_iter().zip(params(rng)).collect();
        check(&kernels, 64, 50, 0, &rows);
        check(&kernels, 64, 50, 0, &[]);
    }
}

#[test]
fn a_draw_reaches_logits_beyond_32_bits() {
    // The last blocks of a grid of which a GPU would run all.
    if is_real() {
        return;
    }
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        let rows: Vec<_> = params(rng).into_iter().map(|p| (logits(rng, 100, 0), p)).collect();
        check(&kernels, 64, 100, 2_000_000_000, &rows);
    }
}
