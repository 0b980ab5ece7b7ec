//! Streams, CUDA graphs captured from them, and the functions (kernels) they launch.

use std::ffi::{CString, c_void};
use std::ops::Range;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::result;
use cudarc::driver::sys;

use super::{Card, Event, Pinned, Region, fault};
use crate::backend::Fault;

/// A CUDA stream: work in order.
#[derive(Debug)]
pub(in super::super) struct Stream {
    card: Card,
    stream: sys::CUstream,
}

// SAFETY: the driver's calls on a stream may come from any thread.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.card.bind().is_ok() {
            // SAFETY: created by `stream`; what it still has to do goes on.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

impl Stream {
    pub(super) fn new(card: Card, stream: sys::CUstream) -> Self {
        Self { card, stream }
    }

    /// For cuBLASLt, whose `cudaStream_t` is the same pointer.
    pub fn raw(&self) -> *mut c_void {
        self.stream.cast()
    }

    /// Starts a copy; `from` must stay as it is until the stream has got there.
    pub fn upload(&self, from: &Pinned, range: Range<usize>, to: &Region) -> Result<(), Fault> {
        let bytes = &from.bytes()[range];
        self.start_upload(bytes, to)
    }

    fn start_upload(&self, bytes: &[u8], to: &Region) -> Result<(), Fault> {
        assert_eq!(bytes.len() as u64, to.bytes, "This is a bug: a copy of another length.");
        // SAFETY: both sides have these bytes.
        unsafe { result::memcpy_htod_async(to.address, bytes, self.stream) }
            .map_err(fault("copying to the GPU"))
    }

    /// Copies and waits.
    pub fn upload_now(&self, bytes: &[u8], to: &Region) -> Result<(), Fault> {
        self.start_upload(bytes, to)?;
        self.synchronize()
    }

    /// Copies and waits.
    pub fn download_now(&self, from: &Region, to: &mut [u8]) -> Result<(), Fault> {
        assert_eq!(to.len() as u64, from.bytes, "This is a bug: a copy of another length.");
        // SAFETY: both sides have these bytes, and the wait ends the borrow of `to`.
        unsafe { result::memcpy_dtoh_async(to, from.address, self.stream) }
            .map_err(fault("copying from the GPU"))?;
        self.synchronize()
    }

    /// Starts a copy within the card.
    pub fn copy(&self, from: &Region, to: &Region) -> Result<(), Fault> {
        assert_eq!(to.bytes, from.bytes, "This is a bug: a copy of another length.");
        // SAFETY: both sides have these bytes.
        unsafe {
            let bytes = from.bytes as usize;
            result::memcpy_dtod_async(to.address, from.address, bytes, self.stream)
        }
        .map_err(fault("copying on the GPU"))
    }

    pub fn synchronize(&self) -> Result<(), Fault> {
        // SAFETY: the stream lives.
        unsafe { result::stream::synchronize(self.stream) }.map_err(fault("running a step"))
    }

    /// `args` is the kernel's one argument.
    pub fn launch<A: Pod>(
        &self,
        kernel: &Function,
        grid: [u32; 3],
        threads: u32,
        shared_bytes: u32,
        args: &A,
    ) -> Result<(), Fault> {
        if grid.contains(&0) {
            return Ok(());
        }
        let mut pointers = [std::ptr::from_ref(args).cast_mut().cast::<c_void>()];
        let grid = (grid[0], grid[1], grid[2]);
        // SAFETY: `args` is laid out as the kernel's argument (args.rs; the emulated tests compare
        // the sizes), and the driver copies it before it returns.
        let launched = unsafe {
            let function = kernel.function;
            let block = (threads, 1, 1);
            result::launch_kernel(function, grid, block, shared_bytes, self.stream, &mut pointers)
        };
        launched.map_err(|e| fault(&format!("launching {}", kernel.name))(e))
    }

    /// Records an event: it is when the stream gets here.
    pub fn record(&self, event: &Event) -> Result<(), Fault> {
        // SAFETY: both live.
        unsafe { result::event::record(event.event, self.stream) }.map_err(fault("cuEventRecord"))
    }

