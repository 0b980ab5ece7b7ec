//! Golden models and adapters, loaded as the server loads them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tessera::adapter::{Adapter, FileLimits, Load, Loader};
use tessera::backend::{Backend, Rows, Span, cpu::Cpu};
use tessera::dtype::Dtype;
use tessera::engine::{CheckpointBase, Engine, EngineHandle, wait_until_ready};
use tessera::ids::{BlockId, Slot, TokenId};
use tessera::model::{Checkpoint, Model};
use tessera::scheduler::SchedulerConfig;

/// Tokens in a KV page of the tests.
pub const BLOCK_TOKENS: usize = 16;
/// Golden models are trained (as it were) for this many.
pub const POSITIONS_MAX: usize = 512;

pub fn golden_dir() -> PathBuf {
    // Other cases of the same layout can be run by pointing this at their folder.
    match std::env::var_os("TESSERA_GOLDEN") {
        Some(dir) => dir.into(),
        None => crate::root().join("tests/golden"),
    }
}

pub struct Golden {
    pub dir: PathBuf,
    pub checkpoint: Arc<Checkpoint>,
    pub loader: Loader<CheckpointBase>,
}

impl Golden {
    pub fn open(model: &str, dtype: Option<Dtype>) -> Self {
        Self::open_dir(&golden_dir().join(model), dtype)
    }

    pub fn open_dir(dir: &Path, dtype: Option<Dtype>) -> Self {
        let checkpoint = Arc::new(Checkpoint::open(dir, dtype).unwrap());
        let loader = Loader {
            base: CheckpointBase::new(checkpoint.clone()),
            limits: FileLimits::new(1 << 30),
            allow_unknown_config_keys: false,
        };
        Self { dir: dir.to_owned(), checkpoint, loader }
    }

    pub fn adapter(&self, name: &str) -> Arc<Adapter> {
        let loaded = self.loader.load(&self.dir.join("adapters").join(name), None);
        loaded.unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Every adapter of the model with an expected result, by name.
    pub fn adapter_names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.dir.join("adapters")).unwrap();
        let name = |e: std::fs::DirEntry| e.file_name().into_string().unwrap();
        let mut names: Vec<String> = entries.map(|e| name(e.unwrap())).collect();
        names.sort();
        names
    }

    pub fn model<B: Backend>(&self, backend: &B) -> Model<B> {
        Model::load(&self.checkpoint, backend, POSITIONS_MAX, &|_| {})
    }

    pub fn engine(&self, scheduler: SchedulerConfig, adapter_slots_max: usize) -> EngineHandle {
        let backend = Cpu::new(2);
        let model = self.model(&backend);
        let kv_shape = Model::<Cpu>::kv_shape(&self.checkpoint, scheduler.blocks, BLOCK_TOKENS);
        let engine = Engine { backend, model, kv_shape, scheduler, adapter_slots_max };
        engine.start(10_000).unwrap()
    }
}

/// Limits of an engine with room for everything.
pub fn roomy() -> SchedulerConfig {
    SchedulerConfig {
        sequences_max: 64,
        batch_tokens_max: 512,
        block_tokens: BLOCK_TOKENS,
        blocks: 1024,
        queue_requests_max: 10_000,
        prefix_cache: true,
    }
}

/// Whole prompts as one batch, each with its slot, logits of every row wanted.
pub fn prompts_as_rows(prompts: &[(Slot, Vec<TokenId>)]) -> Rows {
    let mut rows = Rows::default();
    let mut block = 0;
    for (slot, prompt) in prompts {
        let (start, len) = (rows.tokens.len(), prompt.len());
        rows.tokens.extend(prompt);
        rows.positions.extend(0..len as u32);
        rows.slots.extend(std::iter::repeat_n(*slot, len));
        let blocks = len.div_ceil(BLOCK_TOKENS) as u32;
        let block_table = (block..block + blocks).map(BlockId).collect();
        block += blocks;
        rows.spans.push(Span { start, len, block_table });
    }
    rows.logit_rows = (0..rows.tokens.len() as u32).collect();
    rows
}

/// Logits of every row of `prompts`, computed in one step.
pub fn logits<B: Backend>(
    golden: &Golden,
    backend: &B,
    model: &Model<B>,
    adapters: &[Arc<Adapter>],
    prompts: &[(Slot, Vec<TokenId>)],
) -> Vec<Vec<f32>> {
    let blocks = prompts.iter().map(|(_, p)| p.len().div_ceil(BLOCK_TOKENS)).sum();
    let mut kv = backend.kv(Model::<Cpu>::kv_shape(&golden.checkpoint, blocks, BLOCK_TOKENS));
    let mut pool = backend.pool(adapters.len());
    for (slot, adapter) in adapters.iter().enumerate() {
        let slot = Slot(slot as u32);
        backend.write_slot(&mut pool, slot, adapter.delta.clone()).unwrap();
        wait_until_ready(backend, &pool, slot).unwrap();
    }
    let batch = backend.batch(prompts_as_rows(prompts));
    let adapters = tessera::backend::Adapters { pool: &pool };
    let logits = model.forward(backend, &batch, &mut kv, adapters);
    let flat = backend.download(&logits).unwrap();
    flat.chunks_exact(golden.checkpoint.config.vocabulary).map(<[f32]>::to_vec).collect()
}

/// The largest distance between two rows.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
