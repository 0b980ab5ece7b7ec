//! What a request may ask of the engine beside one adapter and its tokens: several adapters with
//! weights, adapters from a position on, scores of the prompt, its vector, a cache of its own.

use std::sync::Arc;

use tessera::adapter::{Adapter, LoadAdapter as _};
use tessera::backend::Device as _;
use tessera::backend::cpu::Cpu;
use tessera::engine::{EngineHandle, Event, PromptScore};
use tessera::ids::{Digest, Slot, TokenId};
use tessera::model::Model;
use tessera::recipe::{Part, Recipe, Weight};
use tessera::request::{Limits, Pooling, Request, RequestFields};
use tessera::scheduler::SchedulerConfig;

use crate::Rng;
use crate::files::Draft;
use crate::harness::{
    BLOCK_TOKENS, Golden, RECIPE_PARTS_MAX, distance, logits, prompts_as_rows, roomy,
};

const TOLERANCE: f32 = 1e-4;
const VOCABULARY: usize = 512;

fn prompt(seed: u64, len: usize) -> Vec<TokenId> {
    let mut rng = Rng(seed);
    (0..len).map(|_| rng.below(VOCABULARY) as TokenId).collect()
}

fn weighted<A: Clone>(parts: &[(&A, f32)]) -> Recipe<A> {
    let part = |(adapter, weight): &(&A, f32)| Part {
        adapter: (*adapter).clone(),
        weight: Weight::new(*weight).unwrap(),
    };
    Recipe::new(parts.iter().map(part).collect())
}

/// All that a request was told.
#[derive(Debug, Default)]
struct Told {
    cached: u32,
    scores: Option<Vec<PromptScore>>,
    embedding: Option<Vec<f32>>,
    tokens: Vec<(TokenId, f32)>,
    failed: Option<String>,
}

type Asked = (Vec<TokenId>, RequestFields, Recipe<Arc<Adapter>>);

/// Asks all at once.
fn ask(engine: &EngineHandle, asked: Vec<Asked>) -> Vec<Told> {
    let limits = Limits { context_tokens_max: 512, vocabulary_tokens: 512, logprobs_max: 5 };
    let start = |(prompt, fields, recipe): Asked| {
        let ticket = engine.reserve(1).unwrap().remove(0);
        engine.generate(ticket, Request::new(prompt, fields, &limits).unwrap(), recipe)
    };
    let all: Vec<_> = asked.into_iter().map(start).collect();
    let listen = |mut events: tokio::sync::mpsc::Receiver<Event>| {
        let mut told = Told::default();
        while let Some(event) = events.blocking_recv() {
            match event {
                Event::Started { cached_tokens } => told.cached = cached_tokens,
                Event::Scores(scores) => told.scores = Some(scores),
                Event::Embedding(embedding) => told.embedding = Some(embedding),
                Event::Token { token, logprob, .. } => told.tokens.push((token, logprob)),
                Event::NoTokenLeft | Event::NotFinite => {
                    told.failed = Some("no token is left".to_owned());
                }
                Event::Failed(why) | Event::Astray(why) => told.failed = Some(why),
            }
        }
        told
    };
    all.into_iter().map(listen).collect()
}

/// Steps so small that every prompt takes several, and few rows may have logits.
fn narrow() -> SchedulerConfig {
    SchedulerConfig { sequences_max: 4, batch_tokens_max: 13, logit_rows_max: 5, ..roomy() }
}

fn fields(tokens_max: u32) -> RequestFields {
    RequestFields { tokens_max: Some(tokens_max), ..RequestFields::default() }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - max).exp()).sum();
    logits.iter().map(|x| f64::from(x - max) - sum.ln()).collect()
}

