//! CUDA graphs of decode steps: warm-up, stream capture, replay.
//!
//! A step with low-rank adapters is captured in two forms: shrinks in line, and on a side stream,
//! where they overlap the product that shares their x. Both give the same bits; which is faster, a
//! card's own clock decides while the first steps are replayed.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use super::args::Address;
use super::launch::{Event, Graph};
use super::step::Carried;
use super::tables;
use super::tensor::{Buffer, Tensor};
use super::{Cuda, lock};
use crate::backend::{Fault, Rows};

/// Rows of a captured step at most: the largest CUDA graph.
pub const RECORDED_ROWS_MAX: usize = 256;
/// CUDA graphs kept: each takes some memory of the card that is not taken at start.
const RECORDINGS_MAX: usize = 256;
/// Replays of each form that are timed; one more goes before, for caches to fill.
const TIMED_REPLAYS: usize = 8;

/// What a CUDA graph was captured for: steps that differ in none of these run the same kernels on
/// the same places.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Class {
    pub rows: usize,
    pub pages: usize,
    /// Adapters of one row.
    pub parts: usize,
    pub ranks: usize,
}

/// What is known of a class.
#[derive(Debug)]
enum Recording {
    /// Its warm-up is done: it ran once, and libraries have made their choices.
    Warm,
    Ready(Recorded),
    /// Stream capture failed, and is not tried again.
    Never,
}

#[derive(Debug)]
struct Recorded {
    form: CapturedStep,
    /// Until it is known which form is faster.
    trial: Option<Trial>,
    /// When it was replayed last, as [`Recordings`] counts.
    used: u64,
}

/// A CUDA graph, and the logits it leaves: address, rows and columns.
#[derive(Debug)]
struct CapturedStep {
    graph: Graph,
    logits: (Address, usize, usize),
}

impl CapturedStep {
    fn logits(&self) -> Tensor {
        let (address, rows, cols) = self.logits;
        let buffer = Buffer { address, block: None };
        Tensor::new(buffer, rows, cols, true)
    }
}

/// The two forms taking turns.
#[derive(Debug)]
struct Trial {
    /// With shrinks that overlap products.
    beside: CapturedStep,
    /// Before and after a replay.
    moments: [Event; 2],
    /// The form whose replay the moments enclose.
    timed: Option<usize>,
    turns: Turns,
}

/// Times of forms 0 and 1 in milliseconds.
#[derive(Debug, Default)]
struct Turns {
    taken: usize,
    times: [Vec<f32>; 2],
}

impl Turns {
    fn next(&mut self) -> usize {
        self.taken += 1;
        (self.taken - 1) % 2
    }

    fn add(&mut self, form: usize, milliseconds: f32) {
        // The first of each is not counted.
        if self.taken > 2 {
            self.times[form].push(milliseconds);
        }
    }

    /// The median of each form, once there are enough.
    fn medians(&self) -> Option<[f32; 2]> {
        let enough = self.times.iter().all(|times| times.len() >= TIMED_REPLAYS);
        enough.then(|| {
            self.times.each_ref().map(|times| {
                let mut times = times.clone();
                times.sort_by(f32::total_cmp);
                times[times.len() / 2]
            })
        })
    }
}

/// CUDA graphs by class.
#[derive(Debug, Default)]
pub(super) struct Recordings {
    by_class: HashMap<Class, Recording>,
    clock: u64,
}

impl Recordings {
    pub(super) fn ready(&self) -> usize {
        self.by_class.values().filter(|r| matches!(r, Recording::Ready(_))).count()
    }

    /// For whoever changes what recorded steps read.
    pub(super) fn clear(&mut self) {
        self.by_class.clear();
    }

    fn keep(&mut self, class: Class, form: CapturedStep, trial: Option<Trial>) {
        if self.ready() >= RECORDINGS_MAX {
            let used = |recording: &Recording| match recording {
                Recording::Ready(recorded) => Some(recorded.used),
                _ => None,
            };
            let all = self.by_class.iter().filter_map(|(class, r)| Some((used(r)?, *class)));
            if let Some((_, oldest)) = all.min_by_key(|(used, _)| *used) {
                self.by_class.remove(&oldest);
            }
        }
        self.by_class.insert(class, Recording::Ready(Recorded { form, trial, used: self.clock }));
    }
}

/// Ranks of a recorded step's room: few classes, each at most four times the one before.
fn rank_class(ranks: usize) -> usize {
    match ranks {
        0 => 0,
        1..=16 => 16,
        17..=64 => 64,
        65..=256 => 256,
        _ => ranks.next_power_of_two(),
    }
}

