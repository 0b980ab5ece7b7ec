//! Which tokens the sequences of a step may draw.

use std::collections::BTreeMap;
use std::num::NonZero;
use std::thread;

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use super::batch::Owner;
use super::in_flight::InFlight;
use crate::ids::SequenceId;

/// Threads at most. Of a vocabulary of 151,000 a mask takes a tenth of a millisecond as a rule.
const THREADS_MAX: usize = 8;
/// Of one thread: address space for forms that nest. Only what is used takes memory.
const STACK_BYTES: usize = 64 << 20;
/// Told to a client whose form nothing can work out.
const NO_THREADS: &str = "the server has no threads to follow the form that was asked for";
/// Works out masks on threads of its own, which are started when the first is needed.
#[derive(Default)]
pub struct Guides {
    workers: Option<ThreadPool>,
}

impl Guides {
    /// Gives every sequence with a guide that draws a token in this step its mask.
    pub fn set_masks(&mut self, owners: &[Owner], in_flight: &mut BTreeMap<SequenceId, InFlight>) {
        let draws = |id: &SequenceId| owners.iter().any(|owner| owner.draws && owner.id == *id);
        let guided = in_flight.iter_mut().filter(|(_, sequence)| sequence.terms.guide.is_some());
        let mut guided: Vec<&mut InFlight> =
            guided.filter(|(id, _)| draws(id)).map(|(_, sequence)| sequence).collect();
        if guided.is_empty() {
            return;
        }
        if self.workers.is_none() {
            let threads = thread::available_parallelism().map_or(1, NonZero::get) / 2;
            let builder = ThreadPoolBuilder::new().num_threads(threads.clamp(1, THREADS_MAX));
            let builder = builder.stack_size(STACK_BYTES).thread_name(|i| format!("guide-{i}"));
            self.workers = builder.build().ok();
        }
        match &self.workers {
            Some(workers) => workers.install(|| {
                guided.par_iter_mut().with_max_len(1).for_each(|sequence| sequence.set_mask());
            }),
            None => guided.iter_mut().for_each(|sequence| {
                sequence.mask = Some(Err(NO_THREADS.to_owned()));
            }),
        }
    }
}
