//! Draws against naive definitions of the filters, and their distribution.

use std::sync::Arc;

use tessera::backend::cpu::{Cpu, Matrix};
use tessera::backend::{Draw, Sampled, Sampling, Score, Want};
use tessera::ids::TokenId;
use tessera::request::{History, SamplingParams, TokenMask, TokenRules};

use crate::{Rng, rules};

/// As many tokens as a draw may come after.
static GENERATED: [TokenId; 5000] = [0; 5000];

/// After `step` others, all tokens allowed.
fn want(params: &SamplingParams, step: usize, logprobs: Option<u32>) -> Draw<'_> {
    let history = History { prompt: &[0], generated: &GENERATED[..step] };
    Draw { params, history, mask: None, logprobs }
}

fn one(cpu: &Cpu, logits: &[f32], want: Want<'_>) -> Sampled {
    cpu.sample(&Matrix::new(logits.to_vec(), logits.len()), &[want]).unwrap().remove(0)
}

fn draw(cpu: &Cpu, logits: &[f32], params: &SamplingParams, step: usize) -> Sampled {
    one(cpu, logits, Want::Draw(want(params, step, None)))
}

/// Tokens, likeliest first.
fn ranked(logits: &[f32]) -> Vec<TokenId> {
    let mut order: Vec<TokenId> = (0..logits.len() as TokenId).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    order
}

fn mask(vocabulary: usize, allowed: impl IntoIterator<Item = TokenId>) -> TokenMask {
    let mut mask = TokenMask::none(vocabulary);
    allowed.into_iter().for_each(|token| mask.allow(token));
    mask
}

/// Probability of each token after the filters, by their definitions: sort, cut, renormalise.
fn exact(logits: &[f32], params: &SamplingParams) -> Vec<f64> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    let scaled = |i: usize| f64::from(logits[i]) / f64::from(params.temperature);
    let best = scaled(order[0]);
    let mut kept = order;
    if params.top_k > 0 {
        kept.truncate(params.top_k as usize);
    }
    let sum: f64 = kept.iter().map(|&i| (scaled(i) - best).exp()).sum();
    let probability = |i: usize| (scaled(i) - best).exp() / sum;
    let mut reached = 0.0;
    let mut top_p = Vec::new();
    for i in kept {
        if reached >= f64::from(params.top_p) && params.top_p < 1.0 {
            break;
        }
        reached += probability(i);
        top_p.push(i);
    }
    let least = f64::from(params.min_p) * probability(top_p[0]);
    let kept: Vec<usize> = top_p.into_iter().filter(|&i| probability(i) >= least).collect();
    let sum: f64 = kept.iter().map(|&i| probability(i)).sum();
    let mut out = vec![0.0; logits.len()];
    kept.iter().for_each(|&i| out[i] = probability(i) / sum);
    out
}

#[test]
fn draws_follow_the_filtered_distribution() {
    let cpu = Cpu::new(1);
    let mut rng = Rng(3);
    let filters = [
        (1.0, 1.0, 0, 0.0),
        (0.7, 1.0, 5, 0.0),
        (1.3, 0.8, 0, 0.0),
        (1.0, 1.0, 0, 0.2),
        (0.9, 0.7, 8, 0.05),
        (2.0, 0.95, 300, 0.01),
        (0.1, 0.5, 3, 0.5),
    ];
    for (i, (temperature, top_p, top_k, min_p)) in filters.into_iter().enumerate() {
        for vocabulary in [1, 12, 700] {
            let logits: Vec<f32> = rng.vec(vocabulary).iter().map(|x| x * 4.0).collect();
            let params = SamplingParams {
                temperature,
                top_p,
                top_k,
                min_p,
                seed: 40 + i as u64,
                ..SamplingParams::greedy()
            };
            let exact = exact(&logits, &params);
            let draws = 4000;
            let mut counts = vec![0.0; vocabulary];
            for step in 0..draws {
                counts[draw(&cpu, &logits, &params, step).token.unwrap() as usize] += 1.0;
            }
            let mut chi_square = 0.0;
            let mut rare = (0.0, 0.0);
            let mut cells = 0.0;
            for (&count, &p) in counts.iter().zip(&exact) {
                assert!(p > 0.0 || count == 0.0, "{params:?}: drew a token that was filtered out");
                let expected = p * draws as f64;
                if expected >= 5.0 {
                    chi_square += (count - expected) * (count - expected) / expected;
                    cells += 1.0;
                } else {
                    rare = (rare.0 + count, rare.1 + expected);
                }
            }
            if rare.1 >= 5.0 {
                chi_square += (rare.0 - rare.1) * (rare.0 - rare.1) / rare.1;
                cells += 1.0;
            }
            // Mean and deviation of chi-square: n and √2n; five deviations are out of reach.
            let n: f64 = cells - 1.0;
            assert!(chi_square <= n + 5.0 * (2.0 * n).sqrt() + 1e-9, "{params:?} {chi_square} {n}");
        }
    }
}

