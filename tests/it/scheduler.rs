//! Random schedules against a simulated device.
//!
//! The simulated KV cache stores, in each cell, a hash of the salt, of all tokens up to that
//! position and of what their rows carried: what a real cell's numbers are a function of, and the
//! salt. Sampling reads the cells that a block table names, as attention does, so that one stale or
//! foreign cell changes the tokens.

use std::collections::{BTreeMap, BTreeSet};

use tessera::ids::{Digest, SequenceId, TokenId};
use tessera::recipe::{Part, Recipe, Weight};
use tessera::request::{Share, ShareWeight};
use tessera::scheduler::{
    Committed, Counts, Entry, NewSequence, Plan, PromptRows, Refused, Scheduler, SchedulerConfig,
};

use crate::Rng;

const SCHEDULES: u64 = 10_000;
/// Few, so that texts often agree.
const VOCABULARY: u64 = 3;

fn mix(state: u64, value: u64) -> u64 {
    let x = (state ^ value.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x ^ (x >> 31)
}

fn root(new: &NewSequence) -> u64 {
    new.salt.map_or(1, |salt| mix(2, u64::from(salt.0[0])))
}

/// What the row at a position makes of the one before it.
fn after(new: &NewSequence, state: u64, position: usize, token: TokenId) -> u64 {
    let parts = match position >= new.recipe.from() as usize {
        true => new.recipe.parts(),
        false => &[],
    };
    let carried = parts.iter().fold(3, |state, part| {
        mix(mix(state, u64::from(part.adapter.0[0])), u64::from(part.weight.get().to_bits()))
    });
    mix(mix(state, carried), u64::from(token) + 1)
}

/// What position `tokens.len() - 1` must hold.
fn content(new: &NewSequence, tokens: &[TokenId]) -> u64 {
    let rows = tokens.iter().enumerate();
    rows.fold(root(new), |state, (position, &token)| after(new, state, position, token))
}

/// Positions of a prompt whose logits are wanted, beside the one that draws.
fn is_scored(new: &NewSequence, position: usize) -> bool {
    new.wanted == PromptRows::Logits && position + 1 < new.prompt.len()
}

/// The toy model: the token after a text, and whether it ends the text.
fn next_token(content: u64) -> (TokenId, bool) {
    let draw = mix(content, 77);
    ((draw % VOCABULARY) as TokenId, draw.is_multiple_of(29))
}

/// What a sequence generates when nothing else runs.
fn alone(new: &NewSequence) -> Vec<TokenId> {
    let mut text = new.prompt.clone();
    if new.tokens_max == 0 {
        return Vec::new();
    }
    loop {
        let (token, end) = next_token(content(new, &text));
        text.push(token);
        if end || text.len() == new.prompt.len() + new.tokens_max as usize {
            return text.split_off(new.prompt.len());
        }
    }
}

/// What the simulation knows of a live sequence, from plans only.
struct Live {
    new: NewSequence,
    text: Vec<TokenId>,
    computed: usize,
    running: bool,
}

struct Simulation {
    rng: Rng,
    config: SchedulerConfig,
    scheduler: Scheduler,
    /// By block, then position in it.
    kv: Vec<Vec<Option<u64>>>,
    live: BTreeMap<SequenceId, Live>,
    arrived: u64,
    prefixes: Vec<Vec<TokenId>>,
    finished: usize,
    /// Chances out of 8.
    can_run: usize,
    faults: bool,
    trace: u64,
}

impl Simulation {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let sequences_max = 1 + rng.below(5);
        let block_tokens = 1 + rng.below(5);
        let spare_rows = [1, 6, 30][rng.below(3)];
        let blocks_max = [16, 40][rng.below(2)];
        let config = SchedulerConfig {
            sequences_max,
            batch_tokens_max: sequences_max + 1 + rng.below(spare_rows),
            block_tokens,
            blocks: 1 + rng.below(blocks_max),
            queue_requests_max: 1 + rng.below(8),
            logit_rows_max: sequences_max + rng.below(4),
            prefix_cache: rng.below(5) > 0,
        };
        let prefixes = (0..3).map(|_| text(&mut rng, 12)).collect();
        Self {
            scheduler: Scheduler::new(config.clone()).unwrap(),
            kv: vec![vec![None; block_tokens]; config.blocks],
            live: BTreeMap::new(),
            arrived: 0,
            prefixes,
            finished: 0,
            can_run: 2 + rng.below(7),
            faults: rng.below(2) == 0,
            trace: 0,
            rng,
            config,
        }
    }

    fn new_sequence(&mut self) -> NewSequence {
        let rng = &mut self.rng;
        let prefix = &self.prefixes[rng.below(3)];
        let mut prompt = prefix[..rng.below(prefix.len() + 1)].to_vec();
        let tail = 1 + rng.below(4);
        prompt.extend(text(rng, tail));
        // One adapter or none most of the time, so that texts meet their like.
        let parts = [0, 0, 0, 0, 1, 1, 1, 2][rng.below(8)];
        let mut part = || Part {
            adapter: Digest([rng.below(2) as u8; 32]),
            weight: Weight::new([1.0, 1.0, 1.0, 1.0, -0.5][rng.below(5)]).unwrap(),
        };
        let recipe = Recipe::new((0..parts).map(|_| part()).collect());
        let recipe = recipe.active_from([0, 0, 0, 0, 0, 0, 3, 9][rng.below(8)]);
        let salt = (rng.below(16) == 0).then(|| Digest([rng.below(2) as u8; 32]));
        let wanted = match rng.below(16) {
            0 => PromptRows::Logits,
            1 => PromptRows::Hidden,
            _ => PromptRows::Nothing,
        };
        let none = wanted != PromptRows::Nothing && rng.below(2) == 0;
        let tokens_max = if none { 0 } else { 1 + rng.below(24) as u32 };
        let priority = [-1, 0, 0, 0, 1][rng.below(5)];
        let tenant = [0, 0, 1, 2][rng.below(4)];
        let share = Share {
            tenant: Digest([tenant; 32]),
            weight: ShareWeight::new([1.0, 0.25, 3.0][usize::from(tenant)]).unwrap(),
            priority: i64::from(tenant / 2),
        };
        let id = SequenceId(self.arrived);
        self.arrived += 1;
        NewSequence { id, prompt, recipe, salt, share, priority, tokens_max, wanted }
    }

    fn admit(&mut self, new: NewSequence) {
        let positions = new.prompt.len() + (new.tokens_max as usize).saturating_sub(1);
        let blocks_needed = positions.div_ceil(self.config.block_tokens);
        let waiting = self.live.values().filter(|live| !live.running).count();
        let expected = if blocks_needed > self.config.blocks {
            Err(Refused::NeverFits { blocks_needed, blocks: self.config.blocks })
        } else if waiting >= self.config.queue_requests_max {
            Err(Refused::QueueFull { queue_requests_max: self.config.queue_requests_max })
        } else {
            Ok(())
        };
        assert_eq!(self.scheduler.admit(new.clone()), expected);
        if expected.is_ok() {
            let text = new.prompt.clone();
            self.live.insert(new.id, Live { new, text, computed: 0, running: false });
        }
    }

    fn cancel_one(&mut self) {
        if let Some(&id) = self.live.keys().nth(self.rng.below(self.live.len().max(1))) {
            self.live.remove(&id);
            self.scheduler.cancel(id);
        }
    }

    /// Returns whether rows ran and were committed.
    fn step(&mut self) -> bool {
        let (mut asked, mut allowed) = (BTreeSet::new(), false);
        let (rng, chance, live) = (&mut self.rng, self.can_run, &self.live);
        let plan = self.scheduler.plan(&mut |id| {
            assert!(asked.insert(id), "asked once");
            assert!(!live[&id].running, "running sequences are not asked about");
            let can_run = rng.below(8) < chance;
            allowed |= can_run;
            can_run
        });
        let idle = plan.entries.is_empty();
        if idle && plan.preempted.is_empty() {
            let flow = |new: &NewSequence| {
                let adapters = new.recipe.parts().iter().map(|part| part.adapter);
                (new.share.tenant, adapters.collect::<Vec<_>>())
            };
            let asked: BTreeSet<_> = asked.iter().map(|id| flow(&self.live[id].new)).collect();
            let all: BTreeSet<_> = self.live.values().map(|live| flow(&live.new)).collect();
            assert!(asked == all && !allowed, "idle without a reason");
        }
        self.check_plan(&plan, &asked);
        self.trace = mix(self.trace, plan.entries.iter().fold(0, |t, e| mix(t, entry_hash(e))));
        let sampled = self.run(&plan);
        if self.faults && self.rng.below(8) == 0 {
            self.cancel_one();
        }
        if self.faults && self.rng.below(16) == 0 {
            return false; // The step failed after it had written: nothing is committed.
        }
        self.commit(&plan, sampled);
        !idle
    }

    fn check_plan(&mut self, plan: &Plan, asked: &BTreeSet<SequenceId>) {
        let config = &self.config;
        for id in &plan.preempted {
            let live = self.live.get_mut(id).unwrap();
            assert!(live.running, "preempted before it ran");
            (live.running, live.computed) = (false, 0);
            assert!(plan.entries.iter().all(|entry| entry.id != *id), "preempted and planned");
        }
        let rows: usize = plan.entries.iter().map(|entry| entry.tokens.len()).sum();
        assert!(rows <= config.batch_tokens_max);
        let mut seen = BTreeSet::new();
        let mut logits = 0;
        for entry in &plan.entries {
            assert!(seen.insert(entry.id), "planned twice");
            let live = self.live.get_mut(&entry.id).unwrap();
            assert!(live.running || asked.contains(&entry.id), "started without a question");
            live.running = true;
            let (start, end) = (entry.start as usize, entry.start as usize + entry.tokens.len());
            assert!(start >= live.computed && start < end);
            // Rows that are wanted are never spared.
            assert!(start == live.computed || live.new.wanted == PromptRows::Nothing);
            logits += (start..end).filter(|&row| is_scored(&live.new, row)).count();
            logits += usize::from(entry.draws);
            assert_eq!(entry.tokens, live.text[start..end]);
            assert_eq!(entry.draws, end == live.text.len() && live.new.tokens_max > 0);
            assert_eq!(entry.block_table.len(), end.div_ceil(config.block_tokens));
            let distinct: BTreeSet<_> = entry.block_table.iter().collect();
            assert_eq!(distinct.len(), entry.block_table.len());
        }
        assert!(logits <= config.logit_rows_max);
        let running = self.live.iter().filter(|(_, live)| live.running);
        let decoding = running.clone().filter(|(_, live)| live.computed + 1 == live.text.len());
        assert!(decoding.clone().all(|(id, _)| seen.contains(id)), "a stream stalled");
        let gave_up = !plan.preempted.is_empty();
        assert!(running.clone().next().is_none() || !seen.is_empty() || gave_up, "all stalled");
        let counts = self.scheduler.counts();
        assert!(running.clone().count() <= config.sequences_max);
        assert_eq!(counts.running, running.clone().count());
        assert_eq!(counts.waiting, self.live.len() - counts.running);
        let tables = plan.entries.iter().flat_map(|entry| &entry.block_table);
        assert!(counts.blocks_used >= tables.collect::<BTreeSet<_>>().len());
        assert!(counts.blocks_used + counts.blocks_cached <= counts.blocks_total);
    }

    /// Checks what the plan reads, writes its rows, checks again what it reads, and samples.
    fn run(&mut self, plan: &Plan) -> Vec<Committed> {
        for entry in &plan.entries {
            self.check_cells(entry, entry.start as usize);
        }
        let mut written = BTreeSet::new();
        for entry in &plan.entries {
            let mut state = match entry.start {
                0 => root(&self.live[&entry.id].new),
                start => self.cell(entry, start as usize - 1).unwrap(),
            };
            for (row, &token) in entry.tokens.iter().enumerate() {
                let position = entry.start as usize + row;
                state = after(&self.live[&entry.id].new, state, position, token);
                let block = entry.block_table[position / self.config.block_tokens].0 as usize;
                let cell = position % self.config.block_tokens;
                assert!(written.insert((block, cell)), "two rows write one cell");
                self.kv[block][cell] = Some(state);
            }
        }
        let mut sampled = Vec::new();
        for entry in &plan.entries {
            let end = entry.start as usize + entry.tokens.len();
            self.check_cells(entry, end);
            if entry.draws {
                let state = self.cell(entry, end - 1).unwrap();
                sampled.push(self.draw(entry.id, end, state));
            }
        }
        sampled
    }

    /// The token that follows `position - 1`, and sometimes those after it: what a step that checks
    /// guessed tokens accepts.
    fn draw(&mut self, id: SequenceId, position: usize, mut state: u64) -> Committed {
        let count = [1, 1, 1, 2, 4][self.rng.below(5)];
        let new = &self.live[&id].new;
        let (mut tokens, mut finished) = (Vec::new(), false);
        while tokens.len() < count && !finished {
            let (token, end) = next_token(state);
            state = after(new, state, position + tokens.len(), token);
            tokens.push(token);
            finished = end;
        }
        Committed { id, tokens, finished }
    }

    fn cell(&self, entry: &Entry, position: usize) -> Option<u64> {
        let block = entry.block_table[position / self.config.block_tokens].0 as usize;
        self.kv[block][position % self.config.block_tokens]
    }

    /// The first `len` cells of the entry's table hold its own adapter's KV of its own text.
    fn check_cells(&self, entry: &Entry, len: usize) {
        let live = &self.live[&entry.id];
        let mut state = root(&live.new);
        for position in 0..len {
            state = after(&live.new, state, position, live.text[position]);
            let cell = self.cell(entry, position);
            assert_eq!(cell, Some(state), "{:?} at {position}: stale KV", entry.id);
        }
    }

    fn commit(&mut self, plan: &Plan, mut sampled: Vec<Committed>) {
        if self.faults && self.rng.below(8) == 0 && !sampled.is_empty() {
            sampled.swap_remove(self.rng.below(sampled.len())); // A row without finite logits.
        }
        self.scheduler.commit(plan, &sampled);
        for entry in &plan.entries {
            let open = entry.draws && sampled.iter().all(|result| result.id != entry.id);
            let Some(live) = self.live.get_mut(&entry.id) else { continue };
            live.computed = entry.start as usize + entry.tokens.len() - usize::from(open);
            if live.new.tokens_max == 0 && live.computed == live.text.len() {
                self.end(entry.id);
            }
        }
        for Committed { id, tokens, finished } in sampled {
            let Some(live) = self.live.get_mut(&id) else { continue };
            let text_max = live.new.prompt.len() + live.new.tokens_max as usize;
            let room = text_max - live.text.len();
            live.text.extend(tokens.iter().take(room));
            if finished && tokens.len() <= room || live.text.len() == text_max {
                self.end(id);
            } else {
                let history = self.scheduler.history(id).unwrap();
                assert_eq!([history.prompt, history.generated].concat(), self.live[&id].text);
            }
        }
    }

    /// A sequence has ended: its text is what it would have been alone.
    fn end(&mut self, id: SequenceId) {
        let Live { new, text, .. } = self.live.remove(&id).unwrap();
        assert_eq!(text[new.prompt.len()..], alone(&new), "{id:?}");
        assert_eq!(self.scheduler.cached_tokens(id), None);
        self.finished += 1;
    }

    /// Steps until everything has finished. The first in order gets on with each step that runs,
    /// and the order stays until it gets something new, so that the steps are bounded by the rows
    /// there are; twice that leaves room for rows lost to faults and to preemption.
    fn drain(&mut self) {
        let rows = |live: &Live| live.new.prompt.len() + live.new.tokens_max as usize;
        let rows: usize = self.live.values().map(rows).sum();
        let (mut steps, steps_max) = (0, 20 + 2 * rows);
        while !self.live.is_empty() {
            steps += usize::from(self.step());
            assert!(steps <= steps_max, "starved: {} live after {steps} steps", self.live.len());
        }
    }

    fn check_empty(&self) {
        let Counts { waiting, running, blocks_used, .. } = self.scheduler.counts();
        assert_eq!((waiting, running, blocks_used), (0, 0, 0));
    }
}

