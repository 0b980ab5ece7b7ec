//! The file can be read and its tensors are not those of the adapter that the config describes.

use safetensors::Dtype as FileDtype;
use serde_json::json;
use tessera::dtype::Dtype;

use super::{Case, edit};
use crate::files::{Draft, Raw};

/// Of `lora_qv`: A `[8, 64]`, B `[64, 8]` at q and `[32, 8]` at v.
const A: &str = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight";
const V_B: &str = "base_model.model.model.layers.2.self_attn.v_proj.lora_B.weight";
const LAYER: &str = "base_model.model.model.layers.1";

pub fn cases() -> Vec<Case> {
    [values(), shapes(), names(), too_many(), extras()].into_iter().flatten().collect()
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn values() -> Vec<Case> {
    let lora = |name, expect, value: f32| {
        edit(name, "lora_qv", expect, move |d| d.tensor(V_B).set(77, value))
    };
    let recast =
        |name, expect, dtype| edit(name, "lora_qv", expect, move |d| d.tensor(A).recast(dtype));
    let zeros = |name, expect: &'static [&'static str], dtype: FileDtype, bytes: usize| {
        edit(name, "lora_qv", expect, move |d| {
            let raw = Raw { dtype, shape: vec![8, 64], bytes: vec![0; 512 * bytes] };
            d.insert(A, raw);
        })
    };
    vec![
        lora("a NaN in B", &[V_B, "holds NaN at element 77", "finite"], f32::NAN),
        lora("an infinity in B", &[V_B, "holds inf at element 77"], f32::INFINITY),
        lora("a negative infinity in B", &[V_B, "holds -inf at element 77"], f32::NEG_INFINITY),
        edit("a NaN in A", "lora_qv", &[A, "holds NaN at element 0"], |d| {
            d.tensor(A).set(0, f32::NAN);
        }),
        edit("a NaN in f16", "lora_qv", &[A, "holds NaN at element 1"], |d| {
            d.tensor(A).narrow(FileDtype::F16);
            d.tensor(A).bytes[2..4].copy_from_slice(&half::f16::NAN.to_le_bytes());
        }),
        edit(
            "a NaN in a DoRA magnitude",
            "lora_dora",
            &["magnitude_vector", "NaN at element 3"],
            |d| {
                let name = format!("{LAYER}.mlp.up_proj.lora_magnitude_vector");
                d.tensor(&name).set(3, f32::NAN);
            },
        ),
        edit("a NaN in an SSF shift", "ssf", &["norm.ssf_shift", "NaN at element 5"], |d| {
            d.tensor("base_model.model.model.norm.ssf_shift").set(5, f32::NAN);
        }),
        edit("an infinity in an IA3 scale", "ia3", &["k_proj.ia3_l", "inf at element 2"], |d| {
            d.tensor(&format!("{LAYER}.self_attn.k_proj.ia3_l")).set(2, f32::INFINITY);
        }),
        edit(
            "a NaN in a MoS pool",
            "mos_compact",
            &["mos.o_proj.pool_B", "NaN at element 9"],
            |d| {
                d.tensor("mos.o_proj.pool_B").set(9, f32::NAN);
            },
        ),
        edit("a NaN in a saved norm", "lora_saved_norm", &["input_layernorm.weight", "NaN"], |d| {
            d.tensor(&format!("{LAYER}.input_layernorm.weight")).set(1, f32::NAN);
        }),
        lora("too big for f16", &["layers.2.self_attn.v_proj", "f16", "--dtype bf16"], 1e5)
            .at(Dtype::F16),
        edit(
            "too big for f16 once scaled",
            "lora_qv",
            &["layers.1.self_attn.q_proj", "f16"],
            |d| {
                d.tensor(B).set(0, 40_000.0);
            },
        )
        .at(Dtype::F16),
        edit(
            "a saved head too big for f16",
            "lora_head",
            &["lm_head", "whole weight", "f16"],
            |d| {
                d.tensor("base_model.model.lm_head.base_layer.weight").set(0, 1e5);
            },
        )
        .at(Dtype::F16),
        edit("a DoRA row of zeros", "lora_dora", &["layers.1.mlp.up_proj", "row 2", "zero"], |d| {
            cancel_row(d, 2);
        }),
        zeros(
            "weights in U16",
            &[A, "holds U16 numbers; expected F64, F32, F16 or BF16"],
            FileDtype::U16,
            2,
        ),
        zeros("weights in I8", &[A, "holds I8 numbers"], FileDtype::I8, 1),
        zeros("weights in BOOL", &[A, "holds BOOL numbers"], FileDtype::BOOL, 1),
        zeros("weights in I32", &[A, "holds I32 numbers"], FileDtype::I32, 4),
        zeros("weights in F8", &[A, "holds F8_E4M3 numbers"], FileDtype::F8_E4M3, 1),
        recast("weights read as another width", &[A, "[8, 128]; expected [8, 64]"], FileDtype::F16),
    ]
}

