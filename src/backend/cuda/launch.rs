//! CUDA's driver API, NVRTC and cuBLASLt as safe calls: the only `unsafe` of this backend. What is
//! handed out here knows its bytes, and every copy and launch is checked against them.

#![allow(unsafe_code)]

mod blas;
mod event;
mod library;
mod nvrtc;
mod stream;

use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

pub(super) use self::blas::{Multiply, Products};
pub(super) use self::event::{Event, Side};
pub(super) use self::library::find as find_library;
pub(super) use self::nvrtc::Compiler;
pub(super) use self::stream::{Function, Graph, Module, Stream};
use super::args::Address;
use crate::backend::Fault;

/// CUDA 12.4: the oldest driver with every call made here.
const DRIVER_VERSION_MIN: i32 = 12040;
/// Async copies and bf16 tensor cores came with compute capability 8.0.
const CAPABILITY_MIN: (i32, i32) = (8, 0);

/// Why a card cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum OpenError {
    /// There is none, or nothing to reach it with.
    #[error("no NVIDIA GPU can be used: {0}")]
    NoDevice(String),
    /// It is there and something about it or around it will not do.
    #[error("{0}")]
    Unusable(String),
    /// A buffer does not fit.
    #[error(
        "the GPU has too little memory: {what} needs {needed} bytes and {free} of {total} are \
         free; {mend}"
    )]
    Memory {
        /// Which buffer.
        what: &'static str,
        /// Its bytes.
        needed: u64,
        /// Free bytes.
        free: u64,
        /// Bytes of the card.
        total: u64,
        /// What to do about it.
        mend: &'static str,
    },
}

impl From<Fault> for OpenError {
    fn from(fault: Fault) -> Self {
        OpenError::Unusable(fault.message)
    }
}

/// Whether nothing runs in the context any more after this code.
fn is_lost(error: DriverError) -> bool {
    use sys::cudaError_enum as E;
    !matches!(
        error.0,
        E::CUDA_ERROR_OUT_OF_MEMORY
            | E::CUDA_ERROR_INVALID_VALUE
            | E::CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES
            | E::CUDA_ERROR_NOT_SUPPORTED
            | E::CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED
            | E::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            | E::CUDA_ERROR_STREAM_CAPTURE_UNJOINED
            | E::CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD
            | E::CUDA_ERROR_INVALID_IMAGE
            | E::CUDA_ERROR_NO_BINARY_FOR_GPU
            | E::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | E::CUDA_ERROR_NOT_FOUND
    )
}

/// The driver's own words for a code.
fn words(error: DriverError) -> String {
    let text = |s: Result<&CStr, DriverError>| s.map(|s| s.to_string_lossy().into_owned());
    match (text(error.error_name()), text(error.error_string())) {
        (Ok(name), Ok(description)) => format!("{name} ({description})"),
        _ => format!("CUDA error {}", error.0 as u32),
    }
}

fn fault(what: &str) -> impl Fn(DriverError) -> Fault + '_ {
    move |error| Fault {
        message: format!("the GPU failed: {what}: {}", words(error)),
        lost: is_lost(error),
    }
}

/// A card and this process's context on it.
#[derive(Clone, Debug)]
pub(super) struct Card(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    context: sys::CUcontext,
    device: sys::CUdevice,
    name: String,
    capability: (i32, i32),
    multiprocessors: u32,
    shared_bytes_max: u32,
    driver_version: i32,
}

// SAFETY: a primary context may be current on any number of threads, and nothing here changes.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

