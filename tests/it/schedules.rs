//! Batched equals alone through the real engine: whatever is preempted, cached, cancelled, loaded,
//! replaced or unloaded meanwhile, a request's tokens are those it gets on an engine of its own.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::json;
use tessera::adapter::{Adapter, Catalog, LoadAdapter};
use tessera::engine::{EngineHandle, Event};
use tessera::ids::{Digest, TokenId};
use tessera::recipe::Recipe;
use tessera::request::{Limits, Request, RequestFields, SamplingParams};
use tessera::scheduler::{OVERTAKES_MAX, SchedulerConfig};
use tokio::sync::mpsc::Receiver;

use crate::files::Draft;
use crate::harness::{BLOCK_TOKENS, Golden, name, roomy};
use crate::{Rng, rules};

const VOCABULARY: usize = 512;
const SLOTS: usize = 4;
/// The longest prompt and completion here need 10 pages: one such sequence hardly leaves room.
const FEW_BLOCKS: usize = 11;

/// All that decides a request's tokens.
#[derive(Clone, Eq, Hash, PartialEq)]
struct Asked {
    content: Option<Digest>,
    prompt: Vec<TokenId>,
    tokens_max: u32,
    /// Greedy without; else the seed of a draw at temperature 0.9, top_p 0.95, which asks for
    /// penalties, biases and bans too if it is even.
    seed: Option<u64>,
}

impl Asked {
    fn request(&self) -> Request {
        let limits = Limits {
            context_tokens_max: 512,
            vocabulary_tokens: VOCABULARY as u32,
            logprobs_max: 5,
        };
        let sampling = match self.seed {
            None => SamplingParams::greedy(),
            Some(seed) => SamplingParams {
                temperature: 0.9,
                top_p: 0.95,
                top_k: 40,
                min_p: 0.01,
                seed,
                ..match seed % 2 {
                    0 => rules::random(SamplingParams::greedy(), &mut Rng(seed), VOCABULARY, &[]),
                    _ => SamplingParams::greedy(),
                }
            },
        };
        let fields = RequestFields {
            tokens_max: Some(self.tokens_max),
            sampling,
            stop_tokens: vec![7],
            ..RequestFields::default()
        };
        Request::new(self.prompt.clone(), fields, &limits).unwrap()
    }
}

fn submit(engine: &EngineHandle, asked: &Asked, adapter: Option<Arc<Adapter>>) -> Receiver<Event> {
    assert_eq!(asked.content, adapter.as_ref().map(|a| a.digest));
    let ticket = engine.reserve(1).unwrap().remove(0);
    engine.generate(ticket, asked.request(), adapter.map_or(Recipe::base(), Recipe::one))
}

/// Tokens with their logprobs, and how many prompt tokens were found cached.
fn finish(events: &mut Receiver<Event>) -> (Vec<(TokenId, f32)>, u32) {
    let (mut tokens, mut cached) = (Vec::new(), 0);
    loop {
        match events.blocking_recv().expect("the engine is gone") {
            Event::Token { token, logprob, finish, .. } => {
                tokens.push((token, logprob));
                if finish.is_some() {
                    return (tokens, cached);
                }
            }
            Event::Started { cached_tokens } => cached = cached_tokens,
            Event::Scores(_) | Event::Embedding(_) => panic!("nobody asked for these"),
            Event::NoTokenLeft | Event::NotFinite => panic!("no token could be drawn"),
            Event::Failed(why) | Event::Astray(why) => panic!("{why}"),
        }
    }
}

/// The tokens of requests that ran on an engine of their own, computed once each.
struct Alone<'a> {
    golden: &'a Golden,
    known: HashMap<Asked, Vec<(TokenId, f32)>>,
}

impl<'a> Alone<'a> {
    fn new(golden: &'a Golden) -> Self {
        Self { golden, known: HashMap::new() }
    }

    fn tokens(&mut self, asked: &Asked, adapter: Option<Arc<Adapter>>) -> Vec<(TokenId, f32)> {
        let run = || {
            let limits = SchedulerConfig { blocks: 32, prefix_cache: false, ..roomy() };
            let engine = self.golden.engine(limits, 1);
            finish(&mut submit(&engine, asked, adapter)).0
        };
        self.known.entry(asked.clone()).or_insert_with(run).clone()
    }

