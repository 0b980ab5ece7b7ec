//! A model on a GPU: everything that has to be there before an engine starts.

use std::path::Path;

use crate::backend::cuda::{
    Cuda, CudaSettings, DeviceMemory, OpenError, RECORDED_ROWS_MAX, StepLimits,
};
use crate::backend::{Adapters, Backend, KvShape, SampleRow};
use crate::model::{Checkpoint, Model};
use crate::request::SamplingParams;
use crate::site::SiteKind;

/// What a GPU is to serve.
#[derive(Clone, Copy)]
pub struct GpuSettings<'a> {
    /// Which card.
    pub ordinal: usize,
    /// The largest steps.
    pub limits: StepLimits,
    /// Tokens of one KV page.
    pub block_tokens: usize,
    /// Folder of compiled kernels.
    pub kernel_cache: Option<&'a Path>,
    /// Told what takes time.
    pub heard: &'a dyn Fn(&str),
    /// Hears the bytes of each weight as it arrives.
    pub loaded: &'a dyn Fn(u64),
}

/// A card with a model on it, and memory still to be shared out.
pub struct Gpu {
    /// The card.
    pub backend: Cuda,
    /// The base.
    pub model: Model<Cuda>,
    /// Bytes of a step's tensors.
    pub step_bytes: u64,
    limits: StepLimits,
}

impl Gpu {
    /// Opens the card, loads the model, measures the largest step and takes its memory.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(checkpoint: &Checkpoint, settings: &GpuSettings<'_>) -> Result<Self, OpenError> {
        let config = &checkpoint.config;
        let linears = checkpoint.sites.iter().filter(|(_, site)| site.kind == SiteKind::Linear);
        let backend = Cuda::open(&CudaSettings {
            ordinal: settings.ordinal,
            dtype: checkpoint.dtype,
            weight_bytes: checkpoint.weight_bytes(),
            matrices: checkpoint.sites.len(),
            group: config.heads / config.kv_heads,
            head_dim: config.head_dim,
            width_max: linears.map(|(_, site)| site.in_features).max().unwrap_or(1),
            block_tokens: settings.block_tokens,
            vocabulary: config.vocabulary,
            kernel_cache: settings.kernel_cache,
            heard: settings.heard,
        })?;
        let positions = settings.limits.context_tokens_max;
        let model = Model::load(checkpoint, &backend, positions, settings.loaded);
        backend.settled()?;
        let kv = Model::<Cuda>::kv_shape(checkpoint, 1, settings.block_tokens);
        let step_bytes = backend.measure(&settings.limits, kv, &|batch, kv, pool| {
            model.forward(&backend, batch, kv, Adapters { pool })
        });
        backend.take_step(&settings.limits, step_bytes)?;
        Ok(Self { backend, model, step_bytes, limits: settings.limits })
    }

    /// Takes the memory of `blocks` KV pages and of resident adapters.
    ///
    /// # Errors
    /// [`OpenError::Memory`].
    pub fn take(
        &self,
        checkpoint: &Checkpoint,
        blocks: usize,
        block_tokens: usize,
        adapter_bytes: u64,
    ) -> Result<(), OpenError> {
        let kv = Model::<Cuda>::kv_shape(checkpoint, blocks, block_tokens);
        let adapter_slots = self.limits.adapter_slots;
        let sites = &checkpoint.sites;
        let wanted = DeviceMemory { kv, adapter_bytes, adapter_slots, sites };
        self.backend.take(&wanted)
    }
}

impl Gpu {
    /// Records decode steps of every width before the first request, without adapters and with ones
    /// of `ranks`: the first of each width costs many times a replay.
    ///
    /// # Errors
    /// A fault of the card.
    pub fn rehearse(&self, kv: KvShape, ranks: &[usize]) -> Result<(), OpenError> {
        let Self { backend, model, limits, .. } = self;
        let (mut kv, pool) = (backend.kv(kv), backend.pool(limits.adapter_slots));
        let draw = SampleRow { params: SamplingParams::greedy(), step: 0, logprobs: None };
        let widths = (0..)
            .map(|power| 1 << power)
            .take_while(|&rows| rows <= RECORDED_ROWS_MAX && rows < 2 * limits.sequences_max);
        for rows in widths.map(|rows: usize| rows.min(limits.sequences_max)) {
            for ranks in std::iter::once(None).chain(ranks.iter().copied().map(Some)) {
                for _ in 0..2 {
                    let batch = backend.rehearsal(rows, ranks);
                    let logits = model.forward(backend, &batch, &mut kv, Adapters { pool: &pool });
                    backend.sample(&logits, &vec![draw.clone(); rows])?;
                }
            }
        }
        Ok(())
    }
}

/// Waits until adapters that were just written can be used.
///
/// # Errors
/// The copy that failed.
pub fn wait_until_ready<B: Backend>(
    backend: &B,
    pool: &B::Pool,
    slot: crate::ids::Slot,
) -> Result<(), crate::backend::SlotError> {
    while !backend.slot_ready(pool, slot)? {
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    Ok(())
}
