//! Guided, unguided and adapted requests in one batch.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tessera::adapter::Adapter;
use tessera::engine::{EngineHandle, Event, FinishReason};
use tessera::ids::TokenId;
use tessera::recipe::Recipe;
use tessera::request::{Guide, Limits, Request, RequestFields, SamplingParams, TokenMask};
use tessera::scheduler::SchedulerConfig;
use tokio::sync::mpsc::Receiver;

use super::schema;
use super::walk::{END, VOCABULARY, World};
use crate::harness::{Golden, roomy};

/// What a client is told: tokens with the bits of their logprobs, and how it ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    pub tokens: Vec<(TokenId, u32)>,
    pub end: Result<FinishReason, String>,
}

#[derive(Clone)]
pub struct Asked {
    prompt: Vec<TokenId>,
    pub guide: Option<Box<dyn Guide>>,
    adapter: Option<Arc<Adapter>>,
    seed: u64,
}

pub fn submit(engine: &EngineHandle, asked: &Asked) -> Receiver<Event> {
    let limits = Limits { context_tokens_max: 512, vocabulary_tokens: VOCABULARY, logprobs_max: 5 };
    let sampling =
        SamplingParams { temperature: 1.0, seed: asked.seed, ..SamplingParams::greedy() };
    let fields = RequestFields {
        tokens_max: Some(80),
        sampling,
        stop_tokens: vec![END],
        guide: asked.guide.clone(),
        ..RequestFields::default()
    };
    let request = Request::new(asked.prompt.clone(), fields, &limits).unwrap();
    let ticket = engine.reserve(1).unwrap().remove(0);
    engine.generate(ticket, request, asked.adapter.clone().map_or(Recipe::base(), Recipe::one))
}

pub fn read(mut events: Receiver<Event>) -> Told {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_recv().expect("the engine is gone") {
            Event::Token { token, logprob, finish, .. } => {
                tokens.push((token, logprob.to_bits()));
                if let Some(finish) = finish {
                    return Told { tokens, end: Ok(finish) };
                }
            }
            Event::Started { .. } => {}
            Event::Failed(why) => panic!("{why}"),
            Event::NoTokenLeft | Event::NotFinite => panic!("no token could be drawn"),
            Event::Astray(why) => return Told { tokens, end: Err(why) },
            Event::Scores(_) | Event::Embedding(_) => panic!("nobody asked for these"),
        }
    }
}

/// A guide that takes any token and then does not.
#[derive(Clone, Debug)]
struct Faulty {
    tokens: usize,
    panics: bool,
    /// For its first mask.
    takes: Duration,
}

impl Guide for Faulty {
    fn mask(&mut self) -> Result<TokenMask, String> {
        if self.tokens == 3 {
            std::thread::sleep(self.takes);
        }
        match (self.tokens, self.panics) {
            (0, true) => panic!("on purpose"),
            (0, false) => Err("out of luck".to_owned()),
            _ => Ok(TokenMask::of_words(vec![0xFFFF_FF00; VOCABULARY as usize / 32])),
        }
    }

    fn accept(&mut self, _: TokenId) -> Result<bool, String> {
        self.tokens -= 1;
        Ok(false)
    }

    fn fork(&self) -> Box<dyn Guide> {
        Box::new(self.clone())
    }
}

/// Requests of all kinds, four of each seed, and two that go astray.
pub fn asked(golden: &Golden, world: &World, seeds: u64) -> Vec<Asked> {
    let schema = schema(&json!({"type": "object", "additionalProperties": false,
        "properties": {"name": {"type": "string", "maxLength": 12}, "ok": {"type": "boolean"},
            "size": {"type": "integer", "minimum": 1, "maximum": 999}},
        "required": ["name", "ok", "size"]}));
    let adapter = golden.adapter("lora_all_rs");
    let mut all = Vec::new();
    for seed in 0..seeds {
        let of = |guide: Option<Box<dyn Guide>>, adapter: Option<&Arc<Adapter>>| Asked {
            prompt: vec![3, 60 + seed as u32, 4, 70],
            guide,
            adapter: adapter.cloned(),
            seed,
        };
        let guide = || Some(world.guide(&schema).unwrap());
        all.extend([of(guide(), None), of(None, None), of(guide(), Some(&adapter))]);
        all.push(of(None, Some(&adapter)));
    }
    for panics in [false, true] {
        let guide = Box::new(Faulty { tokens: 3, panics, takes: Duration::ZERO });
        all.push(Asked { guide: Some(guide), ..all[0].clone() });
    }
    all
}

