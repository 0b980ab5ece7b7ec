//! The tensors of a model's weight files, by the names that the model gives them.

use std::borrow::Cow;
use std::collections::HashMap;

use safetensors::tensor::Metadata;

use super::error::ModelError;
use super::folder::no_file;
use super::weight_file::Source;
use crate::dtype::{Dtype, Values};
use crate::json;

/// Enough of a file to see what it is.
const START_BYTES: u64 = 64;
/// As the library of the format has it.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// All tensors of all files.
pub struct Weights {
    sources: Vec<Source>,
    tensors: HashMap<String, Stored>,
}

struct Stored {
    source: usize,
    start: u64,
    end: u64,
    shape: Vec<usize>,
    width: Width,
}

/// How a file holds numbers.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Width {
    Kept(Dtype),
    /// Read as the nearest f32, which is how torch narrows it further, too.
    F64,
}

impl Weights {
    /// Reads the headers. `names` are the files' names in errors.
    ///
    /// # Errors
    /// [`ModelError`] when a file is not whole, holds other numbers than floats of 16 bits or
    /// more, or has a tensor that another has.
    pub fn read(sources: Vec<Source>, names: &[String]) -> Result<Self, ModelError> {
        let mut tensors = HashMap::new();
        for (index, source) in sources.iter().enumerate() {
            read_header(index, source, &names[index], &mut tensors)?;
        }
        Ok(Self { sources, tensors: renamed(tensors) })
    }

    /// Whether there is such a tensor.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor's extents.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|stored| stored.shape.as_slice())
    }

    /// The width that a tensor can be served in without loss; f32 at most.
    pub fn dtype(&self, name: &str) -> Option<Dtype> {
        self.tensors.get(name).map(|stored| match stored.width {
            Width::Kept(dtype) => dtype,
            Width::F64 => Dtype::F32,
        })
    }

    /// Whether two tensors are one matrix once they are in `dtype`.
    ///
    /// # Errors
    /// As [`Weights::values`].
    pub fn equal(&self, a: &str, b: &str, dtype: Dtype) -> Result<bool, ModelError> {
        let [x, y] = [a, b].map(|name| &self.tensors[name]);
        if x.shape != y.shape {
            return Ok(false);
        }
        let is_equal = x.width == y.width && self.bytes(x)? == self.bytes(y)?;
        Ok(is_equal || self.values(a)?.cast(dtype) == self.values(b)?.cast(dtype))
    }

    /// How many are wider than anything that is computed in.
    pub fn wider(&self) -> usize {
        self.tensors.values().filter(|stored| stored.width == Width::F64).count()
    }

    /// Every name, in order.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.tensors.keys().map(String::as_str).collect();
        names.sort_unstable();
        names
    }

    /// The numbers of a tensor that is there.
    ///
    /// # Errors
    /// [`ModelError::File`] when its file cannot be read, or has changed since it was opened.
    pub fn values(&self, name: &str) -> Result<Values, ModelError> {
        let stored = &self.tensors[name];
        let bytes = self.bytes(stored)?;
        Ok(match stored.width {
            Width::Kept(dtype) => Values::from_le_bytes(&bytes, dtype),
            Width::F64 => Values::from_f64_le_bytes(&bytes),
        })
    }

    fn bytes(&self, stored: &Stored) -> Result<Cow<'_, [u8]>, ModelError> {
        self.sources[stored.source].read(stored.start..stored.end)
    }
}

/// The bare decoder of a library may be saved without the name `model` that it has in the whole
/// (transformers' `base_model_prefix`), or a whole model within another `model`.
fn renamed(tensors: HashMap<String, Stored>) -> HashMap<String, Stored> {
    const PREFIX: &str = "model.";
    let bare = |name: &str| {
        ["embed_tokens.", "layers.", "norm."].iter().any(|part| name.starts_with(part))
    };
    let nested = |name: &str| name.starts_with("model.model.");
    if tensors.keys().all(|name| name.starts_with(PREFIX)) && tensors.keys().any(|n| nested(n)) {
        let inner = |name: String| name[PREFIX.len()..].to_owned();
        return tensors.into_iter().map(|(name, stored)| (inner(name), stored)).collect();
    }
    if tensors.keys().any(|name| name.starts_with(PREFIX)) {
        return tensors;
    }
    let outer = |name: String| if bare(&name) { format!("{PREFIX}{name}") } else { name };
    tensors.into_iter().map(|(name, stored)| (outer(name), stored)).collect()
}

/// What a weight file begins with, where it is not one.
fn other_format(start: &[u8]) -> &'static str {
    match start {
        [b'G', b'G', b'U', b'F', ..] => " (it is a GGUF file)",
        [b'P', b'K', ..] => " (it is a pickle of torch.save)",
        _ => "",
    }
}

/// The header of a file, and where the numbers begin.
fn header(source: &Source, name: &str) -> Result<(Metadata, u64), ModelError> {
    let size = source.bytes();
    let start = source.read(0..size.min(START_BYTES))?;
    if let Some(what) = no_file(&start) {
        return Err(ModelError::Weights(format!("{name} is {what}")));
    }
    let broken = |why: &str| {
        let other = other_format(&start);
        let text = format!("{name} is not a complete safetensors file{other}: {why}");
        ModelError::Weights(text)
    };
    let Some(prefix) = start.first_chunk::<8>() else {
        return Err(broken(&format!("it has {size} bytes")));
    };
    let length = u64::from_le_bytes(*prefix);
    if length > HEADER_BYTES_MAX || length > size - 8 {
        return Err(broken(&format!(
            "it announces a header of {length} bytes, has {size} in all, and at most \
             {HEADER_BYTES_MAX} are read of a header"
        )));
    }
    let begin = 8 + length;
    let header = source.read(8..begin)?;
    let unreadable = |e: String| broken(&format!("its header cannot be read: {e}"));
    json::check_objects(&header).map_err(unreadable)?;
    let parsed: Metadata =
        serde_json::from_slice(&header).map_err(|e| unreadable(e.to_string()))?;
    let expected = begin.saturating_add(parsed.data_len() as u64);
    match expected == size {
        true => Ok((parsed, begin)),
        false => Err(broken(&format!("by its header it has {expected} bytes, and it has {size}"))),
    }
}

fn read_header(
    index: usize,
    source: &Source,
    name: &str,
    tensors: &mut HashMap<String, Stored>,
) -> Result<(), ModelError> {
    let (parsed, begin) = header(source, name)?;
    for (tensor, info) in parsed.tensors() {
        let width = match info.dtype {
            safetensors::Dtype::F64 => Width::F64,
            safetensors::Dtype::F32 => Width::Kept(Dtype::F32),
            safetensors::Dtype::F16 => Width::Kept(Dtype::F16),
            safetensors::Dtype::BF16 => Width::Kept(Dtype::BF16),
            other => {
                return Err(ModelError::Unsupported(format!(
                    "tensor '{tensor}' in {name} holds {other:?} numbers (supported: F64, F32, \
                     F16, BF16); use a checkpoint that is not quantised"
                )));
            }
        };
        let (from, to) = info.data_offsets;
        let (start, end) = (begin + from as u64, begin + to as u64);
        let stored = Stored { source: index, start, end, shape: info.shape.clone(), width };
        if tensors.contains_key(&tensor) {
            let text = format!("tensor '{tensor}' is in two of the model's files");
            return Err(ModelError::Weights(text));
        }
        tensors.insert(tensor, stored);
    }
    Ok(())
}
