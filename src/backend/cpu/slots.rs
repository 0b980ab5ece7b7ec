//! Resident adapters, and which rows of a step carry which.

use std::sync::Arc;

use crate::backend::Rows;
use crate::delta::{Delta, SiteDelta};
use crate::ids::{SiteId, Slot};
use crate::recipe::{Part, Recipe, Weight};

/// Adapters addressed by slot. They stay where they were loaded; a slot shares them.
#[derive(Debug)]
pub struct Slots {
    slots: Vec<Option<Arc<Delta>>>,
}

impl Slots {
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
}

/// One step: its rows, and those that carry the same together.
#[derive(Debug)]
pub struct Step<'a> {
    pub(super) rows: &'a Rows,
    /// Of all rows.
    pub(super) groups: Vec<Group<'a>>,
    /// Of [`Rows::logit_rows`], numbered by their place in it.
    pub(super) logit_groups: Vec<Group<'a>>,
}

/// Rows that carry the same adapters; rows of the bare base belong to no group.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// Ascending.
    rows: Vec<usize>,
    parts: Vec<(&'a Delta, Weight)>,
}

impl<'a> Step<'a> {
    pub(super) fn new(rows: &'a Rows, slots: &'a Slots) -> Self {
        let groups = groups(rows, slots, 0..rows.len());
        let logit_rows = rows.logit_rows.iter().map(|&row| row as usize);
        let logit_groups = self::groups(rows, slots, logit_rows);
        Self { rows, groups, logit_groups }
    }
}

fn groups<'a>(
    rows: &Rows,
    slots: &'a Slots,
    wanted: impl Iterator<Item = usize>,
) -> Vec<Group<'a>> {
    let mut by_recipe = vec![Vec::new(); rows.recipes().len()];
    wanted.enumerate().for_each(|(place, row)| by_recipe[rows.carried(row)].push(place));
    let groups = rows.recipes().iter().zip(by_recipe);
    let groups = groups.filter(|(recipe, rows)| !recipe.is_base() && !rows.is_empty());
    let group = |(recipe, rows): (&Recipe<Slot>, Vec<usize>)| {
        let part = |part: &Part<Slot>| (slots.delta(part.adapter), part.weight);
        Group { rows, parts: recipe.parts().iter().map(part).collect() }
    };
    groups.map(group).collect()
}

/// What the adapters of one group do to its rows at one site.
pub(super) struct Change<'a> {
    /// Ascending.
    pub rows: &'a [usize],
    /// Those that do something there.
    pub parts: Vec<PartChange<'a>>,
    /// Whether the rows carry one adapter as it is: then the canonical form is computed in place.
    pub alone: bool,
}

/// What one adapter does at one site.
#[derive(Clone, Copy)]
pub(super) struct PartChange<'a> {
    pub delta: &'a Delta,
    pub site: &'a SiteDelta,
    pub weight: f32,
}

/// What each group's adapters do at `site`; groups that it leaves as they are are left out.
pub(super) fn changes<'a>(groups: &'a [Group<'a>], site: SiteId) -> Vec<Change<'a>> {
    let change = |group: &'a Group<'a>| {
        let part = |&(delta, weight): &(&'a Delta, Weight)| {
            Some(PartChange { delta, site: delta.site(site)?, weight: weight.get() })
        };
        let parts: Vec<_> = group.parts.iter().filter_map(part).collect();
        let alone = matches!(group.parts[..], [(_, Weight::ONE)]);
        (!parts.is_empty()).then_some(Change { rows: &group.rows, parts, alone })
    };
    groups.iter().filter_map(change).collect()
}

impl<'a> Change<'a> {
    /// The weight that stands in for the base's in rows of one adapter.
    pub fn own_weight(&self) -> Option<&'a crate::dtype::Values> {
        self.parts.first().filter(|_| self.alone).and_then(|part| part.site.weight.as_ref())
    }
}

/// For each of `n` rows, its change, if any.
pub(super) fn by_row<'a, 'c>(changes: &'c [Change<'a>], n: usize) -> Vec<Option<&'c Change<'a>>> {
    let mut table = vec![None; n];
    for change in changes {
        change.rows.iter().for_each(|&row| table[row] = Some(change));
    }
    table
}

/// `y ← y + Σ w · (own − y)` over the parts in every row of `ys`, where `change(i, part, ys)` turns
/// copies of the rows into what part i alone makes of them.
pub(super) fn mix(
    parts: &[PartChange<'_>],
    ys: &mut [&mut [f32]],
    mut change: impl FnMut(usize, &PartChange<'_>, &mut [&mut [f32]]),
) {
    let base: Vec<Vec<f32>> = ys.iter().map(|y| y.to_vec()).collect();
    for (i, part) in parts.iter().enumerate() {
        let mut own = base.clone();
        let mut rows: Vec<&mut [f32]> = own.iter_mut().map(Vec::as_mut_slice).collect();
        change(i, part, &mut rows);
        for ((y, own), base) in ys.iter_mut().zip(&own).zip(&base) {
            for ((y, own), base) in y.iter_mut().zip(own).zip(base) {
                *y += part.weight * (own - base);
            }
        }
    }
}