    fn check(
        &mut self,
        place: &str,
        asked: &Asked,
        adapter: Option<Arc<Adapter>>,
        got: &[(TokenId, f32)],
    ) {
        let want = self.tokens(asked, adapter);
        let tokens = |list: &[(TokenId, f32)]| list.iter().map(|(t, _)| *t).collect::<Vec<_>>();
        assert_eq!(tokens(got), tokens(&want), "{place}");
        let apart = got.iter().zip(&want).map(|(g, w)| (g.1 - w.1).abs());
        let apart = apart.fold(0.0, f32::max);
        assert!(apart < 1e-4, "{place}: logprobs are {apart} apart");
    }
}

/// Loads what `change` makes of a golden adapter, from a directory that it leaves as it is.
fn changed(golden: &Golden, dir: &Path, name: &str, change: impl Fn(&mut Draft)) -> Arc<Adapter> {
    let mut draft = Draft::golden("llama", name);
    change(&mut draft);
    draft.write(dir);
    golden.loader.load(dir).unwrap()
}

/// Contents that differ from each other, some in one number only.
fn contents(golden: &Golden, folder: &Path) -> Vec<Arc<Adapter>> {
    let kinds = ["lora_all_rs", "mos_compact", "ssf", "ia3", "lora_dora", "lora_embed"];
    let mut all: Vec<_> = kinds.iter().map(|name| golden.adapter(name)).collect();
    for (i, alpha) in [16, -16, 40].into_iter().enumerate() {
        let dir = folder.join(i.to_string());
        all.push(changed(golden, &dir, "lora_qv", |d| d.set("lora_alpha", alpha)));
    }
    all.push(changed(golden, &folder.join("9"), "lora_qv", |d| d.multiply("layers.1", -2.0)));
    all
}

fn ids(rng: &mut Rng, count: usize) -> Vec<TokenId> {
    (0..count).map(|_| rng.below(VOCABULARY) as TokenId).collect()
}

/// One prompt of a few beginnings that many share, cut and continued anywhere.
fn prompt(rng: &mut Rng, shared: &[Vec<TokenId>]) -> Vec<TokenId> {
    let beginning = &shared[rng.below(shared.len())];
    let mut prompt = beginning[..1 + rng.below(beginning.len())].to_vec();
    if rng.below(3) > 0 {
        let more = rng.below(12);
        prompt.extend(ids(rng, more));
    }
    prompt
}

struct Live {
    asked: Asked,
    adapter: Option<Arc<Adapter>>,
    events: Receiver<Event>,
    got: Vec<(TokenId, f32)>,
}

impl Live {
    /// Takes what has arrived; true when it is done.
    fn take(&mut self) -> bool {
        while let Ok(event) = self.events.try_recv() {
            match event {
                Event::Token { token, logprob, finish, .. } => {
                    self.got.push((token, logprob));
                    if finish.is_some() {
                        return true;
                    }
                }
                Event::Started { .. } => {}
                Event::Scores(_) | Event::Embedding(_) => panic!("nobody asked for these"),
                Event::NoTokenLeft | Event::NotFinite => panic!("no token could be drawn"),
                Event::Failed(why) | Event::Astray(why) => panic!("{why}"),
            }
        }
        false
    }
}

