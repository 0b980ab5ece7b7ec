//! An adapter's tensors under their module names, each to be claimed once by the method.

use std::cell::RefCell;
use std::collections::BTreeMap;

use safetensors::Dtype as FileDtype;

use super::error::AdapterError;
use super::file::{AdapterFile, PEFT_PREFIX, RawTensor};
use super::report::{Report, ReportLine};
use crate::dtype::{Dtype, Values};
use crate::ids::ModuleId;
use crate::site::ModuleMap;

/// Wrappers that training frameworks leave in names.
const WRAPPERS: &[&str] =
    &["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

/// What names of tensors begin with below a module, and what in a config would ask for them.
const FIELDS: &[(&str, &str)] = &[
    ("lora_magnitude_vector", "'use_dora' is not true there"),
    ("lora_B.bias", "'lora_bias' is not true there"),
    (
        "lora_",
        "'target_modules' does not name it, or 'exclude_modules', 'layers_to_transform' or \
               'modules_to_save' takes it out; or wrong peft_type?",
    ),
    ("ia3_", "'target_modules' does not name it, or wrong peft_type?"),
    ("ssf_", "'target_modules' does not name it, or wrong peft_type?"),
    ("token_adapter", "'trainable_token_indices' is not supported"),
    ("base_layer.bias", "'bias' does not ask for it"),
    ("bias", "neither 'bias' nor 'modules_to_save' asks for it"),
    ("weight", "'modules_to_save' does not name it"),
    ("modules_to_save", "'modules_to_save' does not name it"),
];
/// In names of kohya's and diffusers' tensors, and in no decoder's.
const OF_IMAGES: &[&str] =
    &["lora_unet_", "lora_te_", "lora_te1_", "lora_down", "lora_up", "unet.", "diffusion_model."];

/// A tensor's part in a formula, and what in the config asks for it.
pub struct Part {
    part: String,
    because: String,
}

impl From<&str> for Part {
    fn from(part: &str) -> Self {
        Self { part: part.to_owned(), because: String::new() }
    }
}

impl Part {
    /// With the fields of the config that a refusal is to name.
    pub fn because(part: &str, fields: &str) -> Self {
        Self { part: part.to_owned(), because: format!("; adapter_config.json: {fields}") }
    }
}

/// Tensors by name without prefixes, and what became of each.
pub struct Tensors<'a> {
    file: &'a AdapterFile,
    by_name: BTreeMap<String, (&'a str, &'a RawTensor)>,
    claimed: RefCell<BTreeMap<String, ReportLine>>,
}

impl<'a> Tensors<'a> {
    /// Strips wrappers and prefixes from the names of `file`.
    ///
    /// # Errors
    /// When two tensors then have the same name.
    pub fn new(file: &'a AdapterFile) -> Result<Self, AdapterError> {
        let mut by_name = BTreeMap::new();
        for (name, tensor) in &file.tensors {
            let (_, other) = match by_name.insert(normal_name(name), (name.as_str(), tensor)) {
                None => continue,
                Some((other, _)) => ((), other),
            };
            return Err(AdapterError::Invalid(format!(
                "the tensors '{other}' and '{name}' name the same parameter"
            )));
        }
        Ok(Self { file, by_name, claimed: RefCell::default() })
    }

