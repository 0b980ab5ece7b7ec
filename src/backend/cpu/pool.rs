//! Resident adapters, and which rows of a step use which.

use std::sync::Arc;

use crate::backend::Rows;
use crate::delta::{Delta, SiteDelta};
use crate::dtype::Values;
use crate::ids::{SiteId, Slot};

/// Adapters addressed by slot. They stay where they were loaded; a slot shares them.
#[derive(Debug)]
pub struct Pool {
    slots: Vec<Option<Arc<Delta>>>,
}

impl Pool {
    pub(super) fn new(slots: usize) -> Self {
        Self { slots: vec![None; slots] }
    }

    pub(super) fn set(&mut self, slot: Slot, delta: Option<Arc<Delta>>) {
        self.slots[slot.0 as usize] = delta;
    }

    fn delta(&self, slot: Slot) -> &Delta {
        let delta = self.slots.get(slot.0 as usize).and_then(Option::as_ref);
        // Serving the base in its place would be silently wrong.
        delta
            .unwrap_or_else(|| panic!("This is a bug: a row uses slot {}, which is empty.", slot.0))
    }

    /// What the adapters of `segments` do at `site`; those that do nothing there are left out.
    pub(super) fn changes<'a>(&'a self, segments: &'a [Segment], site: SiteId) -> Vec<Change<'a>> {
        let change = |segment: &'a Segment| {
            let delta = self.delta(segment.slot);
            let change = delta.site(site)?;
            Some(Change { rows: &segment.rows, site: change, pool: &delta.pool })
        };
        segments.iter().filter_map(change).collect()
    }
}

/// The rows of one adapter.
#[derive(Clone, Debug)]
pub(super) struct Segment {
    slot: Slot,
    /// Ascending.
    rows: Vec<usize>,
}

/// What one adapter does to its rows at one site.
#[derive(Clone, Copy)]
pub(super) struct Change<'a> {
    /// Ascending.
    pub rows: &'a [usize],
    pub site: &'a SiteDelta,
    /// What the site's factors gather from.
    pub pool: &'a Values,
}

/// For each of `n` rows, its change, if any.
pub(super) fn by_row<'a, 'c>(changes: &'c [Change<'a>], n: usize) -> Vec<Option<&'c Change<'a>>> {
    let mut table = vec![None; n];
    for change in changes {
        change.rows.iter().for_each(|&row| table[row] = Some(change));
    }
    table
}

/// One step's rows, sorted by adapter.
#[derive(Debug)]
pub struct Batch {
    pub(super) rows: Rows,
    /// Of all rows.
    pub(super) segments: Vec<Segment>,
    /// Of [`Rows::logit_rows`], numbered by their place in it.
    pub(super) logit_segments: Vec<Segment>,
}

impl Batch {
    pub(super) fn new(rows: Rows) -> Self {
        let all = segments(rows.slots.iter().copied());
        let slot = |&row: &u32| rows.slots[row as usize];
        let logit_segments = segments(rows.logit_rows.iter().map(slot));
        Self { rows, segments: all, logit_segments }
    }
}

/// Rows of the base belong to no segment: nothing is added to them.
fn segments(slots: impl Iterator<Item = Slot>) -> Vec<Segment> {
    let mut segments: Vec<Segment> = Vec::new();
    for (row, slot) in slots.enumerate().filter(|&(_, slot)| slot != Slot::BASE) {
        // The last one first: a prompt's rows come in a run.
        match segments.iter_mut().rev().find(|s| s.slot == slot) {
            Some(segment) => segment.rows.push(row),
            None => segments.push(Segment { slot, rows: vec![row] }),
        }
    }
    segments
}
