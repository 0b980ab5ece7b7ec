//! What each tenant has got, and within a tenant each adapter.
//!
//! Virtual time: a tenant's tokens count by the inverse of its weight, and whoever has got least
//! goes first. A token counts once, when it is computed for the first time: one of a prompt like
//! one that is drawn. Those that the prefix cache spares, and rows that run again after a
//! preemption, count for nobody. So while nothing new is computed no order changes, and the first
//! in order gets on.
//!
//! A flow is a tenant's sequences of the same adapters. Who was away, tenant or flow, comes back
//! where those are that have got least: it has saved nothing up. What it got beyond them is kept
//! until they have got as much, so that leaving and coming back gains nothing either.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::ids::Digest;
use crate::recipe::Recipe;
use crate::request::Share;

/// Flows that are remembered while nothing of them is there, and that have got more than others:
/// of more, the oldest are forgotten.
const IDLE_FLOWS_MAX: usize = 1024;

/// A tenant's sequences of the same adapters.
#[derive(Clone, Copy, Debug, Default, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct FlowId {
    pub(super) tenant: u64,
    pub(super) flow: u64,
}

/// Where a sequence stands within its flow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Turn {
    pub(super) priority: i32,
    /// Older sequences have smaller numbers.
    pub(super) arrival: u64,
}

/// Where a sequence is found, from its arrival to its end.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Place {
    pub(super) flow: FlowId,
    pub(super) turn: Turn,
}

/// Where a sequence stands among all others at the moment: by its tenant's priority, by what the
/// tenant has got, by its own priority, by what its flow has got, by arrival. Of equal ones those
/// that have been there longer go first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) struct Rank {
    pub(super) class: i64,
    pub(super) tenant_served: u128,
    pub(super) tenant: u64,
    pub(super) priority: i32,
    pub(super) flow_served: u64,
    pub(super) flow: u64,
    pub(super) arrival: u64,
}

impl Rank {
    pub(super) fn place(&self) -> Place {
        let flow = FlowId { tenant: self.tenant, flow: self.flow };
        Place { flow, turn: Turn { priority: self.priority, arrival: self.arrival } }
    }

    fn of_tenant(&self) -> (i64, u128, u64) {
        (self.class, self.tenant_served, self.tenant)
    }

    /// The last of a tenant's in a list by rank.
    pub(super) fn last_of_tenant(&self, ranks: &[Self]) -> Option<Self> {
        let end = ranks.partition_point(|rank| rank.of_tenant() <= self.of_tenant());
        ranks[..end].last().copied().filter(|last| last.tenant == self.tenant)
    }
}

#[derive(Debug)]
pub(super) struct Tenant {
    name: Digest,
    /// Tenants of a lower number go first.
    pub(super) class: i64,
    /// Of a token.
    pub(super) cost: u64,
    /// Tokens it has got, by their cost.
    pub(super) served: u128,
    /// The least that a flow of it has got of which there is something.
    floor: u64,
    /// Sequences that wait or run.
    live: usize,
    running: usize,
}

#[derive(Debug)]
pub(super) struct Flow {
    adapters: Option<Digest>,
    /// Tokens it has got.
    pub(super) served: u64,
    live: usize,
    running: usize,
    /// Those that wait.
    turns: BTreeSet<Turn>,
    /// The first of these, at hand for a look at all flows.
    pub(super) first: Option<Turn>,
    /// What [`Flows::starts`] was when it could not run though it was asked.
    held_up: Option<u64>,
}

/// Tenants and their flows, as long as there is something of them or something to remember.
#[derive(Debug, Default)]
pub(super) struct Flows {
    pub(super) tenants: BTreeMap<u64, Tenant>,
    names: BTreeMap<Digest, u64>,
    pub(super) flows: BTreeMap<FlowId, Flow>,
    by_adapters: BTreeMap<(u64, Option<Digest>), u64>,
    /// The least that a tenant has got of which there is something, by class.
    floors: BTreeMap<i64, u128>,
    /// Given out so far.
    ids: u64,
    /// Sequences that have started.
    starts: u64,
}

