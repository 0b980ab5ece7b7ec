//! The one thread that owns the model, the KV cache and every sequence.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::batch::Batch;
use super::guides::Guides;
use super::in_flight::InFlight;
use super::residents::Residents;
use super::window::{View, Views};
use super::{Command, EngineHandle, Event, Generate, PromptScore, Sizes, StartError, Stats};
use crate::backend::{Backend, Draw, Fault, KvShape, Outputs, Rows, Sampled, Want};
use crate::ids::{BlockId, Digest, SequenceId};
use crate::model::Model;
use crate::recipe::Recipe;
use crate::request::{History, SamplingParams};
use crate::scheduler::{
    Committed, Entry, NewSequence, Plan, PromptRows, Scheduler, SchedulerConfig,
};

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
    /// Adapters on the device at once. More in one batch wait for a slot.
    pub adapter_slots_max: usize,
    /// Adapters that one request composes. One with more fails.
    pub recipe_parts_max: usize,
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
        let sizes = Sizes {
            block_tokens: self.kv_shape.block_tokens,
            blocks: self.kv_shape.blocks,
            kv_dtype: self.kv_shape.dtype.name(),
            prefix_cache: self.scheduler.prefix_cache,
            adapter_slots: self.adapter_slots_max,
        };
        // Its stats are new, and have none.
        let _ = stats.sizes.set(sizes);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = thread::Builder::new().name("engine".into());
        thread.spawn(move || {
            let _stopped = Stopped(stats.clone());
            let begun = Running::new(self, scheduler, inbox, stats).and_then(Running::begun);
            let (running, began) = match begun {
                Ok(running) => (Some(running), Ok(())),
                Err(fault) => (None, Err(fault)),
            };
            // Nobody waits where the start was given up.
            let _ = ready.send(began);
            if let Some(running) = running {
                running.run();
            }
        })?;
        is_ready.recv().map_err(|_| StartError::Ended)??;
        Ok(handle)
    }
}

/// However the thread ends, it is told.
struct Stopped(Arc<Stats>);

impl Drop for Stopped {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::Release);
    }
}

/// The engine's state.
struct Running<B: Backend> {
    made_of: Engine<B>,
    kv: B::Kv,
    residents: Residents<B>,
    scheduler: Scheduler,
    in_flight: BTreeMap<SequenceId, InFlight>,
    next_id: u64,
    inbox: mpsc::UnboundedReceiver<Command>,
    guides: Guides,
    views: Views,
    stats: Arc<Stats>,
}

impl<B: Backend> Running<B> {
    fn new(
        made_of: Engine<B>,
        scheduler: Scheduler,
        inbox: mpsc::UnboundedReceiver<Command>,
        stats: Arc<Stats>,
    ) -> Result<Self, Fault> {
        let kv = made_of.backend.kv(made_of.kv_shape)?;
        let residents = Residents::new(&made_of.backend, made_of.adapter_slots_max);
        let (in_flight, guides) = (BTreeMap::new(), Guides::default());
        let (next_id, views) = (0, Views::default());
        Ok(Self {
            made_of,
            kv,
            residents,
            scheduler,
            in_flight,
            next_id,
            inbox,
            guides,
            views,
            stats,
        })
    }

    /// After one step of one row, which nobody has asked for: what is wrong with the device or the
    /// model is known before requests are taken, and weights are in memory.
    fn begun(mut self) -> Result<Self, Fault> {
        let Engine { backend, model, .. } = &self.made_of;
        let mut rows = Rows::default();
        rows.push(&[0], 0, &Recipe::base(), vec![BlockId(0)]);
        rows.logit_rows.push(0);
        let outputs = model.forward(backend, &rows, &self.residents.slots, &mut self.kv);
        let params = SamplingParams::greedy();
        let history = History { prompt: &[0], generated: &[] };
        let draw = Want::Draw(Draw { params: &params, history, mask: None, logprobs: None });
        outputs.logits.map(|logits| backend.sample(&logits, &[draw])).transpose()?;
        Ok(self)
    }

    fn run(mut self) {
        let mut failed_steps = 0;
        while self.receive() {
            self.stats.pulse.beat();
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
            if self.views.are_due(&self.stats.window, self.in_flight.is_empty()) {
                self.stats.window.show(self.view());
            }
        }
    }

