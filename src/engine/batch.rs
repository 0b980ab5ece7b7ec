//! A plan as flat arrays, one upload for the device.

use std::collections::BTreeMap;

use super::sequence::Sequence;
use crate::backend::{Rows, Span};
use crate::ids::SequenceId;
use crate::scheduler::Plan;

/// The rows of `plan`, in its order.
pub fn rows(plan: &Plan, sequences: &BTreeMap<SequenceId, Sequence>) -> Rows {
    let mut rows = Rows::default();
    for entry in &plan.entries {
        let slot = sequences[&entry.id].slot();
        let (start, len) = (rows.tokens.len(), entry.tokens.len());
        rows.tokens.extend_from_slice(&entry.tokens);
        rows.positions.extend(entry.start..entry.start + len as u32);
        rows.slots.extend(std::iter::repeat_n(slot, len));
        rows.spans.push(Span { start, len, block_table: entry.block_table.clone() });
        if entry.samples {
            rows.logit_rows.push((start + len - 1) as u32);
        }
    }
    rows
}
