//! Which tokens the sequences of a step may draw.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::{Duration, Instant};

use rayon::{ThreadPool, ThreadPoolBuilder};

use super::batch::Owner;
use super::in_flight::{InFlight, caught};
use crate::ids::SequenceId;

/// Threads at least, so that a slow mask leaves room for others, and at most. Of a vocabulary of
/// 151,000 a mask takes a tenth of a millisecond as a rule.
const THREADS_MIN: usize = 2;
const THREADS_MAX: usize = 8;
/// Of one thread: address space for forms that nest. Only what is used takes memory.
const STACK_BYTES: usize = 64 << 20;
/// How long a step that is computed waits for its masks. A sequence whose mask is not there by
/// then draws in a later step; the others go on.
const MASKS_WAIT_MAX: Duration = Duration::from_millis(5);
/// Told to a client whose form nothing can work out.
const NO_THREADS: &str = "the server has no threads to follow the form that was asked for";

/// Works out masks on threads of its own, which are started when the first is needed.
#[derive(Default)]
pub struct Guides {
    workers: Option<ThreadPool>,
}

impl Guides {
    /// Gives every sequence with a guide that draws a token in this step its mask, if that is
    /// known in time.
    pub fn set_masks(&mut self, owners: &[Owner], in_flight: &mut BTreeMap<SequenceId, InFlight>) {
        let draws = |id: &SequenceId| owners.iter().any(|owner| owner.draws && owner.id == *id);
        let guided = in_flight.iter_mut().filter(|(_, sequence)| sequence.needs_mask());
        let mut guided: Vec<&mut InFlight> =
            guided.filter(|(id, _)| draws(id)).map(|(_, sequence)| sequence).collect();
        if guided.is_empty() {
            return;
        }
        for sequence in &mut guided {
            self.start(sequence);
        }
        let deadline = Instant::now() + MASKS_WAIT_MAX;
        guided.iter_mut().for_each(|sequence| sequence.fetch_mask(deadline));
    }

    /// Sends a guide to a thread, unless it is with one.
    fn start(&mut self, sequence: &mut InFlight) {
        let Some(mut guide) = sequence.terms.guide.take() else { return };
        if self.workers.is_none() {
            let threads = thread::available_parallelism().map_or(1, NonZero::get) / 2;
            let threads = threads.clamp(THREADS_MIN, THREADS_MAX);
            let builder = ThreadPoolBuilder::new().num_threads(threads).stack_size(STACK_BYTES);
            self.workers = builder.thread_name(|i| format!("guide-{i}")).build().ok();
        }
        let Some(workers) = &self.workers else {
            sequence.mask = Some(Err(NO_THREADS.to_owned()));
            return;
        };
        let (sender, receiver) = sync_channel(1);
        sequence.away = Some(receiver);
        workers.spawn(move || {
            let mask = caught(|| guide.mask());
            // Nobody is there to take it when the sequence has ended.
            let _ = sender.send((guide, mask));
        });
    }
}
