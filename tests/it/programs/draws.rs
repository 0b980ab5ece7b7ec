//! What is wanted of logits, and whether what came is what the logits say.

use tessera::backend::{Draw, Sampled, Score, Want};
use tessera::request::{History, SamplingParams, TokenMask};

use super::base::Base;
use crate::kernels::sample::uniform;
use crate::{Rng, rules};

/// How near to a bound a draw may fall either way: weights are f32 and sums of them.
const NEAR: f64 = 1e-5;

enum One {
    Draw {
        params: SamplingParams,
        generated: Vec<u32>,
        mask: Option<TokenMask>,
        logprobs: Option<u32>,
    },
    Score(Score),
}

impl One {
    fn want(&self) -> Want<'_> {
        match self {
            One::Score(score) => Want::Score(*score),
            One::Draw { params, generated, mask, logprobs } => Want::Draw(Draw {
                params,
                history: History { prompt: &[2, 3], generated },
                mask: mask.as_ref(),
                logprobs: *logprobs,
            }),
        }
    }
}

/// What is wanted of each row.
pub struct Wanted(Vec<One>);

impl Wanted {
    pub fn random(seed: u64, rows: usize, base: &Base) -> Self {
        let rng = &mut Rng(seed);
        let vocabulary = base.heads[0].rows;
        let one = |rng: &mut Rng| {
            let alternatives = rng.below(vocabulary.min(20) + 1) as u32;
            if rng.below(3) == 0 {
                let target = rng.below(vocabulary) as u32;
                return One::Score(Score { target, logprobs: alternatives });
            }
            let params = SamplingParams {
                temperature: [0.0, 0.3, 1.0, 1.7][rng.below(4)],
                top_p: [1.0, 0.9, 0.4][rng.below(3)],
                top_k: [0, 1, 3, 40][rng.below(4)],
                min_p: [0.0, 0.05, 0.5][rng.below(3)],
                repetition_penalty: [1.0, 1.0, 1.3, 0.8][rng.below(4)],
                seed: rng.bits(),
                ..SamplingParams::greedy()
            };
            let mask = (rng.below(4) == 0).then(|| {
                let mut mask = TokenMask::none(vocabulary);
                let allowed = |_: &usize| rng.below(3) == 0;
                (0..vocabulary).filter(allowed).for_each(|token| mask.allow(token as u32));
                mask
            });
            let generated: Vec<u32> =
                (0..rng.below(4)).map(|_| rng.below(vocabulary) as u32).collect();
            let params = match rng.below(2) {
                0 => params,
                _ => rules::random(params, rng, vocabulary, &generated),
            };
            let logprobs = (rng.below(2) == 0).then_some(alternatives);
            One::Draw { params, generated, mask, logprobs }
        };
        Self((0..rows).map(|_| one(rng)).collect())
    }

    pub fn wants(&self) -> Vec<Want<'_>> {
        self.0.iter().map(One::want).collect()
    }

    /// # Errors
    /// The first row whose result is not what its logits say.
    pub fn check(&self, logits: &[f64], sampled: &[Sampled]) -> Result<(), String> {
        assert_eq!(sampled.len(), self.0.len());
        let rows = logits.chunks(logits.len() / self.0.len().max(1));
        for (row, (logits, (want, sampled))) in
            rows.zip(self.wants().iter().zip(sampled)).enumerate()
        {
            check_row(logits, want, sampled)
                .map_err(|why| format!("row {row}: {why}; {want:?} gave {sampled:?}"))?;
        }
        Ok(())
    }
}

