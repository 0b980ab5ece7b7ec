//! What only MoS, SSF or (IA)³ can get wrong.

use serde_json::json;

use super::{Case, edit};
use crate::files::Raw;

/// Of `mos_official`: three layers; at k_proj l = 4 shards, r = 6, pools of 48 shards.
const K: &str = "base_model.model.model.layers.1.self_attn.k_proj";

pub fn cases() -> Vec<Case> {
    [mos_compact(), mos_pools(), mos_official(), ssf_ia3()].into_iter().flatten().collect()
}

fn mos_compact() -> Vec<Case> {
    let index = "mos.q_proj.index_A";
    let set = |name, expect, value: i32| {
        edit(name, "mos_compact", expect, move |d| {
            d.tensor(index).bytes[..4].copy_from_slice(&value.to_le_bytes());
        })
    };
    vec![
        set("a shard past the pool", &["mos.q_proj.index_A", "index 48", "48 shards"], 48),
        set("a shard below 0", &["mos.q_proj.index_A", "index -1", "48 shards"], -1),
        set("a shard far past the pool", &["index 2147483647"], i32::MAX),
        edit(
            "shards as floats",
            "mos_compact",
            &["mos.q_proj.index_A", "F32", "I64 or I32"],
            |d| {
                let floats: Vec<f32> =
                    d.tensor(index).integers().iter().map(|&i| i as f32).collect();
                let shape = d.tensor(index).shape.clone();
                d.insert(index, Raw::f32(&shape, &floats));
            },
        ),
        edit("no shards of B", "mos_compact", &["mos.q_proj.index_B' is missing"], |d| {
            d.remove("mos.q_proj.index_B");
        }),
        edit("no shards of A", "mos_compact", &["mos.v_proj.index_A' is missing"], |d| {
            d.remove("mos.v_proj.index_A");
        }),
        edit("no pool of A", "mos_compact", &["mos.v_proj.pool_A' is missing"], |d| {
            d.remove("mos.v_proj.pool_A");
        }),
        edit("no pool of B", "mos_compact", &["mos.v_proj.pool_B' is missing"], |d| {
            d.remove("mos.v_proj.pool_B");
        }),
        edit(
            "shards for too few layers",
            "mos_compact",
            &["mos.q_proj.index_A", "[2, 6, 4]; expected [3, 6, 4]"],
            |d| {
                let raw = d.tensor(index);
                raw.shape[0] = 2;
                raw.bytes.truncate(2 * 6 * 4 * 4);
            },
        ),
        edit(
            "shards that do not divide",
            "mos_compact",
            &["q_proj", "5 shards", "64 inputs"],
            |d| {
                d.insert(index, Raw::i32(&[3, 6, 5], &[0; 90]));
                d.unset("num_chunk_per_vec");
            },
        ),
    ]
}

