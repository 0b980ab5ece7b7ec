//! What steps compute.

use tessera::backend::cpu::{Cpu, Matrix};
use tessera::backend::cuda::{Cuda, StepLimits};
use tessera::backend::{Backend, Device, Draw, Rows, Sampled, Sampling, Score, Want};
use tessera::dtype::Dtype;
use tessera::engine::Gpu;
use tessera::ids::{BlockId, Slot};
use tessera::model::Model;
use tessera::recipe::{Part, Recipe, Weight};
use tessera::request::{History, SamplingParams, TokenMask};

use super::card::{Card, is_real, limits};
use crate::golden::{check_logits, check_tokens};
use crate::harness::{BLOCK_TOKENS, Golden, logits, prompts_as_rows, roomy};
use crate::merged::{check_folding, with_every_part};
use crate::{Rng, rules};

#[test]
fn logits_of_every_adapter_in_one_batch_equal_pefts_on_a_card() {
    let card = Card::new();
    check_logits(&|golden, rows, adapters| {
        let Gpu { backend, model, .. } = card.open(golden, limits(rows, adapters), rows);
        (backend, model)
    });
}

#[test]
fn greedy_tokens_through_the_engine_equal_transformers_on_a_card() {
    let card = Card::new();
    check_tokens(&|golden| card.engine(golden, roomy(), 4));
    if !is_real() {
        assert!(card.get("replays") > 20, "{} steps were replayed", card.get("replays"));
    }
}

fn one(slot: u32) -> Recipe<Slot> {
    Recipe::one(Slot(slot))
}

fn recipe(parts: &[(u32, f32)]) -> Recipe<Slot> {
    let part = |&(slot, weight): &(u32, f32)| Part {
        adapter: Slot(slot),
        weight: Weight::new(weight).unwrap(),
    };
    Recipe::new(parts.iter().map(part).collect())
}

/// A prompt under several adapters, under a share of one, and under adapters from some token on.
fn composed(prompt: &[u32]) -> [(Recipe<Slot>, Vec<u32>); 4] {
    let recipes = [
        recipe(&[(0, 0.5), (1, 0.75), (2, -0.25)]),
        recipe(&[(1, 0.5)]),
        one(0).active_from(4),
        recipe(&[(2, 0.5), (0, 0.5)]).active_from(1),
    ];
    recipes.map(|recipe| (recipe, prompt.to_vec()))
}

/// Root of the mean square of differences, as a share of that of `b`.
fn share(a: &[f32], b: &[f32]) -> f32 {
    let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>();
    let difference = squares(&mut a.iter().zip(b).map(|(a, b)| a - b));
    (difference / squares(&mut b.iter().copied())).sqrt()
}

#[test]
fn narrow_widths_agree_with_the_cpu() {
    let card = Card::new();
    for (name, dtype, bound) in
        [("llama", Dtype::F16, 0.02), ("llama", Dtype::BF16, 0.15), ("qwen3", Dtype::F16, 0.02)]
    {
        let Some(name) = crate::golden::models().into_iter().find(|m| m.starts_with(name)) else {
            panic!("no golden model starts with {name}");
        };
        let golden = Golden::open(&name, Some(dtype));
        let adapters: Vec<_> =
            golden.adapter_names().iter().map(|name| golden.adapter(name)).collect();
        let rng = &mut Rng(5);
        let vocabulary = golden.checkpoint.config.vocabulary;
        // A prompt long enough for tiles of prompts, between short ones.
        let prompts: Vec<_> = (0..=adapters.len())
            .map(|i| {
                let len = if i == 2 { 70 } else { 1 + i % 5 };
                let prompt = (0..len).map(|_| rng.below(vocabulary) as u32).collect::<Vec<_>>();
                (if i == 0 { Recipe::base() } else { one(i as u32 - 1) }, prompt)
            })
            .chain(composed(&[4, 1, 3, 1, 5, 9]))
            .collect();
        let rows: usize = prompts.iter().map(|(_, prompt)| prompt.len()).sum();
        let Gpu { backend, model, .. } = card.open(&golden, limits(rows, adapters.len()), rows);
        let actual = logits(&golden, &backend, &model, &adapters, &prompts);
        let cpu = Cpu::new(2);
        let expected = logits(&golden, &cpu, &golden.model(&cpu), &adapters, &prompts);
        for (row, (actual, expected)) in actual.iter().zip(&expected).enumerate() {
            let share = share(actual, expected);
            assert!(share < bound, "{name} {dtype:?} row {row}: {share}");
        }
    }
}

