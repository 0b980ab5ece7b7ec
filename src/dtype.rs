//! The three float widths that weights and adapters are kept in.

use half::{bf16, f16};

/// Width of a stored number. Arithmetic is always accumulated in f32.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Dtype {
    /// 32-bit IEEE.
    F32,
    /// 16-bit IEEE.
    F16,
    /// The upper half of an f32.
    BF16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::F16 | Dtype::BF16 => 2,
        }
    }

    /// The width of this name, in our spelling or torch's.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "f32" | "float32" => Some(Dtype::F32),
            "f16" | "float16" => Some(Dtype::F16),
            "bf16" | "bfloat16" => Some(Dtype::BF16),
            _ => None,
        }
    }

    /// The name in flags, logs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
        }
    }
}

/// A flat array in one of the widths.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// 32-bit IEEE.
    F32(Vec<f32>),
    /// 16-bit IEEE.
    F16(Vec<f16>),
    /// The upper half of an f32.
    BF16(Vec<bf16>),
}

impl Values {
    /// Rounds `data` to `dtype`, to nearest even.
    pub fn from_f32(data: Vec<f32>, dtype: Dtype) -> Self {
        match dtype {
            Dtype::F32 => Values::F32(data),
            Dtype::F16 => Values::F16(data.into_iter().map(f16::from_f32).collect()),
            Dtype::BF16 => Values::BF16(data.into_iter().map(bf16::from_f32).collect()),
        }
    }

    /// Little-endian `bytes` as they stand in a safetensors file. `bytes` must be a multiple of
    /// the width: the caller has checked it against a shape.
    pub fn from_le_bytes(bytes: &[u8], dtype: Dtype) -> Self {
        assert!(bytes.len().is_multiple_of(dtype.bytes()), "This is a bug: ragged tensor bytes.");
        let pair = |c: &[u8]| [c[0], c[1]];
        match dtype {
            Dtype::F32 => Values::F32(
                bytes
                    .chunks_exact(4)
                    .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                    .collect(),
            ),
            Dtype::F16 => {
                Values::F16(bytes.chunks_exact(2).map(|c| f16::from_le_bytes(pair(c))).collect())
            }
            Dtype::BF16 => {
                Values::BF16(bytes.chunks_exact(2).map(|c| bf16::from_le_bytes(pair(c))).collect())
            }
        }
    }

    /// Little-endian f64 `bytes`, each rounded to the nearest f32. `bytes` must be a multiple of 8:
    /// the caller has checked it against a shape.
    pub fn from_f64_le_bytes(bytes: &[u8]) -> Self {
        let (eights, rest) = bytes.as_chunks::<8>();
        assert!(rest.is_empty(), "This is a bug: ragged tensor bytes.");
        Values::F32(eights.iter().map(|bytes| f64::from_le_bytes(*bytes) as f32).collect())
    }

    /// The same numbers, widened (exact) to f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Values::F32(v) => v.clone(),
            Values::F16(v) => v.iter().map(|x| x.to_f32()).collect(),
            Values::BF16(v) => v.iter().map(|x| x.to_f32()).collect(),
        }
    }

    /// Rounded to `dtype`; no copy where it already has it.
    pub fn cast(self, dtype: Dtype) -> Self {
        if self.dtype() == dtype { self } else { Values::from_f32(self.to_f32(), dtype) }
    }

    /// The numbers as they lie in memory.
    pub fn as_bytes(&self) -> &[u8] {
        match self {
            Values::F32(v) => bytemuck::cast_slice(v),
            Values::F16(v) => bytemuck::cast_slice(v),
            Values::BF16(v) => bytemuck::cast_slice(v),
        }
    }

    /// Element `index`, widened.
    pub fn get(&self, index: usize) -> f32 {
        match self {
            Values::F32(v) => v[index],
            Values::F16(v) => v[index].to_f32(),
            Values::BF16(v) => v[index].to_f32(),
        }
    }

    /// The width.
    pub fn dtype(&self) -> Dtype {
        match self {
            Values::F32(_) => Dtype::F32,
            Values::F16(_) => Dtype::F16,
            Values::BF16(_) => Dtype::BF16,
        }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Values::F32(v) => v.len(),
            Values::F16(v) => v.len(),
            Values::BF16(v) => v.len(),
        }
    }

    /// True when there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes held.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype().bytes()
    }
}
