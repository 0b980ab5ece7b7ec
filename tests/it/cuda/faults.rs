//! What happens when a card does not do what it is asked.

use std::cell::RefCell;

use tessera::backend::cuda::{Cuda, OpenError, room};
use tessera::backend::{Device, Fault, KvShape, SlotError};
use tessera::engine::{Gpu, wait_until_ready};
use tessera::ids::Slot;
use tessera::model::{Checkpoint, Model};
use tessera::recipe::Recipe;

use super::card::{Card, is_real, kernel_cache, limits};
use crate::harness::{BLOCK_TOKENS, Golden, logits, prompts_as_rows};

fn golden() -> Golden {
    Golden::open(&crate::golden::models()[0], None)
}

fn kv_shape(golden: &Golden) -> KvShape {
    Model::<Cuda>::kv_shape(&golden.checkpoint, 8, BLOCK_TOKENS)
}

#[test]
fn too_little_memory_says_what_needs_how_much() {
    if is_real() {
        return;
    }
    let (card, golden) = (Card::new(), golden());
    card.set("memory", 1 << 20);
    let error = card.try_open(&golden, limits(8, 1), &|_| {}).err().unwrap();
    let OpenError::Memory { needed, free, total, .. } = error else { panic!("{error}") };
    assert!(needed > free && total == 1 << 20, "{needed} {free} {total}");
    card.set("memory", 1 << 30);
    let gpu = card.try_open(&golden, limits(8, 1), &|_| {}).unwrap();
    let taken = gpu.ready(&golden.checkpoint, 1 << 20, BLOCK_TOKENS, 1 << 20);
    let error = taken.err().unwrap();
    assert!(error.to_string().contains("the KV cache needs"), "{error}");
    assert_eq!(card.get("used"), 0, "all memory is given back");
}

#[test]
fn a_card_that_is_not_there_is_named() {
    if is_real() {
        return;
    }
    let card = Card { ordinal: 99 };
    Card::new();
    let error = card.try_open(&golden(), limits(8, 1), &|_| {}).err().unwrap();
    assert!(matches!(&error, OpenError::NoDevice(text) if text.contains("GPU 99")), "{error}");
}

#[test]
fn a_step_that_fails_is_told_and_the_next_one_runs() {
    if is_real() {
        return;
    }
    let (card, golden) = (Card::new(), golden());
    let adapter = golden.adapter(&golden.adapter_names()[0]);
    let Gpu { backend, model, .. } = card.open(&golden, limits(16, 1), 8);
    let prompts = [(Recipe::one(Slot(0)), vec![1, 2, 3]), (Recipe::base(), vec![4, 5])];
    let run = || logits(&golden, &backend, &model, std::slice::from_ref(&adapter), &prompts);
    let expected = run();
    let failing = |after: i64| {
        card.set("refuse_in", after);
        let (mut kv, mut slots) = (backend.kv(kv_shape(&golden)).unwrap(), backend.slots(1));
        backend.write_slot(&mut slots, Slot(0), adapter.delta.clone()).unwrap();
        wait_until_ready(&backend, &slots, Slot(0)).unwrap();
        let outputs = model.forward(&backend, &prompts_as_rows(&prompts), &slots, &mut kv);
        backend.download(&outputs.logits.unwrap()).unwrap_err()
    };
    for after in [0, 7] {
        let Fault { message, lost } = failing(after);
        assert!(!lost && message.contains("LAUNCH_OUT_OF_RESOURCES"), "{message}");
        assert!(run() == expected, "a step after a failed one");
    }
    card.set("break_in", 3);
    let (mut kv, slots) = (backend.kv(kv_shape(&golden)).unwrap(), backend.slots(1));
    for _ in 0..2 {
        let outputs = model.forward(&backend, &prompts_as_rows(&prompts[1..]), &slots, &mut kv);
        let Fault { message, lost } = backend.download(&outputs.logits.unwrap()).unwrap_err();
        assert!(lost && message.contains("ILLEGAL_ADDRESS"), "{message}");
    }
}

