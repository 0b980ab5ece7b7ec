//! An adapter's files: its config, its tensors' header, and what else is in its directory. What is
//! taken is understood whole: each tensor has its line in the report, and the same files give the
//! same change again.

use std::collections::BTreeMap;
use std::fs;

use serde_json::Value;
use tessera::adapter::{Adapter, AdapterFile, Allowed, FileLimits, LoadAdapter, Loader};
use tessera::engine::CheckpointBase;

use super::{Target, same, text};
use crate::files::{Raw, tensor_bytes};
use crate::harness::{Golden, golden_dir};
use crate::mutate::joined;

/// More than any golden adapter has.
const TENSORS_BYTES_MAX: usize = 1 << 20;
/// Names in a directory.
const NAMES_MAX: usize = 40;

const WORDS: &[&str] = &[
    "LORA",
    "MOS",
    "SSF",
    "IA3",
    "DORA",
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "exclude_modules",
    "modules_to_save",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "lora_bias",
    "bias",
    "all",
    "lora_only",
    "none",
    "all-linear",
    "init_lora_weights",
    "feedforward_modules",
    "fan_in_fan_out",
    "shard_size",
    "num_pools",
    "shared_rank",
    "private_rank",
    "ft_mode",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "up_proj",
    "down_proj",
    "gate_proj",
    "embed_tokens",
    "lm_head",
    "norm",
    "input_layernorm",
    "model.layers.0.self_attn.q_proj",
    ".*\\.[01]\\..*(q|v)_proj",
    "(?!.*v_proj).*",
    "(a|b)*c",
    "layers",
    "layer_replication",
    "base_model_name_or_path",
    "trainable_token_indices",
    "weight",
    "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
    "lora_A",
    "lora_B",
    "ia3_l",
    "lora_embedding_A",
    "lora_magnitude_vector",
    "ssf_scale",
    "ssf_shift",
    "dtype",
    "shape",
    "data_offsets",
    "__metadata__",
    "F32",
    "F16",
    "BF16",
    "F64",
    "I64",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "F4",
];

/// The golden adapters.
struct World {
    loader: Loader<CheckpointBase>,
    /// By name: config, tensor file.
    adapters: BTreeMap<String, (Vec<u8>, Vec<u8>)>,
}

impl World {
    fn new() -> Self {
        let Golden { loader, .. } = Golden::open("llama", None);
        let loader = Loader {
            limits: FileLimits::new(TENSORS_BYTES_MAX as u64),
            base_names: vec!["llama".to_owned()],
            allowed: Allowed::default(),
            ..loader
        };
        Self { loader, adapters: adapters() }
    }

    /// The adapter that a part names, or the first.
    fn adapter(&self, name: &str) -> &(Vec<u8>, Vec<u8>) {
        let first = || self.adapters.values().next().expect("golden adapters");
        self.adapters.get(name).unwrap_or_else(first)
    }

    fn lowered(&self, config: &[u8], tensors: &[u8]) -> Result<(AdapterFile, Adapter), String> {
        let file = AdapterFile::parse(config, tensors.to_vec(), &self.loader.limits);
        let file = file.map_err(|e| e.to_string())?;
        let adapter = self.loader.lower(&file).map_err(|e| e.to_string())?;
        Ok((file, adapter))
    }

    fn check(&self, config: &[u8], tensors: &[u8]) -> Result<String, String> {
        let again = |config: &[u8], tensors: &[u8]| {
            self.lowered(config, tensors).map(|(_, adapter)| change(&adapter))
        };
        let (file, adapter) = match self.lowered(config, tensors) {
            Ok(lowered) => lowered,
            Err(error) => {
                same(&again(config, tensors).err().as_ref(), &Some(&error), "an error")?;
                return Ok(error);
            }
        };
        let whole = Ok(change(&adapter));
        same(&again(config, tensors), &whole, "an adapter")?;
        let plain = serde_json::to_vec(&file.config).expect("JSON");
        let tensors = file.tensors.iter().map(|(name, raw)| {
            let bytes = file.bytes(raw).to_vec();
            (name.clone(), Raw { dtype: raw.dtype, shape: raw.shape.clone(), bytes })
        });
        let rewritten = tensor_bytes(&tensors.collect());
        same(&again(&plain, &rewritten), &whole, "an adapter written anew")?;
        let told: Vec<&String> = adapter.report.lines.iter().map(|line| &line.tensor).collect();
        let mut named: Vec<&String> = file.tensors.keys().collect();
        named.sort_unstable();
        same(&told, &named, "what is reported of what is there")?;
        let (sites, rank) = (adapter.delta.sites.len(), adapter.delta.rank_max());
        let notes = file.notes.join("; ");
        Ok(format!("{} of rank {rank} at {sites} sites; {notes}", adapter.method))
    }
}

fn adapters() -> BTreeMap<String, (Vec<u8>, Vec<u8>)> {
    let folder = fs::read_dir(golden_dir().join("llama/adapters")).expect("golden adapters");
    let read = |entry: fs::DirEntry| {
        let file = |name: &str| fs::read(entry.path().join(name)).expect("a golden adapter");
        let name = entry.file_name().into_string().expect("a plain name");
        (name, (file("adapter_config.json"), file("adapter_model.safetensors")))
    };
    folder.map(|entry| read(entry.expect("a golden adapter"))).collect()
}

