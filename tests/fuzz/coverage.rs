//! Which code an input reaches, where the program was compiled with counters:
//!
//! ```text
//! RUSTFLAGS="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=3 \
//!   -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
//!   -Clink-arg=-Wl,--unresolved-symbols=ignore-all" \
//!   cargo test --release --target x86_64-unknown-linux-gnu --test fuzz -- --minutes 10 template
//! ```
//!
//! The target keeps the flags away from build scripts, and the last flag lets the server's own
//! binary be linked, which has nobody to tell of its counters.
#![allow(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

static START: AtomicUsize = AtomicUsize::new(usize::MAX);
static END: AtomicUsize = AtomicUsize::new(0);

/// Called before `main` by what the compiler put into each module, with all counters.
// SAFETY: the name is the sanitizers' own, and no other library of this program has it.
#[unsafe(no_mangle)]
extern "C" fn __sanitizer_cov_8bit_counters_init(start: *mut u8, end: *mut u8) {
    START.fetch_min(start as usize, Relaxed);
    END.fetch_max(end as usize, Relaxed);
}

/// What was reached so far, and how often.
#[derive(Default)]
pub struct Coverage {
    /// For each counter, the magnitudes that it had.
    seen: Vec<u8>,
    /// Counters that were not 0 at least once.
    pub reached: usize,
}

impl Coverage {
    /// The counters; none where the program has none.
    fn counters() -> &'static mut [u8] {
        let (start, end) = (START.load(Relaxed), END.load(Relaxed));
        if start >= end {
            return &mut [];
        }
        // SAFETY: the compiler's own bytes, which live as long as the program. Others add to them
        // meanwhile; a count that is lost costs an input that is not kept.
        unsafe { std::slice::from_raw_parts_mut(start as *mut u8, end - start) }
    }

    /// Counts from zero.
    pub fn begin() {
        Self::counters().fill(0);
    }

    /// Whether anything was reached that was not before, or ten times as often.
    pub fn learns(&mut self) -> bool {
        let counters = Self::counters();
        self.seen.resize(counters.len(), 0);
        let mut is_new = false;
        let words = counters.chunks(8).zip(self.seen.chunks_mut(8));
        for (counts, seen) in words.filter(|(counts, _)| counts.iter().any(|&count| count > 0)) {
            for (&count, seen) in counts.iter().zip(seen).filter(|(count, _)| **count > 0) {
                let magnitude = match count {
                    1 => 1,
                    2..=9 => 2,
                    10..=99 => 4,
                    _ => 8,
                };
                self.reached += usize::from(*seen == 0);
                is_new |= *seen & magnitude == 0;
                *seen |= magnitude;
            }
        }
        is_new
    }
}
