//! Logits and greedy tokens equal those of transformers + peft, all adapters of a model (and the
//! base) in one batch.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use tessera::adapter::Adapter;
use tessera::backend::Backend;
use tessera::backend::cpu::Cpu;
use tessera::engine::{EngineHandle, Event};
use tessera::ids::{Slot, TokenId};
use tessera::model::Model;
use tessera::recipe::Recipe;
use tessera::request::{Limits, Request, RequestFields};

use crate::harness::{Golden, distance, golden_dir, logits, roomy};

/// f32 sums in another order: the figures are about 1e-5 apart; the bound is the project's.
const TOLERANCE: f32 = 2e-3;
/// transformers accumulates logprobs in f32 as well.
const LOGPROB_TOLERANCE: f32 = 2e-3;

/// `expected/NAME.json` and `.safetensors`.
struct Expected {
    prompts: Vec<Prompt>,
    min_gap: f64,
    logits: HashMap<usize, Vec<Vec<f32>>>,
}

struct Prompt {
    ids: Vec<TokenId>,
    greedy: Vec<TokenId>,
    logprobs: Vec<f32>,
}

fn ids(value: &Value) -> Vec<TokenId> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as TokenId).collect()
}

impl Expected {
    fn read(model_dir: &Path, name: &str) -> Self {
        let path = model_dir.join("expected").join(name);
        let json: Value =
            serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
        let prompt = |p: &Value| Prompt {
            ids: ids(&p["ids"]),
            greedy: ids(&p["greedy"]),
            logprobs: p["logprobs"]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_f64().unwrap() as f32)
                .collect(),
        };
        let prompts: Vec<Prompt> = json["prompts"].as_array().unwrap().iter().map(prompt).collect();
        let bytes = std::fs::read(path.with_extension("safetensors")).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let rows = |i: usize| {
            let tensor = tensors.tensor(&format!("p{i}.logits")).unwrap();
            let width = *tensor.shape().last().unwrap();
            let floats: Vec<f32> = tensor
                .data()
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes(c.try_into().unwrap()))
                .collect();
            floats.chunks_exact(width).map(<[f32]>::to_vec).collect()
        };
        let logits = (0..prompts.len()).map(|i| (i, rows(i))).collect();
        Self { prompts, min_gap: json["min_gap"].as_f64().unwrap(), logits }
    }
}

/// The base first, then every adapter; each with what is expected of it.
fn cases(golden: &Golden) -> Vec<(String, Option<Arc<Adapter>>, Expected)> {
    let base = ("base".to_owned(), None, Expected::read(&golden.dir, "base"));
    let adapters = golden.adapter_names().into_iter().map(|name| {
        let adapter = golden.adapter(&name);
        let expected = Expected::read(&golden.dir, &name);
        (name, Some(adapter), expected)
    });
    std::iter::once(base).chain(adapters).collect()
}

pub fn models() -> Vec<String> {
    let entries = std::fs::read_dir(golden_dir()).unwrap().map(Result::unwrap);
    let dirs = entries.filter(|e| e.path().join("config.json").exists());
    let mut names: Vec<String> = dirs.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    assert!(names.len() >= 2, "no golden models found");
    names
}

#[test]
fn logits_of_every_adapter_in_one_batch_equal_pefts() {
    check_logits(&|golden, _, _| {
        let backend = Cpu::new(2);
        let model = golden.model(&backend);
        (backend, model)
    });
}

/// Opens a model for steps of so many rows and adapters.
type Open<'a, B> = &'a dyn Fn(&Golden, usize, usize) -> (B, Model<B>);

