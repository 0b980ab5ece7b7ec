//! Moments on a stream.

use cudarc::driver::result::event;
use cudarc::driver::sys;

use super::{Card, Stream, fault};
use crate::backend::Fault;

/// A moment on a stream.
#[derive(Debug)]
pub(in super::super) struct Event {
    card: Card,
    event: sys::CUevent,
}

// SAFETY: the driver's calls on an event may come from any thread.
unsafe impl Send for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if self.card.bind().is_ok() {
            // SAFETY: created once.
            let _ = unsafe { event::destroy(self.event) };
        }
    }
}

impl Event {
    /// The moment when the stream gets here.
    pub(super) fn new(card: &Card, stream: &Stream) -> Result<Self, Fault> {
        let made = event::create(sys::CUevent_flags_enum::CU_EVENT_DEFAULT);
        let event = Self { card: card.clone(), event: made.map_err(fault("cuEventCreate"))? };
        // SAFETY: both live.
        unsafe { event::record(event.event, stream.handle()) }.map_err(fault("cuEventRecord"))?;
        Ok(event)
    }

    /// Both moments have passed: their stream was waited for.
    pub fn seconds_until(&self, later: &Event) -> Result<f64, Fault> {
        type Elapsed = unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult;
        let mut ms = 0.0;
        // By name: the version that cudarc calls came with CUDA 12.8, this one is as old as events.
        // SAFETY: the driver is loaded and has this function; both events live, and it writes one
        // float.
        let read = unsafe {
            let elapsed = sys::culib().get::<Elapsed>(b"cuEventElapsedTime\0");
            let missing = |_| sys::cudaError_enum::CUDA_ERROR_NOT_FOUND;
            elapsed.map_or_else(missing, |elapsed| elapsed(&raw mut ms, self.event, later.event))
        };
        read.result().map_err(fault("cuEventElapsedTime"))?;
        Ok(f64::from(ms) / 1e3)
    }
}