/// A card with six adapters in its first slots.
fn resident(card: Card, rows: usize) -> (Gpu, <Cuda as Device>::Kv, <Cuda as Device>::Slots) {
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let gpu = card.open(&golden, limits(rows, 6), 64);
    let kv_shape = Model::<Cpu>::kv_shape(&golden.checkpoint, 64, BLOCK_TOKENS);
    let (kv, mut slots) = (gpu.backend.kv(kv_shape).unwrap(), gpu.backend.slots(6));
    for (slot, name) in golden.adapter_names().iter().take(6).enumerate() {
        let slot = Slot(slot as u32);
        gpu.backend.write_slot(&mut slots, slot, golden.adapter(name).delta.clone()).unwrap();
        tessera::engine::wait_until_ready(&gpu.backend, &slots, slot).unwrap();
    }
    (gpu, kv, slots)
}

/// One token for each of `recipes`, after `context` others.
fn decode(recipes: &[Recipe<Slot>], context: usize, token: u32) -> Rows {
    let mut rows = Rows::default();
    let pages = ((context + 1).div_ceil(BLOCK_TOKENS) + 1) as u32;
    for (row, recipe) in (0..).zip(recipes) {
        let block_table = (row * pages..(row + 1) * pages).map(BlockId).collect();
        rows.push(&[token + row], context as u32, recipe, block_table);
        rows.logit_rows.push(row);
    }
    rows
}

#[test]
fn a_row_gives_the_same_bits_beside_a_context_of_more_splits() {
    let card = Card::new();
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let vocabulary = golden.checkpoint.config.vocabulary;
    let rng = &mut Rng(7);
    let mut prompt = |len: usize| (0..len).map(|_| rng.below(vocabulary) as u32).collect();
    let prompts = [(Recipe::base(), prompt(40)), (Recipe::base(), prompt(300))];
    let prompt = prompts_as_rows(&prompts);
    // The next token of the first sequences.
    let next = |sequences: usize| {
        let mut rows = Rows::default();
        for (row, span) in (0..).zip(&prompt.spans[..sequences]) {
            rows.push(&[9], span.len as u32, &Recipe::base(), span.block_table.clone());
            rows.logit_rows.push(row);
        }
        rows
    };
    let Gpu { backend, model, .. } = card.open(&golden, limits(340, 1), 32);
    let on_card = |steps: &[usize]| after_prompt(&golden, &backend, &model, &prompt, &next, steps);
    let cpu = Cpu::new(2);
    let cpu_model = golden.model(&cpu);
    let on_cpu = after_prompt(&golden, &cpu, &cpu_model, &prompt, &next, &[2]);
    // Unrecorded, recorded and replayed.
    let [alone, beside] = [on_card(&[1, 1, 1]), on_card(&[2, 2, 2])];
    assert!(alone[1..].iter().chain(&beside).all(|logits| logits[..vocabulary] == alone[0]));
    let share = share(&beside[2][vocabulary..], &on_cpu[0][vocabulary..]);
    assert!(share < 0.15, "the long row: {share}");
}

