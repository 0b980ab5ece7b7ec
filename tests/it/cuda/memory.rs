//! What steps may write.

use tessera::backend::cpu::Cpu;
use tessera::backend::{Adapters, Backend, Rows, Span};
use tessera::dtype::Dtype;
use tessera::engine::Gpu;
use tessera::ids::{BlockId, Slot};
use tessera::model::Model;

use super::card::{Card, limits};
use crate::harness::{BLOCK_TOKENS, Golden, prompts_as_rows};

/// One more token of each of three sequences, of which the last has two pages.
fn decode() -> Rows {
    let tables = [vec![BlockId(0)], vec![BlockId(1)], vec![BlockId(2), BlockId(3)]];
    let span = |(start, block_table)| Span { start, len: 1, block_table };
    Rows {
        tokens: vec![5; 3],
        positions: vec![10, 10, 20],
        slots: vec![Slot::BASE; 3],
        spans: tables.into_iter().enumerate().map(span).collect(),
        logit_rows: vec![0, 1, 2],
    }
}

#[test]
fn rows_that_fill_up_a_decode_step_write_no_sequences_page() {
    let card = Card::new();
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let prompt = |len: u32| (Slot::BASE, (0..len).map(|i| 1 + i % 7).collect());
    // Three rows are run as four.
    let run = |asked: usize| {
        let Gpu { backend, model, .. } = card.open(&golden, limits(64, 1), 8);
        let shape = Model::<Cpu>::kv_shape(&golden.checkpoint, asked, BLOCK_TOKENS);
        let (mut kv, pool) = (backend.kv(shape), backend.pool(1));
        let mut step = |rows: Rows| {
            let batch = backend.batch(rows);
            let logits = model.forward(&backend, &batch, &mut kv, Adapters { pool: &pool });
            backend.download(&logits).unwrap()
        };
        step(prompts_as_rows(&[prompt(10), prompt(10), prompt(20)]));
        [(); 3].map(|()| step(decode()))
    };
    // A part of the cache that was taken, and all of it.
    assert!(run(4) == run(8));
}
