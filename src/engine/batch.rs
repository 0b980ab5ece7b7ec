//! A plan as flat arrays, and what is wanted of each row.

use std::collections::BTreeMap;
use std::time::Instant;

use super::in_flight::InFlight;
use crate::backend::{Draw, Rows, Score, Want};
use crate::ids::SequenceId;
use crate::request::Pooling;
use crate::scheduler::{Entry, Plan, Scheduler};

/// One step's rows, and whose they are.
pub struct Batch {
    /// In the order of the plan.
    pub rows: Rows,
    /// Of each of [`Rows::logit_rows`]: whose it is, and the position of its row.
    pub logits: Vec<Owner>,
    /// Of each of [`Rows::hidden_rows`].
    pub hidden: Vec<Owner>,
    /// Rows of prompts.
    pub prompt_rows: usize,
}

/// Whose row it is.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The sequence.
    pub id: SequenceId,
    /// The row's position in it.
    pub position: u32,
    /// Whether a token is drawn from it.
    pub draws: bool,
}

impl Batch {
    /// Of `plan`, with what its sequences want.
    pub fn new(plan: &Plan, in_flight: &BTreeMap<SequenceId, InFlight>) -> Self {
        let mut batch =
            Self { rows: Rows::default(), logits: Vec::new(), hidden: Vec::new(), prompt_rows: 0 };
        let now = Instant::now();
        for entry in &plan.entries {
            let sequence = &in_flight[&entry.id];
            sequence.ticket.progress().planned(now);
            batch.add(entry, sequence);
        }
        batch
    }

    fn add(&mut self, entry: &Entry, sequence: &InFlight) {
        let Entry { id, start, ref tokens, ref block_table, draws } = *entry;
        let rows = self.rows.push(tokens, start, &sequence.slots(), block_table.clone());
        let prompt_left = sequence.prompt_tokens.saturating_sub(start) as usize;
        self.prompt_rows += tokens.len().min(prompt_left);
        let terms = &sequence.terms;
        let last = sequence.prompt_tokens - 1;
        for (row, position) in rows.zip(start..) {
            let row = row as u32;
            let draws = draws && position + 1 == start + tokens.len() as u32;
            // After a preemption rows of the prompt run again; what they gave is there.
            let scored =
                terms.prompt_logprobs.is_some() && position < last && position >= sequence.scored;
            let hidden = match terms.pooling {
                None => false,
                Some(Pooling::Last) => position == last,
                Some(Pooling::Mean) => position >= sequence.pooled,
            };
            let owner = Owner { id, position, draws };
            if draws || scored {
                self.rows.logit_rows.push(row);
                self.logits.push(owner);
            }
            if hidden {
                self.rows.hidden_rows.push(row);
                self.hidden.push(owner);
            }
        }
    }

    /// What to make of each row of logits.
    pub fn wants<'a>(
        &self,
        in_flight: &'a BTreeMap<SequenceId, InFlight>,
        scheduler: &'a Scheduler,
    ) -> Vec<Want<'a>> {
        let want = |owner: &Owner| {
            let InFlight { terms, mask, .. } = &in_flight[&owner.id];
            let history = scheduler.history(owner.id);
            let history = history.expect("This is a bug: a sequence in a plan is gone.");
            match owner.draws {
                true => Want::Draw(Draw {
                    params: &terms.sampling,
                    history,
                    mask: mask.as_ref().and_then(|mask| mask.as_ref().ok()),
                    logprobs: terms.logprobs,
                }),
                false => Want::Score(Score {
                    target: history.prompt[owner.position as usize + 1],
                    logprobs: terms.prompt_logprobs.unwrap_or(0),
                }),
            }
        };
        self.logits.iter().map(want).collect()
    }
}
