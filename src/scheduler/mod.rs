//! Which tokens run next: continuous batching over paged KV.
//!
//! Pure: no tensors, no time, no randomness. The same calls give the same plans, so that a
//! schedule that went wrong can be run again.
//!
//! * Decode rows go first, prefill chunks share what the step's token budget leaves: a long prompt
//!   never stalls a stream. The budget exceeds `sequences_max`, so streams never stall a prompt.
//! * Prefills, starts and, backwards, preemption go by what tenants, and a tenant's adapters, have
//!   got (`flows.rs`), and between these by a sequence's own priority within its tenant. No order
//!   changes while nothing new is computed, the first running sequence can take every block there
//!   is, and [`Refused::NeverFits`] says that those suffice: so somebody always gets closer to the
//!   end.
//! * Whoever is far enough behind gets the place of one that is ahead ([`PATIENCE_TOKENS`]), and
//!   whoever waits for its adapter is overtaken [`OVERTAKES_MAX`] times: nobody waits for ever but
//!   behind ever new sequences of a lower priority number.
//! * Full blocks stay cached under (what their rows carried, text) once their KV was really
//!   computed, and are shared, never written, until nobody references them and they are evicted.

mod blocks;
mod config;
mod flows;
mod line;
mod plan;
mod prefix;
mod sequence;

pub use config::{InvalidConfig, SchedulerConfig};
pub use plan::{Committed, Counts, Entry, Extent, NewSequence, Plan, PromptRows, Refused};

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::SequenceId;
use crate::request::History;
use blocks::Blocks;
use flows::{Flows, Place, Rank, Turn};
use line::Line;
use prefix::Key;
use sequence::Sequence;

/// How many sequences may start while one waits for its adapter. From then on nobody goes before
/// it that stands behind it: those that run finish, their adapters leave, and it gets its slot.
pub const OVERTAKES_MAX: usize = 256;
/// For each of `sequences_max`: so many tokens of its own a tenant, or a flow of a tenant, may be
/// behind one that runs. From then on a sequence of the latter gives its place to one of the
/// former, unless that one's text is longer than what the other is behind by: it would have to be
/// computed again.
pub const PATIENCE_TOKENS: usize = 64;

/// Owns the queue, the running sequences and the KV blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: BTreeMap<Place, Sequence>,
    running: BTreeMap<Place, Sequence>,
    places: BTreeMap<SequenceId, Place>,
    flows: Flows,
    arrived: u64,
    blocks: Blocks,
    preemptions: u64,
    prefix_hit_tokens: u64,
    prefix_query_tokens: u64,
}

impl Scheduler {
    /// An empty schedule.
    ///
    /// # Errors
    /// [`InvalidConfig`] when sequences could wait for ever.
    pub fn new(config: SchedulerConfig) -> Result<Self, InvalidConfig> {
        let config = config.validated()?;
        Ok(Self {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            places: BTreeMap::new(),
            flows: Flows::default(),
            arrived: 0,
            blocks: Blocks::new(config.blocks),
            preemptions: 0,
            prefix_hit_tokens: 0,
            prefix_query_tokens: 0,
            config,
        })
    }

    /// Queues a sequence.
    ///
    /// # Errors
    /// [`Refused`]; nothing is kept of the sequence.
    pub fn admit(&mut self, new: NewSequence) -> Result<(), Refused> {
        assert!(!new.prompt.is_empty(), "This is a bug: {:?} has no prompt.", new.id);
        assert!(!self.places.contains_key(&new.id), "This is a bug: {:?} came twice.", new.id);
        let SchedulerConfig { blocks, queue_requests_max, block_tokens, .. } = self.config;
        let blocks_needed = sequence::blocks_max(&new, block_tokens);
        if blocks_needed > blocks {
            return Err(Refused::NeverFits { blocks_needed, blocks });
        }
        if self.waiting.len() >= queue_requests_max {
            return Err(Refused::QueueFull { queue_requests_max });
        }
        let flow = self.flows.enter(&new.share, &new.recipe);
        let place = Place { flow, turn: Turn { priority: new.priority, arrival: self.arrived } };
        self.arrived += 1;
        self.places.insert(new.id, place);
        self.flows.wait(place);
        self.waiting.insert(place, Sequence::new(place, new, block_tokens));
        Ok(())
    }

