//! Events of a stream, and a side stream whose work overlaps the main one's.

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags_enum as Flags};

use super::{Card, Stream, fault};
use crate::backend::Fault;

/// A CUDA event: a moment of a stream.
#[derive(Debug)]
pub(in super::super) struct Event {
    card: Card,
    pub(super) event: sys::CUevent,
}

// SAFETY: the driver's calls on an event may come from any thread.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Drop for Event {
    fn drop(&mut self) {
        if self.card.bind().is_ok() {
            // SAFETY: created by `new`.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

impl Event {
    pub(super) fn new(card: &Card, flags: Flags) -> Result<Self, Fault> {
        card.bind()?;
        let event = result::event::create(flags).map_err(fault("cuEventCreate"))?;
        Ok(Self { card: card.clone(), event })
    }

    /// Milliseconds from this moment to a later one, both passed: their stream was waited for.
    pub fn milliseconds_to(&self, later: &Event) -> Result<f32, Fault> {
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
        Ok(ms)
    }
}

impl Card {
    /// Two events to take the time between.
    pub fn stopwatch(&self) -> Result<[Event; 2], Fault> {
        let event = || Event::new(self, Flags::CU_EVENT_DEFAULT);
        Ok([event()?, event()?])
    }

    /// A side stream, for work that overlaps another stream's.
    pub fn side(&self) -> Result<Side, Fault> {
        let event = || Event::new(self, Flags::CU_EVENT_DISABLE_TIMING);
        Ok(Side { stream: self.stream()?, forked: event()?, joined: event()? })
    }
}

/// A side stream: its work overlaps a main stream's, from a fork to a join.
#[derive(Debug)]
pub(in super::super) struct Side {
    pub stream: Stream,
    forked: Event,
    joined: Event,
}

impl Side {
    /// What follows on the side runs after what is on the main stream now.
    pub fn fork(&self, main: &Stream) -> Result<(), Fault> {
        main.record(&self.forked)?;
        self.stream.wait(&self.forked)
    }

    /// What follows on the main stream runs after what is on the side now.
    pub fn join(&self, main: &Stream) -> Result<(), Fault> {
        self.stream.record(&self.joined)?;
        main.wait(&self.joined)
    }
}