#[test]
fn every_token_the_filters_keep_is_drawn_and_no_other() {
    let cpu = Cpu::new(1);
    // Steps of probability ½: p = ½, ¼, ⅛, … in an order that is not the ids'.
    let halves = [5, 2, 7, 0, 3, 6, 1, 4];
    let mut logits = vec![0.0; 8];
    halves.iter().enumerate().for_each(|(rank, &i)| logits[i] = -(rank as f32) * 2f32.ln());
    let sets: [(f32, u32, f32, usize); 7] = [
        (1.0, 0, 0.0, 8),
        (1.0, 3, 0.0, 3),
        (0.74, 0, 0.0, 2),
        (0.76, 0, 0.0, 3),
        (1.0, 0, 0.24, 3),
        // After top_k 2 the rest is ⅔, ⅓: 0.6 is reached by one.
        (0.6, 2, 0.0, 1),
        (0.9, 4, 0.3, 2),
    ];
    for (top_p, top_k, min_p, kept) in sets {
        let params = SamplingParams {
            temperature: 1.0,
            top_p,
            top_k,
            min_p,
            seed: 9,
            ..SamplingParams::greedy()
        };
        let mut drawn = [false; 8];
        for step in 0..5000 {
            drawn[draw(&cpu, &logits, &params, step).token.unwrap() as usize] = true;
        }
        for (rank, &i) in halves.iter().enumerate() {
            assert_eq!(drawn[i], rank < kept, "{params:?} rank {rank}");
        }
    }
}

#[test]
fn a_draw_depends_on_seed_and_step_and_not_on_its_neighbours() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(4);
    let vocabulary = 5000;
    let logits = rng.vec(8 * vocabulary);
    let params = SamplingParams {
        temperature: 1.0,
        top_p: 0.95,
        top_k: 0,
        min_p: 0.0,
        seed: 7,
        ..SamplingParams::greedy()
    };
    let odd = mask(vocabulary, (1..vocabulary as TokenId).step_by(2));
    let of = |i: usize| match i {
        6 => Want::Score(Score { target: 11, logprobs: 3 }),
        5 | 7 => Want::Draw(Draw { mask: Some(&odd), ..want(&params, i / 2, Some(3)) }),
        _ => Want::Draw(want(&params, i / 2, Some(3))),
    };
    let wants: Vec<Want<'_>> = (0..8).map(of).collect();
    let together = cpu.sample(&Matrix::new(logits.clone(), vocabulary), &wants).unwrap();
    for (i, want) in wants.iter().enumerate() {
        assert_eq!(one(&cpu, &logits[i * vocabulary..][..vocabulary], *want), together[i]);
    }
    let tokens = |seed: u64| -> Vec<_> {
        let params = SamplingParams { seed, ..params.clone() };
        (0..20).map(|step| draw(&cpu, &logits[..vocabulary], &params, step).token).collect()
    };
    assert_eq!(tokens(1), tokens(1));
    assert_ne!(tokens(1), tokens(2));
}

#[test]
fn greedy_takes_the_largest_and_the_lowest_of_equals() {
    let cpu = Cpu::new(1);
    let greedy = SamplingParams::greedy();
    assert_eq!(draw(&cpu, &[1.0, 3.0, 3.0, 2.0], &greedy, 0).token, Some(1));
    assert_eq!(draw(&cpu, &[-0.0, 0.0], &greedy, 0).token, Some(0));
    assert_eq!(draw(&cpu, &[f32::NAN, -5.0, f32::NEG_INFINITY], &greedy, 0).token, Some(1));
}

#[test]
fn what_is_not_finite_is_never_drawn_and_a_row_of_nothing_else_gives_no_token() {
    let cpu = Cpu::new(1);
    for temperature in [0.0, 1e-30, 1.0] {
        let params = SamplingParams { temperature, ..SamplingParams::greedy() };
        for bad in [f32::NAN, f32::NEG_INFINITY, f32::INFINITY] {
            let none = draw(&cpu, &[bad; 5], &params, 0);
            assert_eq!((none.token, none.top.len()), (None, 0));
            for step in 0..50 {
                let sampled = draw(&cpu, &[bad, 1.0, bad], &params, step);
                assert_eq!((sampled.token, sampled.logprob), (Some(1), 0.0));
            }
        }
    }
}

