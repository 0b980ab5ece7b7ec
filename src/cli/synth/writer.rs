//! Safetensors files of random numbers, written block by block: a file of any size takes the
//! memory of one batch of blocks.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use half::{bf16, f16};
use indicatif::ProgressBar;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::super::{CliError, at};
use crate::dtype::Dtype;

/// One tensor to be.
pub struct Tensor {
    /// Name in the file.
    pub name: String,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub fill: Fill,
}

/// Where a tensor's numbers come from.
pub enum Fill {
    /// Uniform around `mean` with standard deviation `std`.
    Random {
        /// Centre.
        mean: f32,
        /// Standard deviation.
        std: f32,
    },
    /// Whole numbers in `0..below`, as I64.
    Indices {
        /// One above the largest.
        below: usize,
    },
    /// These.
    Given(Vec<f32>),
}

/// Elements that one generator fills: the unit of parallel work, and what the numbers depend on.
const BLOCK_ELEMENTS: usize = 1 << 16;
/// Blocks filled before they are written.
const BATCH_BLOCKS: usize = 64;

impl Tensor {
    /// Uniform around `mean`.
    pub fn random(name: String, shape: Vec<usize>, mean: f32, std: f32) -> Self {
        Self { name, shape, fill: Fill::Random { mean, std } }
    }

    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn width(&self, dtype: Dtype) -> usize {
        match self.fill {
            Fill::Indices { .. } => 8,
            Fill::Random { .. } | Fill::Given(_) => dtype.bytes(),
        }
    }

    /// Bytes in the file.
    pub fn bytes(&self, dtype: Dtype) -> u64 {
        self.elements() as u64 * self.width(dtype) as u64
    }
}

/// Writes `tensors`, floats as `dtype`. The numbers depend on `seed` and the tensor's name only,
/// not on the file it is in nor on the number of threads.
///
/// # Errors
/// [`CliError::General`] when the disk refuses.
pub fn write(
    path: &Path,
    tensors: &[Tensor],
    dtype: Dtype,
    seed: u64,
    bar: &ProgressBar,
) -> Result<(), CliError> {
    let failed = |error: std::io::Error| at(path, &error);
    // Widest first, as the safetensors library does: everything is then aligned.
    let mut ordered: Vec<&Tensor> = tensors.iter().collect();
    ordered.sort_by_key(|tensor| std::cmp::Reverse(tensor.width(dtype)));
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.write_all(&header(&ordered, dtype)).map_err(failed)?;
    let mut buffer = Vec::new();
    for tensor in ordered {
        let (elements, width) = (tensor.elements(), tensor.width(dtype));
        let stream = Rng::new(seed ^ hash(&tensor.name)).next();
        let mut start = 0;
        while start < elements {
            let count = (elements - start).min(BATCH_BLOCKS * BLOCK_ELEMENTS);
            buffer.resize(count * width, 0);
            let blocks = buffer.par_chunks_mut(BLOCK_ELEMENTS * width).enumerate();
            blocks.for_each(|(i, block)| {
                let first = start + i * BLOCK_ELEMENTS;
                fill(block, &tensor.fill, dtype, first, Rng::new(stream ^ first as u64));
            });
            file.write_all(&buffer).map_err(failed)?;
            bar.inc(buffer.len() as u64);
            start += count;
        }
    }
    file.flush().map_err(failed)
}

fn header(tensors: &[&Tensor], dtype: Dtype) -> Vec<u8> {
    let float = match dtype {
        Dtype::F32 => "F32",
        Dtype::F16 => "F16",
        Dtype::BF16 => "BF16",
    };
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({ "format": "pt" }));
    let mut end = 0;
    for tensor in tensors {
        let start = end;
        end += tensor.bytes(dtype);
        let name = if matches!(tensor.fill, Fill::Indices { .. }) { "I64" } else { float };
        let entry = json!({ "dtype": name, "shape": tensor.shape, "data_offsets": [start, end] });
        map.insert(tensor.name.clone(), entry);
    }
    let mut text = Value::Object(map).to_string().into_bytes();
    // The format's way to align the data.
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text);
    bytes
}

