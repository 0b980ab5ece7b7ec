//! A base model's files: what is in them, by site.

use std::path::Path;

use super::config::ModelConfig;
use super::error::ModelError;
use super::folder::Folder;
use super::leftovers;
use super::outline;
use super::weight_file::{Source, WeightFile};
use super::weights::Weights;
use crate::backend::HostMatrix;
use crate::dtype::Dtype;
use crate::ids::{ModuleId, SiteId};
use crate::site::{Module, ModuleMap, ModulePart, RowSet, SiteKind, SiteMap};

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

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
    /// What of the files is not used or not as it says, for people.
    pub notes: Vec<String>,
    /// The tensor of the embedding: the head's where a tied model has only that.
    table: &'static str,
    weights: Weights,
}

impl Checkpoint {
    /// Opens the Hugging Face directory `dir`: `config.json` and `model.safetensors`, or the files
    /// that `model.safetensors.index.json` lists. `dtype` converts; `None` keeps the file's width.
    ///
    /// # Errors
    /// [`ModelError`] with the file's name and what to do.
    pub fn open(dir: &Path, dtype: Option<Dtype>) -> Result<Self, ModelError> {
        let folder = Folder::open(dir)?;
        let config = folder.config()?;
        let mut notes = Vec::new();
        let files = folder.weights(&mut notes)?;
        let sources = files.iter().map(|path| WeightFile::open(path).map(Source::File));
        let names = files.iter().map(|path| path.display().to_string()).collect();
        let mut checkpoint = Self::new(&config, sources.collect::<Result<_, _>>()?, names, dtype)?;
        checkpoint.notes.extend(notes);
        Ok(checkpoint)
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
        let mut config = ModelConfig::parse(config)?;
        let weights = Weights::read(sources, &names)?;
        let mut notes = std::mem::take(&mut config.notes);
        // The width of the first linear is the model's: norms may be kept wider.
        let found = weights.dtype("model.layers.0.self_attn.q_proj.weight");
        if let (None, Some(found), Some(said)) = (dtype, found, config.dtype)
            && found != said
        {
            let (found, said) = (found.name(), said.name());
            notes.push(format!(
                "the weights are {found} and served so, though config.json says {said}; --dtype \
                 {said} rounds them"
            ));
        }
        let dtype = dtype.or(found).or(config.dtype).unwrap_or(Dtype::F32);
        if weights.wider() > 0 {
            let count = weights.wider();
            notes.push(format!("{count} tensors are F64 and rounded to {}", dtype.name()));
        }
        let table = resolve_tie(&mut config, &weights, dtype, &mut notes)?;
        let sites = outline::sites(&config);
        let modules = sites.as_modules();
        let owners = owners(&sites, &modules);
        let checkpoint =
            Self { config, sites, modules, owners, dtype, notes: Vec::new(), table, weights };
        checkpoint.check(&mut notes)?;
        Ok(Self { notes, ..checkpoint })
    }

    /// Every tensor must be there with the shape the config implies, and no other that could
    /// matter: a bias that nothing reads would silently change the model.
    fn check(&self, notes: &mut Vec<String>) -> Result<(), ModelError> {
        let mut expected = Vec::new();
        for (_, module) in self.modules.iter() {
            expected.push((self.weight_name(module), module.weight_shape()));
            if module.has_bias {
                expected.push((format!("{}.bias", module.name), vec![module.out_features]));
            }
        }
        for (name, shape) in &expected {
            match self.weights.shape(name) {
                None => {
                    let why = leftovers::why_missing(name, &self.weights.names());
                    return Err(ModelError::Weights(format!(
                        "the weights hold no tensor '{name}', expected {shape:?}{why}"
                    )));
                }
                Some(found) if found != *shape => {
                    return Err(ModelError::Weights(format!(
                        "tensor '{name}' has shape {found:?}; config.json implies {shape:?}"
                    )));
                }
                Some(_) => {}
            }
        }
        let expected = expected.iter().map(|(name, _)| name.as_str()).collect();
        leftovers::check(&self.weights, &expected, &self.modules, &self.config, notes)
    }