#[test]
fn logprobs_are_those_of_the_raw_logits_best_first() {
    let cpu = Cpu::new(1);
    let mut rng = Rng(8);
    let logits: Vec<f32> = rng.vec(3000).iter().map(|x| x * 9.0).collect();
    let params = SamplingParams {
        temperature: 0.5,
        top_p: 0.5,
        top_k: 40,
        min_p: 0.1,
        seed: 1,
        ..SamplingParams::greedy()
    };
    let sampled = one(&cpu, &logits, Want::Draw(want(&params, 0, Some(100))));
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let exact = |token: u32| f64::from(logits[token as usize]) - sum.ln();
    let close = |token: u32, found: f32| (f64::from(found) - exact(token)).abs() < 1e-5;
    assert!(close(sampled.token.unwrap(), sampled.logprob));
    assert_eq!(sampled.top.len(), 100);
    assert!(sampled.top.iter().all(|&(token, logprob)| close(token, logprob)));
    let order = ranked(&logits);
    assert!(sampled.top.iter().map(|&(token, _)| token).eq(order[..100].iter().copied()));
    assert_eq!(order[sampled.rank as usize - 1], sampled.token.unwrap());
    let none = draw(&cpu, &logits, &params, 0);
    assert_eq!((none.token, none.rank, none.top.len()), (sampled.token, 0, 0), "not asked for");
}

#[test]
fn a_masked_draw_is_the_draw_of_a_vocabulary_of_the_allowed_tokens_alone() {
    let cpu = Cpu::new(1);
    let mut rng = Rng(9);
    // The last word of a mask is part of one.
    for vocabulary in [1, 33, 77, 1000] {
        for (temperature, top_p, top_k, min_p) in
            [(0.0, 1.0, 0, 0.0), (1.0, 1.0, 0, 0.0), (0.7, 0.8, 0, 0.0), (1.3, 0.9, 6, 0.1)]
        {
            let logits: Vec<f32> = rng.vec(vocabulary).iter().map(|x| x * 6.0).collect();
            let params = SamplingParams {
                temperature,
                top_p,
                top_k,
                min_p,
                seed: 5,
                ..SamplingParams::greedy()
            };
            let likeliest = ranked(&logits)[0];
            let all = 0..vocabulary as TokenId;
            let allowed: Vec<TokenId> = all
                .filter(|&token| vocabulary == 1 || (token != likeliest && rng.below(3) > 0))
                .collect();
            let few: Vec<f32> = allowed.iter().map(|&token| logits[token as usize]).collect();
            let mask = mask(vocabulary, allowed.iter().copied());
            for step in 0..50 {
                let masked = Draw { mask: Some(&mask), ..want(&params, step, Some(2)) };
                let masked = one(&cpu, &logits, Want::Draw(masked));
                let alone = draw(&cpu, &few, &params, step).token;
                assert_eq!(masked.token, alone.map(|token| allowed[token as usize]), "{params:?}");
                // Its logprob, its rank and the alternatives are those among all tokens.
                let target = masked.token.unwrap();
                let scored = one(&cpu, &logits, Want::Score(Score { target, logprobs: 2 }));
                assert_eq!(masked, scored, "{params:?}");
                assert_eq!(masked.top[0].0, likeliest);
            }
        }
    }
}

#[test]
fn a_draw_under_rules_is_the_draw_of_logits_that_are_so_already() {
    let cpu = Cpu::new(2);
    let mut rng = Rng(12);
    for vocabulary in [1, 33, 1000] {
        for round in 0..60 {
            let logits: Vec<f32> = rng.vec(vocabulary).iter().map(|x| x * 6.0).collect();
            let generated: Vec<u32> =
                (0..rng.below(30)).map(|_| rng.below(vocabulary.min(9)) as u32).collect();
            let plain = SamplingParams {
                temperature: [0.0, 1.0, 0.7][round % 3],
                top_p: [1.0, 0.8][round % 2],
                seed: round as u64,
                ..SamplingParams::greedy()
            };
            let asked = rules::random(plain.clone(), &mut rng, vocabulary, &generated);
            let asked = SamplingParams { repetition_penalty: 1.3, ..asked };
            let history = History { prompt: &[0], generated: &generated };
            let draw = Draw { params: &asked, history, mask: None, logprobs: Some(2) };
            let raw: Vec<f64> = logits.iter().copied().map(f64::from).collect();
            let changed = rules::changed(&raw, &draw, |x| f64::from(x as f32));
            let changed: Vec<f32> = changed.into_iter().map(|x| x as f32).collect();
            let expected = one(&cpu, &changed, Want::Draw(Draw { params: &plain, ..draw })).token;
            let sampled = one(&cpu, &logits, Want::Draw(draw));
            assert_eq!(sampled.token, expected, "{asked:?} after {generated:?}");
            // Its logprob, its rank and the alternatives are those of the logits as they came.
            if let Some(target) = expected {
                let scored = one(&cpu, &logits, Want::Score(Score { target, logprobs: 2 }));
                assert_eq!(sampled, scored);
            }
            // Neighbours with rules of their own change nothing.
            let wants = [Want::Draw(Draw { params: &plain, ..draw }), Want::Draw(draw)];
            let both = Matrix::new([&logits[..], &logits[..]].concat(), vocabulary);
            assert_eq!(cpu.sample(&both, &wants).unwrap()[1], sampled);
        }
    }
}

