//! The one thread that owns the model, the KV cache and every sequence.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use tokio::sync::mpsc;

use super::batch::rows;
use super::places::Places;
use super::sequence::Sequence;
use super::{Command, EngineHandle, Event, StartError, Stats};
use crate::backend::{Adapters, Backend, Fault, KvShape, Sampled};
use crate::ids::{Digest, SequenceId};
use crate::model::Model;
use crate::scheduler::{NewSequence, Plan, Scheduler, SchedulerConfig};

/// Steps that may fail one after another before the engine gives up: a fault that comes back at
/// once is not a bad request but a broken device or a bug, and health must say so.
const FAILED_STEPS_MAX: u32 = 3;
/// While sequences exist but none can run.
const NOTHING_TO_RUN_PAUSE: Duration = Duration::from_millis(1);

/// What an engine is made of.
pub struct Engine<B: Backend> {
    /// The device.
    pub backend: B,
    /// The frozen base.
    pub model: Model<B>,
    /// Size of the KV cache.
    pub kv_shape: KvShape,
    /// Limits of a step.
    pub scheduler: SchedulerConfig,
    /// Adapters on the device at once. More in one batch wait for a place.
    pub adapter_slots_max: usize,
}

impl<B: Backend> Engine<B> {
    /// Starts the thread. It ends when the last handle is dropped and the last sequence is done.
    ///
    /// # Errors
    /// When the limits contradict each other, or the operating system refuses a thread.
    pub fn start(self, requests_max: usize) -> Result<EngineHandle, StartError> {
        let (handle, inbox) = EngineHandle::new(requests_max);
        let stats = handle.stats().clone();
        let scheduler = Scheduler::new(self.scheduler.clone())?;
        let thread = thread::Builder::new().name("engine".into());
        thread.spawn(move || Running::new(self, scheduler, inbox, stats).run())?;
        Ok(handle)
    }
}

/// The engine's state.
struct Running<B: Backend> {
    made_of: Engine<B>,
    kv: B::Kv,
    places: Places<B>,
    scheduler: Scheduler,
    sequences: BTreeMap<SequenceId, Sequence>,
    next_id: u64,
    inbox: mpsc::UnboundedReceiver<Command>,
    stats: Arc<Stats>,
}

impl<B: Backend> Running<B> {
    fn new(
        made_of: Engine<B>,
        scheduler: Scheduler,
        inbox: mpsc::UnboundedReceiver<Command>,
        stats: Arc<Stats>,
    ) -> Self {
        let kv = made_of.backend.kv(made_of.kv_shape);
        let places = Places::new(&made_of.backend, made_of.adapter_slots_max);
        let sequences = BTreeMap::new();
        Self { made_of, kv, places, scheduler, sequences, next_id: 0, inbox, stats }
    }

    fn run(mut self) {
        let mut failed_steps = 0;
        while self.receive() {
            self.drop_cancelled();
            let step = catch_unwind(AssertUnwindSafe(|| self.step()));
            match step {
                Ok(Ok(())) => failed_steps = 0,
                Ok(Err(fault)) => {
                    failed_steps += 1;
                    self.stats.failed_steps_total.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(failed_steps, "a step failed with its sequences: {fault}");
                    if fault.lost || failed_steps == FAILED_STEPS_MAX {
                        self.fail_all(&fault.message);
                        break;
                    }
                }
                Err(_) => {
                    failed_steps += 1;
                    self.stats.failed_steps_total.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(failed_steps, "a step panicked; its sequences have failed");
                    self.fail_all("the engine failed while computing this request");
                    if failed_steps == FAILED_STEPS_MAX {
                        break;
                    }
                    self.start_over();
                }
            }
            self.publish();
        }
        self.stats.stopped.store(true, Ordering::Release);
    }

    /// Takes what has arrived; waits when there is nothing else to do. False when it is over.
    fn receive(&mut self) -> bool {
        if self.sequences.is_empty() {
            match self.inbox.blocking_recv() {
                Some(command) => self.accept(command),
                None => return false,
            }
        }
        while let Ok(command) = self.inbox.try_recv() {
            self.accept(command);
        }
        true
    }

    fn accept(&mut self, command: Command) {
        let generate = match command {
            Command::Generate(generate) => generate,
            Command::Forget(digest) => return self.forget(digest),
        };
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let new = NewSequence {
            id,
            prompt: generate.request.prompt().to_vec(),
            adapter: generate.adapter.as_ref().map(|adapter| adapter.digest),
            tokens_max: generate.request.tokens_max(),
        };
        match self.scheduler.admit(new) {
            Ok(()) => {
                self.sequences.insert(id, Sequence::new(*generate));
            }
            Err(refused) => {
                // The queue and the context limit were checked at the door: see EngineHandle and
                // Limits. A closed receiver has nobody to tell.
                let _ = generate.events.try_send(Event::Failed(refused.to_string()));
            }
        }
    }

