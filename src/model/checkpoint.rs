//! A base model's files: what is in them, by site.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::SafeTensors;

use super::config::ModelConfig;
use super::error::ModelError;
use super::{mmap, outline};
use crate::backend::HostMatrix;
use crate::dtype::{Dtype, Values};
use crate::ids::{ModuleId, SiteId};
use crate::site::{Module, ModuleMap, ModulePart, RowSet, SiteKind, SiteMap};

/// Where the bytes of a weight file are.
pub enum Source {
    /// Built into the program.
    Static(&'static [u8]),
    /// A mapped file.
    Mapped(Mmap),
}

impl Source {
    fn bytes(&self) -> &[u8] {
        match self {
            Source::Static(bytes) => bytes,
            Source::Mapped(map) => map,
        }
    }
}

/// A model's config, its sites, and its weights on disk.
pub struct Checkpoint {
    /// The numbers.
    pub config: ModelConfig,
    /// What the forward pass computes, and adapters may change.
    pub sites: SiteMap,
    /// The same as the weight files and adapters name it.
    pub modules: ModuleMap,
    /// By site: the module it is a part of, and its rows of it.
    owners: Vec<(ModuleId, RowSet)>,
    /// Width weights are served in.
    pub dtype: Dtype,
    sources: Vec<Source>,
    tensors: HashMap<String, Stored>,
}

struct Stored {
    source: usize,
    start: usize,
    end: usize,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl Checkpoint {
    /// Maps the Hugging Face directory `dir`: `config.json` and `model.safetensors`, or the files
    /// that `model.safetensors.index.json` lists. `dtype` converts; `None` keeps the file's width.
    ///
    /// # Errors
    /// [`ModelError`] with the file's name and what to do.
    pub fn open(dir: &Path, dtype: Option<Dtype>) -> Result<Self, ModelError> {
        let config = read(dir, "config.json")?;
        let single = dir.join("model.safetensors");
        let files = if single.exists() { vec![single] } else { shards(dir)? };
        let sources = files.iter().map(|path| {
            let mapped = mmap::map(path);
            mapped
                .map(Source::Mapped)
                .map_err(|e| ModelError::File(format!("{} cannot be read: {e}", path.display())))
        });
        let names = files.iter().map(|path| path.display().to_string()).collect();
        Self::new(&config, sources.collect::<Result<_, _>>()?, names, dtype)
    }

    /// Reads a config and weight files that are in memory already.
    ///
    /// # Errors
    /// [`ModelError`]; `names` are the files' names in its text.
    pub fn new(
        config: &[u8],
        sources: Vec<Source>,
        names: Vec<String>,
        dtype: Option<Dtype>,
    ) -> Result<Self, ModelError> {
        let config = ModelConfig::parse(config)?;
        let mut tensors = HashMap::new();
        for (index, source) in sources.iter().enumerate() {
            read_header(index, source.bytes(), &names[index], &mut tensors)?;
        }
        // The width of the first linear is the model's: norms may be kept wider.
        let probe = "model.layers.0.self_attn.q_proj.weight";
        let found = tensors.get(probe).map(|t| t.dtype);
        let dtype = dtype.or(found).or(config.dtype).unwrap_or(Dtype::F32);
        let sites = outline::sites(&config);
        let modules = sites.as_modules();
        let owners = owners(&sites, &modules);
        let checkpoint = Self { config, sites, modules, owners, dtype, sources, tensors };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// Every tensor must be there with the shape the config implies, and no other: a bias that
    /// nothing reads would silently change the model.
    fn check(&self) -> Result<(), ModelError> {
        let mut expected = HashMap::new();
        for (_, module) in self.modules.iter() {
            expected.insert(self.weight_name(module), module.weight_shape());
            if module.has_bias {
                expected.insert(format!("{}.bias", module.name), vec![module.out_features]);
            }
        }
        for (name, shape) in &expected {
            match self.tensors.get(name) {
                None => {
                    let text = format!("the weights hold no tensor '{name}', expected {shape:?}");
                    return Err(ModelError::Weights(text));
                }
                Some(found) if found.shape != *shape => {
                    return Err(ModelError::Weights(format!(
                        "tensor '{name}' has shape {:?}; config.json implies {shape:?}",
                        found.shape
                    )));
                }
                Some(_) => {}
            }
        }
        // Written by some exporters; a tied head is the embedding whatever the copy says.
        let harmless =
            |name: &str| name.ends_with("rotary_emb.inv_freq") || name == "lm_head.weight";
        let mut names = self.tensors.keys();
        match names.find(|name| !expected.contains_key(*name) && !harmless(name)) {
            None => Ok(()),
            Some(name) => Err(ModelError::Weights(format!(
                "tensor '{name}' is not part of {}: serving without it would not be this model",
                self.config.architecture
            ))),
        }
    }

    fn weight_name(&self, module: &Module) -> String {
        match module.name.as_str() {
            "lm_head" if self.config.tied => "model.embed_tokens.weight".to_owned(),
            name => format!("{name}.weight"),
        }
    }

    /// A site's weight in the serving width: `[out, in]`, `[vocabulary, hidden]` for the
    /// embedding, `[1, out]` for a norm.
    pub fn weight(&self, id: SiteId) -> HostMatrix {
        let (module, rows) = &self.owners[id.0 as usize];
        let module = self.modules.get(*module);
        let values = self.read(&self.weight_name(module));
        let (count, cols) = match module.kind {
            SiteKind::Norm => return HostMatrix { values, rows: 1, cols: module.out_features },
            SiteKind::Linear => (rows.rows(), module.in_features),
            SiteKind::Embedding => (module.in_features, module.out_features),
        };
        let values = match *rows == RowSet::all(module.out_features) {
            true => values,
            false => rows.pick_values(&values, cols),
        };
        HostMatrix { values: values.cast(self.dtype), rows: count, cols }
    }

    /// A site's bias, `[out]`.
    pub fn bias(&self, id: SiteId) -> Option<Vec<f32>> {
        let (module, rows) = &self.owners[id.0 as usize];
        self.module_bias(*module).map(|bias| rows.pick(&bias, 1))
    }

    /// A module's weight as its file has it, widened: `[out, in]`, `[vocabulary, hidden]` for the
    /// embedding, `[out]` for a norm. In the serving width but for norms.
    pub fn module_weight(&self, id: ModuleId) -> Vec<f32> {
        let module = self.modules.get(id);
        let values = self.read(&self.weight_name(module));
        match module.kind {
            SiteKind::Norm => values.to_f32(),
            SiteKind::Linear | SiteKind::Embedding => values.cast(self.dtype).to_f32(),
        }
    }

    /// A module's bias, `[out]`.
    pub fn module_bias(&self, id: ModuleId) -> Option<Vec<f32>> {
        let module = self.modules.get(id);
        module.has_bias.then(|| self.read(&format!("{}.bias", module.name)).to_f32())
    }

    /// Bytes of all weights in the serving width.
    pub fn weight_bytes(&self) -> u64 {
        let elements = |m: &Module| m.weight_shape().iter().product::<usize>() as u64;
        let own = |module: &Module| !(module.name == "lm_head" && self.config.tied);
        let modules = self.modules.iter().filter(|(_, module)| own(module));
        modules.map(|(_, module)| elements(module) * self.dtype.bytes() as u64).sum()
    }

    fn read(&self, name: &str) -> Values {
        let stored = &self.tensors[name];
        let bytes = &self.sources[stored.source].bytes()[stored.start..stored.end];
        Values::from_le_bytes(bytes, stored.dtype)
    }
}

/// By site: the module it is a part of, and its rows of it.
fn owners(sites: &SiteMap, modules: &ModuleMap) -> Vec<(ModuleId, RowSet)> {
    let mut owners = vec![None; sites.len()];
    for (id, module) in modules.iter() {
        for ModulePart { site, rows } in &module.parts {
            owners[site.0 as usize] = Some((id, *rows));
        }
    }
    let owner = |owner: Option<_>| owner.expect("This is a bug: a site without a module.");
    owners.into_iter().map(owner).collect()
}

/// A small file of the model directory.
///
/// # Errors
/// [`ModelError::File`] with its path.
fn read(dir: &Path, name: &str) -> Result<Vec<u8>, ModelError> {
    if !dir.is_dir() {
        return Err(ModelError::File(format!(
            "{} is not a directory; give the directory of a Hugging Face model or a Hub id \
             (organisation/name)",
            dir.display()
        )));
    }
    let path = dir.join(name);
    fs::read(&path).map_err(|e| ModelError::File(format!("{} cannot be read: {e}", path.display())))
}

/// The files of a sharded checkpoint.
fn shards(dir: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let name = "model.safetensors.index.json";
    if !dir.join(name).exists() {
        let pickle = dir.join("pytorch_model.bin").exists();
        let hint = if pickle { "; pytorch_model.bin is a pickle and is not read" } else { "" };
        return Err(ModelError::File(format!(
            "{} holds neither model.safetensors nor {name}{hint}",
            dir.display()
        )));
    }
    let index: serde_json::Value = serde_json::from_slice(&read(dir, name)?)
        .map_err(|e| ModelError::File(format!("{name} is not JSON: {e}")))?;
    let map = index.get("weight_map").and_then(|map| map.as_object());
    let files = map.map(|map| map.values().map(|v| v.as_str()).collect::<Option<Vec<_>>>());
    let Some(Some(mut files)) = files else {
        return Err(ModelError::File(format!("{name} has no 'weight_map' of file names")));
    };
    files.sort_unstable();
    files.dedup();
    if let Some(bad) = files.iter().find(|file| file.contains(['/', '\\']) || file.starts_with('.'))
    {
        return Err(ModelError::File(format!(
            "{name} names '{bad}', which is not a plain file name"
        )));
    }
    Ok(files.into_iter().map(|file| dir.join(file)).collect())
}

fn read_header(
    source: usize,
    bytes: &[u8],
    name: &str,
    tensors: &mut HashMap<String, Stored>,
) -> Result<(), ModelError> {
    let parsed = SafeTensors::deserialize(bytes).map_err(|e| {
        ModelError::Weights(format!("{name} is not a complete safetensors file: {e}"))
    })?;
    let base = bytes.as_ptr() as usize;
    for (tensor, view) in parsed.iter() {
        let dtype = match view.dtype() {
            safetensors::Dtype::F32 => Dtype::F32,
            safetensors::Dtype::F16 => Dtype::F16,
            safetensors::Dtype::BF16 => Dtype::BF16,
            other => {
                return Err(ModelError::Unsupported(format!(
                    "tensor '{tensor}' in {name} holds {other:?} numbers (supported: F32, F16, \
                     BF16)"
                )));
            }
        };
        let start = view.data().as_ptr() as usize - base;
        let (end, shape) = (start + view.data().len(), view.shape().to_vec());
        let stored = Stored { source, start, end, shape, dtype };
        if tensors.insert(tensor.to_owned(), stored).is_some() {
            let text = format!("tensor '{tensor}' is in two of the model's files");
            return Err(ModelError::Weights(text));
        }
    }
    Ok(())
}
