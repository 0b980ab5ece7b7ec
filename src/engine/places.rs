//! Adapters on the device: put there when their first sequence is to run, moved out when others
//! need the room.

use std::sync::atomic::Ordering;

use super::Stats;
use crate::adapter::{Adapter, Pinned, Residency};
use crate::backend::{Backend, SlotError};
use crate::ids::{Digest, Slot};

/// The device's slots and what is in them.
pub struct Places<B: Backend> {
    residency: Residency,
    /// What steps apply.
    pub pool: B::Pool,
}

impl<B: Backend> Places<B> {
    /// `slots` empty places.
    pub fn new(backend: &B, slots: usize) -> Self {
        Self { residency: Residency::new(slots), pool: backend.pool(slots) }
    }

    /// Whether rows of `adapter` may run now. `pinned` is the sequence's slot: it is pinned when
    /// the adapter has one, though its content may still be under way.
    ///
    /// # Errors
    /// When it never will be there; nothing is pinned then.
    pub fn place(
        &mut self,
        backend: &B,
        adapter: &Adapter,
        pinned: &mut Option<Slot>,
        stats: &Stats,
    ) -> Result<bool, String> {
        let slot = match *pinned {
            Some(slot) => slot,
            None => match self.residency.pin(adapter.digest) {
                None => return Ok(false),
                Some(Pinned::Resident(slot)) => slot,
                Some(Pinned::Write { slot, evicts }) => {
                    stats.adapter_evictions_total.fetch_add(evicts.into(), Ordering::Relaxed);
                    match self.write(backend, adapter, slot, stats) {
                        Ok(()) => slot,
                        Err(error) => {
                            self.residency.abandon(slot);
                            return match error {
                                SlotError::Full { .. } => Ok(false),
                                SlotError::Refused(text) => Err(text),
                            };
                        }
                    }
                }
            },
        };
        match backend.slot_ready(&self.pool, slot) {
            Ok(ready) => {
                *pinned = Some(slot);
                Ok(ready)
            }
            Err(error) => {
                *pinned = None;
                self.residency.abandon(slot);
                Err(error.to_string())
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
            match backend.write_slot(&mut self.pool, slot, adapter.delta.clone()) {
                Ok(()) => {
                    stats.adapter_loads_total.fetch_add(1, Ordering::Relaxed);
                    return Ok(());
                }
                Err(SlotError::Full { needed }) => {
                    let Some(evicted) = self.residency.evict() else {
                        return Err(SlotError::Full { needed });
                    };
                    stats.adapter_evictions_total.fetch_add(1, Ordering::Relaxed);
                    backend.clear_slot(&mut self.pool, evicted);
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
            backend.clear_slot(&mut self.pool, slot);
        }
    }

    /// Adapters in slots.
    pub fn resident(&self) -> usize {
        self.residency.resident()
    }
}