/// Logits of steps after a prompt's, of as many sequences as each says.
fn after_prompt<B: Backend>(
    golden: &Golden,
    backend: &B,
    model: &Model<B>,
    prompt: &Rows,
    next: &dyn Fn(usize) -> Rows,
    steps: &[usize],
) -> Vec<Vec<f32>> {
    let mut kv = backend.kv(Model::<Cpu>::kv_shape(&golden.checkpoint, 32, BLOCK_TOKENS)).unwrap();
    let slots = backend.slots(1);
    let mut run = |rows: &Rows| {
        let outputs = model.forward(backend, rows, &slots, &mut kv);
        backend.download(&outputs.logits.unwrap()).unwrap()
    };
    run(prompt);
    steps.iter().map(|&sequences| run(&next(sequences))).collect()
}

#[test]
fn a_replayed_step_gives_what_the_same_step_gave_unrecorded() {
    let card = Card::new();
    let (Gpu { backend, model, .. }, mut kv, slots) = resident(card, 64);
    let params = SamplingParams { temperature: 1.0, seed: 3, ..SamplingParams::greedy() };
    let history = History { prompt: &[0], generated: &[] };
    let draw = Want::Draw(Draw { params: &params, history, mask: None, logprobs: Some(4) });
    let mut step = |recipes: &[Recipe<Slot>], token: u32| {
        let outputs = model.forward(&backend, &decode(recipes, 0, token), &slots, &mut kv);
        let logits = outputs.logits.unwrap();
        let drawn = backend.sample(&logits, &vec![draw; recipes.len()]).unwrap();
        (drawn, backend.download(&logits).unwrap())
    };
    let mixes = [
        [one(0), one(1), Recipe::base()],
        [one(2), one(0), one(2)],
        [Recipe::base(), one(5), one(4)],
        [recipe(&[(0, 0.5), (3, 0.5)]), Recipe::base(), one(1)],
        [recipe(&[(4, 1.5)]), recipe(&[(2, -0.5), (1, 0.75)]), one(0)],
    ];
    let first: Vec<_> = mixes.iter().map(|recipes| step(recipes, 5)).collect();
    // Every class is warm, then recorded; later steps of other rows replay it.
    for _ in 0..3 {
        for (recipes, first) in mixes.iter().zip(&first) {
            step(recipes, 40);
            let again = step(recipes, 5);
            assert!(again == *first, "{recipes:?}");
        }
    }
    assert!(backend.recorded() > 0);
    if !is_real() {
        assert!(card.get("replays") >= 12);
    }
}

#[test]
fn a_card_draws_under_masks_and_scores_as_the_cpu_does() {
    let card = Card::new();
    let (Gpu { backend, model, .. }, mut kv, slots) = resident(card, 64);
    let recipes = [one(0), Recipe::base(), one(2), recipe(&[(1, 0.5), (0, 0.5)]), one(3), one(4)];
    let outputs = model.forward(&backend, &decode(&recipes, 0, 5), &slots, &mut kv);
    let logits = outputs.logits.unwrap();
    let on_host = backend.download(&logits).unwrap();
    let vocabulary = on_host.len() / recipes.len();
    let mask = |step: usize| {
        let mut mask = TokenMask::none(vocabulary);
        (1..vocabulary as u32).step_by(step).for_each(|token| mask.allow(token));
        mask
    };
    let (some, few, none) = (mask(3), mask(vocabulary / 2), TokenMask::none(vocabulary));
    let params = SamplingParams { temperature: 0.8, seed: 5, ..SamplingParams::greedy() };
    let params = SamplingParams { top_p: 0.9, ..params };
    let history = History { prompt: &[0], generated: &[7, 7] };
    let draw = Draw { params: &params, history, mask: None, logprobs: Some(3) };
    let wants = [
        Want::Draw(Draw { mask: Some(&some), ..draw }),
        Want::Score(Score { target: 4, logprobs: 2 }),
        Want::Draw(draw),
        Want::Draw(Draw { mask: Some(&few), logprobs: None, ..draw }),
        Want::Draw(Draw { mask: Some(&none), ..draw }),
        Want::Score(Score { target: vocabulary as u32 - 1, logprobs: 0 }),
    ];
    let on_card = backend.sample(&logits, &wants).unwrap();
    let on_cpu = Cpu::new(1).sample(&Matrix::new(on_host, vocabulary), &wants).unwrap();
    let ids = |s: &Sampled| (s.token, s.rank, s.top.iter().map(|(id, _)| *id).collect::<Vec<_>>());
    let logprobs = |s: &Sampled| {
        let top = s.top.iter().map(|(_, logprob)| *logprob);
        std::iter::once(s.logprob).chain(top).collect::<Vec<_>>()
    };
    for (row, (on_card, on_cpu)) in on_card.iter().zip(&on_cpu).enumerate() {
        assert_eq!(ids(on_card), ids(on_cpu), "row {row}");
        for (a, b) in logprobs(on_card).into_iter().zip(logprobs(on_cpu)) {
            assert!(a == b || (a - b).abs() < 1e-4, "row {row}: {a}, the CPU {b}");
        }
    }
    assert!(on_card[0].token.is_some_and(|token| some.allows(token)));
    assert_eq!((on_card[4].token, on_card[5].rank > 0), (None, true));
}