/// Makes row `row` of W + s·B A zero at layer 1's up_proj: the rank is raised by one there.
fn cancel_row(draft: &mut Draft, row: usize) {
    let base =
        crate::files::read_tensors(&crate::harness::golden_dir().join("llama/model.safetensors"));
    let w = base["model.layers.1.mlp.up_proj.weight"].floats();
    let module = format!("{LAYER}.mlp.up_proj");
    let mut a = vec![0.0; 4 * 64];
    a[..64].copy_from_slice(&w[row * 64..][..64]);
    let mut b = vec![0.0; 160 * 4];
    // Scaling is alpha / r = 8 / 4.
    b[row * 4] = -0.5;
    draft.insert(&format!("{module}.lora_A.weight"), Raw::f32(&[4, 64], &a));
    draft.insert(&format!("{module}.lora_B.weight"), Raw::f32(&[160, 4], &b));
}

fn shapes() -> Vec<Case> {
    vec![
        edit("A and B swapped", "lora_qv", &[A, "[64, 8]; expected [8, 64] (A)"], |d| {
            let (a, b) = (d.remove(A), d.remove(B));
            d.insert(A, b);
            d.insert(B, a);
        }),
        edit("A of another hidden size", "lora_qv", &[A, "[8, 80]; expected [8, 64]"], |d| {
            d.insert(A, Raw::f32(&[8, 80], &[0.5; 640]));
        }),
        edit("B of another hidden size", "lora_qv", &[V_B, "[64, 8]; expected [32, 8]"], |d| {
            d.insert(V_B, Raw::f32(&[64, 8], &[0.5; 512]));
        }),
        edit("B of another rank than A", "lora_qv", &[B, "[64, 4]; expected [64, 8]"], |d| {
            d.insert(B, Raw::f32(&[64, 4], &[0.5; 256]));
        }),
        edit("A in one dimension", "lora_qv", &[A, "[512]; expected [8, 64]"], |d| {
            d.tensor(A).shape = vec![512];
        }),
        edit("A in nine dimensions", "lora_qv", &[A, "[8, 1, 1, 1, 1, 1, 1, 1, 64]"], |d| {
            d.tensor(A).shape = vec![8, 1, 1, 1, 1, 1, 1, 1, 64];
        }),
        edit("A of no elements", "lora_qv", &[A, "has shape [0]; expected [8, 64]"], |d| {
            d.insert(A, Raw::f32(&[0], &[]));
        }),
        edit(
            "an embedding's A transposed",
            "lora_embed",
            &["lora_embedding_A", "[512, 4]; expected [4, 512]"],
            |d| {
                d.tensor("base_model.model.model.embed_tokens.lora_embedding_A").shape =
                    vec![512, 4];
            },
        ),
        edit(
            "another vocabulary",
            "lora_embed",
            &["embed_tokens", "[520, 64]", "[512, 64]", "vocabulary"],
            |d| {
                let name = "base_model.model.model.embed_tokens.base_layer.weight";
                d.insert(name, Raw::f32(&[520, 64], &[0.1; 520 * 64]));
            },
        ),
        edit(
            "another vocabulary at the head",
            "lora_head",
            &["lm_head", "[500, 64]", "vocabulary"],
            |d| {
                d.remove("base_model.model.lm_head.base_layer.weight");
                d.insert("base_model.model.lm_head.weight", Raw::f32(&[500, 64], &[0.1; 32_000]));
            },
        ),
        edit(
            "a saved norm of another width",
            "lora_saved_norm",
            &["input_layernorm.weight", "[65]; expected [64]"],
            |d| {
                d.insert(&format!("{LAYER}.input_layernorm.weight"), Raw::f32(&[65], &[1.0; 65]));
            },
        ),
        edit(
            "a DoRA magnitude in two dimensions",
            "lora_dora",
            &["magnitude_vector", "[160, 1]; expected [160]"],
            |d| {
                d.tensor(&format!("{LAYER}.mlp.up_proj.lora_magnitude_vector")).shape =
                    vec![160, 1];
            },
        ),
    ]
}