/// One random schedule; returns the requests that finished and the engine they ran on.
fn schedule(
    golden: &Golden,
    contents: &[Arc<Adapter>],
    rng: &mut Rng,
    operations: usize,
) -> (Vec<Live>, EngineHandle) {
    let limits = SchedulerConfig {
        sequences_max: 6,
        batch_tokens_max: 40,
        block_tokens: BLOCK_TOKENS,
        blocks: FEW_BLOCKS,
        queue_requests_max: 10_000,
        logit_rows_max: 6,
        prefix_cache: true,
    };
    let engine = golden.engine(limits, SLOTS);
    let catalog = Catalog::new(1 << 30);
    let names = ["a", "b", "c", "d", "e"];
    let shared: Vec<Vec<TokenId>> = (0..3).map(|_| ids(rng, 64)).collect();
    let seen: Vec<Vec<TokenId>> = (0..6).map(|_| prompt(rng, &shared)).collect();
    let (mut live, mut done): (Vec<Live>, Vec<Live>) = (Vec::new(), Vec::new());
    for _ in 0..operations {
        match rng.below(10) {
            // Load under a name, replacing what it meant.
            0 => {
                let content = contents[rng.below(contents.len())].clone();
                name(&catalog, names[rng.below(names.len())], &content, 0);
            }
            1 => {
                catalog.remove(names[rng.below(names.len())]);
            }
            // The client goes away.
            2 if !live.is_empty() => drop(live.swap_remove(rng.below(live.len()))),
            // Time for the engine, so that some steps see few sequences.
            3 => std::thread::sleep(Duration::from_micros(rng.below(1000) as u64)),
            _ => {
                let named = catalog.get(names[rng.below(names.len())]);
                let adapter = named.map(|named| named.adapter.clone());
                // Half of the prompts are met again and again, by every content.
                let asked = Asked {
                    content: adapter.as_ref().map(|a| a.digest),
                    prompt: match rng.below(2) {
                        0 => seen[rng.below(seen.len())].clone(),
                        _ => prompt(rng, &shared),
                    },
                    tokens_max: [1, 4, 40, 80][rng.below(4)],
                    seed: (rng.below(2) == 0).then(|| rng.below(2) as u64),
                };
                let events = submit(&engine, &asked, adapter.clone());
                live.push(Live { asked, adapter, events, got: Vec::new() });
            }
        }
        for i in (0..live.len()).rev() {
            if live[i].take() {
                done.push(live.swap_remove(i));
            }
        }
    }
    for mut one in live {
        let (rest, _) = finish(&mut one.events);
        one.got.extend(rest);
        done.push(one);
    }
    (done, engine)
}

