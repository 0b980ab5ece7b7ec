//! What tests ask of kernels and memory, whether they are emulated or on the machine's GPU.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, OnceLock};

use bytemuck::Pod;
use half::{bf16, f16};

use super::{emulated, gpu};
use crate::cuda::card::is_real;
use tessera::backend::cuda::args::Add;
use tessera::dtype::Dtype;

/// A device pointer; 0 is null.
pub type Address = u64;

/// A width of stored numbers.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Width {
    F32,
    F16,
    Bf16,
}

impl Width {
    fn name(self) -> &'static str {
        match self {
            Width::F32 => "float",
            Width::F16 => "f16",
            Width::Bf16 => "bf16",
        }
    }

    pub fn dtype(self) -> Dtype {
        match self {
            Width::F32 => Dtype::F32,
            Width::F16 => Dtype::F16,
            Width::Bf16 => Dtype::BF16,
        }
    }

    pub fn bytes(self) -> usize {
        if self == Width::F32 { 4 } else { 2 }
    }

    /// What `x` becomes when stored.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Width::F32 => x,
            Width::F16 => f16::from_f32(x).to_f32(),
            Width::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    /// Half of the distance between neighbours, as a share of the number.
    pub fn half_step(self) -> f64 {
        match self {
            Width::F32 => 2f64.powi(-24),
            Width::F16 => 2f64.powi(-11),
            Width::Bf16 => 2f64.powi(-8),
        }
    }
}

/// A source file that is compiled and can run.
pub trait Program: Send + Sync {
    /// Runs a kernel to its end, or says what it did wrong.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), String>;
}

/// A kernel's grid, block and argument.
pub struct Launch<'a> {
    pub name: &'a str,
    pub grid: Grid,
    pub threads: u32,
    pub shared_bytes: usize,
    pub args: &'a [u8],
    /// Emulated threads take turns backwards.
    pub reverse: bool,
}

/// Memory that kernels reach, never empty.
pub trait Memory {
    fn address(&self) -> Address;
    fn read(&self) -> Vec<u8>;
}

/// One source file compiled for widths of activations, adapters and KV.
#[derive(Clone)]
pub struct Kernels {
    program: Arc<dyn Program>,
    pub x: Width,
    pub p: Width,
    pub kv: Width,
    reverse: bool,
}

type Cell = Arc<OnceLock<Arc<dyn Program>>>;

/// `file` for these widths, once with threads in order and once in reverse: a result that depends
/// on a barrier that is not there differs in one of them. A GPU has its own order, twice.
pub fn kernels(file: &str, [x, p, kv]: [Width; 3]) -> [Kernels; 2] {
    static PROGRAMS: OnceLock<Mutex<HashMap<String, Cell>>> = OnceLock::new();
    let key = format!("{file} {x:?} {p:?} {kv:?}");
    let programs = PROGRAMS.get_or_init(Mutex::default);
    let cell = programs.lock().unwrap().entry(key).or_default().clone();
    let program = cell.get_or_init(|| compile(file, [x, p, kv])).clone();
    [false, true].map(|reverse| Kernels { program: program.clone(), x, p, kv, reverse })
}

/// Choices of widths worth a test: of activations, adapters and KV.
pub const WIDTHS: [[Width; 3]; 3] =
    [[Width::F32; 3], [Width::Bf16; 3], [Width::F16, Width::F32, Width::Bf16]];

/// Each of them, in both orders.
pub fn all_kernels(file: &str) -> Vec<Kernels> {
    WIDTHS.into_iter().flat_map(|widths| kernels(file, widths)).collect()
}

fn compile(file: &str, widths: [Width; 3]) -> Arc<dyn Program> {
    if is_real() {
        return Arc::new(gpu::load(file, widths.map(Width::dtype)));
    }
    let kinds = ["X", "P", "KV"].iter().zip(widths);
    let defines: Vec<String> =
        kinds.map(|(kind, width)| format!("-DTESSERA_{kind}={}", width.name())).collect();
    Arc::new(emulated::compile(file, &defines))
}

/// Blocks of a grid.
#[derive(Clone, Copy)]
pub struct Grid {
    pub size: [u32; 3],
    /// Only blocks from here …
    pub first: [u32; 3],
    /// … to here are run: all of them, where a GPU runs them.
    pub end: [u32; 3],
}

impl From<[u32; 3]> for Grid {
    fn from(size: [u32; 3]) -> Self {
        Grid { size, first: [0; 3], end: size }
    }
}

impl Grid {
    pub fn is_whole(&self) -> bool {
        self.first == [0; 3] && self.end == self.size
    }
}