fn check_row(logits: &[f64], want: &Want<'_>, sampled: &Sampled) -> Result<(), String> {
    let Sampled { token, logprob, rank, top } = sampled;
    let is_fine = match want {
        Want::Score(score) => *token == Some(score.target),
        Want::Draw(draw) => may_be_drawn(logits, draw, *token),
    };
    if !is_fine {
        return Err("the token".into());
    }
    let Some(token) = *token else {
        return (top.is_empty() && *rank == 0)
            .then_some(())
            .ok_or_else(|| "more than no token".into());
    };
    let best = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum = best + logits.iter().map(|l| (l - best).exp()).sum::<f64>().ln();
    // A difference of two f32 numbers of this size.
    let near = 2e-5 + 0.5f64.powi(22) * logits.iter().fold(0.0f64, |m, l| m.max(l.abs()));
    let is_logprob =
        |token: u32, found: f32| (logits[token as usize] - sum - f64::from(found)).abs() < near;
    let mut ranked: Vec<u32> = (0..logits.len() as u32).collect();
    ranked.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let place = ranked.iter().position(|&other| other == token);
    let expected = want.logprobs().map_or(0, |_| place.map_or(0, |place| place as u32 + 1));
    let count = want.logprobs().unwrap_or(0) as usize;
    let tokens: Vec<u32> = top.iter().map(|(token, _)| *token).collect();
    if !is_logprob(token, *logprob) {
        return Err("the logprob".into());
    }
    if *rank != expected {
        return Err(format!("rank {expected} expected"));
    }
    let fine = tokens == ranked[..count.min(ranked.len())]
        && top.iter().all(|&(token, logprob)| is_logprob(token, logprob));
    fine.then_some(()).ok_or_else(|| "the alternatives".into())
}

/// Whether the rules give this token, or do when a bound is moved as far as rounding may move it.
fn may_be_drawn(logits: &[f64], draw: &Draw<'_>, token: Option<u32>) -> bool {
    let nudges = [0.0, NEAR, -NEAR];
    let all = nudges.iter().flat_map(|u| nudges.map(|p| (*u, p)));
    all.into_iter().any(|(u, p)| drawn(logits, draw, u, p) == token)
}

/// Rules and penalties, then temperature, then top_k, top_p and min_p among what is left, likeliest
/// first; then the first token at which the running sum passes a uniform number. Nudges move that,
/// and the filters' bounds.
fn drawn(logits: &[f64], draw: &Draw<'_>, uniform_nudge: f64, bound_nudge: f64) -> Option<u32> {
    let SamplingParams { temperature, top_p, top_k, min_p, seed, .. } = *draw.params;
    let logits: &[f64] = &rules::changed(logits, draw, |x| x);
    let is_left = |token: &u32| logits[*token as usize] > f64::NEG_INFINITY;
    let mut ranked: Vec<u32> = (0..logits.len() as u32).filter(is_left).collect();
    ranked.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let best = logits[*ranked.first()? as usize];
    if temperature == 0.0 {
        return Some(ranked[0]);
    }
    let weight = |token: u32| ((logits[token as usize] - best) / f64::from(temperature)).exp();
    let filtered = (top_k > 0 && (top_k as usize) < logits.len()) || top_p < 1.0 || min_p > 0.0;
    if filtered {
        ranked.truncate(if top_k == 0 { ranked.len() } else { top_k as usize });
        let mass: f64 = ranked.iter().map(|&token| weight(token)).sum();
        let enough = if top_p < 1.0 { f64::from(top_p) * mass } else { f64::INFINITY };
        let (mut kept, mut reached) = (0, 0.0);
        for &token in &ranked {
            let unlikely = weight(token) < f64::from(min_p) * (1.0 + bound_nudge);
            if kept > 0 && (reached >= enough * (1.0 + bound_nudge) || unlikely) {
                break;
            }
            reached += weight(token);
            kept += 1;
        }
        ranked.truncate(kept);
    } else {
        ranked.sort_unstable();
    }
    let sum: f64 = ranked.iter().map(|&token| weight(token)).sum();
    let target = (uniform(seed, draw.history.generated.len() as u64) + uniform_nudge) * sum;
    let mut reached = 0.0;
    let passes = |token: &&u32| {
        reached += weight(**token);
        reached > target
    };
    ranked.iter().find(passes).or(ranked.last()).copied()
}