pub fn check_logits<B: Backend>(device: Open<'_, B>) {
    let mut worst = (0.0, String::new());
    for name in models() {
        let golden = Golden::open(&name, None);
        let cases = cases(&golden);
        let adapters: Vec<_> = cases.iter().filter_map(|(_, a, _)| a.clone()).collect();
        let recipe = |case: usize| match case {
            0 => Recipe::base(),
            case => Recipe::one(Slot(case as u32 - 1)),
        };

        // Prompt by prompt round the adapters: neighbours in the batch differ.
        let mut order = Vec::new();
        for prompt in 0..cases[0].2.prompts.len() {
            order.extend((0..cases.len()).map(|case| (case, prompt)));
        }
        let prompts: Vec<_> = order
            .iter()
            .map(|&(case, prompt)| (recipe(case), cases[case].2.prompts[prompt].ids.clone()))
            .collect();
        let rows = prompts.iter().map(|(_, ids)| ids.len()).sum();
        let (backend, model) = device(&golden, rows, adapters.len());
        let mut rows = logits(&golden, &backend, &model, &adapters, &prompts).into_iter();
        for ((case, prompt), (_, ids)) in order.into_iter().zip(&prompts) {
            let (adapter, _, expected) = &cases[case];
            let got: Vec<Vec<f32>> = rows.by_ref().take(ids.len()).collect();
            let want = &expected.logits[&prompt];
            let got = &got[got.len() - want.len()..];
            for (position, (got, want)) in got.iter().zip(want).enumerate() {
                let distance = distance(got, want);
                let place = format!("{name}/{adapter} prompt {prompt} position {position}");
                assert!(distance < TOLERANCE, "{place}: {distance}");
                if distance > worst.0 {
                    worst = (distance, place);
                }
            }
        }
    }
    println!("largest distance: {} at {}", worst.0, worst.1);
}

fn request(prompt: &[TokenId], tokens_max: usize, vocabulary: usize) -> Request {
    let limits =
        Limits { context_tokens_max: 512, vocabulary_tokens: vocabulary as u32, logprobs_max: 20 };
    let fields = RequestFields {
        tokens_max: Some(tokens_max as u32),
        logprobs: Some(0),
        ..RequestFields::default()
    };
    Request::new(prompt.to_vec(), fields, &limits).unwrap()
}

fn submit(
    engine: &EngineHandle,
    request: Request,
    adapter: Option<Arc<Adapter>>,
) -> tokio::sync::mpsc::Receiver<Event> {
    let ticket = engine.reserve(1).unwrap().remove(0);
    engine.generate(ticket, request, adapter.map_or(Recipe::base(), Recipe::one))
}

#[test]
fn greedy_tokens_and_logprobs_through_the_engine_equal_transformers() {
    check_tokens(&|golden| golden.engine(roomy(), 4));
}

pub fn check_tokens(start: &dyn Fn(&Golden) -> EngineHandle) {
    for name in models() {
        let golden = Golden::open(&name, None);
        let engine = start(&golden);
        let vocabulary = golden.checkpoint.config.vocabulary;
        let cases = cases(&golden);
        let mut streams = Vec::new();
        // More adapters than slots, all at once: they take turns on the device.
        for prompt in 0..cases[0].2.prompts.len() {
            for (case, (_, adapter, expected)) in cases.iter().enumerate() {
                let prompt_case = &expected.prompts[prompt];
                let request = request(&prompt_case.ids, prompt_case.greedy.len(), vocabulary);
                streams.push((case, prompt, submit(&engine, request, adapter.clone())));
            }
        }
        for (case, prompt, mut stream) in streams {
            let (adapter, _, expected) = &cases[case];
            let want = &expected.prompts[prompt];
            let mut got = Vec::new();
            while let Some(event) = stream.blocking_recv() {
                match event {
                    Event::Token { token, logprob, finish, .. } => {
                        got.push((token, logprob));
                        if finish.is_some() {
                            break;
                        }
                    }
                    Event::Started { .. } => {}
                    Event::Scores(_) | Event::Embedding(_) => panic!("nobody asked for these"),
                    Event::NoTokenLeft | Event::NotFinite => {
                        panic!("{name}/{adapter}: no token is left")
                    }
                    Event::Failed(why) | Event::Astray(why) => panic!("{name}/{adapter}: {why}"),
                }
            }
            assert_eq!(got.len(), want.greedy.len(), "{name}/{adapter}");
            let pairs = got.iter().zip(want.greedy.iter().zip(&want.logprobs));
            for (i, ((token, logprob), (want_token, want_logprob))) in pairs.enumerate() {
                if token != want_token && expected.min_gap < 1e-3 {
                    // Two tokens closer than the rounding: the continuation may part here.
                    break;
                }
                assert_eq!(token, want_token, "{name}/{adapter} prompt {prompt} token {i}");
                let distance = (logprob - want_logprob).abs();
                let place = format!("{name}/{adapter} prompt {prompt} token {i}");
                assert!(distance < LOGPROB_TOLERANCE, "{place}: {distance}");
            }
        }
    }
}
