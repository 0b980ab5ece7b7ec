//! What steps may write.

use tessera::backend::cpu::Cpu;
use tessera::backend::{Device as _, Rows};
use tessera::dtype::Dtype;
use tessera::engine::Gpu;
use tessera::ids::BlockId;
use tessera::model::Model;
use tessera::recipe::Recipe;

use super::card::{Card, limits};
use crate::harness::{BLOCK_TOKENS, Golden, prompts_as_rows};

/// One more token of each of three sequences, of which the last has two pages.
fn decode() -> Rows {
    let mut rows = Rows::default();
    rows.push(&[5], 10, &Recipe::base(), vec![BlockId(0)]);
    rows.push(&[5], 10, &Recipe::base(), vec![BlockId(1)]);
    rows.push(&[5], 20, &Recipe::base(), vec![BlockId(2), BlockId(3)]);
    rows.logit_rows = vec![0, 1, 2];
    rows
}

#[test]
fn rows_that_fill_up_a_decode_step_write_no_sequences_page() {
    let card = Card::new();
    let golden = Golden::open(&crate::golden::models()[0], Some(Dtype::BF16));
    let prompt = |len: u32| (Recipe::base(), (0..len).map(|i| 1 + i % 7).collect());
    // Three rows are run as four.
    let run = |asked: usize| {
        let Gpu { backend, model, .. } = card.open(&golden, limits(64, 1), 8);
        let shape = Model::<Cpu>::kv_shape(&golden.checkpoint, asked, BLOCK_TOKENS);
        let (mut kv, slots) = (backend.kv(shape).unwrap(), backend.slots(1));
        let mut step = |rows: Rows| {
            let outputs = model.forward(&backend, &rows, &slots, &mut kv);
            backend.download(&outputs.logits.unwrap()).unwrap()
        };
        step(prompts_as_rows(&[prompt(10), prompt(10), prompt(20)]));
        [(); 3].map(|()| step(decode()))
    };
    // A part of the cache that was taken, and all of it.
    assert!(run(4) == run(8));
}
