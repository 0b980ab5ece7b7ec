//! A step on a GPU beside the same step on the CPU.

use std::sync::Arc;

use super::steps::{self, BLOCK_TOKENS};
use crate::adapter::Adapter;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, Device, Fault, Rows};
use crate::cli::CliError;
use crate::ids::Slot;
use crate::model::{Checkpoint, Model};

/// A prompt for the base and one for each of `adapters` slots, in one step.
pub fn prompts(adapters: usize, context: usize) -> Rows {
    let mut all = Rows::default();
    let tokens = context.clamp(1, 4);
    for i in 0..=adapters {
        let slot = i.checked_sub(1).map(|slot| Slot(slot as u32));
        steps::add_prompt(&mut all, i, 0, tokens, tokens, slot);
    }
    all
}

/// Of `rows`.
///
/// # Errors
/// The device's.
pub fn logits<B: Backend>(
    backend: &B,
    model: &Model<B>,
    kv: &mut B::Kv,
    slots: &B::Slots,
    rows: &Rows,
) -> Result<Vec<f32>, Fault> {
    let logits = model.forward(backend, rows, slots, kv).logits;
    backend.download(&logits.expect("This is a bug: a checked step has logits."))
}

/// The root of the mean square difference between `on_card` and the CPU's logits of `rows`, as a
/// share of their size. Adapter i is in slot i.
///
/// # Errors
/// [`CliError::General`]: an adapter that the CPU refuses.
pub fn distance_from_cpu(
    checkpoint: &Arc<Checkpoint>,
    adapters: &[Arc<Adapter>],
    rows: &Rows,
    on_card: &[f32],
) -> Result<f32, CliError> {
    let cpu = Cpu::new(std::thread::available_parallelism().map_or(1, usize::from));
    let positions = rows.positions.iter().max().map_or(1, |last| *last as usize + 1);
    let model = Model::load(checkpoint, &cpu, positions, &|_| {})?;
    let blocks = rows.spans.iter().map(|span| span.block_table.len()).sum();
    let failed = |e: &dyn std::fmt::Display| CliError::General(e.to_string());
    let kv = cpu.kv(Model::<Cpu>::kv_shape(checkpoint, blocks, BLOCK_TOKENS));
    let mut kv = kv.map_err(|e| failed(&e))?;
    let mut slots = cpu.slots(adapters.len());
    for (slot, adapter) in adapters.iter().enumerate() {
        cpu.write_slot(&mut slots, Slot(slot as u32), adapter.delta.clone())
            .map_err(|e| failed(&e))?;
    }
    let expected = logits(&cpu, &model, &mut kv, &slots, rows).map_err(|e| failed(&e))?;
    let squares = |v: &mut dyn Iterator<Item = f32>| v.map(|x| x * x).sum::<f32>();
    let difference = squares(&mut on_card.iter().zip(&expected).map(|(a, b)| a - b));
    Ok((difference / squares(&mut expected.iter().copied())).sqrt())
}
