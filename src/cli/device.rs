//! From a checkpoint to an engine on the device that was asked for.

use std::path::PathBuf;
use std::sync::Arc;

use super::CliError;
use super::limits::{address_space, thread_limits};
use super::memory::{available_bytes, human};
use super::progress::loading;
use crate::adapter::{Adapter, Catalog, Fits, NameOf};
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::cpu::simd::Level;
use crate::backend::cuda::{Cuda, OpenError, StepLimits, kv_bytes, room};
use crate::config::{Device, ServeConfig};
use crate::delta::Delta;
use crate::engine::{Engine, EngineHandle, GpuSettings, LoadedGpu, StartError};
use crate::http::HttpSettings;
use crate::model::{Checkpoint, Model};
use crate::scheduler::SchedulerConfig;

/// Positions of one KV page: small enough to waste little, large enough to read fast.
pub const BLOCK_TOKENS: usize = 16;
/// The share of available memory that the KV cache takes when not told.
const KV_MEMORY_SHARE: u64 = 4;
/// The share of a GPU's memory beside the weights that adapters take when not told.
const ADAPTER_MEMORY_SHARE: u64 = 8;
/// Adapters of one request: no route takes more yet.
pub const RECIPE_PARTS_MAX: usize = 1;
/// Of adapters that are not known yet.
const RANK_USUAL: usize = 16;

/// A running engine.
pub struct Started {
    /// Its door.
    pub engine: EngineHandle,
    /// Longest prompt plus completion.
    pub context_tokens: usize,
    /// Whether the device can hold adapters that are loaded from here on; `None`: any.
    pub fits: Option<Fits>,
}

/// Loads the model onto the device, folds the adapter to merge, and starts the engine. `say` hears
/// what takes time; `report` gets the lines that describe the result.
///
/// # Errors
/// One line that says what is wrong and how to mend it.
pub fn start(
    config: &ServeConfig,
    checkpoint: &Arc<Checkpoint>,
    catalog: &Catalog,
    say: &dyn Fn(&str),
    report: &mut Vec<String>,
) -> Result<Started, CliError> {
    let merged = match &config.merge {
        None => None,
        Some(name) => Some(catalog.get(name).ok_or_else(|| {
            CliError::Config(format!(
                "--merge {name}: no adapter of this name is given; add --adapter {name}=DIR"
            ))
        })?),
    };
    let merged = merged.as_ref().map(|named| &*named.adapter);
    let start = Start { config, checkpoint, catalog, merged };
    let ordinal = match config.device {
        Device::Cpu => return start.on_cpu(report),
        Device::Auto => 0,
        Device::Cuda(ordinal) => ordinal,
    };
    match (start.on_gpu(ordinal, say, report), config.device) {
        // Nothing to reach a card with is no error, unless the card was asked for.
        (Err(Refused::Device(why)), Device::Auto) => {
            report.push(format!("{why}; the model runs on the CPU"));
            start.on_cpu(report)
        }
        (Err(Refused::Device(why)), _) => Err(CliError::Usage(format!("--device cuda: {why}"))),
        (Err(Refused::Other(error)), _) => Err(error),
        (Ok(started), _) => Ok(started),
    }
}

/// Why there is no engine on a GPU.
enum Refused {
    /// There is no card, or something that its use takes is missing.
    Device(OpenError),
    Other(CliError),
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Memory { .. } => {
                Refused::Other(CliError::Model(format!("{error}, or give --device cpu")))
            }
            error => Refused::Device(error),
        }
    }
}

impl From<CliError> for Refused {
    fn from(error: CliError) -> Self {
        Refused::Other(error)
    }
}

/// What both devices need to know.
struct Start<'a> {
    config: &'a ServeConfig,
    checkpoint: &'a Arc<Checkpoint>,
    catalog: &'a Catalog,
    merged: Option<&'a Adapter>,
}

/// Limits of steps: the flags, or what suits the device.
struct Limits {
    sequences: usize,
    batch_tokens: usize,
    slots: usize,
}

