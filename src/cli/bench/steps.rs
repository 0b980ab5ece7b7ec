//! Steps of a bench, on any device.

use std::hint::black_box;

use crate::backend::{Adapters, Backend, Fault, Rows, SampleRow, Span};
pub use crate::cli::device::BLOCK_TOKENS;
use crate::ids::{BlockId, Slot};
use crate::model::Model;
use crate::request::SamplingParams;

/// Pages of `tokens` positions.
pub fn pages(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

fn block_table(row: usize, tokens: usize) -> Vec<BlockId> {
    let first = (row * pages(tokens)) as u32;
    (first..first + pages(tokens) as u32).map(BlockId).collect()
}

/// One new token for each of `rows` sequences of `context` tokens.
pub fn decode(rows: usize, context: usize, slot: impl Fn(usize) -> Slot) -> Rows {
    let mut step = Rows::default();
    for row in 0..rows {
        step.tokens.push(row as u32 + 1);
        step.positions.push(context as u32);
        step.slots.push(slot(row));
        let block_table = block_table(row, context + 1);
        step.spans.push(Span { start: row, len: 1, block_table });
        step.logit_rows.push(row as u32);
    }
    step
}

/// `tokens` of the prompt of sequence `row`, from position `start`; each sequence has pages for
/// `room` tokens.
pub fn prompt(row: usize, start: usize, tokens: usize, room: usize, slot: Slot) -> Rows {
    let block_table = block_table(row, room);
    Rows {
        tokens: (start..start + tokens).map(|i| ((i + row) % 250) as u32).collect(),
        positions: (start as u32..(start + tokens) as u32).collect(),
        slots: vec![slot; tokens],
        spans: vec![Span { start: 0, len: tokens, block_table }],
        logit_rows: vec![tokens as u32 - 1],
    }
}

/// Computes `rows` and draws from them.
///
/// # Errors
/// The device's.
pub fn run<B: Backend>(
    backend: &B,
    model: &Model<B>,
    pool: &B::Pool,
    kv: &mut B::Kv,
    rows: Rows,
) -> Result<(), Fault> {
    let params = SamplingParams::greedy();
    let sample = SampleRow { params, step: 0, logprobs: None };
    let samples = vec![sample; rows.logit_rows.len()];
    let batch = backend.batch(rows);
    let logits = model.forward(backend, &batch, kv, Adapters { pool });
    black_box(backend.sample(&logits, &samples)?);
    Ok(())
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
