//! Names as they stand on the page: at most so many at a time, and numbers in their place where
//! they are hidden.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// In place of names for which there is no room.
pub use crate::adapter::OTHERS;

/// A label, and what is counted under it.
pub struct Place<T> {
    pub label: String,
    pub counts: T,
}

/// Name → place. At most `max` names have places of their own. A name that is gone gives its place
/// up once nobody holds it, and begins at zero if it comes again, which Prometheus takes for a
/// restart. What has been counted under [`OTHERS`] stays there.
pub struct Labels<T> {
    /// What a name is numbered after, if names are hidden.
    hidden_as: Option<&'static str>,
    max: usize,
    known: Mutex<Known<T>>,
}

struct Known<T> {
    named: BTreeMap<String, Arc<Place<T>>>,
    others: Option<Arc<Place<T>>>,
    /// Numbers given out. None is given out twice: the second name would go on with the counts of
    /// the first.
    numbers: u64,
}

impl<T> Labels<T> {
    pub fn new(max: usize, hidden_as: Option<&'static str>) -> Self {
        let known = Known { named: BTreeMap::new(), others: None, numbers: 0 };
        Self { hidden_as, max, known: Mutex::new(known) }
    }

    fn lock(&self) -> MutexGuard<'_, Known<T>> {
        // Whatever happened while it was held, each place is whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The label of a name that has one already.
    pub fn known(&self, name: &str) -> String {
        self.lock().named.get(name).map_or(OTHERS, |place| &place.label).to_owned()
    }

    /// The place of a name, or that of all others where there is no room. `stays` says whether a
    /// name is still there.
    pub fn of(
        &self,
        name: &str,
        new: impl FnOnce() -> T,
        stays: impl Fn(&str, &T) -> bool,
    ) -> Arc<Place<T>> {
        let mut known = self.lock();
        if let Some(place) = known.named.get(name) {
            return place.clone();
        }
        if known.named.len() >= self.max {
            known.give_up(stays);
        }
        if known.named.len() >= self.max {
            let others = || Arc::new(Place { label: OTHERS.to_owned(), counts: new() });
            return known.others.get_or_insert_with(others).clone();
        }
        known.numbers += 1;
        let label = match self.hidden_as {
            None => name.to_owned(),
            Some(what) => format!("{what}_{}", known.numbers),
        };
        let place = Arc::new(Place { label, counts: new() });
        known.named.insert(name.to_owned(), place.clone());
        place
    }

    /// All places by their labels, without those of names that are gone.
    pub fn all(&self, stays: impl Fn(&str, &T) -> bool) -> Vec<Arc<Place<T>>> {
        let mut known = self.lock();
        known.give_up(stays);
        let mut all: Vec<_> = known.named.values().chain(&known.others).cloned().collect();
        drop(known);
        all.sort_by(|a, b| a.label.cmp(&b.label));
        all
    }
}

impl<T> Known<T> {
    fn give_up(&mut self, stays: impl Fn(&str, &T) -> bool) {
        self.named.retain(|name, place| Arc::strong_count(place) > 1 || stays(name, &place.counts));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_name_that_is_gone_makes_room_once_nobody_holds_its_place() {
        let labels = Labels::new(2, None);
        let there = Mutex::new(BTreeSet::from(["a", "b", "c"]));
        let stays = |name: &str, (): &()| there.lock().unwrap().contains(name);
        let of = |name: &str| labels.of(name, || (), stays).label.clone();
        let all = || labels.all(stays).iter().map(|place| place.label.clone()).collect::<Vec<_>>();
        assert_eq!([of("a"), of("b"), of("c"), of("a")], ["a", "b", "other", "a"]);
        assert_eq!(all(), ["a", "b", "other"]);
        there.lock().unwrap().remove("a");
        let held = labels.of("a", || (), stays);
        assert_eq!(of("c"), "other", "something of it runs");
        drop(held);
        assert_eq!((labels.known("a").as_str(), of("c")), ("a", "c".to_owned()));
        assert_eq!((labels.known("a").as_str(), all().join(" ")), ("other", "b c other".into()));
    }

    #[test]
    fn a_number_that_stood_for_a_name_stands_for_no_other() {
        let labels = Labels::new(1, Some("adapter"));
        let of = |name: &str| labels.of(name, || (), |_, ()| false).label.clone();
        assert_eq!(
            [of("a"), of("a"), of("b"), of("a")],
            ["adapter_1", "adapter_1", "adapter_2", "adapter_3"]
        );
    }
}