fn names() -> Vec<Case> {
    vec![
        edit(
            "no A",
            "lora_qv",
            &["layers.1.self_attn.q_proj.lora_A.weight' is missing", "[8, 64] (A)"],
            |d| {
                d.remove(A);
            },
        ),
        edit(
            "no B",
            "lora_qv",
            &["layers.1.self_attn.q_proj.lora_B.weight' is missing", "[64, 8] (B)"],
            |d| {
                d.remove(B);
            },
        ),
        edit(
            "no tensor of a layer",
            "lora_qv",
            &["layers.2.self_attn.q_proj.lora_A.weight' is missing"],
            |d| {
                d.tensors.retain(|name, _| !name.contains("layers.2."));
            },
        ),
        edit("no bias of B", "lora_bias", &["q_proj.lora_B.bias' is missing", "[64]"], |d| {
            d.remove(&format!("{LAYER}.self_attn.q_proj.lora_B.bias"));
        }),
        edit("a bias of B too many", "lora_bias", &["lora_B.bias' is not used", "bias"], |d| {
            d.set("lora_bias", false);
        }),
        edit(
            "DoRA without magnitude",
            "lora_dora",
            &["layers.1.mlp.up_proj.lora_magnitude_vector' is missing"],
            |d| {
                d.remove(&format!("{LAYER}.mlp.up_proj.lora_magnitude_vector"));
            },
        ),
        edit(
            "a magnitude without DoRA",
            "lora_dora",
            &["lora_magnitude_vector' is not used"],
            |d| {
                d.set("use_dora", false);
            },
        ),
        edit("DoRA with a bias of B", "lora_dora", &["'use_dora'", "'lora_bias'"], |d| {
            d.set("lora_bias", true);
        }),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn too_many() -> Vec<Case> {
    let other = |name, golden, expect, from: &'static str, to: &'static str| {
        edit(name, golden, expect, move |d| {
            let raw = d.tensors[from].clone();
            d.insert(to, raw);
        })
    };
    vec![
        other(
            "a tensor too many",
            "lora_qv",
            &["layers.1.self_attn.q_proj.lora_C.weight' is not used"],
            A,
            "base_model.model.model.layers.1.self_attn.q_proj.lora_C.weight",
        ),
        other(
            "a layer too many",
            "lora_qv",
            &["layers.99.", "3 layers", "layer 99"],
            A,
            "base_model.model.model.layers.99.self_attn.q_proj.lora_A.weight",
        ),
        other(
            "a module nobody knows",
            "lora_qv",
            &["qkv_proj.lora_A.weight' is not used", "no such module"],
            A,
            "base_model.model.model.layers.1.self_attn.qkv_proj.lora_A.weight",
        ),
        other(
            "a module of a classifier",
            "lora_qv",
            &["'base_model.model.score.weight' is not used"],
            A,
            "base_model.model.score.weight",
        ),
        other(
            "two spellings of one tensor",
            "lora_qv",
            &[A, "lora_A.default.weight", "same parameter"],
            A,
            "base_model.model.model.layers.1.self_attn.q_proj.lora_A.default.weight",
        ),
        other(
            "two spellings: no prefix",
            "lora_qv",
            &[A, "'model.layers.1.self_attn.q_proj.lora_A.weight'", "same parameter"],
            A,
            "model.layers.1.self_attn.q_proj.lora_A.weight",
        ),
        other(
            "two spellings: a wrapper",
            "lora_qv",
            &[A, "'module.base_model", "same parameter"],
            A,
            "module.base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight",
        ),
        other(
            "two copies of a table",
            "lora_head",
            &["lm_head.weight' is not used"],
            "base_model.model.lm_head.base_layer.weight",
            "base_model.model.lm_head.weight",
        ),
        edit(
            "AdaLoRA's tensors as LoRA",
            "lora_qv",
            &["layers.0.self_attn.q_proj.lora_A.weight' is missing"],
            |d| {
                d.rename(|name| name.replace(".weight", ""));
            },
        ),
        edit(
            "AdaLoRA's tensors as LoRA: another model's",
            "lora_qv",
            &["q_proj.lora_A.weight' is missing"],
            |d| {
                d.rename(|name| name.replace("model.layers", "transformer.h"));
            },
        ),
    ]
}

fn extras() -> Vec<Case> {
    vec![
        edit("targets excluded: saved", "lora_qv", &["q_proj.lora_A.weight' is not used"], |d| {
            let weight = Raw::f32(&[64, 64], &[0.1; 4096]);
            for layer in 0..3 {
                let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.weight");
                d.insert(&name, weight.clone());
            }
            d.set("modules_to_save", json!(["q_proj"]));
        }),
        edit(
            "a saved module that is not said to be",
            "lora_saved_norm",
            &["input_layernorm.weight' is not used", "modules_to_save"],
            |d| {
                d.set("modules_to_save", json!(null));
            },
        ),
        edit("biases without a place", "lora_qv", &["q_proj.bias' is not used", "bias"], |d| {
            d.set("bias", "lora_only");
            let name = "base_model.model.model.layers.1.self_attn.q_proj.bias";
            d.insert(name, Raw::f32(&[64], &[0.5; 64]));
        }),
        edit("DoRA on a changed table", "lora_head", &["lm_head", "DoRA"], |d| {
            d.set("use_dora", true);
            let sites: Vec<String> = d
                .tensors
                .keys()
                .filter_map(|k| k.strip_suffix(".lora_B.weight"))
                .map(str::to_owned)
                .collect();
            for site in sites {
                let rows = d.tensors[&format!("{site}.lora_B.weight")].shape[0];
                d.insert(
                    &format!("{site}.lora_magnitude_vector"),
                    Raw::f32(&[rows], &vec![1.0; rows]),
                );
            }
            d.tensor("base_model.model.lm_head.base_layer.weight").set(0, 9.0);
        }),
    ]
}
