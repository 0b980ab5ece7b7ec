//! The tensors of a model's weight files, by the names that the model gives them.

use std::collections::HashMap;

use memmap2::Mmap;
use safetensors::SafeTensors;

use super::error::ModelError;
use super::folder::no_file;
use crate::dtype::{Dtype, Values};

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

/// All tensors of all files.
pub struct Weights {
    sources: Vec<Source>,
    tensors: HashMap<String, Stored>,
}

struct Stored {
    source: usize,
    start: usize,
    end: usize,
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
            read_header(index, source.bytes(), &names[index], &mut tensors)?;
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
    pub fn equal(&self, a: &str, b: &str, dtype: Dtype) -> bool {
        let [x, y] = [a, b].map(|name| &self.tensors[name]);
        let bits = || x.width == y.width && self.bytes(x) == self.bytes(y);
        let rounded = || self.values(a).cast(dtype) == self.values(b).cast(dtype);
        x.shape == y.shape && (bits() || rounded())
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
    pub fn values(&self, name: &str) -> Values {
        let stored = &self.tensors[name];
        match stored.width {
            Width::Kept(dtype) => Values::from_le_bytes(self.bytes(stored), dtype),
            Width::F64 => Values::from_f64_le_bytes(self.bytes(stored)),
        }
    }

    fn bytes(&self, stored: &Stored) -> &[u8] {
        &self.sources[stored.source].bytes()[stored.start..stored.end]
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

fn read_header(
    source: usize,
    bytes: &[u8],
    name: &str,
    tensors: &mut HashMap<String, Stored>,
) -> Result<(), ModelError> {
    if let Some(what) = no_file(bytes) {
        return Err(ModelError::Weights(format!("{name} is {what}")));
    }
    let parsed = SafeTensors::deserialize(bytes).map_err(|e| {
        let other = match bytes {
            [b'G', b'G', b'U', b'F', ..] => " (it is a GGUF file)",
            [b'P', b'K', ..] => " (it is a pickle of torch.save)",
            _ => "",
        };
        let text = format!("{name} is not a complete safetensors file{other}: {e}");
        ModelError::Weights(text)
    })?;
    let base = bytes.as_ptr() as usize;
    for (tensor, view) in parsed.iter() {
        let width = match view.dtype() {
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
        let start = view.data().as_ptr() as usize - base;
        let (end, shape) = (start + view.data().len(), view.shape().to_vec());
        let stored = Stored { source, start, end, shape, width };
        if tensors.insert(tensor.to_owned(), stored).is_some() {
            let text = format!("tensor '{tensor}' is in two of the model's files");
            return Err(ModelError::Weights(text));
        }
    }
    Ok(())
}