#[test]
fn guided_and_unguided_requests_in_one_batch_are_told_what_each_is_told_alone() {
    let golden = Golden::open("llama", None);
    let world = World::new();
    let all = asked(&golden, &world, 4);
    let alone: Vec<Told> =
        all.iter().map(|one| read(submit(&golden.engine(roomy(), 4), one))).collect();
    // With room for all, and with so little that sequences are sent back and begin again.
    for blocks in [1024, 11] {
        let limits = SchedulerConfig { blocks, prefix_cache: false, ..roomy() };
        let engine = golden.engine(limits, 4);
        let events: Vec<_> = all.iter().map(|one| submit(&engine, one)).collect();
        let together: Vec<Told> = events.into_iter().map(read).collect();
        let preempted = engine.stats().preemptions_total.load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(preempted > 0, blocks == 11);
        for (i, (together, alone)) in together.iter().zip(&alone).enumerate() {
            match preempted > 0 {
                // What runs again runs in other shapes.
                true => {
                    let tokens = |told: &Told| told.tokens.iter().map(|t| t.0).collect::<Vec<_>>();
                    assert_eq!(
                        (tokens(together), &together.end),
                        (tokens(alone), &alone.end),
                        "{i}"
                    );
                }
                false => assert_eq!(together, alone, "{i}"),
            }
        }
    }
    for (one, told) in all.iter().zip(&alone).filter(|(one, _)| one.guide.is_some()).take(8) {
        let tokens: Vec<TokenId> = told.tokens.iter().map(|token| token.0).collect();
        let text = world.tokenizer.decode(&tokens, true);
        match told.end {
            Ok(FinishReason::Whole) => {
                let value: Value = serde_json::from_str(&text).unwrap();
                assert!((1..=999).contains(&value["size"].as_i64().unwrap()), "{text}");
            }
            Ok(FinishReason::Length) => assert_eq!(tokens.len(), 80, "{}", one.seed),
            ref other => panic!("{other:?}: {text}"),
        }
    }
    let ends: Vec<_> = alone[16..].iter().map(|told| (told.tokens.len(), &told.end)).collect();
    assert_eq!(ends[0], (3, &Err("out of luck".to_owned())));
    assert!(matches!(ends[1], (3, Err(why)) if why.contains("This is a bug")));
    assert!(alone.iter().any(|told| told.end == Ok(FinishReason::Whole)));
}

#[test]
fn a_mask_that_takes_long_holds_up_its_own_sequence_and_no_other() {
    let golden = Golden::open("llama", None);
    let world = World::new();
    let all = asked(&golden, &world, 1);
    let faulty = |takes| {
        let guide: Box<dyn Guide> = Box::new(Faulty { tokens: 3, panics: false, takes });
        Asked { guide: Some(guide), ..all[0].clone() }
    };
    let engine = golden.engine(roomy(), 4);
    let quick = read(submit(&engine, &faulty(Duration::ZERO)));
    let mut slow = submit(&engine, &faulty(Duration::from_secs(6)));
    let others: Vec<_> = all[..4].iter().map(|one| submit(&engine, one)).collect();
    let others: Vec<Told> = others.into_iter().map(read).collect();
    // Four answers, and the slow one has not begun.
    assert!(slow.try_recv().is_err());
    let alone: Vec<Told> = all[..4].iter().map(|one| read(submit(&engine, one))).collect();
    assert_eq!(others, alone);
    assert_eq!(read(slow), quick, "late, and the same");
}
