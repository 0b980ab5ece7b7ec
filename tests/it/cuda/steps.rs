//! What steps compute.

use tessera::backend::cpu::Cpu;
use tessera::backend::cuda::Cuda;
use tessera::backend::{Adapters, Backend, Rows, SampleRow, Span};
use tessera::dtype::Dtype;
use tessera::engine::Gpu;
use tessera::ids::{BlockId, Slot};
use tessera::model::Model;
use tessera::request::SamplingParams;

use super::card::{Card, is_real, limits};
use crate::Rng;
use crate::golden::{check_logits, check_tokens};
use crate::harness::{BLOCK_TOKENS, Golden, logits, prompts_as_rows, roomy};

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
                (if i == 0 { Slot::BASE } else { Slot(i as u32 - 1) }, prompt)
            })
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
fn resident(card: Card, rows: usize) -> (Gpu, <Cuda as Backend>::Kv, <Cuda as Backend>::Pool) {
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let gpu = card.open(&golden, limits(rows, 6), 64);
    let kv_shape = Model::<Cpu>::kv_shape(&golden.checkpoint, 64, BLOCK_TOKENS);
    let (kv, mut pool) = (gpu.backend.kv(kv_shape), gpu.backend.pool(6));
    for (slot, name) in golden.adapter_names().iter().take(6).enumerate() {
        let slot = Slot(slot as u32);
        gpu.backend.write_slot(&mut pool, slot, golden.adapter(name).delta.clone()).unwrap();
        tessera::engine::wait_until_ready(&gpu.backend, &pool, slot).unwrap();
    }
    (gpu, kv, pool)
}

/// One token for each of `slots`, after `context` others.
fn decode(slots: &[Slot], context: usize, token: u32) -> Rows {
    let mut rows = Rows::default();
    let pages = (context + 1).div_ceil(BLOCK_TOKENS) + 1;
    for (row, &slot) in slots.iter().enumerate() {
        rows.tokens.push(token + row as u32);
        rows.positions.push(context as u32);
        rows.slots.push(slot);
        let block_table = (row * pages..(row + 1) * pages).map(|b| BlockId(b as u32)).collect();
        rows.spans.push(Span { start: row, len: 1, block_table });
        rows.logit_rows.push(row as u32);
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
    let prompts: [(Slot, Vec<u32>); 2] = [(Slot::BASE, prompt(40)), (Slot::BASE, prompt(300))];
    let prompt = prompts_as_rows(&prompts);
    // The next token of the first sequences.
    let next = |sequences: usize| {
        let mut rows = Rows::default();
        for (row, span) in prompt.spans[..sequences].iter().enumerate() {
            rows.tokens.push(9);
            rows.positions.push(span.len as u32);
            rows.slots.push(Slot::BASE);
            rows.spans.push(Span { start: row, len: 1, block_table: span.block_table.clone() });
            rows.logit_rows.push(row as u32);
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
    let (mut kv, pool) =
        (backend.kv(Model::<Cpu>::kv_shape(&golden.checkpoint, 32, BLOCK_TOKENS)), backend.pool(1));
    let mut run = |rows: Rows| {
        let batch = backend.batch(rows);
        let logits = model.forward(backend, &batch, &mut kv, Adapters { pool: &pool });
        backend.download(&logits).unwrap()
    };
    run(prompt.clone());
    steps.iter().map(|&sequences| run(next(sequences))).collect()
}

#[test]
fn a_replayed_step_gives_what_the_same_step_gave_unrecorded() {
    let card = Card::new();
    let (Gpu { backend, model, .. }, mut kv, pool) = resident(card, 64);
    let params = SamplingParams { temperature: 1.0, seed: 3, ..SamplingParams::greedy() };
    let sample = SampleRow { params, step: 0, logprobs: Some(4) };
    let mut step = |slots: &[Slot], token: u32| {
        let batch = backend.batch(decode(slots, 0, token));
        let logits = model.forward(&backend, &batch, &mut kv, Adapters { pool: &pool });
        let drawn = backend.sample(&logits, &vec![sample.clone(); slots.len()]).unwrap();
        (drawn, backend.download(&logits).unwrap())
    };
    let mixes: Vec<Vec<Slot>> = vec![
        vec![Slot(0), Slot(1), Slot::BASE],
        vec![Slot(2), Slot(0), Slot(2)],
        vec![Slot::BASE, Slot(5), Slot(4)],
    ];
    let first: Vec<_> = mixes.iter().map(|slots| step(slots, 5)).collect();
    // Every class is warm, then recorded; later steps of other rows replay it.
    for _ in 0..3 {
        for (slots, first) in mixes.iter().zip(&first) {
            step(slots, 40);
            let again = step(slots, 5);
            assert!(again == *first, "{slots:?}");
        }
    }
    assert!(backend.recorded() > 0);
    if !is_real() {
        assert!(card.get("replays") >= 12);
    }
}

#[test]
fn a_rehearsed_step_is_replayed_from_the_first_and_gives_the_same_bits() {
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let kv_shape = Model::<Cpu>::kv_shape(&golden.checkpoint, 64, BLOCK_TOKENS);
    let mixes = [&[Slot::BASE, Slot::BASE][..], &[Slot(0), Slot(1), Slot::BASE], &[Slot(2)]];
    let card = Card::new();
    if is_real() {
        return;
    }
    let run = |ranks: Option<&[usize]>| {
        let (gpu, mut kv, pool) = resident(card, 4);
        ranks.into_iter().for_each(|ranks| gpu.rehearse(kv_shape, ranks).unwrap());
        let before = card.get("replays");
        let logits = mixes.map(|slots| {
            let batch = gpu.backend.batch(decode(slots, 0, 5));
            let logits = gpu.model.forward(&gpu.backend, &batch, &mut kv, Adapters { pool: &pool });
            gpu.backend.download(&logits).unwrap()
        });
        (logits, card.get("replays") - before)
    };
    let (expected, replays) = run(None);
    assert_eq!(replays, 0);
    // One of each class of ranks.
    let (rehearsed, replays) = run(Some(&[0, 1, 17, 65]));
    assert!(rehearsed == expected);
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
    let (mut kv, pool) = (backend.kv(kv_shape), backend.pool(1));
    let mut steps = |model: &Model<Cuda>| {
        let mut step = || {
            let batch = backend.batch(decode(&[Slot::BASE; 2], 0, 5));
            let logits = model.forward(&backend, &batch, &mut kv, Adapters { pool: &pool });
            backend.download(&logits).unwrap()
        };
        // Unrecorded, recorded, replayed.
        let [first, second, third] = [(); 3].map(|()| step());
        assert!(first == second && second == third);
        first
    };
    let base = steps(&model);
    model.fold(&backend, &adapter.delta);
    assert!(steps(&model) != base);
    model.restore(&backend, &golden.checkpoint, &adapter.delta);
    assert!(steps(&model) == base);
}

#[test]
fn the_faster_form_of_a_recorded_step_is_kept_and_both_give_the_same_bits() {
    if is_real() {
        return;
    }
    let card = Card::new();
    let (Gpu { backend, model, .. }, mut kv, pool) = resident(card, 64);
    // Two classes, each with a trial of its own.
    for (beside_us, slots) in [(40, &[Slot(0), Slot(1)][..]), (60, &[Slot(2), Slot(1), Slot(2)])] {
        card.set("inline_us", 50);
        card.set("beside_us", beside_us);
        let mut step = |token: u32| {
            let batch = backend.batch(decode(slots, 0, token));
            let logits = model.forward(&backend, &batch, &mut kv, Adapters { pool: &pool });
            backend.download(&logits).unwrap()
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
