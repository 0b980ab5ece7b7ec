//! Steps of a bench, on any device.

use std::hint::black_box;

use crate::backend::{Backend, Draw, Fault, Rows, Want};
pub use crate::cli::device::BLOCK_TOKENS;
use crate::ids::{BlockId, Slot};
use crate::model::Model;
use crate::recipe::Recipe;
use crate::request::{History, SamplingParams};

/// Pages of `tokens` positions.
pub fn pages(tokens: usize) -> usize {
    tokens.div_ceil(BLOCK_TOKENS)
}

fn block_table(row: usize, tokens: usize) -> Vec<BlockId> {
    let first = (row * pages(tokens)) as u32;
    (first..first + pages(tokens) as u32).map(BlockId).collect()
}

/// What a row of one adapter, or none, carries.
fn recipe(slot: Option<Slot>) -> Recipe<Slot> {
    slot.map_or_else(Recipe::base, Recipe::one)
}

/// One new token for each of `rows` sequences of `context` tokens.
pub fn decode(rows: usize, context: usize, slot: impl Fn(usize) -> Option<Slot>) -> Rows {
    let mut step = Rows::default();
    for row in 0..rows {
        let block_table = block_table(row, context + 1);
        step.push(&[row as u32 + 1], context as u32, &recipe(slot(row)), block_table);
        step.logit_rows.push(row as u32);
    }
    step
}

/// `tokens` of the prompt of sequence `row`, from position `start`; each sequence has pages for
/// `room` tokens.
pub fn prompt(row: usize, start: usize, tokens: usize, room: usize, slot: Option<Slot>) -> Rows {
    let mut step = Rows::default();
    add_prompt(&mut step, row, start, tokens, room, slot);
    step
}

/// As [`prompt`], to a step that has other rows.
pub fn add_prompt(
    step: &mut Rows,
    row: usize,
    start: usize,
    tokens: usize,
    room: usize,
    slot: Option<Slot>,
) {
    let text: Vec<u32> = (start..start + tokens).map(|i| ((i + row) % 250) as u32).collect();
    let rows = step.push(&text, start as u32, &recipe(slot), block_table(row, room));
    step.logit_rows.extend(rows.last().map(|row| row as u32));
}

/// Computes `rows` and draws from them.
///
/// # Errors
/// The device's.
pub fn run<B: Backend>(
    backend: &B,
    model: &Model<B>,
    slots: &B::Slots,
    kv: &mut B::Kv,
    rows: &Rows,
) -> Result<(), Fault> {
    let params = SamplingParams::greedy();
    let history = History { prompt: &[], generated: &[] };
    let draw = Want::Draw(Draw { params: &params, history, mask: None, logprobs: None });
    let wants = vec![draw; rows.logit_rows.len()];
    let logits = model.forward(backend, rows, slots, kv).logits;
    let logits = logits.expect("This is a bug: a timed step has logits.");
    black_box(backend.sample(&logits, &wants)?);
    Ok(())
}

/// The value in the middle.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