fn check_scores(place: &str, scores: &[PromptScore], prompt: &[TokenId], rows: &[Vec<f32>]) {
    assert_eq!(scores.len(), prompt.len() - 1, "{place}");
    for ((score, &token), row) in scores.iter().zip(&prompt[1..]).zip(rows) {
        let logprobs = log_softmax(row);
        let own = row[token as usize];
        let likelier = |(id, x): &(usize, &f32)| **x > own || **x == own && *id < token as usize;
        let rank = 1 + row.iter().enumerate().filter(likelier).count();
        assert_eq!((score.token, score.rank as usize), (token, rank), "{place}");
        let apart = (f64::from(score.logprob) - logprobs[token as usize]).abs();
        assert!(apart < f64::from(TOLERANCE), "{place}: {apart}");
        let mut best: Vec<usize> = (0..row.len()).collect();
        best.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
        for (&(token, logprob), &best) in score.top.iter().zip(&best[..3]) {
            assert_eq!(token as usize, best, "{place}");
            assert!((f64::from(logprob) - logprobs[best]).abs() < f64::from(TOLERANCE), "{place}");
        }
        assert_eq!(score.top.len(), 3, "{place}");
    }
}

#[test]
fn prompt_scores_are_those_of_the_forward_pass_in_any_number_of_steps() {
    let golden = Golden::open("llama", None);
    let adapters = ["lora_all_rs", "ssf"].map(|name| golden.adapter(name));
    let backend = Cpu::new(2);
    let model = golden.model(&backend);
    for (config, tokens_max) in [(narrow(), 0), (narrow(), 4), (roomy(), 3)] {
        let engine = golden.engine(config, 2);
        let prompts: Vec<_> = [40, 1, 17, 33].iter().map(|&n| prompt(n as u64, n)).collect();
        let parts = [vec![], vec![(&adapters[0], 1.0)], vec![(&adapters[1], 0.5)]];
        // Twice: what the prefix cache has by then must not be spared.
        for round in 0..2 {
            let recipe = |i: usize| weighted(&parts[i % 3]);
            let with = RequestFields { prompt_logprobs: Some(3), ..fields(tokens_max) };
            let each = prompts.iter().enumerate();
            let asked = each.map(|(i, p)| (p.clone(), with.clone(), recipe(i))).collect();
            let told = ask(&engine, asked);
            for (i, (told, prompt)) in told.iter().zip(&prompts).enumerate() {
                let place = format!("{tokens_max} tokens, round {round}, prompt {i}");
                let slots = recipe(i).map(|a| Slot(u32::from(a.digest == adapters[1].digest)));
                let rows = [(slots, prompt.clone())];
                let rows = logits(&golden, &backend, &model, &adapters, &rows);
                check_scores(&place, told.scores.as_ref().unwrap(), prompt, &rows);
                assert_eq!((told.tokens.len(), told.cached), (tokens_max as usize, 0), "{place}");
                if let Some((token, logprob)) = told.tokens.first() {
                    let logprobs = log_softmax(rows.last().unwrap());
                    let apart = (f64::from(*logprob) - logprobs[*token as usize]).abs();
                    assert!(apart < f64::from(TOLERANCE), "{place}: {apart}");
                }
            }
        }
    }
}

#[test]
fn a_prompts_vector_is_its_last_hidden_state_or_their_mean() {
    let golden = Golden::open("llama", None);
    let adapter = golden.adapter("lora_all_rs");
    let backend = Cpu::new(2);
    let model = golden.model(&backend);
    let prompts = [prompt(1, 1), prompt(2, 30), prompt(3, 47)];
    let mut slots = backend.slots(1);
    backend.write_slot(&mut slots, Slot(0), adapter.delta.clone()).unwrap();
    for config in [narrow(), roomy()] {
        let engine = golden.engine(config, 1);
        for recipe in [Recipe::base(), Recipe::one(adapter.clone())] {
            let asked = |pooling| RequestFields { pooling: Some(pooling), ..fields(9) };
            let kinds = [Pooling::Last, Pooling::Mean];
            let each = kinds.iter().flat_map(|kind| prompts.iter().map(move |p| (*kind, p)));
            let all = each.clone().map(|(kind, p)| (p.clone(), asked(kind), recipe.clone()));
            let told = ask(&engine, all.collect());
            for (told, (kind, prompt)) in told.iter().zip(each) {
                let mut rows = prompts_as_rows(&[(recipe.map(|_| Slot(0)), prompt.clone())]);
                rows.logit_rows = Vec::new();
                rows.hidden_rows = (0..prompt.len() as u32).collect();
                let kv = Model::<Cpu>::kv_shape(&golden.checkpoint, 4, BLOCK_TOKENS);
                let outputs = model.forward(&backend, &rows, &slots, &mut backend.kv(kv).unwrap());
                let hidden = backend.download(&outputs.hidden.unwrap()).unwrap();
                let width = golden.checkpoint.config.hidden;
                let want: Vec<f32> = match kind {
                    Pooling::Last => hidden[hidden.len() - width..].to_vec(),
                    Pooling::Mean => (0..width)
                        .map(|c| hidden[c..].iter().step_by(width).sum::<f32>())
                        .map(|sum| sum / prompt.len() as f32)
                        .collect(),
                };
                let got = told.embedding.as_ref().unwrap();
                assert!(distance(got, &want) < TOLERANCE, "{kind:?} of {}", prompt.len());
                assert_eq!((told.tokens.len(), &told.scores), (0, &None));
            }
        }
    }
}