#[test]
fn adapters_wait_for_room_and_a_failed_copy_is_told() {
    let (card, golden) = (Card::new(), golden());
    let names = golden.adapter_names();
    let adapter = golden.adapter(&names[0]);
    let gpu = card.try_open(&golden, limits(16, 3), &|_| {}).unwrap();
    // Room for one of them and a half.
    let gpu = gpu.ready(&golden.checkpoint, 8, BLOCK_TOKENS, 1).unwrap();
    let mut slots = gpu.backend.slots(3);
    let refused = gpu.backend.write_slot(&mut slots, Slot(0), adapter.delta.clone()).unwrap_err();
    let SlotError::Refused(text) = &refused else { panic!("{refused}") };
    assert!(text.contains("--adapter-gpu-bytes"), "{text}");

    let card = Card::new();
    let gpu = card.try_open(&golden, limits(16, 3), &|_| {}).unwrap();
    // Each vector starts at 256 bytes: what they take is more than what they hold.
    let Checkpoint { sites, dtype, .. } = &*golden.checkpoint;
    let bytes = room(&adapter.delta, sites, *dtype, u64::MAX).unwrap() * 3 / 2;
    let gpu = gpu.ready(&golden.checkpoint, 8, BLOCK_TOKENS, bytes).unwrap();
    let mut slots = gpu.backend.slots(3);
    gpu.backend.write_slot(&mut slots, Slot(0), adapter.delta.clone()).unwrap();
    let full = gpu.backend.write_slot(&mut slots, Slot(1), adapter.delta.clone()).unwrap_err();
    assert!(matches!(full, SlotError::Full { .. }), "{full}");
    wait_until_ready(&gpu.backend, &slots, Slot(0)).unwrap();
    gpu.backend.clear_slot(&mut slots, Slot(0));
    gpu.backend.write_slot(&mut slots, Slot(2), adapter.delta.clone()).unwrap();
    if is_real() {
        return;
    }
    wait_until_ready(&gpu.backend, &slots, Slot(2)).unwrap();
    card.set("refuse_copies", 1);
    gpu.backend.write_slot(&mut slots, Slot(2), adapter.delta.clone()).unwrap();
    let failed = wait_until_ready(&gpu.backend, &slots, Slot(2)).unwrap_err();
    assert!(failed.to_string().contains("OUT_OF_MEMORY"), "{failed}");
    gpu.backend.write_slot(&mut slots, Slot(2), adapter.delta.clone()).unwrap();
    wait_until_ready(&gpu.backend, &slots, Slot(2)).unwrap();
}

#[test]
fn a_second_start_compiles_nothing_and_a_damaged_file_is_made_anew() {
    let (card, golden) = (Card::new(), golden());
    let heard = RefCell::new(Vec::new());
    let open = || {
        heard.borrow_mut().clear();
        card.try_open(&golden, limits(8, 1), &|text| heard.borrow_mut().push(text.to_owned()))
            .unwrap_or_else(|e| panic!("{e}"));
        heard.borrow().clone()
    };
    open();
    assert_eq!(open(), Vec::<String>::new());
    let files = || std::fs::read_dir(kernel_cache()).unwrap().map(|entry| entry.unwrap().path());
    let newest = files().find(|p| p.to_str().unwrap().contains("/norm-")).unwrap();
    let bytes = std::fs::read(&newest).unwrap();
    std::fs::write(&newest, &bytes[..bytes.len() / 2]).unwrap();
    open();
    assert_eq!(open(), Vec::<String>::new());
}

#[test]
fn a_card_that_refuses_to_record_serves_unrecorded() {
    if is_real() {
        return;
    }
    let (card, golden) = (Card::new(), golden());
    let Gpu { backend, model, .. } = card.open(&golden, limits(16, 1), 8);
    let (mut kv, slots) = (backend.kv(kv_shape(&golden)).unwrap(), backend.slots(1));
    let rows = prompts_as_rows(&[(Recipe::base(), vec![7])]);
    let mut step = || {
        let outputs = model.forward(&backend, &rows, &slots, &mut kv);
        backend.download(&outputs.logits.unwrap())
    };
    let expected = step().unwrap();
    card.set("refuse_capture", 1);
    for _ in 0..4 {
        assert!(step().unwrap() == expected);
    }
    assert_eq!((backend.recorded(), card.get("replays")), (0, 0));
}
