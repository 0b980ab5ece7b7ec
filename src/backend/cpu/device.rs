//! What the CPU holds: weights, KV and adapters stay where they were loaded.

use std::sync::Arc;

use super::kv::Kv;
use super::matrix::Matrix;
use super::slots::{Slots, Step};
use super::threads::Cpu;
use super::weight::Weight;
use crate::backend::{Device, Fault, HostMatrix, KvShape, Outputs, RopeTable, Rows, SlotError};
use crate::delta::Delta;
use crate::ids::Slot;

impl Device for Cpu {
    type Tensor = Matrix;
    type Weight = Weight;
    type Vector = Vec<f32>;
    type Kv = Kv;
    type Slots = Slots;
    type Step<'a> = Step<'a>;
    type Rope = RopeTable;

    fn upload(&self, matrix: HostMatrix) -> Weight {
        Weight::new(matrix)
    }

    fn upload_vector(&self, vector: &[f32]) -> Vec<f32> {
        vector.to_vec()
    }

    fn upload_rope(&self, rope: RopeTable) -> RopeTable {
        rope
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, Fault> {
        Kv::new(shape)
    }

    fn slots(&self, count: usize) -> Slots {
        Slots::new(count)
    }

    fn write_slot(
        &self,
        slots: &mut Slots,
        slot: Slot,
        delta: Arc<Delta>,
    ) -> Result<(), SlotError> {
        slots.set(slot, Some(delta));
        Ok(())
    }

    fn slot_ready(&self, _: &Slots, _: Slot) -> Result<bool, SlotError> {
        Ok(true)
    }

    fn clear_slot(&self, slots: &mut Slots, slot: Slot) {
        slots.set(slot, None);
    }

    fn run(
        &self,
        rows: &Rows,
        slots: &Slots,
        mut ops: impl FnMut(&Step<'_>) -> Outputs<Matrix>,
    ) -> Outputs<Matrix> {
        ops(&Step::new(rows, slots))
    }

    fn finish(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn download(&self, x: &Matrix) -> Result<Vec<f32>, Fault> {
        Ok(x.data.clone())
    }
}
