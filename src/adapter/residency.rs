//! Which adapter is in which device slot. A slot is pinned while a sequence runs on it; the least
//! recently used unpinned slot makes room.

use std::collections::HashMap;

use crate::ids::{Digest, Slot};

/// Slots by content. Holds no tensors: the engine moves them.
#[derive(Debug)]
pub struct Residency {
    slots: Vec<Place>,
    by_digest: HashMap<Digest, Slot>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Place {
    digest: Option<Digest>,
    pins: usize,
    used: u64,
}

/// Where an adapter is, and whether the engine has to put it there first.
#[derive(Debug, PartialEq)]
pub enum Pinned {
    /// It was there.
    Resident(Slot),
    /// The slot is now its own; its content must be written before the next step.
    Write(Slot),
}

impl Residency {
    /// `slots` empty places.
    pub fn new(slots: usize) -> Self {
        let slots = (0..slots).map(|_| Place::default()).collect();
        Self { slots, by_digest: HashMap::new(), clock: 0 }
    }

    /// Pins the adapter in a slot; `None` while every slot is pinned by others.
    pub fn pin(&mut self, digest: Digest) -> Option<Pinned> {
        self.clock += 1;
        if let Some(&slot) = self.by_digest.get(&digest) {
            let place = &mut self.slots[slot.0 as usize];
            place.pins += 1;
            place.used = self.clock;
            return Some(Pinned::Resident(slot));
        }
        let free = self.slots.iter().enumerate().filter(|(_, place)| place.pins == 0);
        let (index, _) = free.min_by_key(|(_, place)| (place.digest.is_some(), place.used))?;
        let place = &mut self.slots[index];
        if let Some(evicted) = place.digest.replace(digest) {
            self.by_digest.remove(&evicted);
        }
        place.pins = 1;
        place.used = self.clock;
        let slot = Slot(index as u32);
        self.by_digest.insert(digest, slot);
        Some(Pinned::Write(slot))
    }

    /// Gives back one pin of [`Residency::pin`].
    pub fn unpin(&mut self, slot: Slot) {
        let place = &mut self.slots[slot.0 as usize];
        assert!(place.pins > 0, "This is a bug: slot {} unpinned twice.", slot.0);
        place.pins -= 1;
    }

    /// Gives up the slot of an adapter that nobody can ask for any more. Returns the slot if it is
    /// free now and its content can go; a pinned one stays.
    pub fn forget(&mut self, digest: Digest) -> Option<Slot> {
        let slot = *self.by_digest.get(&digest)?;
        let place = &mut self.slots[slot.0 as usize];
        if place.pins > 0 {
            return None;
        }
        place.digest = None;
        self.by_digest.remove(&digest);
        Some(slot)
    }

    /// Adapters in slots.
    pub fn resident(&self) -> usize {
        self.by_digest.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(n: u8) -> Digest {
        Digest([n; 32])
    }

    #[test]
    fn pinned_slots_are_never_taken_and_the_oldest_unpinned_goes_first() {
        let mut residency = Residency::new(2);
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Write(Slot(0))));
        assert_eq!(residency.pin(digest(2)), Some(Pinned::Write(Slot(1))));
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Resident(Slot(0))));
        assert_eq!(residency.pin(digest(3)), None);
        residency.unpin(Slot(0));
        assert_eq!(residency.pin(digest(3)), None, "one pin of adapter 1 is left");
        residency.unpin(Slot(1));
        residency.unpin(Slot(0));
        // Adapter 2 was used before the second use of adapter 1.
        assert_eq!(residency.pin(digest(3)), Some(Pinned::Write(Slot(1))));
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Resident(Slot(0))));
        assert_eq!(residency.resident(), 2);
    }

    #[test]
    fn a_forgotten_adapter_leaves_its_slot_once_nothing_runs_on_it() {
        let mut residency = Residency::new(1);
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Write(Slot(0))));
        assert_eq!(residency.forget(digest(1)), None, "it is pinned");
        residency.unpin(Slot(0));
        assert_eq!(residency.forget(digest(1)), Some(Slot(0)));
        assert_eq!((residency.forget(digest(1)), residency.resident()), (None, 0));
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Write(Slot(0))), "written again");
    }
}