impl Flows {
    /// The flow of one more sequence.
    pub(super) fn enter(&mut self, share: &Share, recipe: &Recipe<Digest>) -> FlowId {
        let tenant = self.enter_tenant(share);
        let adapters = adapters(recipe);
        let ids = &mut self.ids;
        let flow = *self.by_adapters.entry((tenant, adapters)).or_insert_with(|| next(ids));
        let id = FlowId { tenant, flow };
        let flow = self.flows.entry(id).or_insert_with(|| Flow::new(adapters));
        if flow.live == 0 {
            let floor = self.tenants.get(&tenant).map_or(0, |tenant| tenant.floor);
            flow.served = flow.served.max(floor);
        }
        flow.live += 1;
        id
    }

    fn enter_tenant(&mut self, share: &Share) -> u64 {
        let Share { tenant: name, weight, priority: class } = *share;
        let ids = &mut self.ids;
        let id = *self.names.entry(name).or_insert_with(|| next(ids));
        let new = || Tenant { name, class, cost: 1, served: 0, floor: 0, live: 0, running: 0 };
        let tenant = self.tenants.entry(id).or_insert_with(new);
        let floor = self.floors.get(&class).copied().unwrap_or(0);
        if tenant.class != class {
            // What it got among others says nothing here.
            tenant.served = floor;
        } else if tenant.live == 0 {
            tenant.served = tenant.served.max(floor);
        }
        // As its latest request has them: keys are read again.
        (tenant.class, tenant.cost) = (class, weight.cost());
        tenant.live += 1;
        id
    }

