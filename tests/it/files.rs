//! Adapter directories made for a test: a golden adapter with something changed, or a new one.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value};

use crate::harness::golden_dir;

/// One tensor as a file holds it.
#[derive(Clone)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

impl Raw {
    pub fn f32(shape: &[usize], data: &[f32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
    }

    pub fn i64(shape: &[usize], data: &[i64]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { dtype: Dtype::I64, shape: shape.to_vec(), bytes }
    }

    pub fn i32(shape: &[usize], data: &[i32]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        let bytes = data.iter().flat_map(|x| x.to_le_bytes()).collect();
        Self { dtype: Dtype::I32, shape: shape.to_vec(), bytes }
    }

    /// The numbers of an F32 tensor.
    pub fn floats(&self) -> Vec<f32> {
        assert_eq!(self.dtype, Dtype::F32);
        let chunks = self.bytes.chunks_exact(4);
        chunks.map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect()
    }

    /// The numbers of an I32 or I64 tensor.
    pub fn integers(&self) -> Vec<i64> {
        match self.dtype {
            Dtype::I64 => {
                let chunks = self.bytes.chunks_exact(8);
                chunks.map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect()
            }
            Dtype::I32 => {
                let chunks = self.bytes.chunks_exact(4);
                chunks.map(|c| i32::from_le_bytes(c.try_into().unwrap()).into()).collect()
            }
            other => panic!("{other:?} are not integers"),
        }
    }

    /// Sets element `index` of an F32 tensor.
    pub fn set(&mut self, index: usize, value: f32) {
        assert_eq!(self.dtype, Dtype::F32);
        self.bytes[index * 4..][..4].copy_from_slice(&value.to_le_bytes());
    }

    /// The same bytes under another number type, the last extent adjusted to fit.
    pub fn recast(&mut self, dtype: Dtype) {
        let bits = |dtype: Dtype| dtype.bitsize();
        let last = self.shape.last_mut().unwrap();
        *last = *last * bits(self.dtype) / bits(dtype);
        self.dtype = dtype;
    }

    /// F32 as F64.
    pub fn widen(&mut self) {
        self.bytes = self.floats().iter().flat_map(|&x| f64::from(x).to_le_bytes()).collect();
        self.dtype = Dtype::F64;
    }

    /// Moves F64 numbers by less than an f32 can tell.
    pub fn nudge(&mut self) {
        assert_eq!(self.dtype, Dtype::F64);
        let chunks = self.bytes.chunks_exact(8);
        let numbers = chunks.map(|c| f64::from_le_bytes(c.try_into().unwrap()));
        self.bytes = numbers.flat_map(|x| (x * (1.0 + 1e-9)).to_le_bytes()).collect();
    }

    /// F32 rounded to a narrower float.
    pub fn narrow(&mut self, dtype: Dtype) {
        let floats = self.floats();
        self.bytes = match dtype {
            Dtype::F16 => {
                floats.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect()
            }
            Dtype::BF16 => {
                floats.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()).collect()
            }
            other => panic!("{other:?} is not narrower"),
        };
        self.dtype = dtype;
    }
}

/// Reads a safetensors file into its tensors.
pub fn read_tensors(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap();
    let parsed = SafeTensors::deserialize(&bytes).unwrap();
    let raw = |view: &TensorView<'_>| Raw {
        dtype: view.dtype(),
        shape: view.shape().to_vec(),
        bytes: view.data().to_vec(),
    };
    parsed.iter().map(|(name, view)| (name.to_owned(), raw(&view))).collect()
}

/// The bytes of a safetensors file with these tensors.
pub fn tensor_bytes(tensors: &BTreeMap<String, Raw>) -> Vec<u8> {
    let views = tensors.iter().map(|(name, raw)| {
        (name, TensorView::new(raw.dtype, raw.shape.clone(), &raw.bytes).unwrap())
    });
    safetensors::serialize(views, None).unwrap()
}

/// A safetensors file with this header, however wrong, followed by `data_bytes` zeros.
pub fn with_header(header: &[u8], data_bytes: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data_bytes, 0);
    bytes
}

/// An adapter to be written.
#[derive(Clone)]
pub struct Draft {
    pub config: Map<String, Value>,
    pub tensors: BTreeMap<String, Raw>,
}

impl Draft {
    /// No tensors yet.
    pub fn new(config: Value) -> Self {
        let Value::Object(config) = config else { panic!("a config is an object") };
        Self { config, tensors: BTreeMap::new() }
    }

    /// A copy of a golden adapter.
    pub fn golden(model: &str, name: &str) -> Self {
        Self::read(&golden_dir().join(model).join("adapters").join(name))
    }

    /// A copy of the adapter in `dir`.
    pub fn read(dir: &Path) -> Self {
        let config = std::fs::read(dir.join("adapter_config.json")).unwrap();
        let tensors = read_tensors(&dir.join("adapter_model.safetensors"));
        Self { config: serde_json::from_slice(&config).unwrap(), tensors }
    }

    pub fn set(&mut self, key: &str, value: impl Into<Value>) {
        self.config.insert(key.to_owned(), value.into());
    }

    pub fn unset(&mut self, key: &str) {
        self.config.shift_remove(key).unwrap();
    }

    pub fn tensor(&mut self, name: &str) -> &mut Raw {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub fn remove(&mut self, name: &str) -> Raw {
        self.tensors.remove(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }

    pub fn insert(&mut self, name: &str, raw: Raw) {
        self.tensors.insert(name.to_owned(), raw);
    }

    /// Every tensor under the name that `rename` gives it.
    pub fn rename(&mut self, rename: impl Fn(&str) -> String) {
        let tensors = std::mem::take(&mut self.tensors);
        self.tensors = tensors.into_iter().map(|(name, raw)| (rename(&name), raw)).collect();
    }

    /// Multiplies every tensor whose name holds `part`.
    pub fn multiply(&mut self, part: &str, by: f32) {
        for (_, raw) in self.tensors.iter_mut().filter(|(name, _)| name.contains(part)) {
            let scaled: Vec<f32> = raw.floats().iter().map(|x| x * by).collect();
            *raw = Raw::f32(&raw.shape, &scaled);
        }
    }

    /// Writes both files into `dir`, which is made.
    pub fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let config = serde_json::to_vec_pretty(&self.config).unwrap();
        std::fs::write(dir.join("adapter_config.json"), config).unwrap();
        let bytes = tensor_bytes(&self.tensors);
        std::fs::write(dir.join("adapter_model.safetensors"), bytes).unwrap();
    }
}