impl Kernels {
    /// Runs a kernel to its end; panics when a fault is found.
    pub fn launch<A: Pod>(
        &self,
        name: &str,
        grid: impl Into<Grid>,
        threads: u32,
        shared_bytes: usize,
        args: &A,
    ) {
        let (grid, args) = (grid.into(), bytemuck::bytes_of(args));
        let launch = Launch { name, grid, threads, shared_bytes, args, reverse: self.reverse };
        let ran = self.program.launch(&launch);
        assert_eq!(ran, Ok(()), "{name}, {:?} {:?} {:?}", self.x, self.p, self.kv);
    }
}

const CANARY_BYTES: usize = 128;
const CANARY: u8 = 0xA5;

/// Device memory with canaries on both sides.
pub struct Buffer {
    memory: Box<dyn Memory>,
    width: Width,
}

impl Buffer {
    /// `values` rounded to `width`.
    pub fn of(width: Width, values: &[f32]) -> Self {
        let bytes: Vec<u8> = match width {
            Width::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            Width::F16 => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
            Width::Bf16 => values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        };
        Self::with_bytes(width, &bytes)
    }

    /// `len` numbers that are all NaN: whatever is not written shows.
    pub fn poison(width: Width, len: usize) -> Self {
        Self::with_bytes(width, &vec![0xff; len * width.bytes()])
    }

    /// Structs or integers.
    pub fn raw<T: Pod>(values: &[T]) -> Self {
        Self::with_bytes(Width::F32, bytemuck::cast_slice(values))
    }

    fn with_bytes(width: Width, bytes: &[u8]) -> Self {
        let canary = [CANARY; CANARY_BYTES];
        let all = [&canary[..], bytes, &canary[..]].concat();
        let memory: Box<dyn Memory> = if is_real() {
            Box::new(gpu::GpuMemory::new(&all))
        } else {
            Box::new(emulated::HostMemory::new(&all))
        };
        Self { memory, width }
    }

    pub fn at(&self) -> Address {
        self.memory.address() + CANARY_BYTES as u64
    }

    /// Where element 0 would be if this memory began at element `first` of something huge.
    pub fn as_if_from(&self, first: u64) -> Address {
        self.at().wrapping_sub(first.wrapping_mul(self.width.bytes() as u64))
    }

    fn read(&self) -> Vec<u8> {
        let all = self.memory.read();
        let (before, rest) = all.split_at(CANARY_BYTES);
        let (body, after) = rest.split_at(rest.len() - CANARY_BYTES);
        assert!(before.iter().all(|&b| b == CANARY), "written before the first element");
        assert!(after.iter().all(|&b| b == CANARY), "written beyond the last element");
        body.to_vec()
    }

    /// The numbers, widened; checks the canaries.
    pub fn floats(&self) -> Vec<f32> {
        let bytes = self.read();
        let pair = |c: &[u8]| [c[0], c[1]];
        match self.width {
            Width::F32 => bytes
                .chunks_exact(4)
                .map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]]))
                .collect(),
            Width::F16 => {
                bytes.chunks_exact(2).map(|c| f16::from_le_bytes(pair(c)).to_f32()).collect()
            }
            Width::Bf16 => {
                bytes.chunks_exact(2).map(|c| bf16::from_le_bytes(pair(c)).to_f32()).collect()
            }
        }
    }

    /// The integers; checks the canaries.
    pub fn integers(&self) -> Vec<u32> {
        let bytes = self.read();
        bytes.chunks_exact(4).map(|c| u32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect()
    }
}

/// Adds `cols` numbers to others.
fn add(kernels: &Kernels, x: &Buffer, y: &Buffer, cols: u32, shared_bytes: usize) {
    let args = Add { x: x.at(), y: y.at(), cols, reserved: 0 };
    kernels.launch("add", [1, 1, 1], 128, shared_bytes, &args);
}

#[test]
fn a_number_written_beside_a_buffer_is_found() {
    for kernels in kernels("mlp.cu", [Width::F32; 3]) {
        let [x, y] = [(); 2].map(|()| Buffer::of(Width::F32, &[1.0; 8]));
        add(&kernels, &x, &y, 9, 0);
        let found = catch_unwind(AssertUnwindSafe(|| x.floats())).unwrap_err();
        assert_eq!(found.downcast_ref(), Some(&"written beyond the last element"));
    }
}

#[test]
fn a_block_has_more_shared_memory_than_it_is_given_unasked() {
    for kernels in kernels("mlp.cu", [Width::F32; 3]) {
        let [x, y] = [(); 2].map(|()| Buffer::of(Width::F32, &[1.0; 8]));
        // What every card from 8.0 on has for those that ask, and twice what it gives to others.
        add(&kernels, &x, &y, 8, 96 << 10);
        assert_eq!(x.floats(), [2.0; 8]);
    }
}