    /// The moment when all that was asked for so far is done.
    pub fn event(&self) -> Result<Event, Fault> {
        let event = Event::new(&self.card, sys::CUevent_flags_enum::CU_EVENT_DEFAULT)?;
        self.record(&event)?;
        Ok(event)
    }

    /// What follows runs after the event.
    pub fn wait(&self, event: &Event) -> Result<(), Fault> {
        let flags = sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT;
        // SAFETY: both live.
        unsafe { result::stream::wait_event(self.stream, event.event, flags) }
            .map_err(fault("cuStreamWaitEvent"))
    }

    /// Begins stream capture: what this thread puts on the stream from here on is not run.
    pub fn begin_capture(&self) -> Result<(), Fault> {
        let mode = sys::CUstreamCaptureMode_enum::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives.
        unsafe { result::stream::begin_capture(self.stream, mode) }
            .map_err(fault("recording a step"))
    }

    /// Ends stream capture and instantiates the graph.
    pub fn end_capture(&self) -> Result<Graph, Fault> {
        // SAFETY: the stream lives; the graph is destroyed once it is instantiated.
        unsafe {
            let graph = result::stream::end_capture(self.stream);
            let graph = graph.map_err(fault("recording a step"))?;
            let mut exec = std::ptr::null_mut();
            let made = sys::cuGraphInstantiateWithFlags(&raw mut exec, graph, 0).result();
            let _ = result::graph::destroy(graph);
            made.map_err(fault("preparing a recorded step"))?;
            Ok(Graph { card: self.card.clone(), exec })
        }
    }

    /// Launches a graph.
    pub fn replay(&self, graph: &Graph) -> Result<(), Fault> {
        // SAFETY: both live.
        unsafe { result::graph::launch(graph.exec, self.stream) }.map_err(fault("replaying a step"))
    }
}

/// A CUDA graph, instantiated: one step, recorded.
#[derive(Debug)]
pub(in super::super) struct Graph {
    card: Card,
    exec: sys::CUgraphExec,
}

// SAFETY: used by one thread at a time.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.card.bind().is_ok() {
            // SAFETY: made by `end_capture`.
            let _ = unsafe { result::graph::exec_destroy(self.exec) };
        }
    }
}

/// Compiled kernels on the card.
#[derive(Clone, Debug)]
pub(in super::super) struct Module(Arc<Loaded>);

#[derive(Debug)]
struct Loaded {
    card: Card,
    module: sys::CUmodule,
}

// SAFETY: the driver's calls on a module may come from any thread.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Drop for Loaded {
    fn drop(&mut self) {
        if self.card.bind().is_ok() {
            // SAFETY: loaded by `load`; every kernel of it keeps it.
            let _ = unsafe { result::module::unload(self.module) };
        }
    }
}

/// A kernel of a loaded module.
#[derive(Debug)]
pub(in super::super) struct Function {
    _module: Module,
    name: String,
    function: sys::CUfunction,
}

// SAFETY: as its module.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    pub(super) fn new(card: Card, module: sys::CUmodule) -> Self {
        Self(Arc::new(Loaded { card, module }))
    }

    /// The kernel of this name, allowed all shared memory that a block can have.
    pub fn kernel(&self, name: &str) -> Result<Function, Fault> {
        let symbol = CString::new(name).expect("This is a bug: a kernel's name holds a 0.");
        // SAFETY: the module lives.
        let function = unsafe { result::module::get_function(self.0.module, symbol) };
        let function = function.map_err(|e| fault(&format!("finding kernel {name}"))(e))?;
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let bytes = self.0.card.0.shared_bytes_max as i32;
        // SAFETY: the function was just found.
        unsafe { result::function::set_function_attribute(function, attribute, bytes) }
            .map_err(|e| fault(&format!("shared memory of kernel {name}"))(e))?;
        Ok(Function { _module: self.clone(), name: name.to_owned(), function })
    }
}
