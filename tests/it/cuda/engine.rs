//! An engine on a card: adapters that take turns, and steps that fail.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tessera::adapter::Adapter;
use tessera::backend::cuda::{Cuda, room};
use tessera::engine::{Engine, EngineHandle, Event, FinishReason, Gpu};
use tessera::model::{Checkpoint, Model};
use tessera::recipe::Recipe;
use tessera::request::{Limits, Request, RequestFields};
use tokio::sync::mpsc::Receiver;

use super::card::{Card, is_real, limits};
use crate::harness::{BLOCK_TOKENS, Golden, RECIPE_PARTS_MAX, roomy};
use crate::structured::engine::{Told, asked, read as told, submit as ask};
use crate::structured::walk::World;

fn golden() -> Golden {
    Golden::open(&crate::golden::models()[0], None)
}

fn submit(
    engine: &EngineHandle,
    golden: &Golden,
    adapter: Option<&Arc<Adapter>>,
) -> Receiver<Event> {
    let vocabulary = golden.checkpoint.config.vocabulary as u32;
    let limits =
        Limits { context_tokens_max: 512, vocabulary_tokens: vocabulary, logprobs_max: 20 };
    let fields = RequestFields { tokens_max: Some(4), ..RequestFields::default() };
    let request = Request::new(vec![3, 1, 4], fields, &limits).unwrap();
    let ticket = engine.reserve(1).unwrap().remove(0);
    engine.generate(ticket, request, adapter.cloned().map_or(Recipe::base(), Recipe::one))
}

/// Tokens, or why there are none.
fn read(mut events: Receiver<Event>) -> Result<Vec<u32>, String> {
    let mut tokens = Vec::new();
    while let Some(event) = events.blocking_recv() {
        match event {
            Event::Started { .. } => {}
            Event::Scores(_) | Event::Embedding(_) => panic!("nobody asked for these"),
            Event::Token { token, finish, .. } => {
                tokens.push(token);
                if finish.is_some() {
                    return Ok(tokens);
                }
            }
            Event::NoTokenLeft | Event::NotFinite => return Err("no token is left".to_owned()),
            Event::Failed(why) | Event::Astray(why) => return Err(why),
        }
    }
    Err("the engine is gone".into())
}

#[test]
fn adapters_that_do_not_fit_together_take_turns() {
    let (card, golden) = (Card::new(), golden());
    let adapters: Vec<_> = golden.adapter_names().iter().map(|n| golden.adapter(n)).collect();
    let gpu = card.try_open(&golden, limits(32, 8), &|_| {}).unwrap();
    let Checkpoint { sites, dtype, .. } = &*golden.checkpoint;
    let bytes = |a: &Arc<Adapter>| room(&a.delta, sites, *dtype, u64::MAX).unwrap();
    // The largest fits, and nothing beside it but the smallest.
    let most = adapters.iter().map(bytes).max().unwrap();
    let least = adapters.iter().map(bytes).min().unwrap();
    let gpu = gpu.ready(&golden.checkpoint, 64, BLOCK_TOKENS, most + least).unwrap();
    let scheduler = tessera::scheduler::SchedulerConfig {
        sequences_max: 8,
        batch_tokens_max: 32,
        blocks: 64,
        ..roomy()
    };
    let kv_shape = Model::<Cuda>::kv_shape(&golden.checkpoint, 64, BLOCK_TOKENS);
    let Gpu { backend, model, .. } = gpu;
    let (adapter_slots_max, recipe_parts_max) = (8, RECIPE_PARTS_MAX);
    let engine =
        Engine { backend, model, kv_shape, scheduler, adapter_slots_max, recipe_parts_max };
    let engine = engine.start(1000).unwrap();
    let plain = golden.engine(roomy(), 8);
    let start = |engine: &EngineHandle| -> Vec<_> {
        adapters.iter().map(|a| submit(engine, &golden, Some(a))).collect()
    };
    let both = start(&engine).into_iter().zip(start(&plain));
    for (i, (on_card, on_cpu)) in both.enumerate() {
        assert_eq!(read(on_card), read(on_cpu), "adapter {i}");
    }
    assert!(engine.stats().adapter_evictions_total.load(Ordering::Relaxed) > 0);
}

#[test]
fn a_failed_step_fails_its_requests_and_a_lost_card_stops_the_engine() {
    if is_real() {
        return;
    }
    let (card, golden) = (Card::new(), golden());
    let engine = card.engine(&golden, roomy(), 4);
    let adapter = golden.adapter(&golden.adapter_names()[0]);
    let expected = read(submit(&engine, &golden, Some(&adapter))).unwrap();
    // Once every step is recorded, equal requests make equal calls.
    read(submit(&engine, &golden, Some(&adapter))).unwrap();
    let before = card.get("calls");
    read(submit(&engine, &golden, Some(&adapter))).unwrap();
    let calls = card.get("calls") - before;
    // In the prompt's step; at the replay of the last one, and at its draw.
    for after in [0, 11, calls - 2, calls - 1] {
        card.set("refuse_in", after);
        let why = read(submit(&engine, &golden, Some(&adapter))).unwrap_err();
        assert!(why.contains("LAUNCH_OUT_OF_RESOURCES"), "{why}");
        assert_eq!(read(submit(&engine, &golden, Some(&adapter))).as_ref(), Ok(&expected));
    }
    // A copy that fails is that adapter's failure alone.
    let other = golden.adapter(&golden.adapter_names()[1]);
    card.set("refuse_copies", 1);
    let why = read(submit(&engine, &golden, Some(&other))).unwrap_err();
    assert!(why.contains("not copied to the card"), "{why}");
    assert!(read(submit(&engine, &golden, Some(&other))).is_ok());
    assert!(!engine.stats().stopped.load(Ordering::Acquire));

    card.set("break_in", 5);
    let why = read(submit(&engine, &golden, None)).unwrap_err();
    assert!(why.contains("ILLEGAL_ADDRESS"), "{why}");
    while !engine.stats().stopped.load(Ordering::Acquire) {
        std::thread::yield_now();
    }
    assert_eq!(read(submit(&engine, &golden, None)).unwrap_err(), "the engine is gone");
}

#[test]
fn forms_are_followed_on_a_card_beside_requests_that_have_none() {
    let (card, golden, world) = (Card::new(), Golden::open("llama", None), World::new());
    let all = asked(&golden, &world, 1);
    let engine = card.engine(&golden, roomy(), 4);
    let alone: Vec<Told> = all.iter().map(|one| told(ask(&engine, one))).collect();
    let events: Vec<_> = all.iter().map(|one| ask(&engine, one)).collect();
    let together: Vec<Told> = events.into_iter().map(told).collect();
    // The first and the third have a form.
    for told in [&alone[0], &alone[2], &together[0], &together[2]] {
        let finish = told.end.as_ref().unwrap();
        let tokens: Vec<u32> = told.tokens.iter().map(|token| token.0).collect();
        let text = world.tokenizer.decode(&tokens, true);
        let value = serde_json::from_str::<serde_json::Value>(&text);
        assert_eq!(value.is_ok(), *finish == FinishReason::Whole, "{text}");
    }
    // On a real card the order of sums depends on how many rows there are.
    if !is_real() {
        assert_eq!(alone, together);
    }
    assert!(alone[4..].iter().all(|told| told.end.is_err() && told.tokens.len() == 3));
}