    fn weight_name(&self, module: &Module) -> String {
        match module.name.as_str() {
            "model.embed_tokens" => self.table.to_owned(),
            "lm_head" if self.config.tied => self.table.to_owned(),
            name => format!("{name}.weight"),
        }
    }

    /// A site's weight in the serving width: `[out, in]`, `[vocabulary, hidden]` for the
    /// embedding, `[1, out]` for a norm.
    ///
    /// # Errors
    /// [`ModelError::File`] when its file cannot be read, or has changed since it was opened.
    pub fn weight(&self, id: SiteId) -> Result<HostMatrix, ModelError> {
        let (module, rows) = &self.owners[id.0 as usize];
        let module = self.modules.get(*module);
        let values = self.weights.values(&self.weight_name(module))?;
        let (count, cols) = match module.kind {
            SiteKind::Norm => {
                return Ok(HostMatrix { values, rows: 1, cols: module.out_features });
            }
            SiteKind::Linear => (rows.rows(), module.in_features),
            SiteKind::Embedding => (module.in_features, module.out_features),
        };
        let values = match *rows == RowSet::all(module.out_features) {
            true => values,
            false => rows.pick_values(&values, cols),
        };
        Ok(HostMatrix { values: values.cast(self.dtype), rows: count, cols })
    }

    /// A site's bias, `[out]`.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`].
    pub fn bias(&self, id: SiteId) -> Result<Option<Vec<f32>>, ModelError> {
        let (module, rows) = &self.owners[id.0 as usize];
        Ok(self.module_bias(*module)?.map(|bias| rows.pick(&bias, 1)))
    }

    /// A module's weight as its file has it, widened: `[out, in]`, `[vocabulary, hidden]` for the
    /// embedding, `[out]` for a norm. In the serving width but for norms.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`].
    pub fn module_weight(&self, id: ModuleId) -> Result<Vec<f32>, ModelError> {
        let module = self.modules.get(id);
        let values = self.weights.values(&self.weight_name(module))?;
        Ok(match module.kind {
            SiteKind::Norm => values.to_f32(),
            SiteKind::Linear | SiteKind::Embedding => values.cast(self.dtype).to_f32(),
        })
    }

    /// A module's bias, `[out]`.
    ///
    /// # Errors
    /// As [`Checkpoint::weight`].
    pub fn module_bias(&self, id: ModuleId) -> Result<Option<Vec<f32>>, ModelError> {
        let module = self.modules.get(id);
        let name = || format!("{}.bias", module.name);
        module
            .has_bias
            .then(|| self.weights.values(&name()))
            .transpose()
            .map(|values| values.map(|values| values.to_f32()))
    }

    /// Bytes of all weights in the serving width.
    pub fn weight_bytes(&self) -> u64 {
        let elements = |m: &Module| m.weight_shape().iter().product::<usize>() as u64;
        let own = |module: &Module| !(module.name == "lm_head" && self.config.tied);
        let modules = self.modules.iter().filter(|(_, module)| own(module));
        modules.map(|(_, module)| elements(module) * self.dtype.bytes() as u64).sum()
    }
}

/// Makes `config.tied` what the weights say, as transformers does (`tie_weights`); returns the
/// name of the embedding's tensor. A head that is stored beside the embedding is tied to it only
/// if it is the same matrix; whichever of the two is stored alone is both.
fn resolve_tie(
    config: &mut ModelConfig,
    weights: &Weights,
    dtype: Dtype,
    notes: &mut Vec<String>,
) -> Result<&'static str, ModelError> {
    if !config.tied || !weights.contains(HEAD) {
        return Ok(EMBEDDING);
    }
    if !weights.contains(EMBEDDING) {
        return Ok(HEAD);
    }
    if !weights.equal(HEAD, EMBEDDING, dtype)? {
        config.tied = false;
        notes.push(format!(
            "config.json says 'tie_word_embeddings', but {HEAD} is not the embedding: they are \
             served apart, as in transformers"
        ));
    }
    Ok(EMBEDDING)
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