#[test]
fn a_step_with_more_edits_and_masks_than_one_launch_takes_is_drawn_in_several() {
    let card = Card::new();
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    // Memory for 1024 edits and two masks.
    let step = StepLimits { sequences_max: 1, ..limits(16, 1) };
    let Gpu { backend, model, .. } = card.open(&golden, step, 8);
    let kv_shape = Model::<Cpu>::kv_shape(&golden.checkpoint, 8, BLOCK_TOKENS);
    let (mut kv, slots) = (backend.kv(kv_shape).unwrap(), backend.slots(1));
    let mut rows = Rows::default();
    let tokens: Vec<u32> = (0..12).collect();
    let pages = (0..2).map(BlockId).collect();
    rows.push(&tokens, 0, &Recipe::base(), pages).for_each(|r| rows.logit_rows.push(r as u32));
    let logits = model.forward(&backend, &rows, &slots, &mut kv).logits.unwrap();
    let on_host = backend.download(&logits).unwrap();
    let vocabulary = on_host.len() / tokens.len();
    let rng = &mut Rng(31);
    let params = SamplingParams { temperature: 0.8, ..SamplingParams::greedy() };
    let asked: Vec<(SamplingParams, Vec<u32>)> = (0..tokens.len())
        .map(|i| {
            // Every third holds nearly all of the vocabulary.
            let held = [vocabulary as u32 - 3, 40, 0][i % 3];
            let generated: Vec<u32> = (0..held).map(|t| t * 7 % vocabulary as u32).collect();
            let asked = rules::random(params.clone(), rng, vocabulary, &generated);
            let repetition_penalty = [1.0, 1.4][i % 2];
            let frequency_penalty = 0.5;
            let seed = i as u64;
            (SamplingParams { repetition_penalty, frequency_penalty, seed, ..asked }, generated)
        })
        .collect();
    let draw = |i: usize| {
        let (params, generated) = &asked[i];
        let history = History { prompt: &[3], generated };
        Want::Draw(Draw { params, history, mask: None, logprobs: Some(2) })
    };
    let wants: Vec<Want<'_>> = (0..asked.len()).map(draw).collect();
    let on_card = backend.sample(&logits, &wants).unwrap();
    let on_cpu = Cpu::new(1).sample(&Matrix::new(on_host.clone(), vocabulary), &wants).unwrap();
    for (row, (on_card, on_cpu)) in on_card.iter().zip(&on_cpu).enumerate() {
        assert_eq!((on_card.token, on_card.rank), (on_cpu.token, on_cpu.rank), "row {row}");
    }
    assert!(backend.download(&logits).unwrap() == on_host, "the logits are as they were");
}

