//! Every method against its definition, in f64 and dense, on shapes, ranks and seeds that no file
//! was made for; all kinds and the base in one batch.

mod dense;
mod methods;

use std::sync::Arc;

use dense::{Dense, Shape};
use methods::{Made, Maker};
use tessera::adapter::{Adapter, LoadAdapter};
use tessera::backend::cpu::Cpu;
use tessera::ids::{Slot, TokenId};
use tessera::recipe::Recipe;

use crate::Rng;
use crate::harness::{Golden, logits};

/// Of the largest logit. Widths are below 100 and layers below three, so f32 sums are good to
/// about 1e-6 of it; a term left out is worth 1e-2 at least.
const TOLERANCE: f64 = 1e-4;
const SEEDS: u64 = 3;

const LLAMA: Shape = Shape {
    architecture: "LlamaForCausalLM",
    vocabulary: 37,
    hidden: 12,
    inner: 20,
    layers: 2,
    heads: 3,
    kv_heads: 1,
    head_dim: 4,
    tied: false,
};

const SHAPES: &[Shape] = &[
    LLAMA,
    Shape { vocabulary: 101, hidden: 40, inner: 76, heads: 5, kv_heads: 5, head_dim: 8, ..LLAMA },
    Shape {
        architecture: "Qwen2ForCausalLM",
        hidden: 20,
        inner: 36,
        layers: 1,
        heads: 4,
        kv_heads: 2,
        head_dim: 6,
        tied: true,
        ..LLAMA
    },
    Shape {
        architecture: "Qwen3ForCausalLM",
        vocabulary: 29,
        hidden: 8,
        inner: 12,
        heads: 4,
        kv_heads: 2,
        head_dim: 10,
        ..LLAMA
    },
];

fn adapters(maker: &mut Maker<'_>) -> Vec<Made> {
    vec![
        maker.lora(false, false, false, "none"),
        maker.lora(true, true, false, "none"),
        maker.lora(false, true, false, "lora_only"),
        maker.lora(false, false, true, "none"),
        maker.lora(true, false, true, "all"),
        maker.embedding(false),
        maker.embedding(true),
        maker.saved(),
        maker.mos(1, 3, false),
        maker.mos(2, 5, false),
        maker.mos(4, 2, false),
        maker.mos(4, 7, true),
        maker.mos(2, 1, true),
        maker.ssf(),
        maker.ia3(false),
        maker.ia3(true),
    ]
}

/// The largest distance between rows, of the largest logit expected.
fn relative(got: &[Vec<f32>], want: &[Vec<f64>]) -> f64 {
    assert_eq!(got.len(), want.len());
    let pairs = got.iter().flatten().zip(want.iter().flatten());
    let distance = pairs.map(|(&g, w)| (f64::from(g) - w).abs()).fold(0.0, f64::max);
    let largest = want.iter().flatten().map(|w| w.abs()).fold(0.0, f64::max);
    // A NaN anywhere must not hide behind max.
    assert!(got.iter().flatten().all(|g| g.is_finite()));
    distance / largest
}

fn check(shape: Shape, seed: u64) -> f64 {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = Rng(seed);
    shape.write(folder.path(), &mut rng);
    let base = Dense::read(shape, folder.path());
    let made = adapters(&mut Maker { rng: &mut rng, base: &base });

    let golden = Golden::open_dir(folder.path(), None);
    let load = |(i, made): (usize, &Made)| -> Arc<Adapter> {
        let dir = folder.path().join(format!("adapter-{i}"));
        made.draft.write(&dir);
        golden.loader.load(&dir).unwrap_or_else(|e| panic!("{}: {e}", made.name))
    };
    let loaded: Vec<_> = made.iter().enumerate().map(load).collect();

    // Two prompts of each, one after the other round the kinds; some cross a KV page.
    let mut prompt = || -> Vec<TokenId> {
        let len = 1 + rng.below(30);
        (0..len).map(|_| rng.below(shape.vocabulary) as TokenId).collect()
    };
    // The last is the base.
    let all: Vec<usize> = (0..=made.len()).chain((0..=made.len()).rev()).collect();
    let recipe = |i: usize| match i < made.len() {
        true => Recipe::one(Slot(i as u32)),
        false => Recipe::base(),
    };
    let prompts: Vec<_> = all.iter().map(|&i| (recipe(i), prompt())).collect();
    let backend = Cpu::new(2);
    let model = golden.model(&backend);
    let mut rows = logits(&golden, &backend, &model, &loaded, &prompts).into_iter();
    let mut worst = 0.0;
    for (i, (_, prompt)) in all.into_iter().zip(&prompts) {
        let made = made.get(i);
        let (name, dense) = made.map_or(("base", &base), |made| (&made.name, &made.dense));
        let got: Vec<Vec<f32>> = rows.by_ref().take(prompt.len()).collect();
        let distance = relative(&got, &dense.forward(prompt));
        let place = format!("{} seed {seed}: {name}", shape.architecture);
        assert!(distance < TOLERANCE, "{place}: {distance}");
        worst = f64::max(worst, distance);
    }
    worst
}

#[test]
fn every_method_computes_its_definition_on_any_shape_rank_and_seed() {
    for shape in SHAPES {
        let worst = (0..SEEDS).map(|seed| check(*shape, seed)).fold(0.0, f64::max);
        println!("{} {}: {worst:.1e}", shape.architecture, shape.hidden);
    }
}