    /// Takes what has arrived; waits when there is nothing else to do. False when it is over.
    fn receive(&mut self) -> bool {
        if self.in_flight.is_empty() {
            self.stats.pulse.rest();
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
            Command::Generate(generate) => *generate,
            Command::Forget(digest) => return self.forget(digest),
        };
        let Generate { request, recipe, events, ticket } = generate;
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let (prompt, terms) = request.into_parts();
        let prompt_tokens = prompt.len() as u32;
        let new = NewSequence {
            id,
            prompt,
            recipe: recipe.map(|adapter| adapter.digest),
            salt: terms.cache_salt,
            share: terms.share,
            priority: terms.priority,
            tokens_max: terms.tokens_max,
            wanted: match (terms.prompt_logprobs, terms.pooling) {
                (Some(_), _) => PromptRows::Logits,
                (None, Some(_)) => PromptRows::Hidden,
                (None, None) => PromptRows::Nothing,
            },
        };
        let parts_max = self.made_of.recipe_parts_max;
        let admitted = match recipe.parts().len() > parts_max {
            true => Err(format!(
                "the request names {} adapters at once; at most {parts_max} are served",
                recipe.parts().len()
            )),
            // The queue and the context limit were checked at the door: see EngineHandle and
            // Limits.
            false => self.scheduler.admit(new).map_err(|refused| refused.to_string()),
        };
        let mut sequence = InFlight::new(terms, recipe, prompt_tokens, events, ticket);
        match admitted {
            Ok(()) => {
                self.in_flight.insert(id, sequence);
            }
            Err(why) => sequence.send(Event::Failed(why)),
        }
    }

