//! What is asked of single tokens, by its definition and at random: for the CPU's sampler, the
//! kernel, and both devices in random programs.

use std::sync::Arc;

use tessera::backend::Draw;
use tessera::request::{SamplingParams, TokenMask, TokenRules};

use crate::Rng;

/// The logits that are drawn from, as vLLM 0.33 makes them (v1/sample/sampler.py,
/// `apply_logits_processors` and `apply_penalties`): sets of allowed tokens, bad words, stop tokens
/// before `min_tokens`, `logit_bias`, repetition, frequency and presence penalty. Written out token
/// by token. `round` is what each operation rounds to.
///
/// By hand, with a repetition penalty of 2, frequency ½ and presence ¼, for a token that the answer
/// holds twice, of logit 3 and bias 1: (3 + 1) / 2 − ½ · 2 − ¼ = ¾; of logit −3: (−3 + 1) · 2 − 1 −
/// ¼ = −5¼; in the prompt alone: 2 and −4.
pub fn changed(logits: &[f64], draw: &Draw<'_>, round: impl Fn(f64) -> f64) -> Vec<f64> {
    let Draw { params, history, mask, logprobs: _ } = draw;
    let rules = &params.rules;
    let change = |(token, &logit): (u32, &f64)| {
        let in_sets = mask.is_none_or(|mask| mask.allows(token))
            && rules.allowed.as_ref().is_none_or(|allowed| allowed.allows(token));
        if !in_sets || is_banned(rules, history.generated, token) {
            return f64::NEG_INFINITY;
        }
        let mut x = logit;
        for (biased, bias) in &rules.bias {
            if *biased == token {
                x = round(x + f64::from(*bias));
            }
        }
        if history.prompt.contains(&token) || history.generated.contains(&token) {
            let penalty = f64::from(params.repetition_penalty);
            x = round(if x > 0.0 { x / penalty } else { x * penalty });
        }
        let count = history.generated.iter().filter(|&&other| other == token).count();
        if count > 0 {
            let frequency = f64::from(params.frequency_penalty) * count as f64;
            x = round(x - round(frequency + f64::from(params.presence_penalty)));
        }
        if x.is_finite() { x + 0.0 } else { f64::NEG_INFINITY }
    };
    (0..).zip(logits).map(change).collect()
}

fn is_banned(rules: &TokenRules, generated: &[u32], token: u32) -> bool {
    let completes = |word: &Vec<u32>| {
        let text = [generated, &[token]].concat();
        text.len() >= word.len() && text[text.len() - word.len()..] == word[..]
    };
    let is_early = generated.len() < rules.min_tokens as usize;
    rules.bad_words.iter().any(completes) || (is_early && rules.held_back.contains(&token))
}

/// Random penalties, biases, bans and sets, often of none; some words end where `generated` does.
pub fn random(
    params: SamplingParams,
    rng: &mut Rng,
    vocabulary: usize,
    generated: &[u32],
) -> SamplingParams {
    let token = |rng: &mut Rng| rng.below(vocabulary) as u32;
    let mut bias = Vec::new();
    if rng.below(2) == 0 {
        for _ in 0..rng.below(6) {
            let token = token(rng);
            if bias.iter().all(|(other, _)| *other != token) {
                bias.push((token, [100.0, -100.0, 0.5, -3.25, 0.0][rng.below(5)]));
            }
        }
    }
    let mut bad_words = Vec::new();
    for _ in 0..rng.below(4) {
        let tail = rng.below(4).min(generated.len());
        let mut word = generated[generated.len() - tail..].to_vec();
        if rng.below(4) == 0 {
            word.insert(0, token(rng));
        }
        word.push(token(rng));
        bad_words.push(word);
    }
    let allowed = (rng.below(4) == 0).then(|| {
        let mut allowed = TokenMask::none(vocabulary);
        (0..vocabulary as u32).filter(|_| rng.below(3) > 0).for_each(|token| allowed.allow(token));
        allowed
    });
    let min_tokens = [0, generated.len() as u32, generated.len() as u32 + 1][rng.below(3)];
    // One may be beyond the vocabulary: a model's files name what it does not have.
    let held_back = (0..rng.below(4)).map(|_| rng.below(vocabulary + 2) as u32).collect();
    let penalties = [0.0, 0.0, 2.0, -2.0, 0.7, -0.3];
    SamplingParams {
        presence_penalty: penalties[rng.below(6)],
        frequency_penalty: penalties[rng.below(6)],
        rules: Arc::new(TokenRules { bias, bad_words, allowed, min_tokens, held_back }),
        ..params
    }
}

#[test]
fn the_definition_gives_what_a_calculation_by_hand_does() {
    let params = SamplingParams {
        repetition_penalty: 2.0,
        frequency_penalty: 0.5,
        presence_penalty: 0.25,
        rules: Arc::new(TokenRules {
            bias: vec![(0, 1.0), (1, 1.0), (2, 1.0), (3, 1.0)],
            bad_words: vec![vec![4], vec![0, 1, 5], vec![0, 0, 6], vec![9; 6]],
            allowed: None,
            min_tokens: 5,
            held_back: vec![7],
        }),
        ..SamplingParams::greedy()
    };
    let history = tessera::request::History { prompt: &[2, 3], generated: &[1, 0, 0, 1] };
    let draw = Draw { params: &params, history, mask: None, logprobs: None };
    let logits = [3.0, -3.0, 3.0, -3.0, 9.0, 9.0, 1.0, 9.0, 4.0];
    let none = f64::NEG_INFINITY;
    // Token 5 would end the answer 0 1 5; token 6 needs 0 0 before it.
    let expected = [0.75, -5.25, 2.0, -4.0, none, none, 1.0, none, 4.0];
    assert_eq!(changed(&logits, &draw, |x| x), expected);
}
