//! Which tokens run next: continuous batching over paged KV.
//!
//! Pure: no tensors, no time, no randomness. The same calls give the same plans, so that a
//! schedule that went wrong can be run again.
//!
//! * Decode rows go first, prefill chunks share what the step's token budget leaves: a long prompt
//!   never stalls a stream. The budget exceeds `sequences_max`, so streams never stall a prompt.
//! * Everything goes by priority, and by arrival among equals: prefills, starts and, backwards,
//!   preemption. The first running sequence can take every block there is, and
//!   [`Refused::NeverFits`] says that those suffice: so each step brings somebody closer to the
//!   end. Nobody is kept from starting by later arrivals of an equal priority; by ever new ones of
//!   a lower number, for as long as they come.
//! * Full blocks stay cached under (what their rows carried, text) once their KV was really
//!   computed, and are shared, never written, until nobody references them and they are evicted.

mod blocks;
mod prefix;
mod sequence;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{BlockId, Digest, SequenceId, TokenId};
use crate::recipe::Recipe;
use crate::request::History;
use blocks::Blocks;
use prefix::Key;
use sequence::Sequence;

/// How many later sequences may start before one that waits for its adapter. From then on nobody
/// overtakes it: those that run finish, their adapters leave, and it gets its slot.
pub const OVERTAKES_MAX: usize = 256;

/// Sizes; [`Scheduler::new`] checks them.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Sequences that run at once; others wait.
    pub sequences_max: usize,
    /// Rows of one step; above `sequences_max`. What does not fit runs in later steps.
    pub batch_tokens_max: usize,
    /// Positions of one KV block.
    pub block_tokens: usize,
    /// KV blocks there are. When they run out, the youngest sequence is preempted.
    pub blocks: usize,
    /// Sequences that wait; at the limit new ones are refused. Preempted ones always come back.
    pub queue_requests_max: usize,
    /// Rows of one step whose logits are wanted; at least `sequences_max`. Prompts that are scored
    /// share what drawing leaves, in as many steps as it takes.
    pub logit_rows_max: usize,
    /// Whether full blocks are kept and shared.
    pub prefix_cache: bool,
}

/// Sizes with which no schedule works.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InvalidConfig {
    /// A size is zero.
    #[error("{0} must be at least 1, got 0")]
    Zero(&'static str),
    /// Decode rows alone could fill every step, and prompts would wait for ever.
    #[error(
        "batch_tokens_max must be above sequences_max ({sequences_max}), got {batch_tokens_max}"
    )]
    BatchTooSmall {
        /// As configured.
        batch_tokens_max: usize,
        /// As configured.
        sequences_max: usize,
    },
    /// Sequences that draw could need more logits than a step has.
    #[error(
        "logit_rows_max must be at least sequences_max ({sequences_max}), got {logit_rows_max}"
    )]
    TooFewLogits {
        /// As configured.
        logit_rows_max: usize,
        /// As configured.
        sequences_max: usize,
    },
    /// Positions are 32 bits wide.
    #[error("blocks × block_tokens must be below 2^32, got {blocks} × {block_tokens}")]
    TooManyPositions {
        /// As configured.
        blocks: usize,
        /// As configured.
        block_tokens: usize,
    },
}

/// Why a sequence was not admitted.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refused {
    /// The caller may come again later.
    #[error("the queue is full: {queue_requests_max} requests wait")]
    QueueFull {
        /// The limit reached.
        queue_requests_max: usize,
    },
    /// No wait helps: prompt and completion are longer than the whole KV cache.
    #[error("the request needs {blocks_needed} KV blocks, but there are only {blocks}")]
    NeverFits {
        /// For the prompt and the longest completion.
        blocks_needed: usize,
        /// All there are.
        blocks: usize,
    },
}

/// What [`Scheduler::admit`] takes.
#[derive(Clone, Debug)]
pub struct NewSequence {
    /// Not in use.
    pub id: SequenceId,
    /// At least one token.
    pub prompt: Vec<TokenId>,
    /// What its rows carry: with the tokens, and the salt, what its KV depends on.
    pub recipe: Recipe<Digest>,
    /// Sequences of another salt share no block with it.
    pub salt: Option<Digest>,
    /// Lower ones go first, whenever they come. Who waits behind ever new lower ones waits for as
    /// long as they come.
    pub priority: i32,
    /// Tokens to generate. The sequence ends there if not before; at 0, with its prompt.
    pub tokens_max: u32,
    /// What is wanted of the prompt's rows.
    pub wanted: PromptRows,
}

