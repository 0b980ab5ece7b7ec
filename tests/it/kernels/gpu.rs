//! Kernels as the server compiles them (or finds them compiled), run on the machine's GPU.

#![allow(unsafe_code)]

use std::collections::{BTreeSet, HashSet};
use std::ffi::{CString, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

use super::device::{Address, Launch, Memory, Program, WIDTHS, Width};
use crate::cuda::card::{is_real, kernel_cache};
use tessera::backend::cuda::{Widths, kernels};
use tessera::dtype::Dtype;

/// One card with one context, for all threads of tests.
struct Gpu {
    context: sys::CUcontext,
    /// One piece of work at a time: a fault is told to the test that made it.
    stream: Mutex<sys::CUstream>,
}

// SAFETY: a primary context may be current on any number of threads, and calls on its stream may
// come from any of them.
unsafe impl Send for Gpu {}
// SAFETY: as above.
unsafe impl Sync for Gpu {}

fn gpu() -> &'static Gpu {
    static GPU: OnceLock<Gpu> = OnceLock::new();
    GPU.get_or_init(|| Gpu::open().unwrap_or_else(|e| panic!("no GPU for TESSERA_CUDA: {e}")))
}

impl Gpu {
    fn open() -> Result<Self, DriverError> {
        // SAFETY: looks for a library, and runs its initialisers if there is one.
        assert!(unsafe { sys::is_culib_present() }, "TESSERA_CUDA is set without libcuda.so");
        result::init()?;
        let device = result::device::get(0)?;
        // SAFETY: the driver named this device. What is made here is kept to the process's end.
        unsafe {
            let context = result::primary_ctx::retain(device)?;
            result::ctx::set_current(context)?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            Ok(Self { context, stream: Mutex::new(stream) })
        }
    }

    fn bind(&self) -> Result<(), DriverError> {
        // SAFETY: the context is never given back.
        unsafe { result::ctx::set_current(self.context) }
    }

    /// Starts work and waits for its end.
    fn run(
        &self,
        work: impl FnOnce(sys::CUstream) -> Result<(), DriverError>,
    ) -> Result<(), DriverError> {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        self.bind()?;
        work(*stream)?;
        // SAFETY: the stream is never destroyed.
        unsafe { result::stream::synchronize(*stream) }
    }
}

pub struct Module(sys::CUmodule);

// SAFETY: the driver's calls on a module may come from any thread.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

fn compile(file: &str, widths: Widths) -> Vec<u8> {
    let image = tessera::backend::cuda::compile(0, file, widths, Some(&kernel_cache()));
    image.unwrap_or_else(|e| panic!("{file} {widths:?}: {e}"))
}

pub fn load(file: &str, widths: Widths) -> Module {
    let image = compile(file, widths);
    gpu().bind().unwrap();
    // SAFETY: NVRTC's output, whole. It stays loaded to the process's end.
    Module(unsafe { result::module::load_data(image.as_ptr().cast()) }.unwrap())
}

/// On all cores, so that tests and servers after it find them: `tools/gpu-check` begins with it.
#[test]
fn every_file_compiles_for_every_choice_of_widths() {
    if !is_real() {
        return;
    }
    let files: BTreeSet<_> = kernels::ALL.iter().map(|kernel| kernel.file).collect();
    let of_servers = [Dtype::F32, Dtype::F16, Dtype::BF16].map(|dtype| [dtype; 3]);
    let of_tests = WIDTHS.map(|widths| widths.map(Width::dtype));
    let widths: HashSet<_> = of_servers.into_iter().chain(of_tests).collect();
    let all = files.iter().flat_map(|file| widths.iter().map(move |widths| (*file, *widths)));
    let left = Mutex::new(all.collect::<Vec<_>>());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).pop();
    // A compilation takes some hundred megabytes: no more of them than cores.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some((file, widths)) = next() {
                    assert!(!compile(file, widths).is_empty());
                }
            });
        }
    });
}

impl Program for Module {
    fn launch(&self, launch: &Launch<'_>) -> Result<(), String> {
        let Launch { name, grid, threads, shared_bytes, args, reverse: _ } = *launch;
        assert!(grid.is_whole(), "{name}: only emulated kernels run a part of a grid");
        if grid.size.contains(&0) {
            return Ok(());
        }
        let ran = gpu().run(|stream| {
            let symbol = CString::new(name).unwrap();
            let shared =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let (mut offset, mut size) = (0, 0);
            let mut pointers = [args.as_ptr().cast_mut().cast::<c_void>()];
            let grid = (grid.size[0], grid.size[1], grid.size[2]);
            // SAFETY: the module is loaded; the struct has the size the kernel was compiled with,
            // and is copied before the launch returns. That its addresses are right is what the
            // tests are about.
            unsafe {
                let function = result::module::get_function(self.0, symbol)?;
                sys::cuFuncGetParamInfo(function, 0, &raw mut offset, &raw mut size).result()?;
                assert_eq!(size, args.len(), "bytes of {name}'s arguments");
                result::function::set_function_attribute(function, shared, shared_bytes as i32)?;
                let (block, shared) = ((threads, 1, 1), shared_bytes as u32);
                result::launch_kernel(function, grid, block, shared, stream, &mut pointers)
            }
        });
        ran.map_err(|e| e.to_string())
    }
}

pub struct GpuMemory {
    address: Address,
    bytes: usize,
}

impl GpuMemory {
    pub fn new(bytes: &[u8]) -> Self {
        let gpu = gpu();
        gpu.bind().unwrap();
        // SAFETY: freed when this drops; the copy has its bytes, and is waited for.
        unsafe {
            let address = result::malloc_sync(bytes.len()).unwrap();
            gpu.run(|stream| result::memcpy_htod_async(address, bytes, stream)).unwrap();
            Self { address, bytes: bytes.len() }
        }
    }
}

impl Memory for GpuMemory {
    fn address(&self) -> Address {
        self.address
    }

    fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; self.bytes];
        // SAFETY: the allocation is that long; the copy is waited for.
        let copy = |stream| unsafe { result::memcpy_dtoh_async(&mut bytes, self.address, stream) };
        gpu().run(copy).unwrap();
        bytes
    }
}

impl Drop for GpuMemory {
    fn drop(&mut self) {
        // A card that is lost has nothing to give back.
        if gpu().bind().is_ok() {
            // SAFETY: allocated by `new`; all work is waited for.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}