/// All that an adapter does.
fn change(adapter: &Adapter) -> String {
    let pools: Vec<_> = adapter.delta.pools.iter().map(|pool| pool.digest).collect();
    format!("{} {pools:?} {:?} {:?}", adapter.method, adapter.delta.sites, adapter.report.lines)
}

/// A config, beside the tensors of a golden adapter.
pub const CONFIG: Target = Target {
    name: "adapter_config",
    seeds: || {
        let one =
            |(name, (config, _)): (String, (Vec<u8>, _))| joined(&[name.into_bytes(), config]);
        adapters().into_iter().map(one).collect()
    },
    words: WORDS,
    start: || {
        let world = World::new();
        Box::new(move |parts| {
            let (_, tensors) = world.adapter(&text(parts, 0));
            world.check(parts.get(1).copied().unwrap_or_default(), tensors)
        })
    },
    slice: 300,
    heap_bytes_max: 192 << 20,
};

/// The header and the bytes of a safetensors file.
pub fn halves(file: &[u8]) -> (&[u8], &[u8]) {
    let (length, rest) = file.split_first_chunk::<8>().expect("a whole file");
    rest.split_at(u64::from_le_bytes(*length) as usize)
}

/// A file with this header and as many of these bytes as it asks for, up to a limit.
pub fn with_data(header: &[u8], data: &[u8], bytes_max: usize) -> Vec<u8> {
    let value: Value = serde_json::from_slice(header).unwrap_or_default();
    let end = |tensor: &Value| tensor["data_offsets"].get(1).and_then(Value::as_u64);
    let ends = value.as_object().into_iter().flat_map(|map| map.values().filter_map(end));
    let bytes = ends.max().map_or(data.len(), |end| end.min(bytes_max as u64) as usize);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header);
    file.extend(data.iter().copied().cycle().take(bytes));
    file
}

/// A header, beside the config of a golden adapter. A third part is a whole file instead.
pub const TENSORS: Target = Target {
    name: "adapter_tensors",
    seeds: || {
        let header = |(name, (_, file)): (String, (Vec<u8>, Vec<u8>))| {
            let header = joined(&[name.as_bytes(), halves(&file).0]);
            let whole = joined(&[name.as_bytes(), b"", &file]);
            [Some(header), (file.len() < 8192).then_some(whole)]
        };
        adapters().into_iter().flat_map(header).flatten().collect()
    },
    words: WORDS,
    start: || {
        let world = World::new();
        Box::new(move |parts| {
            let (config, own) = world.adapter(&text(parts, 0));
            match (parts.get(1).copied().unwrap_or_default(), parts.get(2)) {
                (_, Some(whole)) => world.check(config, whole),
                (header, None) => {
                    let data = halves(own).1;
                    world.check(config, &with_data(header, data, TENSORS_BYTES_MAX))
                }
            }
        })
    },
    slice: 150,
    heap_bytes_max: 64 << 20,
};

/// The names of what is in an adapter's directory, one a line: a directory where it ends with a
/// slash, and after a space what it holds.
pub const FOLDER: Target = Target {
    name: "adapter_folder",
    seeds: || {
        [
            "adapter_config.json {\"peft_type\":\"LORA\"}\nadapter_model.bin x",
            "config.json {}\nmodel.safetensors x\ntokenizer.json {}\nREADME.md x",
            "checkpoint-10/\ncheckpoint-10/adapter_config.json {}\ncheckpoint-9/\ntrainer.json {}",
            "a.gguf x\nadapters.safetensors x\nlora.safetensors x",
            "adapter_config.json {\"fine_tune_type\":\"lora\"}\npytorch_lora_weights.safetensors x",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into()
    },
    words: &[
        "adapter_config.json",
        "adapter_model.safetensors",
        "adapter_model.bin",
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "checkpoint-1/",
        "checkpoint-",
        "adapters.npz",
        "adapters.safetensors",
        ".gguf",
        ".safetensors",
        "new_embeddings.bin",
        "tokenizer.json",
        "adapter_model.safetensors.index.json",
        "version https://git-lfs",
        "<html",
        "<!doctype",
    ],
    start: || {
        let world = World::new();
        Box::new(move |parts| {
            let folder = tempfile::tempdir().expect("a folder");
            for line in text(parts, 0).lines().take(NAMES_MAX) {
                let (name, content) = line.split_once(' ').unwrap_or((line, ""));
                let is_plain = |part: &str| !["", ".", ".."].contains(&part);
                let path = folder.path().join(name.trim_start_matches('/'));
                if !name.trim_matches('/').split('/').all(is_plain) || name.len() > 1000 {
                    continue;
                }
                // Some names cannot be made.
                let _ = match name.ends_with('/') {
                    true => fs::create_dir_all(path),
                    false => fs::write(path, content),
                };
            }
            match world.loader.load(folder.path()) {
                Ok(_) => Err("an adapter without tensors was taken".to_owned()),
                Err(error) => Ok(error.to_string()),
            }
        })
    },
    slice: 150,
    heap_bytes_max: 16 << 20,
};
