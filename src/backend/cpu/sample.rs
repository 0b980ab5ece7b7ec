//! Draws tokens: what is asked of single tokens ([`Draw::changes`]), temperature, then top_k, top_p
//! and min_p in vLLM's meaning, then one uniform number that depends on the seed and the step
//! alone.

use std::cmp::Ordering;

use super::matrix::Matrix;
use super::simd::Level;
use super::threads::Cpu;
use crate::backend::{Changes, Draw, Fault, Sampled, Sampling, Want, repeated};
use crate::ids::TokenId;
use crate::request::SamplingParams;

/// Tokens ranked at first; eight times as many each time that was too few. Hardly any draw needs
/// more of a vocabulary in order.
const RANKED_FIRST: usize = 64;

impl Sampling for Cpu {
    fn sample(&self, logits: &Matrix, wants: &[Want<'_>]) -> Result<Vec<Sampled>, Fault> {
        assert!(logits.rows() == wants.len(), "This is a bug: logits that nobody wants.");
        let nothing = Sampled { token: None, logprob: f32::NEG_INFINITY, rank: 0, top: Vec::new() };
        let mut out = vec![nothing; wants.len()];
        let tasks = out.iter_mut().zip(wants).enumerate().collect();
        self.each(tasks, |(i, (out, want)): (usize, (&mut Sampled, &Want<'_>))| {
            if let Some(sampled) = sample_row(self.level, logits.row(i), want) {
                *out = sampled;
            }
        });
        Ok(out)
    }
}

/// `None` when no logit is finite that may be drawn.
fn sample_row(level: Level, logits: &[f32], want: &Want<'_>) -> Option<Sampled> {
    let logits: Vec<f32> = logits.iter().copied().map(share).collect();
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if best == f32::NEG_INFINITY {
        return None;
    }
    let mut weights = logits.clone();
    let (_, sum) = level.exp_shifted(&mut weights);
    let log_sum = best + sum.ln();
    let token = match want {
        Want::Score(score) => score.target,
        Want::Draw(draw) => match changed(&logits, draw) {
            None => choose(level, &logits, weights, draw)?,
            Some(changed) => {
                let mut weights = changed.clone();
                level.exp_shifted(&mut weights);
                choose(level, &changed, weights, draw)?
            }
        },
    };
    let logprob = |token: TokenId| logits[token as usize] - log_sum;
    let (mut rank, mut top) = (0, Vec::new());
    if let Some(alternatives) = want.logprobs() {
        let likelier = (0..logits.len() as TokenId)
            .filter(|&other| likelier(&logits, other, token) == Ordering::Less);
        rank = 1 + likelier.count() as u32;
        if alternatives > 0 {
            let mut ranking = Ranking::new(&logits, alternatives as usize);
            ranking.rank(alternatives as usize);
            let tokens = ranking.ranked().iter().copied().map(|token| (token, logprob(token)));
            top = tokens.filter(|(_, logprob)| logprob.is_finite()).collect();
        }
    }
    Some(Sampled { token: Some(token), logprob: logprob(token), rank, top })
}

/// What is not a finite number has no share. Adding 0 makes −0 equal to 0 in every order.
fn share(logit: f32) -> f32 {
    if logit.is_finite() { logit + 0.0 } else { f32::NEG_INFINITY }
}

/// The logits that are drawn from, where the request makes them others.
fn changed(logits: &[f32], draw: &Draw<'_>) -> Option<Vec<f32>> {
    let changes = draw.changes(logits.len());
    if changes.are_none() {
        return None;
    }
    let Changes { mask, repeated: seen, edits } = changes;
    let penalty = draw.params.repetition_penalty;
    let change = |(token, &logit): (TokenId, &f32)| {
        let is_seen = seen.as_ref().is_some_and(|seen| seen.allows(token));
        if is_seen { repeated(logit, penalty) } else { logit }
    };
    let mut changed: Vec<f32> = (0..).zip(logits).map(change).collect();
    for edit in &edits {
        let logit = &mut changed[edit.token as usize];
        *logit = edit.apply(*logit);
    }
    for (token, logit) in (0..).zip(&mut changed) {
        let is_allowed = mask.as_ref().is_none_or(|mask| mask.allows(token));
        *logit = if is_allowed { share(*logit) } else { f32::NEG_INFINITY };
    }
    Some(changed)
}

/// Draws a token. `weights` are those of the logits at temperature 1, the likeliest has 1.
fn choose(level: Level, logits: &[f32], mut weights: Vec<f32>, draw: &Draw<'_>) -> Option<TokenId> {
    let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if best == f32::NEG_INFINITY {
        return None;
    }
    let Draw { params, history, mask: _, logprobs: _ } = *draw;
    let temperature = params.temperature;
    if temperature == 0.0 {
        return Some(logits.iter().position(|&logit| logit == best)? as TokenId);
    }
    if temperature != 1.0 {
        weights.iter_mut().zip(logits).for_each(|(w, l)| *w = (l - best) / temperature);
        level.exp_shifted(&mut weights);
    }
    let drawn = history.generated.len() as u64;
    Some(draw_weighted(logits, &weights, params, uniform(params.seed, drawn)))
}

/// Draws from `weights` (the likeliest has 1) among the tokens that the filters keep.
fn draw_weighted(
    logits: &[f32],
    weights: &[f32],
    params: &SamplingParams,
    uniform: f64,
) -> TokenId {
    let weight = |token: TokenId| f64::from(weights[token as usize]);
    let vocabulary = 0..logits.len() as TokenId;
    let top_k = if params.top_k == 0 { logits.len() } else { params.top_k as usize };
    if top_k >= logits.len() && params.top_p >= 1.0 && params.min_p == 0.0 {
        return pick(vocabulary, weight, uniform);
    }
    // Likelier tokens first, every filter keeps a prefix: the shortest one decides.
    let mut ranking = Ranking::new(logits, top_k);
    let mass: f64 = ranking.candidates().iter().copied().map(weight).sum();
    let enough = if params.top_p < 1.0 { f64::from(params.top_p) * mass } else { f64::INFINITY };
    let least = f64::from(params.min_p);
    let (mut kept, mut reached) = (0, 0.0);
    let mut ranked = RANKED_FIRST;
    loop {
        ranking.rank(ranked);
        while let Some(&token) = ranking.ranked().get(kept) {
            if kept > 0 && (reached >= enough || weight(token) < least) {
                return pick(ranking.ranked()[..kept].iter().copied(), weight, uniform);
            }
            reached += weight(token);
            kept += 1;
        }
        if kept == ranking.candidates().len() {
            return pick(ranking.ranked().iter().copied(), weight, uniform);
        }
        ranked *= 8;
    }
}

/// The first token at which the running sum of weights passes `uniform` of the whole.
fn pick(
    tokens: impl Iterator<Item = TokenId> + Clone,
    weight: impl Fn(TokenId) -> f64,
    uniform: f64,
) -> TokenId {
    let target = uniform * tokens.clone().map(&weight).sum::<f64>();
    let mut reached = 0.0;
    let mut last = 0;
    for token in tokens.filter(|&token| weight(token) > 0.0) {
        reached += weight(token);
        last = token;
        if reached > target {
            break;
        }
    }
    last
}

/// The likeliest tokens of a vocabulary, put in order only as far as asked.
struct Ranking<'a> {
    logits: &'a [f32],
    tokens: Vec<TokenId>,
    ranked: usize,
}

impl<'a> Ranking<'a> {
    /// Of the `top_k` likeliest tokens; between equals the lower id is likelier.
    fn new(logits: &'a [f32], top_k: usize) -> Self {
        let mut tokens: Vec<TokenId> = (0..logits.len() as TokenId).collect();
        if top_k < tokens.len() {
            tokens.select_nth_unstable_by(top_k, |&a, &b| likelier(logits, a, b));
            tokens.truncate(top_k);
        }
        Self { logits, tokens, ranked: 0 }
    }

    fn candidates(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Those in order so far, likeliest first.
    fn ranked(&self) -> &[TokenId] {
        &self.tokens[..self.ranked]
    }

    /// Puts the first `n` in order.
    fn rank(&mut self, n: usize) {
        let n = n.min(self.tokens.len());
        let Some(more) = n.checked_sub(self.ranked).filter(|&more| more > 0) else { return };
        let rest = &mut self.tokens[self.ranked..];
        if more < rest.len() {
            rest.select_nth_unstable_by(more, |&a, &b| likelier(self.logits, a, b));
        }
        rest[..more].sort_unstable_by(|&a, &b| likelier(self.logits, a, b));
        self.ranked = n;
    }
}

fn likelier(logits: &[f32], a: TokenId, b: TokenId) -> Ordering {
    logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b))
}

/// In [0, 1), from the seed and the step alone (SplitMix64's mixer, Steele et al. 2014, twice).
fn uniform(seed: u64, step: u64) -> f64 {
    fn mix(z: u64) -> u64 {
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;
    let stream = mix(seed.wrapping_add(GOLDEN));
    let bits = mix(stream.wrapping_add(step.wrapping_add(1).wrapping_mul(GOLDEN)));
    (bits >> 11) as f64 / (1u64 << 53) as f64
}
