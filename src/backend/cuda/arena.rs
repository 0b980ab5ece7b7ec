//! A free list over memory that was taken at start: first fit, neighbours joined.
//!
//! One step's tensors come and go in the same order whenever its ops are the same, and a place is
//! the lowest that fits: so equal steps use equal addresses, which a recorded graph relies on.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::args::Address;

/// Every place starts at a multiple of this: what cuBLASLt and 16-byte loads like best.
pub(super) const ALIGNMENT_BYTES: u64 = 256;

/// The free list of `0 .. capacity`.
#[derive(Debug)]
pub(super) struct Extents {
    capacity: u64,
    /// `(start, end)`, ascending, none touching the next.
    free: Vec<(u64, u64)>,
    /// The highest end ever taken.
    peak: u64,
}

impl Extents {
    pub(super) fn new(capacity: u64) -> Self {
        Self { capacity, free: vec![(0, capacity)], peak: 0 }
    }

    /// The lowest place of `bytes`, rounded up to the alignment.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(1).next_multiple_of(ALIGNMENT_BYTES);
        let index = self.free.iter().position(|(start, end)| end - start >= bytes)?;
        let (start, end) = self.free[index];
        if end - start == bytes {
            self.free.remove(index);
        } else {
            self.free[index].0 += bytes;
        }
        self.peak = self.peak.max(start + bytes);
        Some(start)
    }

    /// Gives back a place of [`Extents::take`], which was given the same `bytes`.
    pub(super) fn give(&mut self, start: u64, bytes: u64) {
        let end = start + bytes.max(1).next_multiple_of(ALIGNMENT_BYTES);
        let index = self.free.partition_point(|&(other, _)| other < start);
        let clear = (index == 0 || self.free[index - 1].1 <= start)
            && self.free.get(index).is_none_or(|&(next, _)| end <= next)
            && end <= self.capacity;
        assert!(clear, "This is a bug: a place in device memory was given back twice.");
        self.free.insert(index, (start, end));
        if self.free.get(index + 1).is_some_and(|&(next, _)| next == end) {
            self.free[index].1 = self.free.remove(index + 1).1;
        }
        if index > 0 && self.free[index - 1].1 == start {
            self.free[index - 1].1 = self.free.remove(index).1;
        }
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak
    }
}

/// An arena: the memory of one step's tensors, behind a free list.
#[derive(Clone, Debug)]
pub(super) struct Arena(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    base: Address,
    extents: Extents,
}

impl Arena {
    /// Of unlimited size and without memory: it tells how much a step takes.
    pub(super) fn measuring() -> Self {
        Self::at(0, 1 << 62)
    }

    /// The memory of `bytes` at `base`.
    pub(super) fn at(base: Address, bytes: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner { base, extents: Extents::new(bytes) })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` when the step is wider than any that was measured.
    pub(super) fn take(&self, bytes: u64) -> Option<Block> {
        let mut inner = self.inner();
        let start = inner.extents.take(bytes)?;
        Some(Block { arena: self.clone(), address: inner.base + start, start, bytes })
    }

    /// The most bytes that were taken at once.
    pub(super) fn peak(&self) -> u64 {
        self.inner().extents.peak()
    }
}

/// A tensor's place, given back on drop: what follows runs on the same stream, thus later, or on
/// the side after a fork from it. What the side uses is kept until the join.
#[derive(Debug)]
pub(super) struct Block {
    arena: Arena,
    pub(super) address: Address,
    start: u64,
    bytes: u64,
}

impl Drop for Block {
    fn drop(&mut self) {
        self.arena.inner().extents.give(self.start, self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_the_lowest_that_fit_and_come_back_whole() {
        let mut extents = Extents::new(1024);
        assert_eq!(
            (extents.take(1), extents.take(257), extents.take(256)),
            (Some(0), Some(256), Some(768))
        );
        assert_eq!(extents.take(1), None);
        extents.give(256, 257);
        assert_eq!((extents.take(512), extents.take(1)), (Some(256), None));
        extents.give(0, 1);
        extents.give(768, 256);
        extents.give(256, 512);
        assert_eq!((extents.take(1024), extents.peak()), (Some(0), 1024));
    }

    #[test]
    fn equal_steps_use_equal_addresses() {
        let arena = Arena::at(4096, 1 << 20);
        let step = || {
            let a = arena.take(1000).unwrap();
            let b = arena.take(5000).unwrap();
            drop(a);
            let c = arena.take(300).unwrap();
            [b.address, c.address]
        };
        assert_eq!(step(), step());
        assert_eq!(arena.peak(), 1024 + 5120);
    }
}