    /// Forgets a sequence; its blocks are free at once. Nothing happens if it is gone already.
    pub fn cancel(&mut self, id: SequenceId) {
        let Some(place) = self.places.remove(&id) else { return };
        if self.waiting.remove(&place).is_some() {
            self.flows.stop_waiting(place);
        }
        if let Some(mut sequence) = self.running.remove(&place) {
            sequence.preempt(&mut self.blocks);
            self.flows.stop(place.flow);
        }
        self.flows.leave(place.flow);
    }

    /// Chooses the next step's rows. A plan that is never committed is planned again.
    ///
    /// `can_run` says whether a waiting sequence's adapter is, or can be made, resident. It is
    /// asked in order, and after a sequence that cannot run not about others of the same tenant and
    /// adapters. True does not mean that the sequence starts: the plan says who runs. Who cannot
    /// run is passed over, [`OVERTAKES_MAX`] times at most; so when nothing runs, `can_run` must
    /// become true for everybody sooner or later.
    pub fn plan(&mut self, can_run: &mut dyn FnMut(SequenceId) -> bool) -> Plan {
        self.flows.survey();
        let ranks = self.ranks();
        let running = ranks.iter().map(|(rank, _)| *rank).collect();
        let mut draft = Draft::new(&self.config, running);
        for (rank, _) in ranks.iter().filter(|(_, decodes)| *decodes) {
            self.plan_running(*rank, &mut draft);
        }
        let mut line = self.line();
        for &(rank, _) in ranks.iter().filter(|(_, decodes)| !decodes) {
            // Who has got less goes first, wherever it is.
            while line.first().is_some_and(|first| first < rank) {
                self.try_start(&mut line, &mut draft, can_run);
            }
            self.plan_running(rank, &mut draft);
        }
        while line.first().is_some() {
            self.try_start(&mut line, &mut draft, can_run);
        }
        draft.plan
    }

    /// Sequences that run, by rank, and whether their next row decodes.
    fn ranks(&self) -> Vec<(Rank, bool)> {
        let mut ranks = Vec::with_capacity(self.running.len());
        let mut of_flow = None;
        for sequence in self.running.values() {
            let Place { flow, turn: Turn { priority, arrival } } = sequence.place;
            // Those of a flow are one after the other.
            let known = of_flow.filter(|standing: &Rank| standing.place().flow == flow);
            let Some(standing) = known.or_else(|| self.flows.standing(flow)) else { continue };
            of_flow = Some(standing);
            ranks.push((Rank { priority, arrival, ..standing }, sequence.rows_left() == 1));
        }
        ranks.sort_unstable();
        ranks
    }

    /// Those that wait.
    fn line(&self) -> Line {
        if self.waiting.is_empty() {
            return Line::empty();
        }
        let promised = self.running.values().map(|s| (s.place.flow, s.promised()));
        Line::new(&self.flows, promised)
    }

    /// Takes in a step that ran. Sequences that are gone are passed over; an entry that draws and
    /// has no tokens here is planned again. `tokens_max` ends a sequence too.
    pub fn commit(&mut self, plan: &Plan, results: &[Committed]) {
        let results: BTreeMap<SequenceId, &Committed> =
            results.iter().map(|result| (result.id, result)).collect();
        for entry in &plan.entries {
            let Some(place) = self.places.get(&entry.id) else { continue };
            let Some(sequence) = self.running.get_mut(place) else { continue };
            if !sequence.continues(entry) {
                continue;
            }
            let result = results.get(&entry.id).filter(|result| !result.tokens.is_empty());
            let result = result.filter(|_| entry.draws);
            // The row that yields a token stays open until the token is there.
            let rows = entry.tokens.len() - usize::from(entry.draws && result.is_none());
            let fresh = sequence.advance(rows, &mut self.blocks, self.config.prefix_cache);
            let (drawn, ended) = match result {
                Some(Committed { tokens, finished, .. }) => {
                    (sequence.push(tokens), sequence.is_full() || *finished)
                }
                None => (0, sequence.is_computed()),
            };
            self.flows.serve(place.flow, fresh + drawn);
            if ended {
                self.cancel(entry.id);
            }
        }
    }

