//! Names as they stand on the page: at most so many, and numbers in their place where they are
//! hidden.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// In place of names that came too late for lines of their own.
pub use crate::adapter::OTHERS;

/// Name → label. The first `max` names have labels of their own, for as long as the server runs: a
/// counter that changes its label is no counter.
pub struct Labels {
    /// What a name is numbered after, if names are hidden.
    hidden_as: Option<&'static str>,
    max: usize,
    known: Mutex<BTreeMap<String, String>>,
}

impl Labels {
    pub fn new(max: usize, hidden_as: Option<&'static str>) -> Self {
        Self { hidden_as, max, known: Mutex::default() }
    }

    /// The label of a name that has one already.
    pub fn known(&self, name: &str) -> String {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(name).map_or(OTHERS, String::as_str).to_owned()
    }

    pub fn of(&self, name: &str) -> String {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(label) = known.get(name) {
            return label.clone();
        }
        if known.len() >= self.max {
            return OTHERS.to_owned();
        }
        let label = match self.hidden_as {
            None => name.to_owned(),
            Some(what) => format!("{what}_{}", known.len() + 1),
        };
        known.insert(name.to_owned(), label.clone());
        label
    }
}