impl Start<'_> {
    fn on_cpu(&self, report: &mut Vec<String>) -> Result<Started, CliError> {
        let Self { config, checkpoint, .. } = *self;
        let limits = self.limits(64, 512, 64);
        let wanted = self.context_wanted()?;
        let block_bytes = Model::<Cpu>::kv_shape(checkpoint, 1, BLOCK_TOKENS).block_bytes() as u64;
        let full = (wanted.div_ceil(BLOCK_TOKENS) * limits.sequences) as u64 * block_bytes;
        let share = available_bytes().map_or(full, |bytes| bytes / KV_MEMORY_SHARE);
        let budget = config.kv_cache_bytes.unwrap_or_else(|| full.min(share));
        if let Some(available) = available_bytes().filter(|&available| budget > available) {
            return Err(CliError::Config(format!(
                "--kv-cache-bytes {budget} is more than the {available} bytes of memory that are \
                 available; give less"
            )));
        }
        let blocks = (budget / block_bytes).min(u64::from(u32::MAX)) as usize;
        let context_tokens = self.context(wanted, blocks, budget, block_bytes)?;

        let threads = config.threads.unwrap_or_else(cores);
        let backend = Cpu::new(threads);
        let bar = loading(checkpoint.weight_bytes());
        let loaded = |bytes| bar.inc(bytes);
        let model = Model::load(checkpoint, &backend, context_tokens, &loaded);
        bar.finish_and_clear();
        let mut model = model?;
        if let Some(adapter) = self.merged {
            model.fold(&backend, &adapter.delta);
        }
        report.push(format!("device: cpu, {threads} threads, {}", Level::detect().name()));
        let kv = format!("KV cache: {}", human(blocks as u64 * block_bytes));
        self.describe(kv, &limits, blocks, context_tokens, report);
        let engine = self.engine(backend, model, blocks, &limits)?;
        Ok(Started { engine, context_tokens, fits: None })
    }

    fn on_gpu(
        &self,
        ordinal: usize,
        say: &dyn Fn(&str),
        report: &mut Vec<String>,
    ) -> Result<Started, Refused> {
        let Self { config, checkpoint, .. } = *self;
        let limits = self.limits(256, 2048, 256);
        let wanted = self.context_wanted()?;
        let bar = loading(checkpoint.weight_bytes());
        let cache = config.kernel_cache.clone().or_else(kernel_cache);
        let opened = LoadedGpu::open(
            checkpoint,
            &GpuSettings {
                ordinal,
                limits: StepLimits {
                    rows_max: limits.batch_tokens,
                    sequences_max: limits.sequences,
                    context_tokens_max: wanted,
                    adapter_slots: limits.slots,
                    recipe_parts_max: RECIPE_PARTS_MAX,
                },
                block_tokens: BLOCK_TOKENS,
                kernel_cache: cache.as_deref(),
                heard: say,
                loaded: &|bytes| bar.inc(bytes),
            },
        );
        bar.finish_and_clear();
        let mut gpu = opened?;
        if let Some(adapter) = self.merged {
            let folded = gpu.prepare(|cuda, model| model.fold(cuda, &adapter.delta));
            folded.map_err(OpenError::from)?;
        }
        let (free, total) = gpu.memory().map_err(OpenError::from)?;
        let share = (total as f64 * config.gpu_memory_utilization) as u64;
        let left = share.saturating_sub(total - free);
        let adapter_bytes = self.adapter_bytes(left)?;
        let block = kv_bytes(&Model::<Cpu>::kv_shape(checkpoint, 1, BLOCK_TOKENS)) / 2;
        // Twice what running sequences can fill keeps as much again for the prefix cache.
        let full = (wanted.div_ceil(BLOCK_TOKENS) * limits.sequences) as u64 * block;
        let rest = left.saturating_sub(adapter_bytes).min(2 * full + block);
        let budget = config.kv_cache_bytes.unwrap_or(rest);
        // One page is no sequence's.
        let blocks = (budget / block).saturating_sub(1) as usize;
        let context_tokens = self.context(wanted, blocks, budget, block)?;
        let step_bytes = gpu.step_bytes();
        let gpu = gpu.ready(checkpoint, blocks, BLOCK_TOKENS, adapter_bytes)?;
        let kv_shape = Model::<Cuda>::kv_shape(checkpoint, blocks, BLOCK_TOKENS);
        gpu.warm_up(kv_shape, &self.ranks())?;

        let name = gpu.backend.describe();
        report.push(format!("device: cuda:{ordinal}, {name}, {total} bytes"));
        let weights = checkpoint.weight_bytes();
        report.push(format!(
            "GPU memory: weights {weights} bytes, a step {} bytes, adapters {adapter_bytes} bytes, \
             KV cache {} bytes",
            step_bytes,
            (blocks as u64 + 1) * block
        ));
        let kv = format!("KV cache: {}", human(blocks as u64 * block));
        self.describe(kv, &limits, blocks, context_tokens, report);
        let engine = self.engine(gpu.backend, gpu.model, blocks, &limits)?;
        let of = checkpoint.clone();
        let fits = move |delta: &Delta| room(delta, &of.sites, of.dtype, adapter_bytes).map(|_| ());
        Ok(Started { engine, context_tokens, fits: Some(Box::new(fits)) })
    }

    fn limits(&self, sequences: usize, batch_tokens: usize, slots: usize) -> Limits {
        let config = self.config;
        let sequences = config.max_num_seqs.unwrap_or(sequences);
        Limits {
            sequences,
            // A step has room for one token of each sequence, and for some of a prompt.
            batch_tokens: config
                .max_num_batched_tokens
                .unwrap_or(batch_tokens.max(sequences + BLOCK_TOKENS)),
            slots: if self.merged.is_some() { 1 } else { config.adapter_slots.unwrap_or(slots) },
        }
    }

    /// Longest context that was asked for.
    fn context_wanted(&self) -> Result<usize, CliError> {
        let trained = self.checkpoint.config.positions_max;
        let wanted = self.config.max_model_len.unwrap_or(trained);
        if wanted > trained {
            return Err(CliError::Config(format!(
                "--max-model-len {wanted} is more than the {trained} tokens the model is for \
                 (max_position_embeddings in config.json, times the factor of linear scaling)"
            )));
        }
        Ok(wanted)
    }

    /// Longest context that `blocks` pages hold; `budget` bytes were to be theirs.
    fn context(
        &self,
        wanted: usize,
        blocks: usize,
        budget: u64,
        block_bytes: u64,
    ) -> Result<usize, CliError> {
        // The last token drawn needs no place in the cache.
        let fits = (blocks * BLOCK_TOKENS).min(wanted);
        if blocks == 0 || (self.config.max_model_len.is_some() && fits < wanted) {
            let needed = (wanted.div_ceil(BLOCK_TOKENS) as u64 + 1) * block_bytes;
            return Err(CliError::Config(format!(
                "a KV cache of {budget} bytes holds {fits} tokens and --max-model-len is {wanted}; \
                 give --kv-cache-bytes {needed} or more, or a smaller --max-model-len"
            )));
        }
        Ok(fits)
    }

    /// Bytes of resident adapters, of `left` beside the weights and a step; every adapter that was
    /// given must fit alone.
    fn adapter_bytes(&self, left: u64) -> Result<u64, CliError> {
        let Self { config, checkpoint, catalog, .. } = *self;
        if self.merged.is_some() {
            return Ok(0);
        }
        let bytes = |named: &NameOf, most: u64| {
            let delta = &named.adapter.delta;
            room(delta, &checkpoint.sites, checkpoint.dtype, most)
                .map_err(|e| CliError::Adapter(format!("adapter '{}': {e}", named.alias.name)))
        };
        let given = catalog.list();
        let sizes = given.iter().map(|named| bytes(named, u64::MAX));
        let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
        let largest = sizes.iter().copied().max().unwrap_or(0);
        // Adapters that nobody can add need no room.
        let known = (!config.allow_runtime_adapters).then(|| sizes.iter().sum());
        let share = (left / ADAPTER_MEMORY_SHARE).max(largest).min(known.unwrap_or(u64::MAX));
        let share = config.adapter_gpu_bytes.unwrap_or(share);
        given.iter().try_for_each(|named| bytes(named, share).map(|_| ()))?;
        Ok(share)
    }

    /// Of adapters that requests may ask for.
    fn ranks(&self) -> Vec<usize> {
        if self.merged.is_some() {
            return Vec::new();
        }
        let given = self.catalog.list();
        let mut ranks: Vec<usize> = given.iter().map(|n| n.adapter.delta.rank_max()).collect();
        ranks.extend(self.config.allow_runtime_adapters.then_some(RANK_USUAL));
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    fn describe(
        &self,
        kv: String,
        limits: &Limits,
        blocks: usize,
        context_tokens: usize,
        report: &mut Vec<String>,
    ) {
        let tokens = blocks * BLOCK_TOKENS;
        report.push(format!("{kv}, {tokens} tokens; context at most {context_tokens} tokens"));
        report.push(format!(
            "limits: {} sequences at once, {} tokens a step, {} requests waiting, {} adapters a \
             batch, {} of adapters in memory",
            limits.sequences,
            limits.batch_tokens,
            self.config.queue_requests,
            limits.slots,
            human(self.config.adapter_host_bytes)
        ));
    }

    fn engine<B: Backend>(
        &self,
        backend: B,
        model: Model<B>,
        blocks: usize,
        limits: &Limits,
    ) -> Result<EngineHandle, CliError> {
        let requests_max = limits.sequences + self.config.queue_requests;
        let scheduler = SchedulerConfig {
            sequences_max: limits.sequences,
            batch_tokens_max: limits.batch_tokens,
            block_tokens: BLOCK_TOKENS,
            blocks,
            queue_requests_max: requests_max,
            logit_rows_max: limits.sequences,
            prefix_cache: !self.config.no_prefix_cache,
        };
        let kv_shape = Model::<B>::kv_shape(self.checkpoint, blocks, BLOCK_TOKENS);
        let adapter_slots_max = limits.slots;
        let recipe_parts_max = RECIPE_PARTS_MAX;
        let engine =
            Engine { backend, model, kv_shape, scheduler, adapter_slots_max, recipe_parts_max };
        engine.start(requests_max).map_err(|e| match e {
            StartError::Limits(e) => {
                CliError::Config(format!("{e}; see --max-num-seqs and --max-num-batched-tokens"))
            }
            StartError::Thread(_) => CliError::General(format!("{e}; {}", thread_limits())),
            StartError::Device(_) => CliError::Config(format!(
                "{e}; see --kv-cache-bytes{}",
                address_space().map_or(String::new(), |bytes| format!(
                    ", and ulimit -v, by which this process may have {}",
                    human(bytes)
                ))
            )),
            StartError::Ended => CliError::General(format!("{e}. This is a bug")),
        })
    }
}

/// Threads that serving takes at most: those that compute, those of libraries that load and guide,
/// the engine's, and one for each request or adapter that is read at a time, with a template's.
pub fn threads_needed(config: &ServeConfig) -> usize {
    let limits = HttpSettings::standard();
    let computing = config.threads.unwrap_or_else(cores);
    computing + 2 * cores() + 1 + 2 * (limits.text_tasks_max + limits.loads_max)
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Where compiled kernels are kept when not told; `None` where no user has a folder.
pub fn kernel_cache() -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let cache = folder("XDG_CACHE_HOME").or_else(|| {
        let home = std::env::home_dir().filter(|home| !home.as_os_str().is_empty());
        home.map(|home| home.join(".cache"))
    });
    cache.map(|cache| cache.join("tessera/kernels"))
}