#[test]
fn a_step_that_warm_up_captured_is_replayed_from_the_first_and_gives_the_same_bits() {
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let kv_shape = Model::<Cpu>::kv_shape(&golden.checkpoint, 64, BLOCK_TOKENS);
    let bare = Recipe::base;
    let mixes = [&[bare(), bare()][..], &[one(0), one(1), bare()], &[one(2)]];
    let card = Card::new();
    if is_real() {
        return;
    }
    let run = |ranks: Option<&[usize]>| {
        let (gpu, mut kv, slots) = resident(card, 4);
        ranks.into_iter().for_each(|ranks| gpu.warm_up(kv_shape, ranks).unwrap());
        let before = card.get("replays");
        let logits = mixes.map(|recipes| {
            let rows = decode(recipes, 0, 5);
            let outputs = gpu.model.forward(&gpu.backend, &rows, &slots, &mut kv);
            gpu.backend.download(&outputs.logits.unwrap()).unwrap()
        });
        (logits, card.get("replays") - before)
    };
    let (expected, replays) = run(None);
    assert_eq!(replays, 0);
    // One of each class of ranks.
    let (warmed_up, replays) = run(Some(&[0, 1, 17, 65]));
    assert!(warmed_up == expected);
    assert_eq!(replays, mixes.len() as i64);
}

#[test]
fn steps_recorded_while_an_adapter_was_merged_are_not_replayed_once_it_is_taken_back() {
    let card = Card::new();
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let kv_shape = Model::<Cpu>::kv_shape(&golden.checkpoint, 8, BLOCK_TOKENS);
    // One that changes norms and biases too.
    let adapter = golden.adapter("ssf");
    let Gpu { backend, mut model, .. } = card.open(&golden, limits(2, 1), 8);
    let (mut kv, slots) = (backend.kv(kv_shape).unwrap(), backend.slots(1));
    let rows = decode(&[Recipe::base(), Recipe::base()], 0, 5);
    let mut steps = |model: &Model<Cuda>| {
        let mut step = || {
            let outputs = model.forward(&backend, &rows, &slots, &mut kv);
            backend.download(&outputs.logits.unwrap()).unwrap()
        };
        // Unrecorded, recorded, replayed.
        let [first, second, third] = [(); 3].map(|()| step());
        assert!(first == second && second == third);
        first
    };
    let base = steps(&model);
    model.fold(&backend, &adapter.delta);
    assert!(steps(&model) != base);
    model.restore(&backend, &golden.checkpoint, &adapter.delta).unwrap();
    assert!(steps(&model) == base);
}

#[test]
fn adapters_folded_on_the_card_give_their_unmerged_logits() {
    for name in ["llama-bias", "qwen2", "qwen3"] {
        let golden = Golden::open(name, None);
        let names = golden.adapter_names();
        let made = (with_every_part(&golden), "every part".to_owned());
        let adapters = names.into_iter().map(|name| (golden.adapter(&name), name));
        let Gpu { backend, mut model, .. } = Card::new().open(&golden, limits(64, 1), 16);
        check_folding(&golden, &backend, &mut model, adapters.chain([made]));
    }
}

#[test]
fn the_faster_form_of_a_recorded_step_is_kept_and_both_give_the_same_bits() {
    if is_real() {
        return;
    }
    let card = Card::new();
    let (Gpu { backend, model, .. }, mut kv, slots) = resident(card, 64);
    // Two classes, each with a trial of its own.
    for (beside_us, recipes) in [(40, &[one(0), one(1)][..]), (60, &[one(2), one(1), one(2)])] {
        card.set("inline_us", 50);
        card.set("beside_us", beside_us);
        let mut step = |token: u32| {
            let rows = decode(recipes, 0, token);
            let outputs = model.forward(&backend, &rows, &slots, &mut kv);
            backend.download(&outputs.logits.unwrap()).unwrap()
        };
        let unrecorded = [5, 40].map(&mut step);
        for _ in 0..10 {
            assert!([5, 40].map(&mut step) == unrecorded);
        }
        let before = card.get("beside_replays");
        assert!(before > 0);
        for _ in 0..2 {
            assert!([5, 40].map(&mut step) == unrecorded);
        }
        let beside = card.get("beside_replays") - before;
        assert_eq!(beside, if beside_us < 50 { 4 } else { 0 });
    }
}