impl Cuda {
    /// The class of a step that may be recorded: one token a sequence, all sampled.
    pub(super) fn class(&self, rows: &Rows, carried: &Carried) -> Option<Class> {
        let n = rows.tokens.len();
        let decodes = rows.spans.iter().all(|span| span.len == 1) && rows.logit_rows.len() == n;
        let own = carried.own_weights || carried.mixed_weights || !rows.hidden_rows.is_empty();
        if !decodes || n == 0 || n > RECORDED_ROWS_MAX || own || !self.records() {
            return None;
        }
        let pages = rows.spans.iter().map(|span| span.block_table.len()).max().unwrap_or(1);
        // Contexts of one split run alike.
        let pages_min = tables::SPLIT_TOKENS_MIN.div_ceil(self.block_tokens());
        Some(Class {
            rows: n.next_power_of_two(),
            pages: pages.next_power_of_two().max(pages_min),
            parts: carried.parts.next_power_of_two() * usize::from(carried.parts > 0),
            ranks: rank_class(carried.ranks),
        })
    }

    pub(super) fn run_class(&self, class: Class, mut ops: impl FnMut() -> Tensor) -> Tensor {
        let mut recordings = lock(&self.recordings);
        let recordings = &mut *recordings;
        recordings.clock += 1;
        match recordings.by_class.get(&class) {
            Some(Recording::Never) => return ops(),
            None => {
                let logits = ops();
                if self.is_well() {
                    recordings.by_class.insert(class, Recording::Warm);
                }
                return logits;
            }
            Some(Recording::Warm) => match self.record_forms(class, &mut ops) {
                Ok((form, trial)) => recordings.keep(class, form, trial),
                Err(fault) => {
                    tracing::warn!("steps of {} rows run unrecorded: {fault}", class.rows);
                    recordings.by_class.insert(class, Recording::Never);
                    return ops();
                }
            },
            Some(Recording::Ready(_)) => {}
        }
        match recordings.by_class.get_mut(&class) {
            Some(Recording::Ready(recorded)) => {
                recorded.used = recordings.clock;
                self.replay(class, recorded)
            }
            _ => unreachable!("This is a bug: it was just recorded."),
        }
    }

    fn replay(&self, class: Class, recorded: &mut Recorded) -> Tensor {
        let Some(mut trial) = recorded.trial.take() else {
            self.attempt(|| self.stream.replay(&recorded.form.graph));
            return recorded.form.logits();
        };
        // The replay before this one has been waited for, with the tokens it drew.
        let [start, end] = &trial.moments;
        if let (Some(form), Ok(time)) = (trial.timed.take(), start.milliseconds_to(end)) {
            trial.turns.add(form, time);
        }
        if let Some([inline, beside]) = trial.turns.medians() {
            tracing::debug!(
                "steps of {} rows with adapters: {inline} ms with shrinks in line, {beside} ms \
                 with shrinks beside products",
                class.rows
            );
            if beside < inline {
                recorded.form = trial.beside;
            }
            return self.replay(class, recorded);
        }
        let turn = trial.turns.next();
        let form = [&recorded.form, &trial.beside][turn];
        let replayed = self.attempt(|| {
            self.stream.record(start)?;
            self.stream.replay(&form.graph)?;
            self.stream.record(end)
        });
        trial.timed = replayed.then_some(turn);
        let logits = form.logits();
        recorded.trial = Some(trial);
        logits
    }

    fn record_forms(
        &self,
        class: Class,
        ops: &mut dyn FnMut() -> Tensor,
    ) -> Result<(CapturedStep, Option<Trial>), Fault> {
        let form = self.record(ops)?;
        if class.ranks == 0 {
            return Ok((form, None));
        }
        let moments = self.card.stopwatch()?;
        self.beside.store(true, Ordering::Relaxed);
        let beside = self.record(ops);
        self.beside.store(false, Ordering::Relaxed);
        let turns = Turns::default();
        let trial = beside.map(|beside| Trial { beside, moments, timed: None, turns });
        let trial = trial.inspect_err(|fault| {
            tracing::warn!("shrinks of {} rows run in line: {fault}", class.rows);
        });
        Ok((form, trial.ok()))
    }

    /// Captures ops into a CUDA graph; nothing runs. What fails is told here, unless the card is
    /// lost.
    fn record(&self, ops: &mut dyn FnMut() -> Tensor) -> Result<CapturedStep, Fault> {
        self.settled()?;
        self.card.bind()?;
        self.stream.begin_capture()?;
        let logits = ops();
        // Ends the recording whatever happened during it.
        let graph = self.stream.end_capture();
        self.settled()?;
        let logits = (logits.at(), logits.rows, logits.cols);
        Ok(CapturedStep { graph: graph?, logits })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_take_turns_and_the_first_time_of_each_is_not_counted() {
        let mut turns = Turns::default();
        let mut order = Vec::new();
        while turns.medians().is_none() {
            let form = turns.next();
            // One replay in eight is held up.
            let time = if turns.taken % 16 < 2 { 90.0 } else { [5.0, 4.0][form] };
            turns.add(form, if turns.taken <= 2 { 0.001 } else { time });
            order.push(form);
        }
        assert_eq!((&order[..4], order.len()), (&[0, 1, 0, 1][..], 18));
        assert_eq!(turns.medians(), Some([5.0, 4.0]));
    }
}
