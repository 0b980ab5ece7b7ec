//! Places for clients that watch the batch, so that no key takes all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A key may have this part of all places.
const KEYS_SHARE: usize = 4;

/// Who watches, by the key's name; without keys, by none.
pub(super) struct Watchers {
    max: usize,
    counts: Mutex<HashMap<Option<String>, usize>>,
}

impl Watchers {
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, counts: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<Option<String>, usize>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place, until it is dropped.
    ///
    /// # Errors
    /// The limit that is reached: of all, or of this key.
    pub fn take(self: &Arc<Self>, key: Option<&str>) -> Result<WatcherPlace, usize> {
        let mut counts = self.counts();
        let of_key_max = if key.is_some() { self.max.div_ceil(KEYS_SHARE) } else { self.max };
        if counts.values().sum::<usize>() >= self.max {
            return Err(self.max);
        }
        let key = key.map(str::to_owned);
        let count = counts.entry(key.clone()).or_default();
        if *count >= of_key_max {
            return Err(of_key_max);
        }
        *count += 1;
        drop(counts);
        Ok(WatcherPlace { watchers: self.clone(), key })
    }
}

/// The place of one who watches.
pub(super) struct WatcherPlace {
    watchers: Arc<Watchers>,
    key: Option<String>,
}

impl Drop for WatcherPlace {
    fn drop(&mut self) {
        let mut counts = self.watchers.counts();
        if let Some(count) = counts.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Watchers;

    #[test]
    fn a_key_leaves_places_to_others_and_gives_its_own_back() {
        let watchers = Watchers::new(8);
        let a: Vec<_> = (0..2).map(|_| watchers.take(Some("a")).ok().unwrap()).collect();
        assert_eq!(watchers.take(Some("a")).err(), Some(2), "a quarter of them");
        let others: Vec<_> = (0..6).map(|_| watchers.take(None).ok().unwrap()).collect();
        assert_eq!(watchers.take(Some("b")).err(), Some(8), "all are taken");
        drop(a);
        assert!(watchers.take(Some("b")).is_ok());
        drop(others);
        assert!(watchers.counts().is_empty());
    }
}
