//! Draws against naive definitions of the filters, and their distribution.

use tessera::backend::cpu::{Cpu, Matrix};
use tessera::backend::{Backend, SampleRow, Sampled};
use tessera::request::SamplingParams;

use crate::Rng;

fn draw(cpu: &Cpu, logits: &[f32], params: &SamplingParams, step: u64) -> Sampled {
    let row = SampleRow { params: params.clone(), step, logprobs: None };
    let logits = Matrix::new(logits.to_vec(), logits.len());
    cpu.sample(&logits, &[row]).unwrap().remove(0)
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
            let params = SamplingParams { temperature, top_p, top_k, min_p, seed: 40 + i as u64 };
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
        let params = SamplingParams { temperature: 1.0, top_p, top_k, min_p, seed: 9 };
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
    let row = |i: usize| SampleRow {
        params: SamplingParams { temperature: 1.0, top_p: 0.95, top_k: 0, min_p: 0.0, seed: 7 },
        step: i as u64 / 2,
        logprobs: Some(3),
    };
    let rows: Vec<SampleRow> = (0..8).map(row).collect();
    let together = cpu.sample(&Matrix::new(logits.clone(), vocabulary), &rows).unwrap();
    for (i, row) in rows.iter().enumerate() {
        let alone = Matrix::new(logits[i * vocabulary..][..vocabulary].to_vec(), vocabulary);
        assert_eq!(cpu.sample(&alone, std::slice::from_ref(row)).unwrap()[0], together[i]);
    }
    let tokens = |seed: u64| -> Vec<_> {
        let params = SamplingParams { seed, ..rows[0].params.clone() };
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
    let params = SamplingParams { temperature: 0.5, top_p: 0.5, top_k: 40, min_p: 0.1, seed: 1 };
    let row = SampleRow { params, step: 0, logprobs: Some(100) };
    let sampled = cpu.sample(&Matrix::new(logits.clone(), 3000), &[row]).unwrap().remove(0);
    let sum: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
    let exact = |token: u32| f64::from(logits[token as usize]) - sum.ln();
    let close = |token: u32, found: f32| (f64::from(found) - exact(token)).abs() < 1e-5;
    assert!(close(sampled.token.unwrap(), sampled.logprob));
    assert_eq!(sampled.top.len(), 100);
    assert!(sampled.top.iter().all(|&(token, logprob)| close(token, logprob)));
    let mut order: Vec<u32> = (0..3000).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    assert!(sampled.top.iter().map(|&(token, _)| token).eq(order[..100].iter().copied()));
}