    /// The text of a sequence so far; `None` once it is gone.
    pub fn history(&self, id: SequenceId) -> Option<History<'_>> {
        Some(self.sequence(id)?.history())
    }

    fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        let place = self.places.get(&id)?;
        self.running.get(place).or_else(|| self.waiting.get(place))
    }

    /// Prompt tokens that the prefix cache spared a sequence before any preemption: what a reply's
    /// usage reports. Final with the first sampled token; `None` once the sequence is gone.
    pub fn cached_tokens(&self, id: SequenceId) -> Option<u32> {
        Some(self.sequence(id)?.cached_tokens as u32)
    }

    /// How far a sequence is, and what it holds; `None` once it is gone.
    pub fn extent(&self, id: SequenceId) -> Option<Extent> {
        let place = self.places.get(&id)?;
        Some(self.sequence(id)?.extent(self.running.contains_key(place)))
    }

    /// Gauges and counters as of now.
    pub fn counts(&self) -> Counts {
        Counts {
            waiting: self.waiting.len(),
            running: self.running.len(),
            blocks_total: self.config.blocks,
            blocks_used: self.blocks.used(),
            blocks_cached: self.blocks.cached(),
            preemptions_total: self.preemptions,
            prefix_hit_tokens_total: self.prefix_hit_tokens,
            prefix_query_tokens_total: self.prefix_query_tokens,
        }
    }

    fn plan_running(&mut self, rank: Rank, draft: &mut Draft) {
        if draft.rows_left > 0
            && let Some(sequence) = self.running.remove(&rank.place())
        {
            self.plan_rows(sequence, draft);
        }
    }

    /// Plans as many rows of a running sequence as the budget holds, preempting those behind it for
    /// blocks; when there is none, the sequence itself.
    fn plan_rows(&mut self, mut sequence: Sequence, draft: &mut Draft) {
        if self.config.prefix_cache {
            self.prefix_hit_tokens += sequence.adopt(&mut self.blocks) as u64;
        }
        let rows = sequence.rows_that_fit(draft.rows_left, draft.logits_left);
        if rows == 0 {
            self.running.insert(sequence.place, sequence);
            return;
        }
        while !sequence.grow(rows, &mut self.blocks) {
            let last = draft.running.last().map(Rank::place);
            match last.filter(|last| *last != sequence.place) {
                Some(last) => self.preempt(last, draft),
                None => {
                    let place = sequence.place;
                    self.running.insert(place, sequence);
                    return self.preempt(place, draft);
                }
            }
        }
        draft.plan.entries.push(sequence.entry(rows));
        if self.config.prefix_cache {
            draft.filling.extend(sequence.filled_by(rows));
        }
        draft.rows_left -= rows;
        draft.logits_left -= sequence.logit_rows(rows);
        self.running.insert(sequence.place, sequence);
    }

    fn preempt(&mut self, place: Place, draft: &mut Draft) {
        draft.running.retain(|rank| rank.place() != place);
        let Some(mut sequence) = self.running.remove(&place) else { return };
        sequence.preempt(&mut self.blocks);
        self.preemptions += 1;
        draft.drop_entry(sequence.id);
        draft.plan.preempted.push(sequence.id);
        self.flows.stop(place.flow);
        self.flows.wait(place);
        self.waiting.insert(place, sequence);
    }

    /// Starts the first in line, passes over it, or closes the line.
    fn try_start(
        &mut self,
        line: &mut Line,
        draft: &mut Draft,
        can_run: &mut dyn FnMut(SequenceId) -> bool,
    ) {
        let Some(rank) = line.first() else { return };
        let place = rank.place();
        let is_full = self.running.len() >= self.config.sequences_max;
        // With a row and a logit left whoever starts gets a row, wherever the cache lets it start.
        let has_room = draft.rows_left > 0 && draft.logits_left > 0;
        // A sequence that started now would take the blocks that were just made free.
        let is_over = !draft.plan.preempted.is_empty() || !(has_room || is_full);
        if is_over || is_full && self.debtor(rank, draft).is_none() {
            return line.close();
        }
        let Some(sequence) = self.waiting.get_mut(&place) else { return line.close() };
        // Who asks for the same, as the samples of a prompt do, takes it over after this step.
        if self.config.prefix_cache && sequence.awaits(&self.blocks, &draft.filling) {
            return line.pass(self.flows.after(place), 0);
        }
        if !can_run(sequence.id) {
            return match self.flows.hold_up(place.flow) >= OVERTAKES_MAX as u64 {
                true => line.close(),
                false => line.pass(None, 0),
            };
        }
        // What running sequences will soon want is not for a newcomer: it would be preempted
        // for it, and its work be lost.
        let wanted: usize = self.running.values().map(Sequence::blocks_wanted).sum();
        let needed = sequence.blocks_to_start(&self.blocks, self.config.prefix_cache);
        if is_full || needed + wanted > self.blocks.available() {
            if let Some(debtor) = self.debtor(rank, draft) {
                self.preempt(debtor, draft);
            }
            return line.close();
        }
        let Some(sequence) = self.waiting.remove(&place) else { return line.close() };
        self.flows.start(place);
        self.prefix_query_tokens += sequence.len() as u64;
        draft.insert(self.flows.standing(place.flow), place.turn);
        self.plan_rows(sequence, draft);
        let promised = self.running.get(&place).map_or(0, Sequence::promised);
        line.pass(self.flows.after(place), promised);
    }

    /// The running sequence that owes its place to a waiting one.
    fn debtor(&self, waiting: Rank, draft: &Draft) -> Option<Place> {
        let patience = PATIENCE_TOKENS * self.config.sequences_max;
        // Of all that run, or of the same tenant's.
        let last = draft.running.last().copied();
        let own = self.flows.standing(waiting.place().flow);
        let own = own.and_then(|standing| standing.last_of_tenant(&draft.running));
        let mut debtors = [last, own].into_iter().flatten().map(|rank| rank.place());
        debtors.find(|place| {
            let text = self.running.get(place).map_or(0, Sequence::len);
            self.flows.is_owed(waiting.place(), *place, patience.max(text))
        })
    }
}