    /// Names without prefixes, ascending.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.by_name.keys().map(String::as_str)
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The extents of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&'a [usize]> {
        self.by_name.get(name).map(|(_, tensor)| tensor.shape.as_slice())
    }

    /// Claims the float tensor `name` of exactly `shape` as `part` of the formula at `site`.
    ///
    /// # Errors
    /// When it is absent, of another shape or number type, or not finite throughout.
    pub fn take(
        &self,
        name: &str,
        shape: &[usize],
        site: &str,
        part: impl Into<Part>,
    ) -> Result<Vec<f32>, AdapterError> {
        Ok(self.take_values(name, shape, site, part)?.to_f32())
    }

    /// As [`Tensors::take`], in the width of the file.
    ///
    /// # Errors
    /// The same.
    pub fn take_values(
        &self,
        name: &str,
        shape: &[usize],
        site: &str,
        part: impl Into<Part>,
    ) -> Result<Values, AdapterError> {
        let (written, tensor) = self.claim(name, shape, site, &part.into())?;
        let bytes = self.file.bytes(tensor);
        let values = match tensor.dtype {
            FileDtype::F64 => Values::from_f64_le_bytes(bytes),
            FileDtype::F32 => Values::from_le_bytes(bytes, Dtype::F32),
            FileDtype::F16 => Values::from_le_bytes(bytes, Dtype::F16),
            FileDtype::BF16 => Values::from_le_bytes(bytes, Dtype::BF16),
            other => {
                return Err(AdapterError::Invalid(format!(
                    "tensor '{written}' holds {other:?} numbers; expected F64, F32, F16 or BF16"
                )));
            }
        };
        let bad = (0..values.len()).map(|i| values.get(i)).position(|x| !x.is_finite());
        match bad {
            None => Ok(values),
            Some(index) => Err(AdapterError::Invalid(format!(
                "tensor '{written}' holds {} at element {index}; every number must be finite",
                values.get(index)
            ))),
        }
    }

    /// Claims the integer tensor `name` of exactly `shape`; every value must be in `0..below`.
    ///
    /// # Errors
    /// When it is absent, of another shape or number type, or a value is out of range.
    pub fn take_indices(
        &self,
        name: &str,
        shape: &[usize],
        below: usize,
        site: &str,
        part: impl Into<Part>,
    ) -> Result<Vec<usize>, AdapterError> {
        let (written, tensor) = self.claim(name, shape, site, &part.into())?;
        let bytes = self.file.bytes(tensor);
        let indices: Vec<i64> = match tensor.dtype {
            FileDtype::I64 => bytes
                .chunks_exact(8)
                .map(|c| i64::from_le_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]))
                .collect(),
            FileDtype::I32 => bytes
                .chunks_exact(4)
                .map(|c| i64::from(i32::from_le_bytes([c[0], c[1], c[2], c[3]])))
                .collect(),
            other => {
                return Err(AdapterError::Invalid(format!(
                    "tensor '{written}' holds {other:?} numbers; indices must be I64 or I32"
                )));
            }
        };
        let checked = indices.iter().map(|&i| usize::try_from(i).ok().filter(|&i| i < below));
        checked.collect::<Option<Vec<_>>>().ok_or_else(|| {
            let found = indices.iter().find(|&&i| i < 0 || i as usize >= below);
            AdapterError::Invalid(format!(
                "tensor '{written}' holds the index {}; the pool has {below} shards",
                found.copied().unwrap_or_default()
            ))
        })
    }

    /// Claims a tensor that is known to change nothing, saying why in the report.
    pub fn ignore(&self, name: &str, site: &str, why: &str) {
        if let Some(&(written, tensor)) = self.by_name.get(name) {
            self.record(name, written, tensor, site, why);
        }
    }

    fn claim(
        &self,
        name: &str,
        shape: &[usize],
        site: &str,
        part: &Part,
    ) -> Result<(&'a str, &'a RawTensor), AdapterError> {
        let Part { part, because } = part;
        let Some(&(written, tensor)) = self.by_name.get(name) else {
            return Err(AdapterError::Invalid(format!(
                "tensor '{name}' is missing; expected it with shape {shape:?} ({part}){because}"
            )));
        };
        if tensor.shape != shape {
            return Err(AdapterError::Invalid(format!(
                "tensor '{written}' has shape {:?}; expected {shape:?} ({part}){because}",
                tensor.shape
            )));
        }
        self.record(name, written, tensor, site, &format!("{part} {shape:?}"));
        Ok((written, tensor))
    }

    fn record(&self, name: &str, written: &str, tensor: &RawTensor, site: &str, part: &str) {
        let line = ReportLine {
            tensor: written.to_owned(),
            site: site.to_owned(),
            part: part.to_owned(),
            bytes: self.file.bytes(tensor).len(),
        };
        self.claimed.borrow_mut().insert(name.to_owned(), line);
    }

    /// The report, once everything is claimed.
    ///
    /// # Errors
    /// Names the first tensor that nothing claimed, and why that may be.
    pub fn finish(self, modules: &ModuleMap) -> Result<Report, AdapterError> {
        let claimed = self.claimed.into_inner();
        let left = self.by_name.iter().find(|(name, _)| !claimed.contains_key(*name));
        match left {
            None => Ok(Report { lines: claimed.into_values().collect(), targets: Vec::new() }),
            Some((name, (written, _))) => Err(AdapterError::Invalid(format!(
                "tensor '{written}' is not used: {}",
                why_unused(name, modules)
            ))),
        }
    }
}

/// `base_model.model.` and what frameworks wrap around it are not part of a module's name.
fn normal_name(name: &str) -> String {
    let last = name.split('.').count() - 1;
    let parts = name.split('.').enumerate();
    let parts = parts.filter(|(i, part)| *i == last || !WRAPPERS.contains(part));
    let name = parts.map(|(_, part)| part).collect::<Vec<_>>().join(".");
    let name = name.strip_prefix(PEFT_PREFIX).unwrap_or(&name);
    // Written by code that saves the wrapped module's state directly, adapter name included.
    name.replacen(".default.", ".", 1).trim_end_matches(".default").to_owned()
}

fn why_unused(name: &str, modules: &ModuleMap) -> String {
    let layers = layer_count(modules);
    if let Some(layer) = layer_of(name).filter(|&layer| layer >= layers) {
        return format!("the base model has {layers} layers and this is for layer {layer}");
    }
    let owner = modules.iter().map(|(_, m)| m.name.as_str());
    let owner =
        owner.filter(|owner| name.starts_with(&format!("{owner}."))).max_by_key(|m| m.len());
    let Some(owner) = owner else {
        return match OF_IMAGES.iter().any(|part| name.contains(part)) {
            true => "its name is one of kohya's or diffusers' adapters for models of images",
            false => "the base model has no such module",
        }
        .to_owned();
    };
    let part = &name[owner.len() + 1..];
    let field = FIELDS.iter().find(|(start, _)| part.starts_with(start));
    let field = field.map_or("wrong peft_type?", |(_, field)| field);
    format!("the adapter's config does not make it part of {owner} ({field})")
}

/// The layer a module or tensor belongs to.
pub fn layer_of(name: &str) -> Option<usize> {
    name.split(".layers.").nth(1)?.split('.').next()?.parse().ok()
}

/// Decoder layers of the base.
pub fn layer_count(modules: &ModuleMap) -> usize {
    modules.iter().filter_map(|(_, m)| layer_of(&m.name)).max().map_or(0, |last| last + 1)
}

/// A module's name and widths: what most of a method's loops run over.
pub fn named(modules: &ModuleMap, id: ModuleId) -> (&str, usize, usize) {
    let module = modules.get(id);
    (&module.name, module.in_features, module.out_features)
}
