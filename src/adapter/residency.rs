//! Which adapter is in which device slot. A slot is pinned while a sequence runs on it; the least
//! recently used unpinned slot makes room.

use std::collections::HashMap;

use crate::ids::{Digest, Slot};

/// Slots by content. Holds no tensors: the engine moves them.
#[derive(Debug)]
pub struct Residency {
    slots: Vec<Held>,
    by_digest: HashMap<Digest, Slot>,
    clock: u64,
}

#[derive(Debug, Default)]
struct Held {
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
    Write {
        /// Where.
        slot: Slot,
        /// Whether another adapter was there.
        evicts: bool,
    },
}

impl Residency {
    /// `slots` empty places.
    pub fn new(slots: usize) -> Self {
        let slots = (0..slots).map(|_| Held::default()).collect();
        Self { slots, by_digest: HashMap::new(), clock: 0 }
    }

    /// Pins the adapter in a slot; `None` while every slot is pinned by others.
    pub fn pin(&mut self, digest: Digest) -> Option<Pinned> {
        self.clock += 1;
        if let Some(&slot) = self.by_digest.get(&digest) {
            let held = &mut self.slots[slot.0 as usize];
            held.pins += 1;
            held.used = self.clock;
            return Some(Pinned::Resident(slot));
        }
        let free = self.slots.iter().enumerate().filter(|(_, held)| held.pins == 0);
        let (index, _) = free.min_by_key(|(_, held)| (held.digest.is_some(), held.used))?;
        let held = &mut self.slots[index];
        let evicted = held.digest.replace(digest);
        if let Some(evicted) = evicted {
            self.by_digest.remove(&evicted);
        }
        held.pins = 1;
        held.used = self.clock;
        let slot = Slot(index as u32);
        self.by_digest.insert(digest, slot);
        Some(Pinned::Write { slot, evicts: evicted.is_some() })
    }

    /// Gives back one pin of [`Residency::pin`].
    pub fn unpin(&mut self, slot: Slot) {
        let held = &mut self.slots[slot.0 as usize];
        assert!(held.pins > 0, "This is a bug: slot {} unpinned twice.", slot.0);
        held.pins -= 1;
    }

    /// Gives back one pin of a slot whose content is not what it should be: the next
    /// [`Residency::pin`] of that adapter writes it again.
    pub fn abandon(&mut self, slot: Slot) {
        self.unpin(slot);
        if let Some(digest) = self.slots[slot.0 as usize].digest.take() {
            self.by_digest.remove(&digest);
        }
    }

    /// Takes the longest unused unpinned adapter out of its slot.
    pub fn evict(&mut self) -> Option<Slot> {
        let held = self.slots.iter().enumerate();
        let held = held.filter(|(_, held)| held.pins == 0 && held.digest.is_some());
        let (index, _) = held.min_by_key(|(_, held)| held.used)?;
        if let Some(digest) = self.slots[index].digest.take() {
            self.by_digest.remove(&digest);
        }
        Some(Slot(index as u32))
    }

    /// Gives up the slot of an adapter that nobody can ask for any more. Returns the slot if it is
    /// free now and its content can go; a pinned one stays.
    pub fn forget(&mut self, digest: Digest) -> Option<Slot> {
        let slot = *self.by_digest.get(&digest)?;
        let held = &mut self.slots[slot.0 as usize];
        if held.pins > 0 {
            return None;
        }
        held.digest = None;
        self.by_digest.remove(&digest);
        Some(slot)
    }

    /// Whether nothing runs on any slot.
    pub fn is_unpinned(&self) -> bool {
        self.slots.iter().all(|held| held.pins == 0)
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

    fn write(slot: u32, evicts: bool) -> Option<Pinned> {
        Some(Pinned::Write { slot: Slot(slot), evicts })
    }

    #[test]
    fn pinned_slots_are_never_taken_and_the_oldest_unpinned_goes_first() {
        let mut residency = Residency::new(2);
        assert_eq!(residency.pin(digest(1)), write(0, false));
        assert_eq!(residency.pin(digest(2)), write(1, false));
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Resident(Slot(0))));
        assert_eq!(residency.pin(digest(3)), None);
        residency.unpin(Slot(0));
        assert_eq!(residency.pin(digest(3)), None, "one pin of adapter 1 is left");
        residency.unpin(Slot(1));
        residency.unpin(Slot(0));
        // Adapter 2 was used before the second use of adapter 1.
        assert_eq!(residency.pin(digest(3)), write(1, true));
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Resident(Slot(0))));
        assert_eq!(residency.resident(), 2);
    }

    #[test]
    fn a_forgotten_adapter_leaves_its_slot_once_nothing_runs_on_it() {
        let mut residency = Residency::new(1);
        assert_eq!(residency.pin(digest(1)), write(0, false));
        assert_eq!(residency.forget(digest(1)), None, "it is pinned");
        residency.unpin(Slot(0));
        assert_eq!(residency.forget(digest(1)), Some(Slot(0)));
        assert_eq!((residency.forget(digest(1)), residency.resident()), (None, 0));
        assert_eq!(residency.pin(digest(1)), write(0, false), "written again");
    }

    #[test]
    fn an_abandoned_slot_is_written_again_and_eviction_spares_what_is_pinned() {
        let mut residency = Residency::new(2);
        assert_eq!(residency.pin(digest(1)), write(0, false));
        assert_eq!(residency.pin(digest(1)), Some(Pinned::Resident(Slot(0))));
        residency.abandon(Slot(0));
        assert_eq!(residency.pin(digest(1)), write(1, false), "one pin is left on the first slot");
        residency.abandon(Slot(0));
        assert_eq!(residency.pin(digest(2)), write(0, false));
        assert_eq!(residency.evict(), None);
        residency.unpin(Slot(1));
        residency.unpin(Slot(0));
        assert_eq!((residency.evict(), residency.evict()), (Some(Slot(1)), Some(Slot(0))));
        assert_eq!((residency.evict(), residency.resident()), (None, 0));
    }
}