/// Waits until the engine has let go of everything.
fn wait_until_idle(engine: &EngineHandle) {
    let deadline = Instant::now() + Duration::from_secs(10);
    let stats = engine.stats();
    let busy = || {
        let counts = [&stats.running, &stats.waiting, &stats.blocks_used];
        engine.in_flight() > 0 || counts.iter().any(|n| n.load(Ordering::Relaxed) > 0)
    };
    while busy() {
        assert!(Instant::now() < deadline, "the engine holds on to something: {stats:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn under_random_schedules_every_finished_request_has_the_tokens_it_has_alone() {
    let golden = Golden::open("llama", None);
    let folder = tempfile::tempdir().unwrap();
    let contents = contents(&golden, folder.path());
    let mut alone = Alone::new(&golden);
    let (mut finished, mut preempted, mut hit) = (0, 0, 0);
    for seed in 0..4 {
        let (done, engine) = schedule(&golden, &contents, &mut Rng(seed), 220);
        for (i, live) in done.iter().enumerate() {
            let place = format!("seed {seed}, request {i}, {:?}", live.asked.content);
            alone.check(&place, &live.asked, live.adapter.clone(), &live.got);
        }
        wait_until_idle(&engine);
        let stats = engine.stats();
        finished += done.len();
        preempted += stats.preemptions_total.load(Ordering::Relaxed);
        hit += stats.prefix_hit_tokens_total.load(Ordering::Relaxed);
        assert!(stats.adapters_resident.load(Ordering::Relaxed) <= SLOTS);
    }
    println!("{finished} finished, {preempted} preemptions, {hit} tokens found cached");
    // Else the schedules do not exercise what the name says.
    assert!(finished > 300 && preempted > 20 && hit > 1000, "{finished} {preempted} {hit}");
}

/// Two whole pages and a little, so that a stale page would be found.
/// One slot; a request for another adapter has waited for it until nobody may overtake it any more.
/// Then one that holds the slot is sent back to the queue, behind the first.
#[test]
fn a_preempted_request_does_not_keep_the_place_that_the_one_before_it_waits_for() {
    let golden = Golden::open("llama", None);
    let [one, other] = ["lora_qv", "ssf"].map(|name| golden.adapter(name));
    let scheduler = SchedulerConfig { blocks: 30, sequences_max: 24, ..roomy() };
    let engine = golden.engine(scheduler, 1);
    let start_with = |prompt, tokens_max, adapter: Option<&Arc<Adapter>>| {
        let limits = Limits { context_tokens_max: 512, vocabulary_tokens: 512, logprobs_max: 0 };
        let fields = RequestFields { tokens_max: Some(tokens_max), ..RequestFields::default() };
        let ticket = engine.reserve(1).unwrap().remove(0);
        let request = Request::new(prompt, fields, &limits).unwrap();
        engine.generate(ticket, request, adapter.cloned().map_or(Recipe::base(), Recipe::one))
    };
    let start = |prompt, tokens_max, adapter| start_with(vec![prompt], tokens_max, adapter);
    // Takes nearly all pages for a while: the others arrive meanwhile.
    let mut all = vec![start_with(ids(&mut Rng(5), 440), 1, None)];
    all.extend([start(1, 400, Some(&one)), start(2, 4, Some(&other))]);
    all.extend((0..OVERTAKES_MAX - 1).map(|i| start(i as TokenId, 1, None)));
    all.push(start(3, 400, Some(&one)));
    let deadline = Instant::now() + Duration::from_secs(30);
    for events in &mut all {
        loop {
            match events.try_recv() {
                Ok(Event::Token { finish: Some(_), .. }) => break,
                Ok(Event::Failed(why) | Event::Astray(why)) => panic!("{why}"),
                Ok(_) => {}
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
            assert!(Instant::now() < deadline, "somebody waits for ever");
        }
    }
    assert!(engine.stats().preemptions_total.load(Ordering::Relaxed) > 0);
}

/// A step has as many rows as its prompt has tokens: when it runs again, the first step ends where
/// its prompt does, and draws nothing.
#[test]
fn a_preempted_request_that_runs_again_just_to_the_end_of_its_prompt_goes_on() {
    let golden = Golden::open("llama", None);
    let scheduler = SchedulerConfig {
        sequences_max: 2,
        batch_tokens_max: 4 * BLOCK_TOKENS,
        blocks: 9,
        logit_rows_max: 2,
        prefix_cache: false,
        ..roomy()
    };
    let engine = golden.engine(scheduler, 1);
    let asked = |prompt_tokens, tokens_max| Asked {
        content: None,
        prompt: ids(&mut Rng(6), prompt_tokens),
        tokens_max,
        seed: None,
    };
    let both = [asked(2 * BLOCK_TOKENS, 60), asked(4 * BLOCK_TOKENS, 40)];
    let mut running = both.each_ref().map(|asked| submit(&engine, asked, None));
    let mut alone = Alone::new(&golden);
    for (asked, events) in both.iter().zip(&mut running) {
        let (got, _) = finish(events);
        alone.check("preempted", asked, None, &got);
    }
    assert!(engine.stats().preemptions_total.load(Ordering::Relaxed) > 0);
}

fn long_prompt() -> Vec<TokenId> {
    ids(&mut Rng(77), 2 * BLOCK_TOKENS + 5)
}

/// One request after the other on one engine with a prefix cache.
struct Session<'a> {
    engine: EngineHandle,
    alone: Alone<'a>,
}

impl<'a> Session<'a> {
    fn new(golden: &'a Golden) -> Self {
        Self { engine: golden.engine(roomy(), 2), alone: Alone::new(golden) }
    }

    /// Asks for the long prompt, compares with the same alone; returns the cached tokens.
    fn ask(&mut self, place: &str, adapter: Option<&Arc<Adapter>>) -> u32 {
        let content = adapter.map(|a| a.digest);
        let asked = Asked { content, prompt: long_prompt(), tokens_max: 24, seed: None };
        let (got, cached) = finish(&mut submit(&self.engine, &asked, adapter.cloned()));
        self.alone.check(place, &asked, adapter.cloned(), &got);
        cached
    }
}

const WHOLE_PAGES: u32 = 2 * BLOCK_TOKENS as u32;

/// ggml-org/llama.cpp#26207: a request that names no adapter was continued on the KV of one that
/// named another scale, and got a mixture.
#[test]
fn llama_cpp_26207_a_request_never_continues_on_kv_of_another_scale_or_of_the_base() {
    let golden = Golden::open("llama", None);
    let folder = tempfile::tempdir().unwrap();
    let one = golden.adapter("lora_qv");
    let zero = changed(&golden, folder.path(), "lora_qv", |d| d.set("lora_alpha", 0));
    let mut session = Session::new(&golden);
    // The scenario's order: scale 0, cached; then the default, cached; then back.
    for (round, cached) in [(1, 0), (2, WHOLE_PAGES)] {
        for (name, adapter) in [("scale 0", Some(&zero)), ("scale 1", Some(&one)), ("base", None)] {
            let place = format!("round {round}, {name}");
            assert_eq!(session.ask(&place, adapter), cached, "{place}: cached tokens");
        }
    }
    // Its second half: the base must not inherit what an adapter left, nor the other way round.
    let of = |adapter: Option<&Arc<Adapter>>| Asked {
        content: adapter.map(|a| a.digest),
        prompt: long_prompt(),
        tokens_max: 24,
        seed: None,
    };
    let tokens = [None, Some(&one)].map(|a| session.alone.tokens(&of(a), a.cloned()));
    assert_ne!(tokens[0], tokens[1], "the adapter changes nothing: the test shows nothing");
}

/// vllm-project/vllm#42125: a name loaded again in place, with other weights, was answered from
/// the old weights' KV.
#[test]
fn vllm_42125_a_name_loaded_again_with_other_weights_never_meets_the_old_kv() {
    let golden = Golden::open("llama", None);
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::new(1 << 30);
    let mut session = Session::new(&golden);
    // The same directory and the same name throughout; only the weights change.
    let load = |factor: f32| {
        let adapter = changed(&golden, folder.path(), "lora_qv", |d| d.multiply("lora_B", factor));
        name(&catalog, "tenant", &adapter, 0);
        catalog.get("tenant").unwrap().adapter.clone()
    };
    let first = load(1.0);
    assert_eq!(session.ask("first weights", Some(&first)), 0);
    assert_eq!(session.ask("first weights again", Some(&first)), WHOLE_PAGES);
    let second = load(-3.0);
    assert_ne!(first.digest, second.digest);
    assert_eq!(session.ask("second weights", Some(&second)), 0);
    assert!(catalog.remove("tenant").is_some());
    let third = load(2.0);
    assert_eq!(session.ask("third weights, after unloading", Some(&third)), 0);
    // Old content under the name again: its own KV may be used, and is right.
    let back = load(1.0);
    assert_eq!(back.digest, first.digest);
    assert_eq!(session.ask("first weights once more", Some(&back)), WHOLE_PAGES);
}

#[test]
fn another_scale_is_another_content() {
    let golden = Golden::open("llama", None);
    let folder = tempfile::tempdir().unwrap();
    let mut session = Session::new(&golden);
    for alpha in [1, 16, 17, -16] {
        let set = |d: &mut Draft| d.set("lora_alpha", json!(alpha));
        let scaled = changed(&golden, folder.path(), "lora_qv", set);
        assert_eq!(session.ask(&format!("alpha {alpha}"), Some(&scaled)), 0);
    }
}

#[test]
fn a_request_in_flight_keeps_the_content_it_began_with() {
    let golden = Golden::open("llama", None);
    let folder = tempfile::tempdir().unwrap();
    let catalog = Catalog::new(1 << 30);
    // One slot: the new content has to wait for the old one's last request.
    let engine = golden.engine(roomy(), 1);
    let mut alone = Alone::new(&golden);
    let old = golden.adapter("lora_all_rs");
    let new = changed(&golden, folder.path(), "lora_all_rs", |d| d.multiply("lora_B", -1.0));
    let asked = |adapter: &Arc<Adapter>, tokens_max| Asked {
        content: Some(adapter.digest),
        prompt: long_prompt(),
        tokens_max,
        seed: Some(3),
    };
    name(&catalog, "tenant", &old, 0);
    let before = catalog.get("tenant").unwrap().adapter.clone();
    let (first, second) = (asked(&before, 120), asked(&new, 20));
    let mut events = submit(&engine, &first, Some(before.clone()));
    // It is running when the name changes.
    let started = events.blocking_recv().unwrap();
    assert!(matches!(started, Event::Started { .. }), "{started:?}");
    let began = events.blocking_recv().unwrap();
    let Event::Token { token, logprob, .. } = began else { panic!("{began:?}") };
    name(&catalog, "tenant", &new, 0);
    let after = catalog.get("tenant").unwrap().adapter.clone();
    let mut later = submit(&engine, &second, Some(after.clone()));
    assert!(catalog.remove("tenant").is_some());
    let mut got = vec![(token, logprob)];
    got.extend(finish(&mut events).0);
    alone.check("began before", &first, Some(before), &got);
    alone.check("began after", &second, Some(after), &finish(&mut later).0);
}
