//! An allocator that counts, so that what an input costs in memory is known to the byte.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Beyond this, memory is refused, which ends the process: better it than the machine.
const BYTES_MAX: usize = 6 << 30;

/// The system's allocator.
pub struct Counted;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

/// Bytes that are in use; the most is counted from here on.
pub fn begin() -> usize {
    let live = LIVE.load(Relaxed);
    MOST.store(live, Relaxed);
    live
}

/// The most bytes that were in use at once.
pub fn most() -> usize {
    MOST.load(Relaxed)
}

fn added(bytes: usize) {
    MOST.fetch_max(LIVE.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is handed on to the system's allocator as it came; a null pointer is how an
// allocator refuses.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if LIVE.load(Relaxed).saturating_add(layout.size()) > BYTES_MAX {
            return std::ptr::null_mut();
        }
        added(layout.size());
        // SAFETY: the caller's promises are the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promises are the same.
        unsafe { System.dealloc(pointer, layout) }
    }
}
