//! Adapters on the device: put there when their first sequence is to run, moved out when others
//! need the room.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Stats;
use super::in_flight::InFlight;
use super::stats::Brought;
use crate::adapter::{Adapter, Pinned, Residency};
use crate::backend::{Backend, SlotError};
use crate::ids::{Digest, Slot};

/// Of adapters that one row is to carry.
const DO_NOT_FIT: &str = "the adapters of this request do not fit the device together; raise \
                          --adapter-slots or --adapter-gpu-bytes, or name fewer";

/// The device's slots and what is in them.
pub struct Residents<B: Backend> {
    residency: Residency,
    /// Who is told of what is in a slot, of those that count it.
    brought: BTreeMap<Slot, Brought>,
    /// What steps apply.
    pub slots: B::Slots,
}

impl<B: Backend> Residents<B> {
    /// `slots` empty slots.
    pub fn new(backend: &B, slots: usize) -> Self {
        let residency = Residency::new(slots);
        Self { residency, brought: BTreeMap::new(), slots: backend.slots(slots) }
    }

    /// Whether rows of `sequence` may run now. All its slots are pinned when all its adapters have
    /// one, though their contents may still be under way.
    ///
    /// # Errors
    /// When they never will be there; nothing is pinned then.
    pub fn place(
        &mut self,
        backend: &B,
        sequence: &mut InFlight,
        stats: &Stats,
    ) -> Result<bool, String> {
        if sequence.pinned.is_empty() {
            let begun = Instant::now();
            let loads = stats.adapter_loads_total.load(Ordering::Relaxed);
            let Some(slots) = self.pin_all(backend, sequence, stats)? else { return Ok(false) };
            sequence.pinned = slots;
            if stats.adapter_loads_total.load(Ordering::Relaxed) > loads {
                sequence.brings_since.get_or_insert(begun);
            }
        }
        let pinned = &mut sequence.pinned;
        let mut all_ready = true;
        for (i, &slot) in pinned.iter().enumerate() {
            match backend.slot_ready(&self.slots, slot) {
                Ok(ready) => all_ready &= ready,
                Err(error) => {
                    let others = pinned.iter().enumerate().filter(|(other, _)| *other != i);
                    others.for_each(|(_, slot)| self.residency.unpin(*slot));
                    self.residency.abandon(slot);
                    self.brought.remove(&slot);
                    pinned.clear();
                    return Err(error.to_string());
                }
            }
        }
        if all_ready && !pinned.is_empty() {
            sequence.placed();
        }
        Ok(all_ready)
    }

    /// All or none: sequences that each hold a part of what they need could wait for one another.
    fn pin_all(
        &mut self,
        backend: &B,
        sequence: &InFlight,
        stats: &Stats,
    ) -> Result<Option<Vec<Slot>>, String> {
        let mut taken = Vec::new();
        for part in sequence.recipe.parts() {
            match self.pin(backend, sequence, &part.adapter, stats) {
                Ok(Some(slot)) => taken.push(slot),
                Ok(None) => {
                    taken.into_iter().for_each(|slot| self.residency.unpin(slot));
                    // Others that leave would not help: there are none.
                    let never = self.residency.is_unpinned();
                    return if never { Err(DO_NOT_FIT.into()) } else { Ok(None) };
                }
                Err(text) => {
                    taken.into_iter().for_each(|slot| self.residency.unpin(slot));
                    return Err(text);
                }
            }
        }
        Ok(Some(taken))
    }

    /// A slot of the adapter's; `None` while there is no room.
    fn pin(
        &mut self,
        backend: &B,
        sequence: &InFlight,
        adapter: &Adapter,
        stats: &Stats,
    ) -> Result<Option<Slot>, String> {
        let (slot, evicts) = match self.residency.pin(adapter.digest) {
            None => return Ok(None),
            Some(Pinned::Resident(slot)) => return Ok(Some(slot)),
            Some(Pinned::Write { slot, evicts }) => (slot, evicts),
        };
        if evicts {
            self.evicted(slot, stats);
        }
        match self.write(backend, adapter, slot, stats) {
            Ok(()) => {
                if let Some(used) = &sequence.ticket.used {
                    let bytes = adapter.delta.bytes() as u64;
                    self.brought.insert(slot, Brought::new(used.clone(), bytes));
                }
                Ok(Some(slot))
            }
            Err(error) => {
                self.residency.abandon(slot);
                match error {
                    SlotError::Full { .. } => Ok(None),
                    SlotError::Refused(text) => Err(text),
                }
            }
        }
    }

    /// Others that nothing runs on leave, the longest unused first, until it fits.
    fn write(
        &mut self,
        backend: &B,
        adapter: &Adapter,
        slot: Slot,
        stats: &Stats,
    ) -> Result<(), SlotError> {
        loop {
            match backend.write_slot(&mut self.slots, slot, adapter.delta.clone()) {
                Ok(()) => {
                    stats.adapter_loads_total.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(SlotError::Full { needed }) => {
                    let Some(evicted) = self.residency.evict() else {
                        return Err(SlotError::Full { needed });
                    };
                    self.evicted(evicted, stats);
                    backend.clear_slot(&mut self.slots, evicted);
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    fn evicted(&mut self, slot: Slot, stats: &Stats) {
        stats.adapter_evictions_total.fetch_add(1, Ordering::Relaxed);
        if let Some(brought) = self.brought.remove(&slot) {
            brought.evicted();
        }
    }

    /// Gives back a sequence's pin.
    pub fn unpin(&mut self, slot: Slot) {
        self.residency.unpin(slot);
    }

    /// Frees the slot of an adapter that nobody can ask for any more, unless it is in use.
    pub fn forget(&mut self, backend: &B, digest: Digest) {
        if let Some(slot) = self.residency.forget(digest) {
            self.brought.remove(&slot);
            backend.clear_slot(&mut self.slots, slot);
        }
    }

    /// Adapters in slots.
    pub fn resident(&self) -> usize {
        self.residency.resident()
    }
}
