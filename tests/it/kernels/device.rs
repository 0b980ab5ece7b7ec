//! Compiles kernels as C++ and runs them, one fiber a thread: the only `unsafe` of these tests.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::sync::{Arc, Mutex, OnceLock};

use half::{bf16, f16};
use libloading::Library;

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

/// One source file compiled for widths of activations, adapters and KV.
#[derive(Clone)]
pub struct Kernels {
    library: Arc<Library>,
    pub x: Width,
    pub p: Width,
    pub kv: Width,
    /// Threads take turns backwards.
    reverse: bool,
}

type Cell = Arc<OnceLock<Arc<Library>>>;

/// `file` for these widths, once with threads in order and once in reverse: a result that depends
/// on a barrier that is not there differs in one of them.
pub fn kernels(file: &str, [x, p, kv]: [Width; 3]) -> [Kernels; 2] {
    static LIBRARIES: OnceLock<Mutex<HashMap<String, Cell>>> = OnceLock::new();
    let key = format!("{file} {x:?} {p:?} {kv:?}");
    let libraries = LIBRARIES.get_or_init(Mutex::default);
    let cell = libraries.lock().unwrap().entry(key).or_default().clone();
    let library = cell.get_or_init(|| Arc::new(compile(file, [x, p, kv]))).clone();
    [false, true].map(|reverse| Kernels { library: library.clone(), x, p, kv, reverse })
}

/// Every choice of widths worth a test, in both orders.
pub fn all_kernels(file: &str) -> Vec<Kernels> {
    use Width::{Bf16, F16, F32};
    let widths = [[F32; 3], [Bf16; 3], [F16, F32, Bf16]];
    widths.into_iter().flat_map(|widths| kernels(file, widths)).collect()
}

fn compile(file: &str, widths: [Width; 3]) -> Library {
    let root = crate::root();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("kernels.so");
    let mut build = cc::Build::new();
    // Contraction would make sums differ from what the text says.
    build.cpp(true).opt_level(2).target(&target).host(&target).cargo_metadata(false);
    let mut command = build.get_compiler().to_command();
    command.args(["-std=c++17", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"]);
    command.args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]);
    command.arg("-include").arg(root.join("tests/it/kernels/emulate.h"));
    for (kind, width) in ["X", "P", "KV"].iter().zip(widths) {
        command.arg(format!("-DTESSERA_{kind}={}", width.name()));
    }
    command.args(["-x", "c++"]).arg(root.join("kernels").join(file)).arg("-o").arg(&output);
    let result = command.output().expect("a C++ compiler");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    // SAFETY: the library is ours and has no initialisers beyond C++'s own.
    unsafe { Library::new(&output) }.unwrap()
}

type Launch = unsafe extern "C" fn(*const u32, usize, *const c_void, bool) -> *const c_char;

/// Blocks of a grid.
#[derive(Clone, Copy)]
pub struct Grid {
    pub size: [u32; 3],
    /// Only blocks from here …
    pub first: [u32; 3],
    /// … to here are run.
    pub end: [u32; 3],
}

impl From<[u32; 3]> for Grid {
    fn from(size: [u32; 3]) -> Self {
        Grid { size, first: [0; 3], end: size }
    }
}

impl Kernels {
    /// Runs a kernel to its end; panics when the emulator finds a fault.
    pub fn launch<A: Copy>(
        &self,
        name: &str,
        grid: impl Into<Grid>,
        threads: u32,
        shared_bytes: usize,
        args: &A,
    ) {
        let grid = grid.into();
        let size_name = format!("emulate_size_{name}");
        let launch_name = format!("emulate_{name}");
        let mut at = [1; 12];
        at[..3].copy_from_slice(&grid.size);
        at[3] = threads;
        at[6..9].copy_from_slice(&grid.first);
        at[9..].copy_from_slice(&grid.end);
        // SAFETY: both functions have these signatures (emulate.h), and the struct has the size the
        // kernel was compiled with. That its addresses are right is what the tests are about.
        let error = unsafe {
            let size = self.library.get::<unsafe extern "C" fn() -> usize>(size_name.as_bytes());
            assert_eq!(size.unwrap()(), size_of::<A>(), "arguments of {name}");
            let launch = self.library.get::<Launch>(launch_name.as_bytes()).unwrap();
            let error = launch(
                at.as_ptr(),
                shared_bytes,
                std::ptr::from_ref(args).cast::<c_void>(),
                self.reverse,
            );
            (!error.is_null()).then(|| CStr::from_ptr(error).to_string_lossy().into_owned())
        };
        assert_eq!(error, None, "{name}, {:?} {:?} {:?}", self.x, self.p, self.kv);
    }
}

const CANARY_BYTES: usize = 128;
const CANARY: u8 = 0xA5;

/// Device memory with canaries on both sides.
pub struct Buffer {
    start: *mut u8,
    bytes: usize,
    width: Width,
}

impl Buffer {
    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes + 2 * CANARY_BYTES, 128).unwrap()
    }

    fn new(bytes: usize, width: Width, fill: u8) -> Self {
        // SAFETY: the layout is not empty; the writes stay within it.
        let start = unsafe {
            let start = std::alloc::alloc(Self::layout(bytes));
            start.write_bytes(CANARY, bytes + 2 * CANARY_BYTES);
            start.add(CANARY_BYTES).write_bytes(fill, bytes);
            start
        };
        Self { start, bytes, width }
    }

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
        Self::new(len * width.bytes(), width, 0xff)
    }

    /// Structs or integers.
    pub fn raw<T: Copy>(values: &[T]) -> Self {
        let bytes = size_of_val(values);
        // SAFETY: `T` are the arguments' structs and integers, which have no padding.
        let bytes = unsafe { std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), bytes) };
        Self::with_bytes(Width::F32, bytes)
    }

    fn with_bytes(width: Width, bytes: &[u8]) -> Self {
        let buffer = Self::new(bytes.len(), width, 0);
        // SAFETY: the buffer holds that many bytes after its first canary.
        unsafe {
            let to = buffer.start.add(CANARY_BYTES);
            to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        }
        buffer
    }

    pub fn at(&self) -> Address {
        self.start as u64 + CANARY_BYTES as u64
    }

    /// Where element 0 would be if this memory began at element `first` of something huge.
    pub fn as_if_from(&self, first: u64) -> Address {
        self.at().wrapping_sub(first.wrapping_mul(self.width.bytes() as u64))
    }

    fn read(&self) -> Vec<u8> {
        // SAFETY: the allocation is that long and initialised.
        let all = unsafe {
            std::slice::from_raw_parts(self.start, self.bytes + 2 * CANARY_BYTES).to_vec()
        };
        let (before, rest) = all.split_at(CANARY_BYTES);
        let (body, after) = rest.split_at(self.bytes);
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

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.start, Self::layout(self.bytes)) };
    }
}