    /// A client that went away, or fell too far behind, frees its blocks before the next step.
    fn drop_cancelled(&mut self) {
        let gone = self.in_flight.iter().filter(|(_, sequence)| sequence.is_abandoned());
        let gone: Vec<SequenceId> = gone.map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.end(id));
    }

    fn end(&mut self, id: SequenceId) {
        self.scheduler.cancel(id);
        let Some(sequence) = self.in_flight.remove(&id) else { return };
        sequence.pinned.iter().for_each(|slot| self.residents.unpin(*slot));
        for part in sequence.recipe.parts() {
            // Unloaded while it ran, and this was the last to hold it.
            if Arc::strong_count(&part.adapter) == 1 {
                self.forget(part.adapter.digest);
            }
        }
    }

    fn forget(&mut self, digest: Digest) {
        self.residents.forget(&self.made_of.backend, digest);
    }

    /// schedule → batch → forward → sample → commit, on one screen.
    fn step(&mut self) -> Result<(), Fault> {
        let plan = self.plan();
        if plan.entries.is_empty() {
            // One that has just given up its place makes room for the next plan.
            if !self.in_flight.is_empty() && plan.preempted.is_empty() {
                self.give_up_slots();
                thread::sleep(NOTHING_TO_RUN_PAUSE);
            }
            return Ok(());
        }
        let Engine { backend, model, .. } = &self.made_of;
        let batch = Batch::new(&plan, &self.in_flight);
        let outputs = model.forward(backend, &batch.rows, &self.residents.slots, &mut self.kv);
        // While a card computes.
        self.guides.set_masks(&batch.logits, &mut self.in_flight);
        match self.read(&batch, &outputs) {
            Ok((sampled, hidden)) => self.commit(&plan, &batch, sampled, &hidden),
            Err(fault) => {
                // Nothing of the step was committed: what others have computed is as it was.
                plan.entries.iter().for_each(|entry| self.fail(entry.id, &fault.message));
                return Err(fault);
            }
        }
        Ok(())
    }

    /// What was wanted of a step: a token of each row of logits, and hidden states.
    fn read(
        &self,
        batch: &Batch,
        outputs: &Outputs<B::Tensor>,
    ) -> Result<(Vec<Sampled>, Vec<f32>), Fault> {
        let backend = &self.made_of.backend;
        let Outputs { logits, hidden } = outputs;
        let wants = batch.wants(&self.in_flight, &self.scheduler);
        let sampled = logits.as_ref().map(|logits| backend.sample(logits, &wants)).transpose()?;
        let hidden = hidden.as_ref().map(|hidden| backend.download(hidden)).transpose()?;
        if sampled.is_none() && hidden.is_none() {
            // Only now is it known that nothing went wrong.
            backend.finish()?;
        }
        Ok((sampled.unwrap_or_default(), hidden.unwrap_or_default()))
    }

    /// Nothing runs: a slot that a waiting sequence holds may be what an earlier one waits for. By
    /// arrival, the next plan gives them out again.
    fn give_up_slots(&mut self) {
        let held = self.in_flight.values_mut().flat_map(|sequence| sequence.pinned.drain(..));
        held.for_each(|slot| self.residents.unpin(slot));
    }

    /// Asks the scheduler; an adapter is put into a slot when its first sequence is to run, and
    /// that sequence waits until it is there.
    fn plan(&mut self) -> Plan {
        let Self { scheduler, in_flight, residents, made_of, stats, .. } = self;
        let mut refused = Vec::new();
        let plan = scheduler.plan(&mut |id| {
            let Some(sequence) = in_flight.get_mut(&id) else { return false };
            match residents.place(&made_of.backend, sequence, stats) {
                Ok(can_run) => can_run,
                Err(why) => {
                    refused.push((id, why));
                    false
                }
            }
        });
        // Others may need their slots until it is their turn again.
        for id in &plan.preempted {
            let Some(sequence) = in_flight.get_mut(id) else { continue };
            sequence.pinned.drain(..).for_each(|slot| residents.unpin(slot));
        }
        refused.into_iter().for_each(|(id, why)| self.fail(id, &why));
        plan
    }

    /// Records what the step made and tells the clients. A client that cannot take an event at once
    /// is cancelled: it never stalls a step.
    fn commit(&mut self, plan: &Plan, batch: &Batch, sampled: Vec<Sampled>, hidden: &[f32]) {
        let now = Instant::now();
        let mut failed = Vec::new();
        let width = hidden.len() / batch.hidden.len().max(1);
        for (owner, hidden) in batch.hidden.iter().zip(hidden.chunks(width.max(1))) {
            if let Some(sequence) = self.in_flight.get_mut(&owner.id) {
                sequence.add_hidden(hidden);
            }
        }
        let mut drawn = Vec::new();
        for (owner, sampled) in batch.logits.iter().zip(sampled) {
            let Some(sequence) = self.in_flight.get_mut(&owner.id) else { continue };
            if owner.draws && sequence.is_guide_away() {
                // Its row stays open, and is computed again with the next step.
                continue;
            }
            let Some(token) = sampled.token else {
                let is_forbidden = owner.draws && sequence.terms.sampling.rules.forbid();
                let event = match is_forbidden {
                    true => Event::NoTokenLeft,
                    false => sequence.not_finite(),
                };
                failed.push((owner.id, event));
                continue;
            };
            let Sampled { token: _, logprob, rank, top } = sampled;
            match owner.draws {
                true => drawn.push((owner.id, token, logprob, top)),
                false => {
                    sequence.scores.push(PromptScore { token, logprob, rank, top });
                    sequence.scored += 1;
                }
            }
        }
        // A sequence whose prompt ends without a draw: nothing is generated.
        let done = plan.entries.iter().filter(|entry| !entry.draws && self.ends_prompt(entry));
        let done = done.map(|entry| entry.id).filter(|id| failed.iter().all(|(f, _)| f != id));
        let mut done: Vec<SequenceId> = done.collect();
        done.iter().for_each(|id| self.tell_prompt(*id, now));
        let mut results = Vec::with_capacity(drawn.len());
        for (id, token, logprob, top) in drawn {
            let Some(generated) = self.scheduler.history(id).map(|h| h.generated.len()) else {
                continue;
            };
            if generated == 0 {
                self.tell_prompt(id, now);
            }
            let Some(sequence) = self.in_flight.get_mut(&id) else { continue };
            let finish = match sequence.take(token, generated) {
                Ok(finish) => finish,
                Err(why) => {
                    sequence.send(Event::Astray(why));
                    done.push(id);
                    continue;
                }
            };
            // Before it is told: who has its answer finds it counted.
            sequence.drew(now, &self.stats);
            sequence.send(Event::Token { token, logprob, top, finish });
            results.push(Committed { id, tokens: vec![token], finished: finish.is_some() });
            done.extend(finish.map(|_| id));
        }
        let tokens = batch.prompt_rows + results.len();
        self.stats.spread.step_tokens.observe(tokens as f64);
        self.scheduler.commit(plan, &results);
        failed.into_iter().for_each(|(id, event)| self.end_with(id, event));
        done.into_iter().for_each(|id| self.end(id));
        self.stats.steps_total.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether all of a sequence has been computed of which nothing is generated. Another's prompt
    /// may end without a draw too: after a preemption its text goes on behind it.
    fn ends_prompt(&self, entry: &Entry) -> bool {
        let end = entry.start + entry.tokens.len() as u32;
        let ends =
            |sequence: &InFlight| sequence.terms.tokens_max == 0 && end == sequence.prompt_tokens;
        self.in_flight.get(&entry.id).is_some_and(ends)
    }

    /// The prompt has been computed: what of it was wanted is there.
    fn tell_prompt(&mut self, id: SequenceId, now: Instant) {
        let cached_tokens = self.scheduler.cached_tokens(id).unwrap_or(0);
        let Some(sequence) = self.in_flight.get_mut(&id) else { return };
        let prompt_tokens = u64::from(sequence.prompt_tokens);
        self.stats.prompt_tokens_total.fetch_add(prompt_tokens, Ordering::Relaxed);
        self.stats.cached_tokens_total.fetch_add(cached_tokens.into(), Ordering::Relaxed);
        sequence.ticket.progress().computed(now);
        sequence.send(Event::Started { cached_tokens });
        if sequence.terms.prompt_logprobs.is_some() {
            let scores = std::mem::take(&mut sequence.scores);
            sequence.send(Event::Scores(scores));
        }
        if sequence.terms.pooling.is_some() {
            let embedding = sequence.embedding();
            let is_finite = embedding.iter().all(|x| x.is_finite());
            let event = if is_finite { Event::Embedding(embedding) } else { sequence.not_finite() };
            sequence.send(event);
        }
    }

    fn fail(&mut self, id: SequenceId, why: &str) {
        self.end_with(id, Event::Failed(why.to_owned()));
    }

    fn end_with(&mut self, id: SequenceId, event: Event) {
        if let Some(sequence) = self.in_flight.get_mut(&id) {
            sequence.send(event);
        }
        self.end(id);
    }

    fn fail_all(&mut self, why: &str) {
        for (_, mut sequence) in std::mem::take(&mut self.in_flight) {
            sequence.send(Event::Failed(why.to_owned()));
        }
    }

    /// After a panic nothing the step touched can be trusted, but the model is as it was.
    fn start_over(&mut self) {
        let Engine { backend, scheduler, adapter_slots_max, .. } = &self.made_of;
        if let Ok(fresh) = Scheduler::new(scheduler.clone()) {
            self.scheduler = fresh;
        }
        // What its pages hold is looked up by nobody any more.
        self.residents = Residents::new(backend, *adapter_slots_max);
    }

    /// All sequences, for those who watch.
    fn view(&self) -> View {
        let row = |(id, sequence): (&SequenceId, &InFlight)| {
            self.scheduler.extent(*id).map(|extent| sequence.view(*id, &extent))
        };
        let rows = self.in_flight.iter().filter_map(row).collect();
        View { rows, blocks_used: self.scheduler.counts().blocks_used }
    }

    fn publish(&self) {
        let counts = self.scheduler.counts();
        let stats = &self.stats;
        stats.waiting.store(counts.waiting, Ordering::Relaxed);
        stats.running.store(counts.running, Ordering::Relaxed);
        stats.blocks_used.store(counts.blocks_used, Ordering::Relaxed);
        stats.blocks_total.store(counts.blocks_total, Ordering::Relaxed);
        stats.adapters_resident.store(self.residents.resident(), Ordering::Relaxed);
        stats.preemptions_total.store(counts.preemptions_total, Ordering::Relaxed);
        stats.prefix_hit_tokens_total.store(counts.prefix_hit_tokens_total, Ordering::Relaxed);
        let queried = counts.prefix_query_tokens_total;
        stats.prefix_query_tokens_total.store(queried, Ordering::Relaxed);
    }
}
