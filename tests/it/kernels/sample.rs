//! The sampler against its rules, applied one token after the other, and against the CPU's.

use tessera::backend::cpu::{Cpu, Matrix};
use tessera::backend::{Draw, Edit, Sampled, Sampling, Score, Want};
use tessera::request::{History, SamplingParams, TokenMask};

use super::device::{Buffer, Grid, Kernels, Width, kernels};
use super::step::fresh;
use crate::cuda::card::is_real;
use crate::{Rng, rules};
use tessera::backend::cuda::args::{LogitEdit, Sample, SampleParams};

const NONE: u32 = u32::MAX;

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

/// In [0, 1), from the seed and the step alone: SplitMix64's mixer (Steele et al. 2014), twice.
pub fn uniform(seed: u64, step: u64) -> f64 {
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

/// One row of logits, what is wanted of it, and what may be drawn.
#[derive(Clone)]
struct Row {
    logits: Vec<f32>,
    /// Its masks and edits are numbered when the rows are put together.
    params: SampleParams,
    mask: Option<TokenMask>,
    /// Of the prompt and drawn since; penalties change their logits.
    history: [Vec<u32>; 2],
    /// Its penalties of what was drawn, and its rules; the rest is in `params`.
    asked: SamplingParams,
}

impl Row {
    fn of(logits: Vec<f32>, params: SampleParams) -> Self {
        let vocabulary = logits.len() as u64;
        let drawn = (0..params.step).map(|step| ((step * step) % vocabulary.min(50)) as u32);
        let history = [vec![(params.seed % vocabulary) as u32], drawn.collect()];
        Self { logits, params, mask: None, history, asked: SamplingParams::greedy() }
    }

    fn sampling(&self) -> SamplingParams {
        let SampleParams { temperature, top_p, top_k, min_p, seed, .. } = self.params;
        let repetition_penalty = self.params.repetition_penalty;
        let asked = self.asked.clone();
        SamplingParams { temperature, top_p, top_k, min_p, repetition_penalty, seed, ..asked }
    }

    fn draw<'a>(&'a self, sampling: &'a SamplingParams) -> Draw<'a> {
        let history = History { prompt: &self.history[0], generated: &self.history[1] };
        let logprobs = (self.params.ranked != 0).then_some(self.params.top);
        Draw { params: sampling, history, mask: self.mask.as_ref(), logprobs }
    }
}

struct Expected {
    token: Option<usize>,
    logprob: f64,
    rank: u32,
    top: Vec<(usize, f64)>,
}

const NOTHING: Expected =
    Expected { token: None, logprob: f64::NEG_INFINITY, rank: 0, top: Vec::new() };

/// Tokens, likeliest first.
fn ranked(logits: &[f32]) -> Vec<usize> {
    let mut ranked: Vec<usize> = (0..logits.len()).collect();
    ranked.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    ranked
}

fn expected(row: &Row) -> Expected {
    let Row { logits, params: p, .. } = row;
    let clean = |&l: &f32| if l.is_finite() { l + 0.0 } else { f32::NEG_INFINITY };
    let logits: Vec<f32> = logits.iter().map(clean).collect();
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if best == f32::NEG_INFINITY {
        return NOTHING;
    }
    let sum: f64 = logits.iter().map(|l| f64::from(l - best).exp()).sum();
    let logprob = |id: usize| f64::from(logits[id] - best) - sum.ln();
    let order = ranked(&logits);
    let top = order.iter().take(p.top as usize).map(|&id| (id, logprob(id)));
    let top = top.filter(|(_, logprob)| logprob.is_finite()).collect();
    let token = if p.target == NONE {
        let raw: Vec<f64> = logits.iter().copied().map(f64::from).collect();
        let changed = rules::changed(&raw, &row.draw(&row.sampling()), |x| f64::from(x as f32));
        choose(&changed.into_iter().map(|x| x as f32).collect::<Vec<_>>(), p)
    } else {
        Some(p.target as usize)
    };
    let Some(token) = token else { return NOTHING };
    let likelier = order.iter().take_while(|&&id| id != token).count() as u32;
    let rank = if p.ranked == 0 { 0 } else { 1 + likelier };
    Expected { token: Some(token), logprob: logprob(token), rank, top }
}

/// Of those that are left; what is masked out is as unlikely as can be.
fn choose(logits: &[f32], p: &SampleParams) -> Option<usize> {
    let ranked = ranked(logits);
    let best = logits[ranked[0]];
    if best == f32::NEG_INFINITY {
        return None;
    }
    if p.temperature == 0.0 {
        return Some(ranked[0]);
    }
    let weight = |id: usize| {
        let below = logits[id] - best;
        exp(if p.temperature == 1.0 { below } else { below / p.temperature })
    };
    Some(draw(ranked, |id| f64::from(weight(id)), p))
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

fn on_cpu(cpu: &Cpu, row: &Row) -> Sampled {
    let params = row.sampling();
    let want = match row.params.target {
        NONE => Want::Draw(row.draw(&params)),
        target => Want::Score(Score { target, logprobs: row.params.top }),
    };
    let logits = Matrix::new(row.logits.clone(), row.logits.len());
    cpu.sample(&logits, &[want]).unwrap().remove(0)
}

/// What the kernel says of each row, row by row.
fn on_card(
    kernels: &Kernels,
    threads: u32,
    vocabulary: usize,
    first_row: u32,
    rows: &[Row],
) -> Vec<Sampled> {
    let (m, top_max) = (rows.len(), 5);
    let logits: Vec<f32> = rows.iter().flat_map(|row| &row.logits).copied().collect();
    let mut masks: Vec<u32> = Vec::new();
    let words = vocabulary.div_ceil(32);
    let mut params: Vec<SampleParams> = rows.iter().map(|row| row.params).collect();
    let mut edits: Vec<LogitEdit> = Vec::new();
    for (row, params) in rows.iter().zip(&mut params) {
        let mut place = |mask: Option<&TokenMask>| match mask {
            None => NONE,
            Some(mask) => {
                masks.extend(mask.words());
                first_row + (masks.len() / words) as u32 - 1
            }
        };
        let sampling = row.sampling();
        let changes = row.draw(&sampling).changes(vocabulary);
        params.mask = place(changes.mask.as_deref());
        params.seen = place(changes.repeated.as_ref());
        params.edits_first = edits.len() as u32;
        params.edits = changes.edits.len() as u32;
        let edit = |Edit { token, add, repeat, take }| LogitEdit { token, add, repeat, take };
        edits.extend(changes.edits.into_iter().map(edit));
    }
    let (logits_at, params_at) = (Buffer::of(Width::F32, &logits), Buffer::raw(&params));
    let (masks_at, edits_at) = (Buffer::raw(&masks), Buffer::raw(&edits));
    let [tokens, logprobs, ranks] = [(); 3].map(|()| Buffer::poison(Width::F32, m));
    let [top_tokens, top_logprobs] = [(); 2].map(|()| Buffer::poison(Width::F32, m * top_max));
    let first = u64::from(first_row);
    let params_words = (size_of::<SampleParams>() / 4) as u64;
    let args = Sample {
        logits: logits_at.as_if_from(first * vocabulary as u64),
        params: params_at.as_if_from(first * params_words),
        tokens: tokens.as_if_from(first),
        logprobs: logprobs.as_if_from(first),
        ranks: ranks.as_if_from(first),
        masks: masks_at.as_if_from(first * words as u64),
        edits: edits_at.at(),
        top_tokens: top_tokens.as_if_from(first * top_max as u64),
        top_logprobs: top_logprobs.as_if_from(first * top_max as u64),
        vocabulary: vocabulary as u32,
        top_max: top_max as u32,
    };
    let end = [first_row + m as u32, 1, 1];
    let grid = Grid { size: end, first: [first_row, 0, 0], end };
    kernels.launch("sample", grid, threads, 24_856, &args);
    edits_at.integers();
    let bits: Vec<u32> = logits.iter().map(|logit| logit.to_bits()).collect();
    assert!(logits_at.integers() == bits, "the logits are others than before");
    let (tokens, logprobs, ranks) = (tokens.integers(), logprobs.floats(), ranks.integers());
    let (top_tokens, top_logprobs) = (top_tokens.integers(), top_logprobs.floats());
    let token = |t: u32| (t != NONE).then_some(t);
    let top = |i: usize| {
        let all = (i * top_max..(i + 1) * top_max).map(|at| (top_tokens[at], top_logprobs[at]));
        let (some, none): (Vec<_>, Vec<_>) = all.partition(|(token, _)| *token != NONE);
        assert!(none.iter().all(|(_, logprob)| *logprob == f32::NEG_INFINITY), "{none:?}");
        some
    };
    let sampled = |i: usize| Sampled {
        token: token(tokens[i]),
        logprob: logprobs[i],
        rank: ranks[i],
        top: top(i),
    };
    (0..m).map(sampled).collect()
}

fn check(kernels: &Kernels, threads: u32, vocabulary: usize, first_row: u32, rows: &[Row]) {
    let close =
        |a: f32, b: f64| f64::from(a) == b || (f64::from(a) - b).abs() <= 1e-5 * (1.0 + b.abs());
    let ids = |top: &[(u32, f32)]| top.iter().map(|(id, _)| *id as usize).collect::<Vec<_>>();
    let cpu = Cpu::new(1);
    let on_card = on_card(kernels, threads, vocabulary, first_row, rows);
    for (i, (row, on_card)) in rows.iter().zip(on_card).enumerate() {
        let (p, expected) = (&row.params, expected(row));
        for (who, sampled) in [("the CPU", on_cpu(&cpu, row)), ("the kernel", on_card)] {
            let what = format!("{who}, row {i} of {vocabulary}, {threads} threads, {p:?}");
            let token = sampled.token.map(|token| token as usize);
            assert_eq!((token, sampled.rank), (expected.token, expected.rank), "{what}");
            assert!(close(sampled.logprob, expected.logprob), "{what}: {}", sampled.logprob);
            let top: Vec<usize> = expected.top.iter().map(|(id, _)| *id).collect();
            assert_eq!(ids(&sampled.top), top, "{what}");
            for ((_, actual), (_, logprob)) in sampled.top.iter().zip(&expected.top) {
                assert!(close(*actual, *logprob), "{what}: {actual}, expected {logprob}");
            }
        }
    }
}

/// Draws from everything.
fn plain() -> SampleParams {
    let all = SampleParams { temperature: 1.0, top_p: 1.0, ..SampleParams::default() };
    SampleParams { target: NONE, mask: NONE, seen: NONE, repetition_penalty: 1.0, ..all }
}

fn params(rng: &mut Rng) -> Vec<SampleParams> {
    let plain = plain();
    let asked = SampleParams { top: 1, ranked: 1, ..plain };
    let kinds = [
        SampleParams { temperature: 0.0, top: 5, ranked: 1, ..plain },
        plain,
        SampleParams { temperature: 0.7, top: 3, ranked: 1, ..plain },
        SampleParams { top_k: 1, ..plain },
        SampleParams { top_k: 7, temperature: 1.3, ranked: 1, ..plain },
        SampleParams { top_k: 1_000_000, ..plain },
        SampleParams { top_p: 0.9, ..plain },
        SampleParams { top_p: 0.3, temperature: 2.0, ..plain },
        SampleParams { top_p: 1e-6, ..plain },
        SampleParams { min_p: 0.05, ..plain },
        SampleParams { min_p: 1.0, ..plain },
        SampleParams { top_k: 40, top_p: 0.95, min_p: 0.02, temperature: 0.8, ..asked },
        SampleParams { temperature: 1e-4, top_p: 0.5, ..plain },
        SampleParams { top_p: 0.0, temperature: 0.9, ..plain },
        SampleParams { repetition_penalty: 1.3, temperature: 0.0, ..asked },
        SampleParams { repetition_penalty: 0.7, top_p: 0.9, top_k: 30, ..plain },
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

const SHAPES: [(usize, u32); 5] = [(1, 32), (33, 64), (1000, 128), (3001, 256), (5000, 1024)];

/// Kinds of logits for a block of so many threads: a thousand fibers take their time, and those
/// that differ most will do.
fn kinds(threads: u32) -> impl Iterator<Item = usize> {
    (0..5).step_by(if threads == 1024 { 2 } else { 1 })
}

#[test]
fn a_draw_follows_the_rules_and_the_seed() {
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        for (vocabulary, threads) in SHAPES {
            for kind in kinds(threads) {
                let row = |rng: &mut Rng, p| Row::of(logits(rng, vocabulary, kind), p);
                let rows: Vec<_> = params(rng).into_iter().map(|p| row(rng, p)).collect();
                check(&kernels, threads, vocabulary, 0, &rows);
            }
        }
    }
}

/// A share of all tokens but the likeliest; only those of one word; one token; those that have no
/// finite logit; none.
fn masks(rng: &mut Rng, logits: &[f32]) -> Vec<TokenMask> {
    let vocabulary = logits.len();
    let likeliest =
        expected(&Row::of(logits.to_vec(), SampleParams { temperature: 0.0, ..plain() }));
    let mask = |allowed: &mut dyn FnMut(usize) -> bool| {
        let mut mask = TokenMask::none(vocabulary);
        (0..vocabulary).filter(|&id| allowed(id)).for_each(|id| mask.allow(id as u32));
        mask
    };
    let (one, word) = (rng.below(vocabulary), rng.below(vocabulary) / 32);
    vec![
        mask(&mut |id| Some(id) != likeliest.token && rng.below(3) == 0),
        mask(&mut |id| id / 32 == word),
        mask(&mut |id| id == one),
        mask(&mut |id| id + 1 == vocabulary),
        mask(&mut |_| true),
        mask(&mut |id| !logits[id].is_finite()),
        mask(&mut |_| false),
    ]
}

#[test]
fn a_masked_draw_is_one_of_the_allowed_tokens_with_the_logprob_and_rank_it_has_among_all() {
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        // The last word of a mask is part of one.
        for (vocabulary, threads) in [(1, 32), (33, 64), (77, 96), (3001, 256)] {
            for kind in kinds(threads) {
                let logits = logits(rng, vocabulary, kind);
                let masks = masks(rng, &logits);
                let mut rows = Vec::new();
                for (i, params) in params(rng).into_iter().enumerate() {
                    // Masked rows and others side by side.
                    let mask = (i % 4 != 3).then(|| masks[i % masks.len()].clone());
                    rows.push(Row { mask, ..Row::of(logits.clone(), params) });
                }
                check(&kernels, threads, vocabulary, 0, &rows);
            }
        }
    }
}

#[test]
fn penalties_biases_and_bans_change_what_is_drawn_and_no_logit() {
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        for (vocabulary, threads) in [(1, 32), (33, 64), (77, 96), (3001, 256)] {
            for kind in kinds(threads) {
                let logits = logits(rng, vocabulary, kind);
                let masks = masks(rng, &logits);
                let mut rows = Vec::new();
                for (i, params) in params(rng).into_iter().enumerate() {
                    let step = [params.step, params.step % 5][i % 2];
                    let repetition_penalty = [params.repetition_penalty, 1.5, 0.6][i % 3];
                    let params = SampleParams { step, repetition_penalty, ..params };
                    let mut row = Row::of(logits.clone(), params);
                    row.mask = (i % 5 == 0).then(|| masks[0].clone());
                    // Rows that ask for nothing between those that do.
                    if i % 4 != 3 {
                        row.asked = rules::random(row.asked, rng, vocabulary, &row.history[1]);
                    }
                    rows.push(row);
                }
                check(&kernels, threads, vocabulary, 0, &rows);
            }
        }
    }
}

#[test]
fn a_mask_may_leave_the_lower_of_equals_or_nothing() {
    let greedy = SampleParams { temperature: 0.0, top: 2, ranked: 1, ..plain() };
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        let logits = vec![1.0, 9.0, 3.0, 3.0, 9.0, 3.0, f32::NAN];
        let drawn = |allowed: &[u32]| {
            let mut mask = TokenMask::none(7);
            allowed.iter().for_each(|&token| mask.allow(token));
            let row = Row { mask: Some(mask), ..Row::of(logits.clone(), greedy) };
            on_card(&kernels, 32, 7, 0, &[row]).remove(0)
        };
        let of = |allowed: &[u32]| {
            let Sampled { token, rank, top, .. } = drawn(allowed);
            (token, rank, top.into_iter().map(|(id, _)| id).collect::<Vec<_>>())
        };
        assert_eq!(of(&[0, 3, 5, 2]), (Some(2), 3, vec![1, 4]), "the best two are masked out");
        assert_eq!(of(&[5, 3]), (Some(3), 4, vec![1, 4]));
        assert_eq!(of(&[4]), (Some(4), 2, vec![1, 4]));
        assert_eq!(of(&[]), (None, 0, Vec::new()));
        assert_eq!(of(&[6]), (None, 0, Vec::new()), "what is not finite");
    }
}