#[test]
fn a_mask_and_allowed_tokens_leave_what_is_in_both() {
    let cpu = Cpu::new(1);
    let logits = [1.0, 9.0, 3.0, 4.0];
    let allowed = |tokens: &[u32]| {
        let allowed = Some(mask(4, tokens.iter().copied()));
        let rules = Arc::new(TokenRules { allowed, ..TokenRules::default() });
        SamplingParams { rules, ..SamplingParams::greedy() }
    };
    let of = |tokens: &[u32], other: &[u32]| {
        let (params, other) = (allowed(tokens), mask(4, other.iter().copied()));
        let draw = Draw { mask: Some(&other), ..want(&params, 0, None) };
        one(&cpu, &logits, Want::Draw(draw)).token
    };
    assert_eq!(of(&[0, 1, 2], &[0, 2, 3]), Some(2));
    assert_eq!(of(&[0, 1], &[0, 2, 3]), Some(0));
    assert_eq!(of(&[1], &[0, 2, 3]), None);
}

#[test]
fn a_mask_may_leave_the_lower_of_equals_or_nothing() {
    let cpu = Cpu::new(1);
    let logits = [1.0, 9.0, 3.0, 3.0, 9.0, 3.0, f32::NAN];
    for temperature in [0.0, 1e-30, 1.0] {
        let params = SamplingParams { temperature, ..SamplingParams::greedy() };
        let of = |allowed: &[TokenId]| {
            let mask = mask(7, allowed.iter().copied());
            let draw = Draw { mask: Some(&mask), ..want(&params, 0, Some(2)) };
            let Sampled { token, rank, top, .. } = one(&cpu, &logits, Want::Draw(draw));
            (token, rank, top.into_iter().map(|(id, _)| id).collect::<Vec<_>>())
        };
        if temperature == 0.0 {
            assert_eq!(of(&[0, 3, 5, 2]), (Some(2), 3, vec![1, 4]), "the best two are masked out");
            assert_eq!(of(&[5, 3]), (Some(3), 4, vec![1, 4]));
        }
        assert_eq!(of(&[4]), (Some(4), 2, vec![1, 4]));
        assert_eq!(of(&[]), (None, 0, Vec::new()));
        assert_eq!(of(&[6]), (None, 0, Vec::new()), "what is not finite");
    }
}

#[test]
fn a_score_is_the_logprob_and_the_rank_of_the_given_token() {
    let cpu = Cpu::new(1);
    let mut rng = Rng(10);
    let mut logits: Vec<f32> = rng.vec(300).iter().map(|x| (x * 20.0).round() / 4.0).collect();
    logits[17] = f32::NEG_INFINITY;
    logits[40] = f32::NAN;
    let finite = |l: &f32| if l.is_finite() { *l } else { f32::NEG_INFINITY };
    let clean: Vec<f32> = logits.iter().map(finite).collect();
    let order = ranked(&clean);
    let sum: f64 = clean.iter().map(|&l| f64::from(l).exp()).sum();
    for (likelier, &target) in order.iter().enumerate() {
        let logprobs = (likelier % 4) as u32;
        let scored = one(&cpu, &logits, Want::Score(Score { target, logprobs }));
        assert_eq!((scored.token, scored.rank), (Some(target), likelier as u32 + 1));
        let exact = f64::from(clean[target as usize]) - sum.ln();
        let close =
            f64::from(scored.logprob) == exact || (f64::from(scored.logprob) - exact).abs() < 1e-5;
        assert!(close, "{target}: {}, expected {exact}", scored.logprob);
        let top: Vec<TokenId> = scored.top.iter().map(|(token, _)| *token).collect();
        assert_eq!(top, order[..logprobs as usize]);
    }
    let nothing = one(&cpu, &[f32::NAN; 3], Want::Score(Score { target: 1, logprobs: 2 }));
    assert_eq!((nothing.token, nothing.rank, nothing.top.len()), (None, 0, 0));
}