    /// One sequence of a flow is gone.
    pub(super) fn leave(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.live -= 1;
        }
        let Some(tenant) = self.tenants.get_mut(&id.tenant) else { return };
        tenant.live -= 1;
        if tenant.live == 0 {
            tenant.floor = 0;
            let idle: Vec<FlowId> = self.of_tenant(id.tenant).map(|(id, _)| *id).collect();
            idle.into_iter().for_each(|id| self.forget(id));
        }
    }

    fn of_tenant(&self, tenant: u64) -> impl Iterator<Item = (&FlowId, &Flow)> {
        let [first, last] = [0, u64::MAX].map(|flow| FlowId { tenant, flow });
        self.flows.range(first..=last)
    }

    fn forget(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.remove(&id) {
            self.by_adapters.remove(&(id.tenant, flow.adapters));
        }
    }

    /// One sequence waits.
    pub(super) fn wait(&mut self, place: Place) {
        if let Some(flow) = self.flows.get_mut(&place.flow) {
            flow.turns.insert(place.turn);
            flow.first = flow.turns.first().copied();
        }
    }

    /// One sequence waits no more.
    pub(super) fn stop_waiting(&mut self, place: Place) {
        if let Some(flow) = self.flows.get_mut(&place.flow) {
            flow.turns.remove(&place.turn);
            flow.first = flow.turns.first().copied();
        }
    }

    /// One sequence that has waited runs.
    pub(super) fn start(&mut self, place: Place) {
        self.starts += 1;
        self.stop_waiting(place);
        if let Some(flow) = self.flows.get_mut(&place.flow) {
            (flow.running, flow.held_up) = (flow.running + 1, None);
        }
        if let Some(tenant) = self.tenants.get_mut(&place.flow.tenant) {
            tenant.running += 1;
        }
    }

    /// One sequence runs no more.
    pub(super) fn stop(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.running -= 1;
        }
        if let Some(tenant) = self.tenants.get_mut(&id.tenant) {
            tenant.running -= 1;
        }
    }

    /// Counts tokens that were computed for the first time.
    pub(super) fn serve(&mut self, id: FlowId, tokens: usize) {
        let tokens = tokens as u64;
        if let Some(flow) = self.flows.get_mut(&id) {
            flow.served += tokens;
        }
        if let Some(tenant) = self.tenants.get_mut(&id.tenant) {
            tenant.served += u128::from(tokens) * u128::from(tenant.cost);
        }
    }

    /// A flow cannot run though it was asked: how many sequences have started since that began.
    pub(super) fn hold_up(&mut self, id: FlowId) -> u64 {
        let starts = self.starts;
        let Some(flow) = self.flows.get_mut(&id) else { return 0 };
        starts - *flow.held_up.get_or_insert(starts)
    }

    /// The waiting sequence of the same flow after one that waits, or has.
    pub(super) fn after(&self, place: Place) -> Option<Turn> {
        let after = (Bound::Excluded(place.turn), Bound::Unbounded);
        self.flows.get(&place.flow)?.turns.range(after).next().copied()
    }

    /// Where sequences of a flow stand: `None` if there is none.
    pub(super) fn standing(&self, id: FlowId) -> Option<Rank> {
        let (tenant, flow) = (self.tenants.get(&id.tenant)?, self.flows.get(&id)?);
        Some(Rank {
            class: tenant.class,
            tenant_served: tenant.served,
            tenant: id.tenant,
            priority: 0,
            flow_served: flow.served,
            flow: id.flow,
            arrival: 0,
        })
    }

    /// Whether a waiting sequence may have the place of a running one: its tenant goes before the
    /// other's, or it, or its flow of the same tenant, is behind by `tokens` of its own and has
    /// nothing that runs, or less than its part.
    pub(super) fn is_owed(&self, waiting: Place, running: Place, tokens: usize) -> bool {
        let find = |id: FlowId| Some((self.tenants.get(&id.tenant)?, self.flows.get(&id)?));
        let (Some((tenant, flow)), Some((other_tenant, other))) =
            (find(waiting.flow), find(running.flow))
        else {
            return false;
        };
        if tenant.class != other_tenant.class {
            return tenant.class < other_tenant.class;
        }
        // Served, running and cost of both.
        let (own, others) = if waiting.flow.tenant != running.flow.tenant {
            let of = |t: &Tenant| (t.served, t.running, u128::from(t.cost));
            (of(tenant), of(other_tenant))
        } else if waiting.turn.priority > running.turn.priority {
            return false;
        } else {
            let of = |flow: &Flow| (u128::from(flow.served), flow.running, 1);
            (of(flow), of(other))
        };
        let behind = others.0.saturating_sub(own.0) >= tokens as u128 * own.2;
        let has_less = (own.1 as u128 + 1) * own.2 <= others.1 as u128 * others.2;
        behind && (own.1 == 0 || has_less)
    }

    /// Looks at who is there, once a step: where newcomers begin, and whom to forget.
    pub(super) fn survey(&mut self) {
        self.floors.clear();
        let (mut idle, mut gone) = (Vec::new(), Vec::new());
        // Both go by tenant.
        let mut flows = self.flows.iter().peekable();
        for (&id, tenant) in &mut self.tenants {
            let mut least = None;
            while let Some((&flow_id, flow)) = flows.next_if(|(flow, _)| flow.tenant == id) {
                match flow.live {
                    0 => idle.push((flow_id, flow.served)),
                    _ => least = Some(least.unwrap_or(flow.served).min(flow.served)),
                }
            }
            tenant.floor = least.unwrap_or(0);
            if tenant.live > 0 {
                let least = self.floors.entry(tenant.class).or_insert(tenant.served);
                *least = tenant.served.min(*least);
            }
        }
        idle.retain(|(id, served)| {
            let floor = self.tenants.get(&id.tenant).map_or(u64::MAX, |tenant| tenant.floor);
            let is_kept = *served > floor;
            if !is_kept {
                gone.push(*id);
            }
            is_kept
        });
        idle.sort_unstable_by_key(|(id, _)| id.flow);
        gone.extend(idle.iter().take(idle.len().saturating_sub(IDLE_FLOWS_MAX)).map(|i| i.0));
        gone.into_iter().for_each(|id| self.forget(id));
        let floors = &self.floors;
        let is_kept = |tenant: &Tenant| {
            tenant.live > 0 || floors.get(&tenant.class).is_some_and(|&least| tenant.served > least)
        };
        let names = &mut self.names;
        self.tenants.retain(|_, tenant| {
            let kept = is_kept(tenant);
            if !kept {
                names.remove(&tenant.name);
            }
            kept
        });
    }
}

