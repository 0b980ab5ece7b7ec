//! Waiting sequences in the order in which they may start.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::flows::{FlowId, Flows, Rank, Turn};

/// Whoever may start next, as of one plan. What running sequences have been promised counts as if
/// they had got it already: else a tenant would get all places that are free at once.
#[derive(Debug)]
pub(super) struct Line {
    /// By class, by what the tenant has got, by who it is.
    tenants: BTreeMap<(i64, u128, u64), Queue>,
}

#[derive(Debug)]
struct Queue {
    /// Of a token.
    cost: u64,
    /// The first of each flow.
    heads: BinaryHeap<Reverse<Head>>,
}

/// The first of a flow.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Head {
    priority: i32,
    served: u64,
    flow: u64,
    arrival: u64,
}

impl Line {
    /// All that wait. `running` are the flows of those that run, in order, with what each is
    /// promised.
    pub(super) fn new(flows: &Flows, running: impl Iterator<Item = (FlowId, usize)>) -> Self {
        // All three go by tenant and flow.
        let (mut of_flows, mut running) = (flows.flows.iter().peekable(), running.peekable());
        let mut tenants = Vec::new();
        for (&id, tenant) in &flows.tenants {
            let (mut heads, mut promised_all) = (Vec::new(), 0);
            while let Some((flow_id, flow)) = of_flows.next_if(|(flow, _)| flow.tenant == id) {
                let mut promised = 0;
                while let Some((_, tokens)) = running.next_if(|(flow, _)| flow == flow_id) {
                    promised += tokens as u64;
                }
                promised_all += promised;
                if let Some(Turn { priority, arrival }) = flow.first {
                    let served = flow.served + promised;
                    heads.push(Reverse(Head { priority, served, flow: flow_id.flow, arrival }));
                }
            }
            if !heads.is_empty() {
                let served = tenant.served + u128::from(promised_all) * u128::from(tenant.cost);
                let queue = Queue { cost: tenant.cost, heads: heads.into() };
                tenants.push(((tenant.class, served, id), queue));
            }
        }
        Self { tenants: tenants.into_iter().collect() }
    }

    /// Nobody.
    pub(super) fn empty() -> Self {
        Self { tenants: BTreeMap::new() }
    }

    /// Whose turn it is.
    pub(super) fn first(&self) -> Option<Rank> {
        let (&(class, tenant_served, tenant), queue) = self.tenants.first_key_value()?;
        let Reverse(Head { priority, served, flow, arrival }) = *queue.heads.peek()?;
        Some(Rank { class, tenant_served, tenant, priority, flow_served: served, flow, arrival })
    }

    /// Goes on from the first: to `next` of its flow or, without, to another flow. The first was
    /// promised so many tokens.
    pub(super) fn pass(&mut self, next: Option<Turn>, promised: usize) {
        let Some(((class, served, tenant), mut queue)) = self.tenants.pop_first() else { return };
        let Some(Reverse(head)) = queue.heads.pop() else { return };
        let promised = promised as u64;
        if let Some(Turn { priority, arrival }) = next {
            let served = head.served + promised;
            queue.heads.push(Reverse(Head { priority, served, flow: head.flow, arrival }));
        }
        if !queue.heads.is_empty() {
            let served = served + u128::from(promised) * u128::from(queue.cost);
            self.tenants.insert((class, served, tenant), queue);
        }
    }

    /// Nobody starts any more.
    pub(super) fn close(&mut self) {
        self.tenants.clear();
    }
}