/// What is wanted of the rows of a prompt, beside the first drawn token.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PromptRows {
    /// Nothing: those that the prefix cache has are spared.
    Nothing,
    /// The hidden state of each: all are computed.
    Hidden,
    /// The logits of each but the last: all are computed.
    Logits,
}

/// One step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Decode rows in order, then prefill chunks in order; each sequence at most once.
    pub entries: Vec<Entry>,
    /// Sequences that lost their blocks and wait again.
    pub preempted: Vec<SequenceId>,
}

/// The rows of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The sequence they belong to.
    pub id: SequenceId,
    /// Position of the first row; the KV of all before it is in the blocks.
    pub start: u32,
    /// Token of each row.
    pub tokens: Vec<TokenId>,
    /// Blocks of positions 0 to `start + tokens.len() - 1`.
    pub block_table: Vec<BlockId>,
    /// Whether the last row yields the sequence's next token.
    pub draws: bool,
}

/// What a step made of one sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// The sequence.
    pub id: SequenceId,
    /// Tokens that follow its text: usually the one drawn.
    pub tokens: Vec<TokenId>,
    /// Whether they end it.
    pub finished: bool,
}

/// Gauges and counters.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Sequences that wait.
    pub waiting: usize,
    /// Sequences that run.
    pub running: usize,
    /// All KV blocks: used, cached and free.
    pub blocks_total: usize,
    /// Blocks that running sequences reference.
    pub blocks_used: usize,
    /// Blocks kept for their content only; evicted when nothing is free.
    pub blocks_cached: usize,
    /// Times that a sequence lost its blocks.
    pub preemptions_total: u64,
    /// Tokens that the prefix cache spared.
    pub prefix_hit_tokens_total: u64,
    /// Tokens that were looked up: the known text at every start.
    pub prefix_query_tokens_total: u64,
}

/// Where a sequence stands among all others, from its arrival to its end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Place {
    priority: i32,
    /// Older sequences have smaller numbers.
    arrival: u64,
}

