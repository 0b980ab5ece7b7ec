//! Merged mode: one adapter folded into the weights gives its unmerged logits, with rows that
//! need no adapter at all.

use std::sync::Arc;

use tessera::adapter::Adapter;
use tessera::backend::cpu::Cpu;
use tessera::ids::{Slot, TokenId};

use crate::Rng;
use crate::harness::{Golden, distance, logits};

const TOLERANCE: f32 = 1e-3;

fn prompts(golden: &Golden) -> Vec<Vec<TokenId>> {
    let mut rng = Rng(11);
    let vocabulary = golden.checkpoint.config.vocabulary;
    let mut prompt = |len| (0..len).map(|_| rng.below(vocabulary) as TokenId).collect();
    vec![prompt(1), prompt(7), prompt(40)]
}

fn at(slot: Slot, prompts: &[Vec<TokenId>]) -> Vec<(Slot, Vec<TokenId>)> {
    prompts.iter().map(|prompt| (slot, prompt.clone())).collect()
}

fn worst(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    assert!(a.iter().chain(b).flatten().all(|x| x.is_finite()));
    a.iter().zip(b).map(|(a, b)| distance(a, b)).fold(0.0, f32::max)
}

/// Every golden adapter of `model`; which must be among them is the caller's to say.
fn check(model: &str, required: &[&str]) {
    let golden = Golden::open(model, None);
    let names = golden.adapter_names();
    let missing = required.iter().find(|name| !names.contains(&(**name).to_owned()));
    assert!(missing.is_none(), "{model} has no adapter {missing:?}");
    let backend = Cpu::new(2);
    let prompts = prompts(&golden);
    let plain = golden.model(&backend);
    let base = logits(&golden, &backend, &plain, &[], &at(Slot::BASE, &prompts));
    for name in names {
        let adapter: Arc<Adapter> = golden.adapter(&name);
        let resident = std::slice::from_ref(&adapter);
        let unmerged = logits(&golden, &backend, &plain, resident, &at(Slot(0), &prompts));
        let mut merged = golden.model(&backend);
        merged.fold(&backend, &adapter.delta);
        let merged = logits(&golden, &backend, &merged, &[], &at(Slot::BASE, &prompts));
        let apart = worst(&merged, &unmerged);
        println!("{model}/{name}: {apart:.1e}");
        assert!(apart < TOLERANCE, "{model}/{name}: {apart}");
        // Else an adapter that does nothing would pass.
        assert!(worst(&unmerged, &base) > 10.0 * TOLERANCE, "{model}/{name} changes nothing");
    }
    // Folding made copies: the weights it began from are untouched.
    let again = logits(&golden, &backend, &plain, &[], &at(Slot::BASE, &prompts));
    assert_eq!(again, base, "{model}");
}

const EVERY_MODEL: &[&str] = &[
    "lora_qv",
    "lora_all_rs",
    "lora_ranks",
    "lora_dora",
    "mos_official",
    "mos_compact",
    "ssf",
    "ia3",
];
const SPECIAL: &[&str] = &["lora_bias", "lora_embed", "lora_head", "lora_saved_norm"];

#[test]
fn a_folded_adapter_gives_its_unmerged_logits() {
    check("llama", &[EVERY_MODEL, SPECIAL].concat());
}

#[test]
fn folding_scales_and_moves_the_biases_of_a_base_that_has_them() {
    check("llama-bias", EVERY_MODEL);
}

#[test]
fn folding_into_a_tied_table_or_head_leaves_the_other_as_it_was() {
    check("qwen2", &[EVERY_MODEL, SPECIAL].concat());
    check("llama3", EVERY_MODEL);
}

#[test]
fn folding_reaches_the_norms_of_query_and_key_heads() {
    check("qwen3", EVERY_MODEL);
    check("mistral", EVERY_MODEL);
}
