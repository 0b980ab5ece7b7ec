//! A model on a GPU: everything that has to be there before an engine starts.

use std::path::Path;

use crate::backend::cuda::{
    Cuda, CudaSettings, DeviceMemory, Loaded, OpenError, Opened, RECORDED_ROWS_MAX, StepLimits,
};
use crate::backend::{Device, Draw, Fault, KvShape, Sampling, Want};
use crate::model::{Checkpoint, Model};
use crate::request::{History, SamplingParams};
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
pub struct LoadedGpu {
    loaded: Loaded<Model<Cuda>>,
    limits: StepLimits,
}

/// A card that steps run on.
pub struct Gpu {
    /// The card.
    pub backend: Cuda,
    /// The base.
    pub model: Model<Cuda>,
    limits: StepLimits,
}

impl LoadedGpu {
    /// Opens the card, loads the model, measures the largest step and takes its memory.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn open(checkpoint: &Checkpoint, settings: &GpuSettings<'_>) -> Result<Self, OpenError> {
        let config = &checkpoint.config;
        let linears = checkpoint.sites.iter().filter(|(_, site)| site.kind == SiteKind::Linear);
        let opened = Opened::open(&CudaSettings {
            ordinal: settings.ordinal,
            dtype: checkpoint.dtype,
            weight_bytes: checkpoint.weight_bytes(),
            matrices: checkpoint.sites.len(),
            group: config.heads / config.kv_heads,
            head_dim: config.head_dim,
            width_max: linears.map(|(_, site)| site.in_features).max().unwrap_or(1),
            vocabulary: config.vocabulary,
            block_tokens: settings.block_tokens,
            kernel_cache: settings.kernel_cache,
            heard: settings.heard,
        })?;
        let GpuSettings { limits, block_tokens, .. } = *settings;
        let positions = limits.context_tokens_max;
        let page = Model::<Cuda>::kv_shape(checkpoint, 1, block_tokens);
        let mut failed = None;
        let loaded = opened.load(
            &limits,
            page,
            |cuda| Model::load_or_zeros(checkpoint, cuda, positions, settings.loaded, &mut failed),
            |model: &Model<Cuda>, cuda, rows, slots, kv| {
                model.forward(cuda, rows, slots, kv);
            },
        )?;
        if let Some(error) = failed {
            return Err(Fault { message: error.to_string(), lost: false }.into());
        }
        Ok(Self { loaded, limits })
    }

    /// Work on the model before steps can run: merging an adapter, measuring the card.
    ///
    /// # Errors
    /// A fault of the card.
    pub fn prepare<R>(
        &mut self,
        work: impl FnOnce(&Cuda, &mut Model<Cuda>) -> R,
    ) -> Result<R, Fault> {
        self.loaded.prepare(work)
    }

    /// Bytes of a step's tensors.
    pub fn step_bytes(&self) -> u64 {
        self.loaded.step_bytes()
    }

    /// Free bytes of the card, and all.
    ///
    /// # Errors
    /// When the card does not answer.
    pub fn memory(&self) -> Result<(u64, u64), Fault> {
        self.loaded.memory()
    }

    /// Takes the memory of `blocks` KV pages and of resident adapters.
    ///
    /// # Errors
    /// [`OpenError::Memory`].
    pub fn ready(
        self,
        checkpoint: &Checkpoint,
        blocks: usize,
        block_tokens: usize,
        adapter_bytes: u64,
    ) -> Result<Gpu, OpenError> {
        let Self { loaded, limits } = self;
        let kv = Model::<Cuda>::kv_shape(checkpoint, blocks, block_tokens);
        let (adapter_slots, sites) = (limits.adapter_slots, &checkpoint.sites);
        let wanted = DeviceMemory { kv, adapter_bytes, adapter_slots, sites };
        let (backend, model) = loaded.ready(&wanted)?;
        Ok(Gpu { backend, model, limits })
    }
}

impl Gpu {
    /// Captures decode steps of every width before the first request (warm-up), without adapters
    /// and with ones of `ranks`: the first of each width costs many times a replay.
    ///
    /// # Errors
    /// A fault of the card.
    pub fn warm_up(&self, kv: KvShape, ranks: &[usize]) -> Result<(), OpenError> {
        let Self { backend, model, limits, .. } = self;
        let (mut kv, slots) = (backend.kv(kv)?, backend.slots(limits.adapter_slots));
        let params = SamplingParams::greedy();
        let history = History { prompt: &[0], generated: &[] };
        let draw = Want::Draw(Draw { params: &params, history, mask: None, logprobs: None });
        let widths = (0..)
            .map(|power| 1 << power)
            .take_while(|&rows| rows <= RECORDED_ROWS_MAX && rows < 2 * limits.sequences_max);
        for count in widths.map(|rows: usize| rows.min(limits.sequences_max)) {
            for ranks in std::iter::once(None).chain(ranks.iter().copied().map(Some)) {
                for _ in 0..2 {
                    let ops = |rows: &_, step: &_| model.outputs(backend, rows, &mut kv, step);
                    let outputs = backend.warm_up(count, ranks, &slots, ops);
                    if let Some(logits) = &outputs.logits {
                        backend.sample(logits, &vec![draw; count])?;
                    }
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
pub fn wait_until_ready<D: Device>(
    device: &D,
    slots: &D::Slots,
    slot: crate::ids::Slot,
) -> Result<(), crate::backend::SlotError> {
    while !device.slot_ready(slots, slot)? {
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    Ok(())
}