/// Fills `block`, which starts at element `first` of its tensor.
fn fill(block: &mut [u8], fill: &Fill, dtype: Dtype, first: usize, mut rng: Rng) {
    match fill {
        Fill::Random { mean, std } => {
            let (mean, std) = (*mean, *std);
            match dtype {
                Dtype::F32 => random(block, mean, std, rng, |v| v.to_le_bytes()),
                Dtype::F16 => random(block, mean, std, rng, |v| f16::from_f32(v).to_le_bytes()),
                Dtype::BF16 => random(block, mean, std, rng, |v| bf16::from_f32(v).to_le_bytes()),
            }
        }
        Fill::Indices { below } => {
            for out in block.chunks_exact_mut(8) {
                out.copy_from_slice(&(rng.next() % *below as u64).to_le_bytes());
            }
        }
        Fill::Given(values) => {
            let values = &values[first..];
            match dtype {
                Dtype::F32 => given(block, values, |v| v.to_le_bytes()),
                Dtype::F16 => given(block, values, |v| f16::from_f32(v).to_le_bytes()),
                Dtype::BF16 => given(block, values, |v| bf16::from_f32(v).to_le_bytes()),
            }
        }
    }
}

/// Four numbers from each draw: 16 bits are enough for a weight, and 8 G of them are wanted.
fn random<const N: usize>(
    block: &mut [u8],
    mean: f32,
    std: f32,
    mut rng: Rng,
    encode: impl Fn(f32) -> [u8; N],
) {
    // A uniform distribution on ±a has the standard deviation a / √3.
    let step = std * 3f32.sqrt() / 32768.0;
    for four in block.chunks_mut(4 * N) {
        let drawn = rng.next();
        for (i, out) in four.chunks_exact_mut(N).enumerate() {
            let level = f32::from((drawn >> (16 * i)) as u16 as i16) + 0.5;
            out.copy_from_slice(&encode(mean + step * level));
        }
    }
}

fn given<const N: usize>(block: &mut [u8], values: &[f32], encode: impl Fn(f32) -> [u8; N]) {
    for (out, &value) in block.chunks_exact_mut(N).zip(values) {
        out.copy_from_slice(&encode(value));
    }
}

/// Splitmix64 (Steele, Lea, Flood 2014): equal seeds, equal numbers.
struct Rng(u64);

impl Rng {
    fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

fn hash(name: &str) -> u64 {
    let digest = blake3::hash(name.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_le_bytes(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn numbers_have_the_mean_and_spread_asked_for_and_do_not_repeat() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.safetensors");
        let tensors = [
            Tensor::random("a".into(), vec![300, 1001], 1.0, 0.25),
            Tensor::random("b".into(), vec![300, 1001], 0.0, 0.25),
            Tensor { name: "i".into(), shape: vec![999], fill: Fill::Indices { below: 7 } },
            Tensor { name: "g".into(), shape: vec![3], fill: Fill::Given(vec![1.0, -2.0, 0.5]) },
        ];
        write(&path, &tensors, Dtype::F32, 5, &ProgressBar::hidden()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f64> {
            let data = file.tensor(name).unwrap().data();
            let one = |c: &[u8]| f64::from(f32::from_le_bytes(c.try_into().unwrap()));
            data.chunks(4).map(one).collect()
        };
        let (a, b) = (floats("a"), floats("b"));
        let mean = a.iter().sum::<f64>() / a.len() as f64;
        let var = a.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / a.len() as f64;
        assert!((mean - 1.0).abs() < 0.005 && (var.sqrt() - 0.25).abs() < 0.002, "{mean} {var}");
        // Neighbouring blocks and tensors are independent.
        let product: f64 = a.iter().zip(&b).map(|(a, b)| (a - 1.0) * b).sum();
        assert!((product / a.len() as f64).abs() < 0.002);
        assert_ne!(a[..64], a[BLOCK_ELEMENTS..BLOCK_ELEMENTS + 64]);
        assert_eq!(floats("g"), [1.0, -2.0, 0.5]);
        let indices = file.tensor("i").unwrap();
        let indices = indices.data().chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap()));
        let seen: std::collections::BTreeSet<i64> = indices.collect();
        assert_eq!(seen.into_iter().collect::<Vec<_>>(), (0..7).collect::<Vec<_>>());
    }
}
