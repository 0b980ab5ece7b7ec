//! Kernels compiled by NVRTC and run on the machine's GPU, as the server compiles and runs them.

#![allow(unsafe_code)]

use std::ffi::{CString, c_int, c_void};
use std::fs;
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;
use cudarc::nvrtc;

use super::device::{Address, Launch, Memory, Program};

/// One card with one context, for all threads of tests.
struct Gpu {
    context: sys::CUcontext,
    /// Major and minor.
    capability: (c_int, c_int),
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
        use sys::CUdevice_attribute_enum as A;
        // SAFETY: the driver named this device. What is made here is kept to the process's end.
        unsafe {
            let attribute = |a| result::device::get_attribute(device, a);
            let major = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
            let minor = attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
            let context = result::primary_ctx::retain(device)?;
            result::ctx::set_current(context)?;
            let stream = result::stream::create(result::stream::StreamKind::NonBlocking)?;
            Ok(Self { context, capability: (major, minor), stream: Mutex::new(stream) })
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

/// With the options of the server's own compilation (compile.rs).
pub fn compile(file: &str, defines: &[String]) -> Module {
    let gpu = gpu();
    let (major, minor) = gpu.capability;
    // Some instructions of 9.0 are only there under this name.
    let suffix = if gpu.capability == (9, 0) { "a" } else { "" };
    let architecture = format!("--gpu-architecture=sm_{major}{minor}{suffix}");
    let mut options = vec![architecture, "--std=c++17".to_owned()];
    options.extend_from_slice(defines);
    let image = cubin(file, &options);
    gpu.bind().unwrap();
    // SAFETY: NVRTC's output, whole. It stays loaded to the process's end.
    Module(unsafe { result::module::load_data(image.as_ptr().cast()) }.unwrap())
}

fn cubin(file: &str, options: &[String]) -> Vec<u8> {
    let text = |name: &str| {
        let path = crate::root().join("kernels").join(name);
        CString::new(fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
    };
    let (source, name) = (text(file), CString::new(file).unwrap());
    let headers = ["common.cuh", "deltas.cuh"].map(text);
    let mut program = std::ptr::null_mut();
    let mut image = Vec::new();
    // SAFETY: the strings outlive the program, which is destroyed once; the image is as long as
    // NVRTC says.
    unsafe {
        assert!(nvrtc::sys::is_culib_present(), "TESSERA_CUDA is set without libnvrtc.so");
        let names = [c"common.cuh".as_ptr(), c"deltas.cuh".as_ptr()];
        let headers = headers.each_ref().map(|header| header.as_ptr());
        let (source, name) = (source.as_ptr(), name.as_ptr());
        let (headers, names) = (headers.as_ptr(), names.as_ptr());
        nvrtc::sys::nvrtcCreateProgram(&raw mut program, source, name, 2, headers, names)
            .result()
            .unwrap();
        if let Err(error) = nvrtc::result::compile_program(program, options) {
            let log = nvrtc::result::get_program_log(program).unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).collect();
            panic!("{file} {options:?}: {error:?}\n{}", String::from_utf8_lossy(&log));
        }
        let mut size = 0;
        nvrtc::sys::nvrtcGetCUBINSize(program, &raw mut size).result().unwrap();
        image.resize(size, 0u8);
        nvrtc::sys::nvrtcGetCUBIN(program, image.as_mut_ptr().cast()).result().unwrap();
        nvrtc::result::destroy_program(program).unwrap();
    }
    image
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
