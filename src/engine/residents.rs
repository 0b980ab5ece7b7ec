//! Adapters on the device: put there when their first sequence is to run, moved out when others
//! need the room.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Stats;
use crate::adapter::{Adapter, Pinned, Residency};
use crate::backend::{Backend, SlotError};
use crate::ids::{Digest, Slot};
use crate::recipe::Recipe;

/// Of adapters that one row is to carry.
const DO_NOT_FIT: &str = "the adapters of this request do not fit the device together; raise \
                          --adapter-slots or --adapter-gpu-bytes, or name fewer";

/// The device's slots and what is in them.
pub struct Residents<B: Backend> {
    residency: Residency,
    /// What steps apply.
    pub slots: B::Slots,
}

impl<B: Backend> Residents<B> {
    /// `slots` empty slots.
    pub fn new(backend: &B, slots: usize) -> Self {
        Self { residency: Residency::new(slots), slots: backend.slots(slots) }
    }

    /// Whether rows of `recipe` may run now. `pinned` are the sequence's slots: all are pinned when
    /// all its adapters have one, though their contents may still be under way.
    ///
    /// # Errors
    /// When they never will be there; nothing is pinned then.
    pub fn place(
        &mut self,
        backend: &B,
        recipe: &Recipe<Arc<Adapter>>,
        pinned: &mut Vec<Slot>,
        stats: &Stats,
    ) -> Result<bool, String> {
        if pinned.is_empty() {
            match self.pin_all(backend, recipe, stats)? {
                Some(slots) => *pinned = slots,
                None => return Ok(false),
            }
        }
        let mut all_ready = true;
        for (i, &slot) in pinned.iter().enumerate() {
            match backend.slot_ready(&self.slots, slot) {
                Ok(ready) => all_ready &= ready,
                Err(error) => {
                    let others = pinned.iter().enumerate().filter(|(other, _)| *other != i);
                    others.for_each(|(_, slot)| self.residency.unpin(*slot));
                    self.residency.abandon(slot);
                    pinned.clear();
                    return Err(error.to_string());
                }
            }
        }
        Ok(all_ready)
    }

    /// All or none: sequences that each hold a part of what they need could wait for one another.
    fn pin_all(
        &mut self,
        backend: &B,
        recipe: &Recipe<Arc<Adapter>>,
        stats: &Stats,
    ) -> Result<Option<Vec<Slot>>, String> {
        let mut taken = Vec::new();
        for part in recipe.parts() {
            match self.pin(backend, &part.adapter, stats) {
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
        adapter: &Adapter,
        stats: &Stats,
    ) -> Result<Option<Slot>, String> {
        let (slot, evicts) = match self.residency.pin(adapter.digest) {
            None => return Ok(None),
            Some(Pinned::Resident(slot)) => return Ok(Some(slot)),
            Some(Pinned::Write { slot, evicts }) => (slot, evicts),
        };
        stats.adapter_evictions_total.fetch_add(evicts.into(), Ordering::Relaxed);
        match self.write(backend, adapter, slot, stats) {
            Ok(()) => Ok(Some(slot)),
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
                    stats.adapter_evictions_total.fetch_add(1, Ordering::Relaxed);
                    backend.clear_slot(&mut self.slots, evicted);
                }
                Err(refused) => return Err(refused),
            }
        }
    }

    /// Gives back a sequence's pin.
    pub fn unpin(&mut self, slot: Slot) {
        self.residency.unpin(slot);
    }

    /// Frees the slot of an adapter that nobody can ask for any more, unless it is in use.
    pub fn forget(&mut self, backend: &B, digest: Digest) {
        if let Some(slot) = self.residency.forget(digest) {
            backend.clear_slot(&mut self.slots, slot);
        }
    }

    /// Adapters in slots.
    pub fn resident(&self) -> usize {
        self.residency.resident()
    }
}
