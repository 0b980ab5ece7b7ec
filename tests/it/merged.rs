//! Merged mode: one adapter folded into the weights gives its unmerged logits, with rows that
//! need no adapter at all.

use std::sync::Arc;

use tessera::adapter::{Adapter, Report};
use tessera::backend::Backend;
use tessera::backend::cpu::Cpu;
use tessera::delta::{DeltaBuilder, LowRank, Side, SiteDelta};
use tessera::dtype::Values;
use tessera::ids::{Digest, Slot, TokenId};
use tessera::model::Model;
use tessera::recipe::Recipe;
use tessera::site::{Site, SiteKind};

use crate::Rng;
use crate::harness::{Golden, distance, logits};

const TOLERANCE: f32 = 1e-3;

fn prompts(golden: &Golden) -> Vec<Vec<TokenId>> {
    let mut rng = Rng(11);
    let vocabulary = golden.checkpoint.config.vocabulary;
    let mut prompt = |len| (0..len).map(|_| rng.below(vocabulary) as TokenId).collect();
    vec![prompt(1), prompt(7), prompt(40)]
}

fn with(recipe: &Recipe<Slot>, prompts: &[Vec<TokenId>]) -> Vec<(Recipe<Slot>, Vec<TokenId>)> {
    prompts.iter().map(|prompt| (recipe.clone(), prompt.clone())).collect()
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
    let mut served = golden.model(&backend);
    let adapters = names.into_iter().map(|name| (golden.adapter(&name), name));
    check_folding(&golden, &backend, &mut served, adapters);
}

/// Folds one adapter after the other: each gives its unmerged logits, and once it is taken back the
/// base's, bit for bit.
pub fn check_folding<B: Backend>(
    golden: &Golden,
    backend: &B,
    model: &mut Model<B>,
    adapters: impl Iterator<Item = (Arc<Adapter>, String)>,
) {
    let prompts = prompts(golden);
    let bare = with(&Recipe::base(), &prompts);
    let adapted = with(&Recipe::one(Slot(0)), &prompts);
    let base = logits(golden, backend, model, &[], &bare);
    for (adapter, name) in adapters {
        let resident = std::slice::from_ref(&adapter);
        let unmerged = logits(golden, backend, model, resident, &adapted);
        model.fold(backend, &adapter.delta);
        let merged = logits(golden, backend, model, &[], &bare);
        let apart = worst(&merged, &unmerged);
        println!("{name}: {apart:.1e}");
        assert!(apart < TOLERANCE, "{name}: {apart}");
        // Else an adapter that does nothing would pass.
        assert!(worst(&unmerged, &base) > 10.0 * TOLERANCE, "{name} changes nothing");
        model.restore(backend, &golden.checkpoint, &adapter.delta).unwrap();
        assert_eq!(logits(golden, backend, model, &[], &bare), base, "{name} taken back");
    }
}

/// An adapter with every part that a site may have, at every site.
pub fn with_every_part(golden: &Golden) -> Arc<Adapter> {
    let mut rng = Rng(23);
    let mut some = |n: usize, middle: f32, spread: f32| -> Vec<f32> {
        (0..n).map(|_| middle + spread * (rng.below(1001) as f32 / 500.0 - 1.0)).collect()
    };
    let mut builder = DeltaBuilder::default();
    for (id, site) in golden.checkpoint.sites.iter() {
        let Site { kind, in_features, out_features, .. } = *site;
        let mut change = SiteDelta {
            scale: Some(some(out_features, 1.0, 0.1)),
            shift: Some(some(out_features, 0.0, 0.02)),
            ..SiteDelta::default()
        };
        if kind != SiteKind::Norm {
            let mut factor = |side, width: usize| {
                builder.push_dense(side, &some(3 * width, 0.0, 0.15), 3).unwrap()
            };
            let (down, up) = (factor(Side::Down, in_features), factor(Side::Up, out_features));
            let (middle, end) = (Some(some(3, 1.0, 0.5)), Some(some(out_features, 1.0, 0.5)));
            change.low_rank = Some(LowRank { rank: 3, down, middle, up, end });
            if id.0 % 3 == 0 {
                let base = golden.checkpoint.weight(id).unwrap().values.to_f32();
                let own = some(base.len(), 0.0, 0.02);
                let own: Vec<f32> = base.iter().zip(own).map(|(base, own)| base + own).collect();
                change.weight = Some(Values::from_f32(own, golden.checkpoint.dtype));
            }
        }
        *builder.site(id) = change;
    }
    Arc::new(Adapter {
        digest: Digest([9; 32]),
        delta: Arc::new(builder.finish(golden.checkpoint.dtype)),
        method: "made for a test",
        report: Report::default(),
    })
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
fn every_part_of_a_site_is_folded() {
    for model in ["llama-bias", "qwen2", "qwen3"] {
        let golden = Golden::open(model, None);
        let backend = Cpu::new(2);
        let one = std::iter::once((with_every_part(&golden), format!("{model}, every part")));
        check_folding(&golden, &backend, &mut golden.model(&backend), one);
    }
}

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