#[test]
fn parts_of_a_recipe_add_up_whatever_the_kind_of_adapter() {
    for model in ["llama", "llama-bias", "qwen3"] {
        let golden = Golden::open(model, None);
        let (backend, prompt) = (Cpu::new(2), prompt(9, 12));
        let model = golden.model(&backend);
        let with = |adapters: &[Arc<Adapter>], parts: &[(&Slot, f32)]| {
            let prompts = [(weighted(parts), prompt.clone())];
            logits(&golden, &backend, &model, adapters, &prompts)
        };
        let worst = |a: &[Vec<f32>], b: &[Vec<f32>]| {
            a.iter().zip(b).map(|(a, b)| distance(a, b)).fold(0.0, f32::max)
        };
        let base = with(&[], &[]);
        for name in golden.adapter_names() {
            let adapters = [golden.adapter(&name), golden.adapter("lora_qv")];
            let [slot, other] = [&Slot(0), &Slot(1)];
            let one = with(&adapters, &[(slot, 1.0)]);
            let split = with(&adapters, &[(slot, 0.25), (slot, 0.75)]);
            assert!(worst(&one, &split) < 1e-3, "{name}: {}", worst(&one, &split));
            let none = with(&adapters, &[(slot, 1.0), (slot, -1.0)]);
            assert!(worst(&none, &base) < 1e-3, "{name}: {}", worst(&none, &base));
            let both = with(&adapters, &[(slot, 1.0), (other, -0.5), (slot, -1.0)]);
            let half = with(&adapters, &[(other, -0.5)]);
            assert!(worst(&both, &half) < 1e-3, "{name}: {}", worst(&both, &half));
            assert!(worst(&half, &base) > 1e-2 && worst(&one, &base) > 1e-2, "{name}: nothing");
        }
    }
}

#[test]
fn a_weight_of_a_lora_is_a_factor_of_its_b() {
    let golden = Golden::open("llama", None);
    let folder = tempfile::tempdir().unwrap();
    let mut draft = Draft::golden("llama", "lora_all_rs");
    draft.multiply("lora_B", -0.75);
    draft.write(folder.path());
    let scaled = golden.loader.load(folder.path()).unwrap();
    let engine = golden.engine(roomy(), 3);
    let recipes =
        [weighted(&[(&golden.adapter("lora_all_rs"), -0.75)]), Recipe::one(scaled), Recipe::base()];
    let told = ask(&engine, recipes.map(|r| (prompt(4, 20), fields(16), r)).to_vec());
    let tokens = |told: &Told| told.tokens.iter().map(|(t, _)| *t).collect::<Vec<_>>();
    assert_eq!(tokens(&told[0]), tokens(&told[1]));
    assert_ne!(tokens(&told[0]), tokens(&told[2]), "the adapter changes nothing");
}

