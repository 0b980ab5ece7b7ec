//! Golden models and adapters, loaded as the server loads them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tessera::adapter::{
    Adapter, Allowed, Catalog, FileLimits, LoadAdapter, Loader, NewName, Source,
};
use tessera::backend::{Backend, Rows, cpu::Cpu};
use tessera::dtype::Dtype;
use tessera::engine::{CheckpointBase, Engine, EngineHandle, wait_until_ready};
use tessera::ids::{BlockId, Slot, TokenId};
use tessera::model::{Checkpoint, Model};
use tessera::recipe::Recipe;
use tessera::scheduler::SchedulerConfig;

/// Tokens in a KV page of the tests.
pub const BLOCK_TOKENS: usize = 16;
/// Adapters that one request of the tests may name.
pub const RECIPE_PARTS_MAX: usize = 3;
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
            fits: None,
            limits: FileLimits::new(1 << 30),
            base_names: Vec::new(),
            allowed: Allowed::default(),
        };
        Self { dir: dir.to_owned(), checkpoint, loader }
    }

    pub fn adapter(&self, name: &str) -> Arc<Adapter> {
        let loaded = self.loader.load(&self.dir.join("adapters").join(name));
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
        Model::load(&self.checkpoint, backend, POSITIONS_MAX, &|_| {}).unwrap()
    }

    pub fn engine(&self, scheduler: SchedulerConfig, adapter_slots_max: usize) -> EngineHandle {
        let backend = Cpu::new(2);
        let model = self.model(&backend);
        let kv_shape = Model::<Cpu>::kv_shape(&self.checkpoint, scheduler.blocks, BLOCK_TOKENS);
        let engine = Engine {
            backend,
            model,
            kv_shape,
            scheduler,
            adapter_slots_max,
            recipe_parts_max: RECIPE_PARTS_MAX,
        };
        engine.start(10_000).unwrap()
    }
}

/// Points a name at an adapter that is there already; `created` is told back by the list.
pub fn name(catalog: &Catalog, name: &str, adapter: &Arc<Adapter>, created: u64) {
    let new = NewName { name, source: Source::BuiltIn, text: None, created, replace: true };
    let Adapter { digest, delta, method, report } = &**adapter;
    let (delta, report) = (delta.clone(), report.clone());
    let again = Adapter { digest: *digest, delta, method, report };
    catalog.load(new, *digest, || Ok(again)).unwrap();
}

/// Limits of an engine with room for everything.
pub fn roomy() -> SchedulerConfig {
    SchedulerConfig {
        sequences_max: 64,
        batch_tokens_max: 512,
        block_tokens: BLOCK_TOKENS,
        blocks: 1024,
        queue_requests_max: 10_000,
        logit_rows_max: 64,
        prefix_cache: true,
    }
}

/// Whole prompts as one batch, each with what it carries, logits of every row wanted.
pub fn prompts_as_rows(prompts: &[(Recipe<Slot>, Vec<TokenId>)]) -> Rows {
    let mut rows = Rows::default();
    let mut block = 0;
    for (recipe, prompt) in prompts {
        let blocks = prompt.len().div_ceil(BLOCK_TOKENS) as u32;
        rows.push(prompt, 0, recipe, (block..block + blocks).map(BlockId).collect());
        block += blocks;
    }
    rows.logit_rows = (0..rows.tokens.len() as u32).collect();
    rows
}

/// Logits of every row of `prompts`, computed in one step; adapter i is in slot i.
pub fn logits<B: Backend>(
    golden: &Golden,
    backend: &B,
    model: &Model<B>,
    adapters: &[Arc<Adapter>],
    prompts: &[(Recipe<Slot>, Vec<TokenId>)],
) -> Vec<Vec<f32>> {
    let blocks = prompts.iter().map(|(_, p)| p.len().div_ceil(BLOCK_TOKENS)).sum();
    let mut kv =
        backend.kv(Model::<Cpu>::kv_shape(&golden.checkpoint, blocks, BLOCK_TOKENS)).unwrap();
    let mut slots = backend.slots(adapters.len());
    for (slot, adapter) in adapters.iter().enumerate() {
        let slot = Slot(slot as u32);
        backend.write_slot(&mut slots, slot, adapter.delta.clone()).unwrap();
        wait_until_ready(backend, &slots, slot).unwrap();
    }
    let outputs = model.forward(backend, &prompts_as_rows(prompts), &slots, &mut kv);
    let flat = backend.download(&outputs.logits.unwrap()).unwrap();
    flat.chunks_exact(golden.checkpoint.config.vocabulary).map(<[f32]>::to_vec).collect()
}

/// The largest distance between two rows.
pub fn distance(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
