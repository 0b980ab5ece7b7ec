//! Moments of a stream, and a second stream beside the first.

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUevent_flags_enum as Flags};

use super::{Card, Stream, fault};
use crate::backend::Fault;

/// CUDA 12.8: `cuEventElapsedTime_v2`.
const TIMING_DRIVER_VERSION_MIN: i32 = 12080;

/// A moment of a stream.
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
    fn new(card: &Card, flags: Flags) -> Result<Self, Fault> {
        card.bind()?;
        let event = result::event::create(flags).map_err(fault("cuEventCreate"))?;
        Ok(Self { card: card.clone(), event })
    }

    /// Milliseconds from this moment to a later one. `None` when either is still to come.
    pub fn milliseconds_to(&self, end: &Event) -> Option<f32> {
        // SAFETY: both live.
        unsafe { result::event::elapsed(self.event, end.event) }.ok()
    }
}

impl Card {
    /// Two moments to take the time between; `None` when the driver cannot.
    pub fn stopwatch(&self) -> Option<[Event; 2]> {
        if self.driver_version() < TIMING_DRIVER_VERSION_MIN {
            return None;
        }
        let event = || Event::new(self, Flags::CU_EVENT_DEFAULT).ok();
        Some([event()?, event()?])
    }

    /// A stream for work beside another stream's.
    pub fn side(&self) -> Result<Side, Fault> {
        let event = || Event::new(self, Flags::CU_EVENT_DISABLE_TIMING);
        Ok(Side { stream: self.stream()?, forked: event()?, joined: event()? })
    }
}

/// Work beside a main stream's, from a fork to a join.
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