#[test]
fn an_adapter_that_is_active_later_shares_the_pages_before_and_counts_from_there_on() {
    let golden = Golden::open("llama", None);
    let adapter = golden.adapter("lora_all_rs");
    let prompt = prompt(7, 4 * BLOCK_TOKENS + 3);
    for from in [BLOCK_TOKENS + 1, 2 * BLOCK_TOKENS, prompt.len() - 1, prompt.len() + 2] {
        let later = Recipe::one(adapter.clone()).active_from(from as u32);
        let asked = |recipe: &Recipe<_>| vec![(prompt.clone(), fields(8), recipe.clone())];
        let alone = ask(&golden.engine(roomy(), 1), asked(&later)).remove(0);
        assert_eq!(alone.cached, 0);
        let engine = golden.engine(roomy(), 1);
        ask(&engine, asked(&Recipe::base()));
        let told = ask(&engine, asked(&later)).remove(0);
        let shared = (from.min(prompt.len() - 1) / BLOCK_TOKENS * BLOCK_TOKENS) as u32;
        assert_eq!(told.cached, shared, "from {from}");
        assert_eq!(told.tokens.len(), alone.tokens.len());
        for (told, alone) in told.tokens.iter().zip(&alone.tokens) {
            assert_eq!(told.0, alone.0, "from {from}");
            assert!((told.1 - alone.1).abs() < TOLERANCE, "from {from}");
        }
        // Rows before it are the base's, rows from it on are not.
        let backend = Cpu::new(2);
        let model = golden.model(&backend);
        let rows = |recipe: Recipe<Slot>| {
            let prompts = [(recipe, prompt.clone())];
            logits(&golden, &backend, &model, std::slice::from_ref(&adapter), &prompts)
        };
        let [base, later] =
            [Recipe::base(), Recipe::one(Slot(0)).active_from(from as u32)].map(rows);
        for (row, (base, later)) in base.iter().zip(&later).enumerate() {
            let apart = distance(base, later);
            assert!(if row < from { apart == 0.0 } else { apart > 1e-3 }, "row {row}: {apart}");
        }
    }
}

#[test]
fn requests_of_another_salt_share_no_page() {
    let golden = Golden::open("llama", None);
    let engine = golden.engine(roomy(), 1);
    let prompt = prompt(8, 3 * BLOCK_TOKENS + 1);
    let mut cached = |salt: Option<u8>| {
        let cache_salt = salt.map(|byte| Digest([byte; 32]));
        let fields = RequestFields { cache_salt, ..fields(2) };
        ask(&engine, vec![(prompt.clone(), fields, Recipe::base())]).remove(0).cached
    };
    let whole = 3 * BLOCK_TOKENS as u32;
    let salts = [None, None, Some(1), Some(2), Some(1), None];
    assert_eq!(salts.map(&mut cached), [0, whole, 0, 0, whole, whole]);
}

#[test]
fn more_adapters_than_steps_are_made_for_are_an_error_of_the_request_alone() {
    let golden = Golden::open("llama", None);
    let engine = golden.engine(roomy(), 2);
    let adapter = golden.adapter("lora_qv");
    let many = |count| weighted(&vec![(&adapter, 0.5); count]);
    let asked =
        [RECIPE_PARTS_MAX, RECIPE_PARTS_MAX + 1].map(|n| (prompt(3, 5), fields(2), many(n)));
    let told = ask(&engine, asked.to_vec());
    assert_eq!((told[0].tokens.len(), &told[0].failed), (2, &None));
    let why = told[1].failed.as_ref().unwrap();
    assert!(why.contains("4 adapters") && why.contains("at most 3"), "{why}");
}

#[test]
fn a_recipe_waits_for_all_its_slots_and_never_for_itself() {
    let golden = Golden::open("llama", None);
    let [a, b, c] = ["lora_qv", "ssf", "ia3"].map(|name| golden.adapter(name));
    // Two slots: pairs that overlap take turns.
    let engine = golden.engine(roomy(), 2);
    let pairs = [[&a, &b], [&b, &c], [&c, &a], [&b, &a]];
    let asked =
        |[x, y]: [&Arc<Adapter>; 2]| (prompt(5, 9), fields(12), weighted(&[(x, 0.5), (y, 1.0)]));
    let told = ask(&engine, pairs.map(asked).to_vec());
    assert!(told.iter().all(|told| told.tokens.len() == 12), "{told:?}");
    // Three adapters never fit two slots.
    let three = weighted(&[(&a, 1.0), (&b, 1.0), (&c, 1.0)]);
    let told = ask(&engine, vec![(prompt(5, 9), fields(2), three)]).remove(0);
    assert!(told.failed.is_some(), "{told:?}");
    let told = ask(&engine, vec![(prompt(5, 9), fields(2), Recipe::one(c.clone()))]).remove(0);
    assert_eq!(told.tokens.len(), 2, "the engine goes on: {told:?}");
}