impl Flow {
    fn new(adapters: Option<Digest>) -> Self {
        let (turns, first, held_up) = (BTreeSet::new(), None, None);
        Self { adapters, served: 0, live: 0, running: 0, turns, first, held_up }
    }
}

fn next(ids: &mut u64) -> u64 {
    *ids += 1;
    *ids
}

/// What tells the flows of a tenant apart: the adapters, whatever their weights and wherever they
/// begin, which one request has otherwise than the next.
fn adapters(recipe: &Recipe<Digest>) -> Option<Digest> {
    match recipe.parts() {
        [] => None,
        [one] => Some(one.adapter),
        several => {
            let mut hash = blake3::Hasher::new();
            several.iter().for_each(|part| {
                hash.update(&part.adapter.0);
            });
            Some(Digest(hash.finalize().into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::ShareWeight;

    fn share(tenant: u8) -> Share {
        let weight = ShareWeight::ONE;
        Share { tenant: Digest([tenant; 32]), weight, priority: 0 }
    }

    fn sizes(flows: &Flows) -> [usize; 5] {
        let Flows { tenants, names, flows, by_adapters, floors, .. } = flows;
        [tenants.len(), names.len(), flows.len(), by_adapters.len(), floors.len()]
    }

    #[test]
    fn who_was_away_has_saved_nothing_and_owes_what_it_got() {
        let mut flows = Flows::default();
        let base = Recipe::base();
        let one = flows.enter(&share(1), &base);
        flows.serve(one, 1000);
        flows.survey();
        // The first time it comes it stands where the other does.
        let two = flows.enter(&share(2), &base);
        let served = |flows: &Flows, id: FlowId| flows.standing(id).unwrap().tenant_served;
        assert_eq!(served(&flows, two), served(&flows, one));
        flows.serve(two, 50);
        flows.leave(two);
        flows.survey();
        let two = flows.enter(&share(2), &base);
        assert!(served(&flows, two) > served(&flows, one), "it left with what it got");
        flows.leave(two);
        flows.serve(one, 51);
        flows.survey();
        assert_eq!(sizes(&flows)[0], 1, "the other has got as much: it is forgotten");
        flows.leave(one);
        flows.survey();
        assert_eq!(sizes(&flows), [0; 5]);
    }

    #[test]
    fn flows_that_are_idle_are_remembered_up_to_a_limit() {
        let mut flows = Flows::default();
        // Something waits that never gets anything, so that nobody is forgotten for it.
        flows.enter(&share(1), &Recipe::base());
        let mut last = None;
        for n in 0..3 * IDLE_FLOWS_MAX as u32 {
            let mut digest = [0; 32];
            digest[..4].copy_from_slice(&n.to_le_bytes());
            let id = flows.enter(&share(1), &Recipe::one(Digest(digest)));
            flows.serve(id, 5);
            flows.leave(id);
            flows.survey();
            last = Some(id);
        }
        assert_eq!(sizes(&flows), [1, 1, IDLE_FLOWS_MAX + 1, IDLE_FLOWS_MAX + 1, 1]);
        assert!(flows.flows.contains_key(&last.unwrap()), "the newest is remembered");
    }

    #[test]
    fn a_flow_is_a_tenants_adapters_whatever_their_weights_and_beginnings() {
        let mut flows = Flows::default();
        let one = Recipe::one(Digest([1; 32]));
        let id = flows.enter(&share(1), &one);
        assert_eq!(flows.enter(&share(1), &one.clone().active_from(7)), id);
        assert_ne!(flows.enter(&share(2), &one), id);
        assert_ne!(flows.enter(&share(1), &Recipe::base()), id);
        let two = Recipe::new([one.parts(), one.parts()].concat());
        assert_ne!(flows.enter(&share(1), &two), id);
    }
}