fn mos_pools() -> Vec<Case> {
    vec![
        edit(
            "a rank that is not the config's",
            "mos_compact",
            &["'r' is 7", "q_proj have 6"],
            |d| {
                d.set("r", 7);
                d.set("target_modules", json!(["q_proj"]));
                d.tensors.retain(|name, _| name.starts_with("mos.q_proj."));
            },
        ),
        edit(
            "shards that are not the config's",
            "mos_compact",
            &["'num_chunk_per_vec' is 8", "have 4"],
            |d| {
                d.set("num_chunk_per_vec", 8);
            },
        ),
        edit(
            "pools of different lengths",
            "mos_compact",
            &["mos.q_proj.pool_B", "[47, 16]; expected [48, 16]"],
            |d| {
                let raw = d.tensor("mos.q_proj.pool_B");
                raw.shape[0] = 47;
                raw.bytes.truncate(47 * 16 * 4);
            },
        ),
        edit(
            "a pool of another width",
            "mos_compact",
            &["mos.q_proj.pool_A", "[96, 8]; expected [96, 16]"],
            |d| {
                d.tensor("mos.q_proj.pool_A").shape = vec![96, 8];
            },
        ),
        edit("a pool of no shards", "mos_compact", &["mos.q_proj.pool_A", "[0, 16]"], |d| {
            d.insert("mos.q_proj.pool_A", Raw::f32(&[0, 16], &[]));
        }),
        edit("MoS of some layers", "mos_compact", &["of 1 layers", "has 3"], |d| {
            d.set("layers_to_transform", json!([1]));
        }),
        edit("MoS of the head", "mos_compact", &["lm_head", "between the layers"], |d| {
            d.set("target_modules", json!(["q_proj", "lm_head"]));
        }),
        edit(
            "MoS without targets",
            "mos_compact",
            &["'target_modules' null matches no module"],
            |d| {
                d.unset("target_modules");
            },
        ),
        edit(
            "MoS of a module nobody knows",
            "mos_compact",
            &["mos.qkv_proj.pool_A' is not used"],
            |d| {
                let raw = d.tensors["mos.q_proj.pool_A"].clone();
                d.insert("mos.qkv_proj.pool_A", raw);
            },
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn mos_official() -> Vec<Case> {
    vec![
        edit(
            "a shard of one layer past the pool",
            "mos_official",
            &["k_proj.lora_pair_mask'", "index 48", "48 shards"],
            |d| {
                d.tensor(&format!("{K}.lora_pair_mask")).bytes[..8]
                    .copy_from_slice(&48i64.to_le_bytes());
            },
        ),
        edit(
            "a shard of one layer below 0",
            "mos_official",
            &["k_proj.lora_pair_mask_B'", "index -9"],
            |d| {
                d.tensor(&format!("{K}.lora_pair_mask_B")).bytes[8..16]
                    .copy_from_slice(&(-9i64).to_le_bytes());
            },
        ),
        edit("masks as floats", "mos_official", &["k_proj.lora_pair_mask'", "F32"], |d| {
            d.insert(&format!("{K}.lora_pair_mask"), Raw::f32(&[24], &[1.0; 24]));
        }),
        edit("masks as bytes", "mos_official", &["k_proj.lora_pair_mask'", "U8"], |d| {
            let raw = Raw { dtype: safetensors::Dtype::U8, shape: vec![24], bytes: vec![0; 24] };
            d.insert(&format!("{K}.lora_pair_mask"), raw);
        }),
        edit(
            "pools that differ between layers",
            "mos_official",
            &["k_proj differ between layers", "layers.1.self_attn.k_proj"],
            |d| {
                let raw = d.tensor(&format!("{K}.lora_A.weight"));
                let first = raw.floats()[0];
                raw.set(0, first + 1.0);
            },
        ),
        edit(
            "pools of B that differ between layers",
            "mos_official",
            &["o_proj differ between layers", "layers.1.self_attn.o_proj"],
            |d| {
                let name = K.replace("k_proj", "o_proj");
                let raw = d.tensor(&format!("{name}.lora_B.weight"));
                let first = raw.floats()[0];
                raw.set(0, first + 1.0);
            },
        ),
        edit(
            "a vector that is not undone",
            "mos_official",
            &["k_proj.lora_A_vec", "lora_A_anti_vec", "at 2 they give 3"],
            |d| {
                d.tensor(&format!("{K}.lora_A_vec")).set(2, 3.0);
                d.tensor(&format!("{K}.lora_A_anti_vec")).set(2, 1.0);
            },
        ),
        edit("no vector", "mos_official", &["k_proj.lora_A_vec' is missing"], |d| {
            d.remove(&format!("{K}.lora_A_vec"));
        }),
        edit("no mask of one layer", "mos_official", &["k_proj.lora_pair_mask' is missing"], |d| {
            d.remove(&format!("{K}.lora_pair_mask"));
        }),
        edit(
            "no mask of B of one layer",
            "mos_official",
            &["k_proj.lora_pair_mask_B' is missing"],
            |d| {
                d.remove(&format!("{K}.lora_pair_mask_B"));
            },
        ),
        edit(
            "a mask that is not whole rows",
            "mos_official",
            &["k_proj.lora_pair_mask'", "22 shards", "rows of 4"],
            |d| {
                d.insert(&format!("{K}.lora_pair_mask"), Raw::i64(&[22], &[0; 22]));
                d.unset("r");
            },
        ),
        edit("a mask shorter than one row", "mos_official", &["3 shards", "rows of 4"], |d| {
            d.insert(&format!("{K}.lora_pair_mask"), Raw::i64(&[3], &[0; 3]));
            d.unset("r");
        }),
        edit(
            "shards that do not fit a row",
            "mos_official",
            &["k_proj.lora_A.weight", "shards of 48", "divide 64"],
            |d| {
                d.tensor(&format!("{K}.lora_A.weight")).shape = vec![16, 48];
            },
        ),
    ]
}

#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn ssf_ia3() -> Vec<Case> {
    let layer = "base_model.model.model.layers.1";
    let (k, down) =
        (format!("{layer}.self_attn.k_proj.ia3_l"), format!("{layer}.mlp.down_proj.ia3_l"));
    vec![
        edit(
            "SSF without a shift",
            "ssf",
            &["layers.1.mlp.up_proj.ssf_shift' is missing", "[160]"],
            move |d| {
                d.remove(&format!("{layer}.mlp.up_proj.ssf_shift"));
            },
        ),
        edit("SSF without a scale", "ssf", &["model.norm.ssf_scale' is missing", "[64]"], |d| {
            d.remove("base_model.model.model.norm.ssf_scale");
        }),
        edit(
            "SSF of another width",
            "ssf",
            &["model.norm.ssf_scale", "[63]; expected [64]"],
            |d| {
                d.insert("base_model.model.model.norm.ssf_scale", Raw::f32(&[63], &[1.0; 63]));
            },
        ),
        edit("SSF without targets", "ssf", &["'target_modules' is missing", "SSF"], |d| {
            d.unset("target_modules");
        }),
        edit("SSF of too few modules", "ssf", &["q_proj.ssf_scale' is not used"], |d| {
            let without = |m: &&serde_json::Value| m.as_str() != Some("q_proj");
            let list = d.config["target_modules"].as_array().unwrap();
            let list: Vec<_> = list.iter().filter(without).cloned().collect();
            d.set("target_modules", list);
        }),
        edit(
            "IA3 feed-forward elsewhere",
            "ia3",
            &["'feedforward_modules'", "q_proj", "down_proj only"],
            |d| {
                d.set("target_modules", json!(["q_proj"]));
                d.set("feedforward_modules", json!(["q_proj"]));
                let l = Raw::f32(&[1, 64], &[0.5; 64]);
                d.tensors.clear();
                for i in 0..3 {
                    let name = format!("base_model.model.model.layers.{i}.self_attn.q_proj.ia3_l");
                    d.insert(&name, l.clone());
                }
            },
        ),
        edit(
            "IA3 the wrong way round",
            "ia3",
            &["k_proj.ia3_l", "[1, 32]; expected [32, 1]", "output scale"],
            move |d| {
                d.tensor(&k).shape = vec![1, 32];
            },
        ),
        edit(
            "IA3 the wrong way round at a feed-forward",
            "ia3",
            &["down_proj.ia3_l", "[160, 1]; expected [1, 160]", "input scale"],
            move |d| {
                d.tensor(&down).shape = vec![160, 1];
            },
        ),
        edit(
            "IA3 without feed-forward",
            "ia3",
            &["down_proj.ia3_l", "[1, 160]; expected [64, 1]"],
            |d| {
                d.set("feedforward_modules", json!([]));
            },
        ),
        edit("IA3 of a norm", "ia3", &["input_layernorm", "linears only"], |d| {
            d.set("target_modules", json!(["k_proj", "input_layernorm"]));
        }),
        edit(
            "IA3 without a tensor",
            "ia3",
            &["layers.1.self_attn.k_proj.ia3_l' is missing"],
            move |d| {
                d.remove(&format!("{layer}.self_attn.k_proj.ia3_l"));
            },
        ),
    ]
}