#[test]
fn a_scored_token_has_its_logprob_and_its_rank() {
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        for (vocabulary, threads) in [(1, 32), (33, 64), (1000, 128), (3001, 256)] {
            for kind in kinds(threads) {
                let logits = logits(rng, vocabulary, kind);
                let order = ranked(&logits);
                let mut targets = vec![0, vocabulary - 1, order[0], order[vocabulary / 2]];
                targets.extend((0..4).map(|_| rng.below(vocabulary)));
                let row = |(i, target): (usize, usize)| {
                    let asked = SampleParams { top: (i % 4) as u32, ranked: 1, ..plain() };
                    Row::of(logits.clone(), SampleParams { target: target as u32, ..asked })
                };
                let rows: Vec<Row> = targets.into_iter().enumerate().map(row).collect();
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
        let rows = broken.iter().cloned().zip(params(rng));
        let mut rows: Vec<Row> = rows.map(|(logits, p)| Row::of(logits, p)).collect();
        let scored = SampleParams { target: 7, top: 2, ranked: 1, ..plain() };
        rows.push(Row::of(broken[0].clone(), scored));
        check(&kernels, 64, 50, 0, &rows);
        check(&kernels, 64, 50, 0, &[]);
    }
}

#[test]
fn a_draw_reaches_logits_and_masks_beyond_32_bits() {
    // The last blocks of a grid of which a GPU would run all.
    if is_real() {
        return;
    }
    let rng = &mut fresh();
    for kernels in kernels("sample.cu", [Width::F32; 3]) {
        let row = |rng: &mut Rng, (i, p): (usize, SampleParams)| {
            let logits = logits(rng, 100, 0);
            let mask = (i % 2 == 0).then(|| masks(rng, &logits)[0].clone());
            Row { mask, ..Row::of(logits, p) }
        };
        let rows: Vec<_> = params(rng).into_iter().enumerate().map(|p| row(rng, p)).collect();
        check(&kernels, 64, 100, 2_000_000_000, &rows);
    }
}