    /// A client that went away, or fell too far behind, frees its blocks before the next step.
    fn drop_cancelled(&mut self) {
        let gone = self.sequences.iter().filter(|(_, s)| s.cancelled || s.events.is_closed());
        let gone: Vec<SequenceId> = gone.map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.end(id));
    }

    fn end(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
        let Some(sequence) = self.sequences.remove(&id) else { return };
        sequence.pinned.into_iter().for_each(|slot| self.places.unpin(slot));
        let Some(adapter) = sequence.adapter else { return };
        // Unloaded while it ran, and this was the last to hold it.
        if Arc::strong_count(&adapter) == 1 {
            self.forget(adapter.digest);
        }
    }

    fn forget(&mut self, digest: Digest) {
        self.places.forget(&self.made_of.backend, digest);
    }

    /// schedule → batch → forward → sample → commit, on one screen.
    fn step(&mut self) -> Result<(), Fault> {
        let plan = self.plan();
        if plan.entries.is_empty() {
            if !self.sequences.is_empty() {
                self.give_up_places();
                thread::sleep(NOTHING_TO_RUN_PAUSE);
            }
            return Ok(());
        }
        let Engine { backend, model, .. } = &self.made_of;
        let batch = backend.batch(rows(&plan, &self.sequences));
        let adapters = Adapters { pool: &self.places.pool };
        let logits = model.forward(backend, &batch, &mut self.kv, adapters);

        let sampling: Vec<SequenceId> =
            plan.entries.iter().filter(|entry| entry.samples).map(|entry| entry.id).collect();
        let params: Vec<_> = sampling.iter().map(|id| self.sequences[id].sample_row()).collect();
        match backend.sample(&logits, &params) {
            Ok(sampled) => self.commit(&plan, &sampling, sampled),
            Err(fault) => {
                // Nothing of the step was committed: what others have computed is as it was.
                plan.entries.iter().for_each(|entry| self.fail(entry.id, &fault.message));
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Nothing runs: a place that a waiting sequence holds may be what an earlier one waits for. By
    /// arrival, the next plan gives them out again.
    fn give_up_places(&mut self) {
        let held = self.sequences.values_mut().filter_map(|sequence| sequence.pinned.take());
        held.for_each(|slot| self.places.unpin(slot));
    }

    /// Asks the scheduler; an adapter is put into a slot when its first sequence is to run, and
    /// that sequence waits until it is there.
    fn plan(&mut self) -> Plan {
        let Self { scheduler, sequences, places, made_of, stats, .. } = self;
        let mut refused = Vec::new();
        let plan = scheduler.plan(&mut |id| {
            let Some(sequence) = sequences.get_mut(&id) else { return false };
            let Some(adapter) = &sequence.adapter else { return true };
            match places.place(&made_of.backend, adapter, &mut sequence.pinned, stats) {
                Ok(can_run) => can_run,
                Err(why) => {
                    refused.push((id, why));
                    false
                }
            }
        });
        refused.into_iter().for_each(|(id, why)| self.fail(id, &why));
        plan
    }

    /// Records the drawn tokens and tells the clients. A client that cannot take an event at once
    /// is cancelled: it never stalls a step.
    fn commit(&mut self, plan: &Plan, sampling: &[SequenceId], sampled: Vec<Sampled>) {
        let mut results = Vec::with_capacity(sampling.len());
        let mut done = Vec::new();
        for (&id, sampled) in sampling.iter().zip(sampled) {
            let Some(sequence) = self.sequences.get_mut(&id) else { continue };
            let Some(token) = sampled.token else {
                let text = "the model produced no finite logits for this request".to_owned();
                sequence.send(Event::Failed(text));
                done.push(id);
                continue;
            };
            if sequence.generated == 0 {
                let cached_tokens = self.scheduler.cached_tokens(id).unwrap_or(0);
                sequence.send(Event::Started { cached_tokens });
                let prompt_tokens = sequence.prompt_tokens() as u64;
                self.stats.prompt_tokens_total.fetch_add(prompt_tokens, Ordering::Relaxed);
            }
            sequence.generated += 1;
            let finish = sequence.finish_reason(token);
            results.push((id, token, finish.is_some()));
            let Sampled { logprob, top, .. } = sampled;
            sequence.send(Event::Token { token, logprob, top, finish });
            if finish.is_some() {
                done.push(id);
            }
        }
        self.scheduler.commit(plan, &results);
        done.into_iter().for_each(|id| self.end(id));
        self.stats.generation_tokens_total.fetch_add(results.len() as u64, Ordering::Relaxed);
        self.stats.steps_total.fetch_add(1, Ordering::Relaxed);
    }

    fn fail(&mut self, id: SequenceId, why: &str) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.send(Event::Failed(why.to_owned()));
        }
        self.end(id);
    }

    fn fail_all(&mut self, why: &str) {
        for (_, mut sequence) in std::mem::take(&mut self.sequences) {
            sequence.send(Event::Failed(why.to_owned()));
        }
    }

    /// After a panic nothing the step touched can be trusted, but the model is as it was.
    fn start_over(&mut self) {
        let Engine { backend, kv_shape, scheduler, adapter_slots_max, .. } = &self.made_of;
        if let Ok(fresh) = Scheduler::new(scheduler.clone()) {
            self.scheduler = fresh;
        }
        self.places = Places::new(backend, *adapter_slots_max);
        self.kv = backend.kv(*kv_shape);
    }

    fn publish(&self) {
        let counts = self.scheduler.counts();
        let stats = &self.stats;
        stats.waiting.store(counts.waiting, Ordering::Relaxed);
        stats.running.store(counts.running, Ordering::Relaxed);
        stats.blocks_used.store(counts.blocks_used, Ordering::Relaxed);
        stats.blocks_total.store(counts.blocks_total, Ordering::Relaxed);
        stats.adapters_resident.store(self.places.resident(), Ordering::Relaxed);
        stats.preemptions_total.store(counts.preemptions_total, Ordering::Relaxed);
        stats.prefix_hit_tokens_total.store(counts.prefix_hit_tokens_total, Ordering::Relaxed);
        let queried = counts.prefix_query_tokens_total;
        stats.prefix_query_tokens_total.store(queried, Ordering::Relaxed);
    }
}