fn text(rng: &mut Rng, len: usize) -> Vec<TokenId> {
    (0..len).map(|_| rng.below(VOCABULARY as usize) as TokenId).collect()
}

fn entry_hash(entry: &Entry) -> u64 {
    let table = entry.block_table.iter().map(|block| u64::from(block.0));
    table.fold(mix(entry.id.0, u64::from(entry.start)), mix)
}

/// Prints the seed of the schedule that failed.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the schedule's seed is {}", self.0);
        }
    }
}

fn run_schedule(seed: u64) -> Simulation {
    let _seed = Seed(seed);
    let mut simulation = Simulation::new(seed);
    for _ in 0..40 {
        for _ in 0..simulation.rng.below(3) {
            let new = simulation.new_sequence();
            simulation.admit(new);
        }
        if simulation.rng.below(12) == 0 {
            simulation.cancel_one();
        }
        simulation.step();
    }
    simulation.drain();
    simulation.check_empty();

    // No block was lost on the way: a sequence that needs them all still runs.
    let positions = simulation.config.blocks * simulation.config.block_tokens;
    let prompt = text(&mut simulation.rng, positions);
    let id = SequenceId(u64::MAX);
    let (recipe, wanted, tokens_max) = (Recipe::base(), PromptRows::Nothing, 1);
    let (salt, share, priority) = (None, Share::default(), 0);
    let new = NewSequence { id, prompt, recipe, salt, share, priority, tokens_max, wanted };
    simulation.admit(new);
    simulation.drain();
    simulation.check_empty();
    simulation
}

#[test]
fn under_random_schedules_every_sequence_sees_its_own_kv_and_finishes_as_if_alone() {
    let (mut finished, mut preemptions, mut hits, mut queried) = (0, 0, 0, 0);
    for seed in 0..SCHEDULES {
        let simulation = run_schedule(seed);
        let counts = simulation.scheduler.counts();
        assert!(counts.prefix_hit_tokens_total <= counts.prefix_query_tokens_total);
        assert!(simulation.config.prefix_cache || counts.prefix_hit_tokens_total == 0);
        finished += simulation.finished;
        preemptions += counts.preemptions_total;
        hits += counts.prefix_hit_tokens_total;
        queried += counts.prefix_query_tokens_total;
    }
    println!("{finished} finished, {preemptions} preemptions, {hits} of {queried} tokens hit");
    // The schedules are worth their name only if they get into trouble.
    assert!(finished > 50_000 && preemptions > 5_000 && hits * 20 > queried);
}

#[test]
fn the_same_calls_give_the_same_plans() {
    for seed in 0..50 {
        assert_eq!(run_schedule(seed).trace, run_schedule(seed).trace);
    }
}