/// Owns the queue, the running sequences and the KV blocks.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    waiting: BTreeMap<Place, Sequence>,
    running: BTreeMap<Place, Sequence>,
    places: BTreeMap<SequenceId, Place>,
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
        let place = Place { priority: new.priority, arrival: self.arrived };
        let sequence = Sequence::new(place, new, block_tokens);
        let blocks_needed = sequence.blocks_max();
        if blocks_needed > blocks {
            return Err(Refused::NeverFits { blocks_needed, blocks });
        }
        if self.waiting.len() >= queue_requests_max {
            return Err(Refused::QueueFull { queue_requests_max });
        }
        self.arrived += 1;
        self.places.insert(sequence.id, place);
        self.waiting.insert(place, sequence);
        Ok(())
    }

    /// Forgets a sequence; its blocks are free at once. Nothing happens if it is gone already.
    pub fn cancel(&mut self, id: SequenceId) {
        let Some(place) = self.places.remove(&id) else { return };
        self.waiting.remove(&place);
        if let Some(mut sequence) = self.running.remove(&place) {
            sequence.preempt(&mut self.blocks);
        }
    }

    /// Chooses the next step's rows. A plan that is never committed is planned again.
    ///
    /// `can_run` says whether a waiting sequence's adapter is, or can be made, resident. It is
    /// asked in order, at most once a sequence. True does not mean that the sequence starts: the
    /// plan says who runs. A sequence that cannot run is passed over, [`OVERTAKES_MAX`] times at
    /// most; so when nothing runs, `can_run` must become true for everybody sooner or later.
    pub fn plan(&mut self, can_run: &mut dyn FnMut(SequenceId) -> bool) -> Plan {
        let SchedulerConfig { batch_tokens_max, logit_rows_max, .. } = self.config;
        let (rows_left, logits_left) = (batch_tokens_max, logit_rows_max);
        let (plan, filling) = (Plan::default(), BTreeSet::new());
        let mut draft = Draft { plan, rows_left, logits_left, filling };
        let running = self.running.values().map(|s| (s.rows_left() == 1, s.place));
        let (decodes, prefills): (Vec<_>, Vec<_>) = running.partition(|&(decode, _)| decode);
        for (_, place) in decodes.into_iter().chain(prefills) {
            if draft.rows_left == 0 {
                break;
            }
            if let Some(sequence) = self.running.remove(&place) {
                self.plan_rows(sequence, &mut draft);
            }
        }
        // A sequence that started now would take the blocks that were just made free.
        if draft.plan.preempted.is_empty() {
            self.start_waiting(&mut draft, can_run);
        }
        draft.plan
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
            sequence.advance(rows, &mut self.blocks, self.config.prefix_cache);
            let ended = match result {
                Some(Committed { tokens, finished, .. }) => sequence.push(tokens) || *finished,
                None => sequence.is_computed(),
            };
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

    /// Plans as many rows of a running sequence as the budget holds, preempting younger ones for
    /// blocks; when there is no younger one, the sequence itself.
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
            match self.running.last_entry() {
                Some(youngest) if *youngest.key() > sequence.place => {
                    let youngest = youngest.remove();
                    self.preempt(youngest, draft);
                }
                _ => return self.preempt(sequence, draft),
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

    fn preempt(&mut self, mut sequence: Sequence, draft: &mut Draft) {
        sequence.preempt(&mut self.blocks);
        self.preemptions += 1;
        draft.drop_entry(sequence.id);
        draft.plan.preempted.push(sequence.id);
        self.waiting.insert(sequence.place, sequence);
    }

    /// Starts waiting sequences in order, up to the first that can run but does not fit.
    fn start_waiting(&mut self, draft: &mut Draft, can_run: &mut dyn FnMut(SequenceId) -> bool) {
        let mut passed_over = Vec::new();
        let mut next = Place { priority: i32::MIN, arrival: 0 };
        // With a row and a logit left whoever starts gets a row, wherever the cache lets it start.
        let has_room = |draft: &Draft| draft.rows_left > 0 && draft.logits_left > 0;
        while self.running.len() < self.config.sequences_max && has_room(draft) {
            let Some((&place, sequence)) = self.waiting.range_mut(next..).next() else { break };
            next = Place { arrival: place.arrival + 1, ..place };
            // Who asks for the same, as the samples of a prompt do, takes it over after this step.
            if self.config.prefix_cache && sequence.awaits(&self.blocks, &draft.filling) {
                continue;
            }
            if !can_run(sequence.id) {
                if sequence.overtakes >= OVERTAKES_MAX {
                    break;
                }
                passed_over.push(place);
                continue;
            }
            // What running sequences will soon want is not for a newcomer: it would be preempted
            // for it, and its work be lost.
            let wanted: usize = self.running.values().map(Sequence::blocks_wanted).sum();
            let needed = sequence.blocks_to_start(&self.blocks, self.config.prefix_cache);
            if needed + wanted > self.blocks.available() {
                break;
            }
            let Some(sequence) = self.waiting.remove(&place) else { break };
            self.prefix_query_tokens += sequence.len() as u64;
            self.plan_rows(sequence, draft);
            for place in &passed_over {
                if let Some(sequence) = self.waiting.get_mut(place) {
                    sequence.overtakes += 1;
                }
            }
        }
    }
}

/// A plan in the making.
struct Draft {
    plan: Plan,
    /// What is left of `batch_tokens_max`.
    rows_left: usize,
    /// What is left of `logit_rows_max`. What a preempted sequence would have taken is not given
    /// back: the next step has all again.
    logits_left: usize,
    /// Blocks that the plan fills: whoever waits for one of them does not compute it again.
    filling: BTreeSet<Key>,
}

impl Draft {
    /// Takes a sequence's rows out of the plan, if it has any.
    fn drop_entry(&mut self, id: SequenceId) {
        if let Some(index) = self.plan.entries.iter().position(|entry| entry.id == id) {
            self.rows_left += self.plan.entries.remove(index).tokens.len();
        }
    }
}

impl SchedulerConfig {
    fn validated(self) -> Result<Self, InvalidConfig> {
        let Self { sequences_max, batch_tokens_max, block_tokens, blocks, .. } = self;
        let sizes = [
            ("sequences_max", sequences_max),
            ("block_tokens", block_tokens),
            ("blocks", blocks),
            ("queue_requests_max", self.queue_requests_max),
        ];
        if let Some((name, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(InvalidConfig::Zero(name));
        }
        if batch_tokens_max <= sequences_max {
            return Err(InvalidConfig::BatchTooSmall { batch_tokens_max, sequences_max });
        }
        let logit_rows_max = self.logit_rows_max;
        if logit_rows_max < sequences_max {
            return Err(InvalidConfig::TooFewLogits { logit_rows_max, sequences_max });
        }
        if blocks.checked_mul(block_tokens).is_none_or(|n| n > u32::MAX as usize) {
            return Err(InvalidConfig::TooManyPositions { blocks, block_tokens });
        }
        Ok(self)
    }
}
