//! Room for bodies in memory: all of them together have so much, and small ones have a part of it
//! that no number of large ones takes.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ServerError;

/// A body of up to this is small: nearly every chat is, and none of them waits for a slow upload.
pub(super) const SMALL_BODY_BYTES: usize = 64 << 10;
/// A part of the room, one in so many, is for small bodies alone.
const SMALL_BODIES_PART: usize = 4;

/// The room that is left.
pub(super) struct Bodies {
    bytes_max: usize,
    small_kib: Arc<Semaphore>,
    all_kib: Arc<Semaphore>,
}

impl Bodies {
    /// `bytes_max` for all bodies together.
    pub fn new(bytes_max: usize) -> Self {
        let kib = bytes_max.div_ceil(1024);
        let small = kib / SMALL_BODIES_PART;
        let room = |kib: usize| Arc::new(Semaphore::new(kib.min(Semaphore::MAX_PERMITS)));
        Self { bytes_max, small_kib: room(small), all_kib: room(kib - small) }
    }
}

/// A body's share of the room, given back when it is dropped.
#[derive(Default)]
pub(super) struct Share {
    held: Option<OwnedSemaphorePermit>,
    /// It is of the room that only small bodies have.
    is_small: bool,
}

impl Share {
    /// Makes it one for `bytes`, which are no fewer than before. A body that is small no longer
    /// leaves the room for small ones.
    ///
    /// # Errors
    /// [`ServerError::BodiesFull`]; it stays as it was.
    pub fn cover(&mut self, room: &Bodies, bytes: usize) -> Result<(), ServerError> {
        let need = bytes.div_ceil(1024);
        let have = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        if need <= have {
            return Ok(());
        }
        let may_be_small = bytes <= SMALL_BODY_BYTES && (have == 0 || self.is_small);
        if may_be_small && let Some(more) = take(&room.small_kib, need - have) {
            self.is_small = true;
            self.add(more);
            return Ok(());
        }
        let missing = if self.is_small { need } else { need - have };
        let more = take(&room.all_kib, missing);
        let more = more.ok_or(ServerError::BodiesFull { bodies_bytes_max: room.bytes_max })?;
        if self.is_small {
            *self = Self::default();
        }
        self.add(more);
        Ok(())
    }

    fn add(&mut self, more: OwnedSemaphorePermit) {
        match &mut self.held {
            Some(held) => held.merge(more),
            None => self.held = Some(more),
        }
    }
}

fn take(room: &Arc<Semaphore>, kib: usize) -> Option<OwnedSemaphorePermit> {
    room.clone().try_acquire_many_owned(u32::try_from(kib).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn left(room: &Bodies) -> (usize, usize) {
        (room.small_kib.available_permits(), room.all_kib.available_permits())
    }

    #[test]
    fn a_body_that_grows_leaves_the_room_for_small_ones() {
        let room = Bodies::new(1 << 20);
        assert_eq!(left(&room), (256, 768));
        let mut share = Share::default();
        share.cover(&room, 1).unwrap();
        share.cover(&room, 1024).unwrap();
        assert_eq!(left(&room), (255, 768));
        share.cover(&room, SMALL_BODY_BYTES).unwrap();
        assert_eq!(left(&room), (192, 768));
        share.cover(&room, SMALL_BODY_BYTES + 1).unwrap();
        assert_eq!(left(&room), (256, 703));
        share.cover(&room, 768 << 10).unwrap();
        assert_eq!(left(&room), (256, 0));
        assert!(share.cover(&room, (768 << 10) + 1).is_err());
        assert_eq!(left(&room), (256, 0));
        drop(share);
        assert_eq!(left(&room), (256, 768));
    }

    #[test]
    fn small_bodies_have_room_beside_large_ones_and_all_room_without_them() {
        let room = Bodies::new(1 << 20);
        let mut large = Share::default();
        large.cover(&room, 768 << 10).unwrap();
        let share = || {
            let mut share = Share::default();
            share.cover(&room, SMALL_BODY_BYTES).map(|()| share)
        };
        let small: Vec<Share> = (0..4).map(|_| share().unwrap()).collect();
        assert!(share().is_err());
        drop(large);
        let more: Vec<Share> = (0..12).map(|_| share().unwrap()).collect();
        assert!(share().is_err());
        drop((small, more));
        assert_eq!(left(&room), (256, 768));
    }
}