/// A plan in the making.
struct Draft {
    plan: Plan,
    /// Who runs, by rank.
    running: Vec<Rank>,
    /// What is left of `batch_tokens_max`.
    rows_left: usize,
    /// What is left of `logit_rows_max`. What a preempted sequence would have taken is not given
    /// back: the next step has all again.
    logits_left: usize,
    /// Blocks that the plan fills: whoever waits for one of them does not compute it again.
    filling: BTreeSet<Key>,
}

impl Draft {
    fn new(config: &SchedulerConfig, running: Vec<Rank>) -> Self {
        let SchedulerConfig { batch_tokens_max, logit_rows_max, .. } = *config;
        let (plan, filling) = (Plan::default(), BTreeSet::new());
        let (rows_left, logits_left) = (batch_tokens_max, logit_rows_max);
        Self { plan, running, rows_left, logits_left, filling }
    }

    /// One more runs.
    fn insert(&mut self, standing: Option<Rank>, turn: Turn) {
        let Turn { priority, arrival } = turn;
        let Some(standing) = standing else { return };
        let rank = Rank { priority, arrival, ..standing };
        self.running.insert(self.running.partition_point(|other| *other < rank), rank);
    }

    /// Takes a sequence's rows out of the plan, if it has any.
    fn drop_entry(&mut self, id: SequenceId) {
        if let Some(index) = self.plan.entries.iter().position(|entry| entry.id == id) {
            self.rows_left += self.plan.entries.remove(index).tokens.len();
        }
    }
}

#[cfg(test)]
mod tests;