impl Drop for Opened {
    fn drop(&mut self) {
        // SAFETY: retained once when this was made. A failure leaves nothing to mend.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

impl Card {
    /// The card of this number, as `CUDA_VISIBLE_DEVICES` counts them.
    ///
    /// # Errors
    /// Says what is missing, too old or wrong.
    pub fn open(ordinal: usize) -> Result<Self, OpenError> {
        // SAFETY: looks for a library, and runs its initialisers if there is one.
        if !unsafe { sys::is_culib_present() } {
            let text = "the driver's library libcuda.so is not installed on this machine (in a \
                        container: start it with --gpus all)";
            return Err(OpenError::NoDevice(text.into()));
        }
        result::init().map_err(|e| OpenError::NoDevice(format!("cuInit: {}", words(e))))?;
        let mut driver_version = 0;
        // SAFETY: writes one int.
        let read = unsafe { sys::cuDriverGetVersion(&raw mut driver_version) };
        read.result().map_err(fault("cuDriverGetVersion"))?;
        let version = |v: i32| format!("{}.{}", v / 1000, v % 1000 / 10);
        if driver_version < DRIVER_VERSION_MIN {
            return Err(OpenError::Unusable(format!(
                "the NVIDIA driver supports CUDA {} and {} or newer is needed; update the driver",
                version(driver_version),
                version(DRIVER_VERSION_MIN)
            )));
        }
        let count = result::device::get_count().map_err(fault("cuDeviceGetCount"))?;
        if ordinal as i64 >= i64::from(count) {
            return Err(OpenError::NoDevice(format!(
                "GPU {ordinal} was asked for and there are {count}; see --device and \
                 CUDA_VISIBLE_DEVICES"
            )));
        }
        let device = result::device::get(ordinal as c_int).map_err(fault("cuDeviceGet"))?;
        let name = result::device::get_name(device).map_err(fault("cuDeviceGetName"))?;
        use sys::CUdevice_attribute_enum as A;
        // SAFETY: the device was just returned by the driver.
        let attribute = |a| unsafe { result::device::get_attribute(device, a) };
        let attribute = |a| attribute(a).map_err(fault("cuDeviceGetAttribute"));
        let capability = (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        if capability < CAPABILITY_MIN {
            return Err(OpenError::Unusable(format!(
                "{name} has compute capability {}.{} and {}.{} (Ampere) or newer is needed",
                capability.0, capability.1, CAPABILITY_MIN.0, CAPABILITY_MIN.1
            )));
        }
        let multiprocessors = attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32;
        let shared = attribute(A::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as u32;
        // SAFETY: released when `Opened` drops.
        let context = unsafe { result::primary_ctx::retain(device) };
        let context = context.map_err(fault("cuDevicePrimaryCtxRetain"))?;
        let opened = Opened {
            context,
            device,
            name,
            capability,
            multiprocessors,
            shared_bytes_max: shared,
            driver_version,
        };
        let card = Self(Arc::new(opened));
        card.bind()?;
        Ok(card)
    }

    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Major and minor.
    pub fn capability(&self) -> (i32, i32) {
        self.0.capability
    }

    pub fn multiprocessors(&self) -> u32 {
        self.0.multiprocessors
    }

    /// As `CUDA 12.4` has it: 12040.
    pub fn driver_version(&self) -> i32 {
        self.0.driver_version
    }

    /// Free and total bytes.
    pub fn memory(&self) -> Result<(u64, u64), Fault> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(fault("cuMemGetInfo"))?;
        Ok((free as u64, total as u64))
    }

    /// Makes this thread's calls go to the card.
    pub fn bind(&self) -> Result<(), Fault> {
        // SAFETY: the context lives as long as `self`.
        unsafe { result::ctx::set_current(self.0.context) }.map_err(fault("cuCtxSetCurrent"))
    }

    /// Memory for `what`; `mend` says what to do when there is too little.
    pub fn allocate(
        &self,
        bytes: u64,
        what: &'static str,
        mend: &'static str,
    ) -> Result<Memory, OpenError> {
        self.bind()?;
        let bytes = bytes.max(1);
        // SAFETY: freed when `Memory` drops.
        match unsafe { result::malloc_sync(bytes as usize) } {
            Ok(address) => Ok(Memory(Arc::new(Allocation { card: self.clone(), address, bytes }))),
            Err(e) if e.0 == sys::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY => {
                let (free, total) = self.memory()?;
                Err(OpenError::Memory { what, needed: bytes, free, total, mend })
            }
            Err(e) => Err(fault("cuMemAlloc")(e).into()),
        }
    }

    /// Page-locked memory of the host, zeroed.
    pub fn pinned(&self, bytes: usize) -> Result<Pinned, Fault> {
        self.bind()?;
        // SAFETY: freed when `Pinned` drops.
        let start = unsafe { result::malloc_host(bytes.max(1), 0) };
        let start = start.map_err(fault("cuMemHostAlloc"))?.cast::<u8>();
        // SAFETY: the allocation is that long.
        unsafe { start.write_bytes(0, bytes.max(1)) };
        Ok(Pinned { card: self.clone(), start, bytes })
    }

    pub fn stream(&self) -> Result<Stream, Fault> {
        self.bind()?;
        let kind = result::stream::StreamKind::NonBlocking;
        let stream = result::stream::create(kind).map_err(fault("cuStreamCreate"))?;
        Ok(Stream::new(self.clone(), stream))
    }

    /// A compiled module (CUBIN, or PTX that ends with 0).
    pub fn load(&self, image: &[u8]) -> Result<Module, Fault> {
        self.bind()?;
        // SAFETY: NVRTC's output, whole; PTX is passed with its terminating 0.
        let module = unsafe { result::module::load_data(image.as_ptr().cast()) };
        let module = module.map_err(fault("cuModuleLoadData"))?;
        Ok(Module::new(self.clone(), module))
    }
}

/// Memory on the card, given back when the last holder drops.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Allocation>);

#[derive(Debug)]
struct Allocation {
    card: Card,
    address: Address,
    bytes: u64,
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // A card that is lost has nothing to give back.
        if self.card.bind().is_ok() {
            // SAFETY: allocated by `allocate`; nobody holds a region of it any more.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

impl Memory {
    pub fn address(&self) -> Address {
        self.0.address
    }

    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// A part of it.
    pub fn region(&self, offset: u64, bytes: u64) -> Region {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.0.bytes);
        assert!(fits, "This is a bug: {bytes} bytes at {offset} of {}.", self.0.bytes);
        Region { _memory: self.clone(), address: self.0.address + offset, bytes }
    }
}

/// A stretch of [`Memory`], which it keeps.
#[derive(Clone, Debug)]
pub(super) struct Region {
    _memory: Memory,
    address: Address,
    bytes: u64,
}

impl Region {
    pub fn address(&self) -> Address {
        self.address
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn sub(&self, offset: u64, bytes: u64) -> Self {
        let fits = offset.checked_add(bytes).is_some_and(|end| end <= self.bytes);
        assert!(fits, "This is a bug: {bytes} bytes at {offset} of {}.", self.bytes);
        Self { _memory: self._memory.clone(), address: self.address + offset, bytes }
    }
}

/// Page-locked memory of the host.
#[derive(Debug)]
pub(super) struct Pinned {
    card: Card,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory with one owner.
unsafe impl Send for Pinned {}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.card.bind().is_ok() {
            // SAFETY: allocated by `pinned`. Its owners wait for their copies before they drop it.
            let _ = unsafe { result::free_host(self.start.cast::<c_void>()) };
        }
    }
}

impl Pinned {
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the allocation is that long and was zeroed.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// The caller has waited for copies from here.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `self` is borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}
