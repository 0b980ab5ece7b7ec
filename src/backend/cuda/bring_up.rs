//! A card's way to its first step. Each state consumes the last, so the order stands here alone:
//! [`Opened`] has kernels and memory for the weights; [`Loaded`] has the model, and the memory of
//! the largest step; then comes the [`Cuda`] that steps run on, with the memory of adapters and of
//! the KV cache.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::arena::Arena;
use super::memory::{DeviceMemory, Kv, StepLimits, TableMemory, Taken, kv_bytes, widest};
use super::sample::SampleMemory;
use super::slots::{SlotMemory, Slots};
use super::{Cuda, CudaSettings, OpenError, lock};
use crate::backend::{Fault, KvShape, Rows};

/// A card with kernels, and room for a model's weights.
#[derive(Debug)]
pub struct Opened(Cuda);

/// A card with a model `M` on it and the memory of the largest step; the rest is to be shared out.
#[derive(Debug)]
pub struct Loaded<M> {
    cuda: Cuda,
    model: M,
    step_bytes: u64,
}

impl Opened {
    /// Opens a card, compiles the kernels or finds them compiled, and takes the weights' memory.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(settings: &CudaSettings<'_>) -> Result<Self, OpenError> {
        Cuda::open(settings).map(Self)
    }

    /// Loads the model, measures the largest step and takes its memory. `forward` computes a step
    /// of the model; it is only measured. `page` is the shape of a KV cache of one page.
    ///
    /// # Errors
    /// [`OpenError::Memory`]: says of which buffer.
    pub fn load<M>(
        self,
        limits: &StepLimits,
        page: KvShape,
        load: impl FnOnce(&Cuda) -> M,
        forward: impl Fn(&M, &Cuda, &Rows, &Slots, &mut Kv),
    ) -> Result<Loaded<M>, OpenError> {
        let Self(cuda) = self;
        let model = load(&cuda);
        cuda.settled()?;
        let step =
            |rows: &Rows, slots: &Slots, kv: &mut Kv| forward(&model, &cuda, rows, slots, kv);
        let step_bytes = cuda.measure(limits, page, &step);
        cuda.take_step(limits, step_bytes)?;
        Ok(Loaded { cuda, model, step_bytes })
    }
}

impl<M> Loaded<M> {
    /// Work on the model before steps can run: merging an adapter, measuring the card.
    ///
    /// # Errors
    /// A fault of the card.
    pub fn prepare<R>(&mut self, work: impl FnOnce(&Cuda, &mut M) -> R) -> Result<R, Fault> {
        let done = work(&self.cuda, &mut self.model);
        self.cuda.settled()?;
        Ok(done)
    }

    /// Bytes of a step's tensors.
    pub fn step_bytes(&self) -> u64 {
        self.step_bytes
    }

    /// Free bytes of the card, and all.
    ///
    /// # Errors
    /// When the card does not answer.
    pub fn memory(&self) -> Result<(u64, u64), Fault> {
        self.cuda.memory()
    }

    /// Takes the memory of adapters and of the KV cache: steps can run.
    ///
    /// # Errors
    /// [`OpenError::Memory`]: says of which buffer.
    pub fn ready(self, wanted: &DeviceMemory<'_>) -> Result<(Cuda, M), OpenError> {
        let Self { cuda, model, step_bytes: _ } = self;
        cuda.take(wanted)?;
        Ok((cuda, model))
    }
}

impl Cuda {
    /// Bytes that the largest step takes; `forward` computes one up to its logits. Nothing runs.
    fn measure(
        &self,
        limits: &StepLimits,
        kv: KvShape,
        forward: &dyn Fn(&Rows, &Slots, &mut Kv),
    ) -> u64 {
        let arena = Arena::measuring();
        *lock(&self.arena) = arena.clone();
        self.dry.store(true, Ordering::Relaxed);
        let slots = Slots::measuring(limits.adapter_slots);
        let mut kv = Kv { shape: kv, address: 0 };
        let decoding = limits.sequences_max.min(limits.rows_max);
        let rest = limits.rows_max - decoding;
        let decodes = vec![1; decoding];
        let mut beside = decodes.clone();
        beside.extend((rest > 0).then_some(rest));
        let spread = vec![limits.rows_max / decoding.max(1); decoding];
        for lens in [decodes, beside, vec![limits.rows_max], spread] {
            let rows = widest(limits, &lens, kv.shape.block_tokens);
            forward(&rows, &slots, &mut kv);
        }
        self.dry.store(false, Ordering::Relaxed);
        // Other mixes of rows leave other gaps between tensors.
        arena.peak() * 5 / 4
    }

    /// Takes the memory of a step; `step_bytes` is from `measure`.
    ///
    /// # Errors
    /// [`OpenError::Memory`]: says of which buffer.
    fn take_step(&self, limits: &StepLimits, step_bytes: u64) -> Result<(), OpenError> {
        let mend = "lower --max-num-batched-tokens or --max-num-seqs";
        let step = self.card.allocate(step_bytes, "the tensors of a step", mend)?;
        *lock(&self.arena) = Arena::at(step.address(), step.bytes());
        let mut tables = lock(&self.tables);
        let table_bytes = tables.bytes_max * 5 / 4 + 4096;
        let device = self.card.allocate(table_bytes, "the tables of a step", mend)?;
        let device = device.region(0, table_bytes);
        let pinned = self.card.pinned(table_bytes as usize)?;
        tables.memory = Some(TableMemory { device, pinned, in_use: false });
        // Tests ask for the logits of whole prompts.
        let drawn = limits.rows_max.max(limits.sequences_max).next_power_of_two();
        *lock(&self.sampling) = Some(SampleMemory::new(
            &self.card,
            drawn,
            limits.sequences_max,
            self.model.vocabulary,
        )?);
        assert!(self.step_memory.set(step).is_ok(), "This is a bug: memory is taken once.");
        Ok(())
    }

    /// Takes the memory of adapters and of the KV cache.
    ///
    /// # Errors
    /// [`OpenError::Memory`]: says of which buffer.
    fn take(&self, wanted: &DeviceMemory<'_>) -> Result<(), OpenError> {
        let DeviceMemory { kv, adapter_bytes, adapter_slots, sites } = *wanted;
        let adapters =
            SlotMemory::new(&self.card, adapter_bytes, adapter_slots, sites, self.dtype)?;
        let bytes = kv_bytes(&kv);
        let mend = "lower --gpu-memory-utilization, --kv-cache-bytes or --max-model-len";
        let memory = self.card.allocate(bytes, "the KV cache", mend)?;
        let kv_memory = memory.region(0, bytes);
        let taken = Taken { kv: kv_memory, kv_shape: kv, adapters: Arc::new(adapters) };
        assert!(self.taken.set(taken).is_ok(), "This is a bug: memory is taken once.");
        Ok(())
    }
}
