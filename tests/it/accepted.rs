//! Spellings and settings that mean what a plain adapter means are served, with its logits.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::Dtype as FileDtype;
use serde_json::{Value, json};
use tessera::adapter::{Adapter, Base, LoadAdapter};
use tessera::backend::cpu::Cpu;
use tessera::files::Folder;
use tessera::ids::{Slot, TokenId};
use tessera::recipe::Recipe;

use crate::files::{Draft, Raw};
use crate::harness::{Golden, distance, logits};

/// What a variant is compared with.
#[derive(Clone, Copy)]
enum Like {
    /// The same file unchanged: the same numbers reach the same kernels.
    Golden(&'static str),
    /// The same file, but for rounding that stands in the file.
    Rounded(&'static str, f32),
    /// No adapter.
    Base,
}

struct Variant {
    name: &'static str,
    like: Like,
    draft: Draft,
}

fn variant(
    name: &'static str,
    golden: &'static str,
    like: Like,
    change: impl Fn(&mut Draft),
) -> Variant {
    let mut draft = Draft::golden("llama", golden);
    change(&mut draft);
    Variant { name, like, draft }
}

fn same(name: &'static str, golden: &'static str, change: impl Fn(&mut Draft)) -> Variant {
    variant(name, golden, Like::Golden(golden), change)
}

fn narrow(draft: &mut Draft, dtype: FileDtype) {
    draft.tensors.values_mut().for_each(|raw| raw.narrow(dtype));
}

fn spellings() -> Vec<Variant> {
    let plain = "base_model.model.";
    vec![
        same("default before the suffix", "lora_qv", |d| {
            d.rename(|name| name.replace(".weight", ".default.weight"));
        }),
        same("default at the end", "lora_embed", |d| {
            d.rename(|name| match name.contains("lora_embedding") {
                true => format!("{name}.default"),
                false => name.to_owned(),
            });
        }),
        same("default at a magnitude", "lora_dora", |d| {
            d.rename(|name| match name.ends_with("magnitude_vector") {
                true => format!("{name}.default.weight"),
                false => name.to_owned(),
            });
        }),
        same("module.", "lora_qv", |d| d.rename(|name| format!("module.{name}"))),
        same("_orig_mod. at the start", "ssf", |d| d.rename(|name| format!("_orig_mod.{name}"))),
        same("wrappers inside", "ia3", |d| {
            d.rename(|name| {
                let name = name.replace("layers.1.", "layers.1._checkpoint_wrapped_module.");
                name.replace("layers.2.", "layers.2._fsdp_wrapped_module._orig_mod.")
            });
        }),
        same("no prefix", "lora_qv", |d| d.rename(|name| name.replace(plain, ""))),
        same("no prefix: MoS", "mos_official", |d| d.rename(|name| name.replace(plain, ""))),
        same("older saved module", "lora_saved_norm", |d| {
            d.rename(|name| name.replace("norm.weight", "norm.modules_to_save.weight"));
        }),
        same("table copy by its own name", "lora_head", |d| {
            d.rename(|name| name.replace("base_layer.weight", "weight"));
        }),
        same("indices of 64 bits", "mos_compact", |d| {
            for (_, raw) in d.tensors.iter_mut().filter(|(name, _)| name.contains("index")) {
                *raw = crate::files::Raw::i64(&raw.shape, &raw.integers());
            }
        }),
        same("settings that were for training", "lora_qv", |d| {
            d.set("lora_dropout", 0.3);
            d.set("fan_in_fan_out", true);
            d.set("megatron_core", "megatron.core");
            d.set("qalora_group_size", 32);
            d.set("init_lora_weights", "gaussian");
            d.set("a_later_version_of_peft", Value::Null);
            d.set("another", json!({}));
        }),
        same("no optional field", "lora_qv", |d| {
            let keep = ["peft_type", "lora_alpha", "target_modules"];
            d.config.retain(|key, _| keep.contains(&key.as_str()));
        }),
        same("weights tied on a base that ties none", "lora_head", |d| {
            d.set("ensure_weight_tying", true);
        }),
        same("f64", "lora_all_rs", |d| d.tensors.values_mut().for_each(Raw::widen)),
        same("f64 that f32 cannot hold", "lora_saved_norm", |d| {
            for raw in d.tensors.values_mut() {
                raw.widen();
                raw.nudge();
            }
        }),
        variant("f16", "lora_all_rs", Like::Rounded("lora_all_rs", 2e-2), |d| {
            narrow(d, FileDtype::F16);
        }),
        variant("bf16", "lora_all_rs", Like::Rounded("lora_all_rs", 0.1), |d| {
            narrow(d, FileDtype::BF16);
        }),
    ]
}

/// Patterns as trainers write them, for the modules that the plain config lists.
fn pattern_targets() -> Vec<Variant> {
    let target = |name: &'static str, text: &'static str| {
        same(name, "lora_qv", |d| d.set("target_modules", text))
    };
    vec![
        target("look-ahead", r"^(?!.*(visual|lm_head)).*(q_proj|v_proj)$"),
        target("look-behind", r".*(?<=self_attn)(?<!k)\.[qv]_proj"),
        target("a back-reference", r"(m)odel\..*(?P<q>[qv])_proj(?<!\1)"),
        target("possessive, an end by its letter", r"model\.layers\.\d++\.self_attn\.[qv]_proj\Z"),
    ]
}

/// `rank_pattern` and `alpha_pattern` that say by name what the plain config says for all.
fn patterns() -> Vec<Variant> {
    vec![
        same("a caret in rank_pattern", "lora_qv", |d| {
            d.set("r", 5);
            d.set(
                "rank_pattern",
                json!({
                    r"^model.layers.\d.self_attn.q_proj": 8, "v_proj": 8, ".*": 3
                }),
            );
            d.set("alpha_pattern", json!({"q_proj": 16, "v_proj": 16}));
        }),
        same("the first key decides", "lora_qv", |d| {
            d.set("lora_alpha", 1);
            d.set("alpha_pattern", json!({"z": 3, ".*_proj": 16, "q_proj": 2, "v_proj": 99}));
        }),
        same("patterns match the end of a name", "lora_qv", |d| {
            // None of these is the end of a module's name from a dot on.
            d.set("rank_pattern", json!({"roj": 2, "self_attn": 3, "q_pro": 4}));
            d.set("alpha_pattern", json!({"_proj": 2, "layers.0": 3}));
        }),
        same("rsLoRA by alpha", "lora_all_rs", |d| {
            let alpha = d.config["lora_alpha"].as_f64().unwrap();
            d.set("use_rslora", false);
            d.set("lora_alpha", alpha * 2.0);
        }),
    ]
}

fn targets() -> Vec<Variant> {
    let layers = |leaf: &str| (0..3).map(|i| format!("layers.{i}.{leaf}")).collect::<Vec<_>>();
    vec![
        same("all-linear", "lora_all_rs", |d| d.set("target_modules", "All-Linear")),
        same("a pattern for a list", "lora_qv", |d| {
            d.set("target_modules", r"model\.layers\.\d+\.self_attn\.[qv]_proj");
        }),
        same("full names", "lora_qv", move |d| {
            let names = layers("self_attn.q_proj").into_iter().chain(layers("self_attn.v_proj"));
            let names: Vec<_> = names.map(|name| format!("model.{name}")).collect();
            d.set("target_modules", names);
        }),
        same("minimal suffixes", "lora_qv", move |d| {
            let names = layers("self_attn.q_proj").into_iter().chain(["v_proj".to_owned()]);
            d.set("target_modules", names.collect::<Vec<_>>());
        }),
        same("the default targets", "lora_qv", |d| d.set("target_modules", Value::Null)),
        same("IA3's default targets", "ia3", |d| d.set("target_modules", Value::Null)),
        same("exclusion by list", "lora_qv", |d| {
            d.set("target_modules", "all-linear");
            d.set(
                "exclude_modules",
                json!(["k_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
            );
        }),
        same("exclusion by pattern", "lora_qv", |d| {
            d.set("target_modules", json!(["q_proj", "v_proj", "up_proj"]));
            d.set("exclude_modules", r".*\.mlp\..*");
        }),
        same("layers given as one number", "lora_layer1", |d| d.set("layers_to_transform", 1)),
        same("layers given by their list's name", "lora_layer1", |d| {
            d.set("layers_pattern", "layers");
        }),
        same("feed-forward by the end of a name", "ia3", |d| {
            d.set("feedforward_modules", json!(["own_proj"]));
        }),
    ]
}

fn strengths() -> Vec<Variant> {
    vec![
        variant("alpha 0", "lora_qv", Like::Base, |d| d.set("lora_alpha", 0)),
        variant("B of zeros", "lora_all_rs", Like::Base, |d| d.multiply("lora_B", 0.0)),
        same("negative alpha", "lora_qv", |d| {
            d.set("lora_alpha", -16.0);
            d.multiply("lora_B", -1.0);
        }),
        same("alpha with a fraction", "lora_qv", |d| {
            d.set("lora_alpha", 0.5);
            d.multiply("lora_B", 32.0);
        }),
    ]
}

#[test]
fn every_spelling_of_an_adapter_gives_the_logits_of_the_plain_one() {
    let golden = Golden::open("llama", None);
    let folder = tempfile::tempdir().unwrap();
    let variants: Vec<Variant> =
        [spellings(), pattern_targets(), patterns(), targets(), strengths()]
            .into_iter()
            .flatten()
            .collect();

    let mut adapters: Vec<Arc<Adapter>> = Vec::new();
    let mut plain: BTreeMap<&str, Recipe<Slot>> = BTreeMap::new();
    let mut slot = |adapter: Arc<Adapter>| {
        adapters.push(adapter);
        Recipe::one(Slot(adapters.len() as u32 - 1))
    };
    let mut pairs = Vec::new();
    for (i, variant) in variants.iter().enumerate() {
        let dir = folder.path().join(i.to_string());
        variant.draft.write(&dir);
        let loaded = golden.loader.load(&dir);
        let found = slot(loaded.unwrap_or_else(|e| panic!("{}: {e}", variant.name)));
        let expected = match variant.like {
            Like::Base => Recipe::base(),
            Like::Golden(name) | Like::Rounded(name, _) => {
                plain.entry(name).or_insert_with(|| slot(golden.adapter(name))).clone()
            }
        };
        pairs.push((found, expected));
    }
    let prompt: Vec<TokenId> = vec![0, 58, 78, 75, 227, 429];
    let prompts: Vec<_> = pairs
        .iter()
        .flat_map(|(found, expected)| [found, expected])
        .map(|recipe| (recipe.clone(), prompt.clone()))
        .collect();
    let backend = Cpu::new(2);
    let model = golden.model(&backend);
    let rows = logits(&golden, &backend, &model, &adapters, &prompts);
    for (variant, rows) in variants.iter().zip(rows.chunks_exact(2 * prompt.len())) {
        let (found, expected) = rows.split_at(prompt.len());
        let distances = found.iter().zip(expected).map(|(a, b)| distance(a, b));
        let worst = distances.fold(0.0, f32::max);
        let bound = match variant.like {
            Like::Rounded(_, bound) => {
                assert!(worst > 0.0, "{}: nothing was rounded", variant.name);
                bound
            }
            // Powers of two only: nothing may differ by even one bit.
            Like::Golden(_) | Like::Base => 0.0,
        };
        println!("{}: {worst}", variant.name);
        assert!(worst <= bound, "{}: {worst}", variant.name);
    }
}

#[test]
fn the_flag_for_unknown_fields_does_not_serve_what_is_known_to_be_wrong() {
    let mut golden = Golden::open("llama", None);
    golden.loader.allowed.unknown_config_keys = true;
    let folder = tempfile::tempdir().unwrap();
    let load = |key: &str, value: Value| {
        let mut draft = Draft::golden("llama", "lora_qv");
        draft.set(key, value);
        let dir = folder.path().join(key);
        draft.write(&dir);
        golden.loader.load(&dir)
    };
    assert!(load("zeta_gain", json!(1.5)).is_ok());
    for (key, value) in [
        ("layer_replication", json!([[0, 2], [1, 3]])),
        ("trainable_token_indices", json!([1])),
        ("target_parameters", json!(["a.b"])),
        ("alora_invocation_tokens", json!([1])),
        ("use_qalora", json!(true)),
    ] {
        let refused = load(key, value).unwrap_err().to_string();
        assert!(refused.contains(key), "{refused}");
    }
}

/// What peft writes for a saved embedding on a tied base: the table under both names. Without the
/// second name it means the same, and so does a config that saves both by name.
#[test]
fn a_saved_table_of_a_tied_base_is_its_head_too() {
    let golden = Golden::open("qwen2", None);
    let folder = tempfile::tempdir().unwrap();
    let table = {
        let mut tensors = crate::files::read_tensors(&golden.dir.join("model.safetensors"));
        let mut raw = tensors.remove("model.embed_tokens.weight").unwrap();
        let numbers = raw.floats();
        raw = Raw::f32(&raw.shape, &numbers.iter().map(|x| x * 1.5).collect::<Vec<_>>());
        raw
    };
    let load = |name: &str, tie: bool, saved: &[&str], tables: &[(&str, &Raw)]| {
        let mut draft = Draft::golden("qwen2", "lora_qv");
        draft.set("modules_to_save", json!(saved));
        draft.set("ensure_weight_tying", tie);
        for (name, raw) in tables {
            draft.tensors.insert(format!("base_model.model.{name}.weight"), (*raw).clone());
        }
        let dir = folder.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        draft.write(&dir);
        golden.loader.load(&dir)
    };
    let (embed, head) = ("model.embed_tokens", "lm_head");
    let both = [(embed, &table), (head, &table)];
    let adapters = [
        load("by name", false, &["embed_tokens", "lm_head"], &both).unwrap(),
        load("tied", true, &["embed_tokens", embed], &both).unwrap(),
        load("once", true, &[embed], &both[..1]).unwrap(),
        load("embedding alone", false, &[embed], &both[..1]).unwrap(),
    ];
    let weights = |adapter: &Arc<Adapter>| {
        let modules = golden.loader.base.sites();
        [embed, head].map(|name| {
            let site = modules.find(name).unwrap();
            adapter.delta.site(site).and_then(|change| change.weight.clone())
        })
    };
    let expected = weights(&adapters[0]);
    assert!(expected.iter().all(Option::is_some));
    assert_eq!(weights(&adapters[1]), expected);
    assert_eq!(weights(&adapters[2]), expected);
    assert_ne!(weights(&adapters[3]), expected, "untied by its trainer");

    let mut other = table.clone();
    other.set(0, 9.0);
    let differing = load("differing", true, &[embed], &[(embed, &table), (head, &other)]);
    let text = differing.unwrap_err().to_string();
    assert!(text.contains("lm_head.weight") && text.contains("ensure_weight_tying"), "{text}");
}

/// Measured with peft 0.21.2: one pair of factors, written under both names, turned for the head.
#[test]
fn factors_of_a_tied_table_are_its_heads_too() {
    let golden = Golden::open("qwen2", None);
    let folder = tempfile::tempdir().unwrap();
    let embedding = "base_model.model.model.embed_tokens.lora_embedding_";
    let load = |name: &str, tie: bool, change: &dyn Fn(&mut Raw)| {
        let mut draft = Draft::golden("qwen2", "lora_embed");
        draft.set("ensure_weight_tying", tie);
        draft.set("target_modules", json!(["q_proj", "embed_tokens", "model.embed_tokens"]));
        draft.tensors.retain(|name, _| !name.contains("lm_head"));
        let turned = |raw: &Raw| {
            let (rows, columns) = (raw.shape[0], raw.shape[1]);
            let numbers = raw.floats();
            let column = |c: usize| (0..rows).map(move |r| r * columns + c);
            let all = (0..columns).flat_map(column).map(|at| numbers[at]);
            Raw::f32(&[columns, rows], &all.collect::<Vec<_>>())
        };
        let [a, b] = ["A", "B"].map(|part| turned(&draft.tensors[&format!("{embedding}{part}")]));
        let mut head = b;
        change(&mut head);
        draft.tensors.insert("base_model.model.lm_head.lora_A.weight".into(), head);
        draft.tensors.insert("base_model.model.lm_head.lora_B.weight".into(), a);
        let dir = folder.path().join(name);
        std::fs::create_dir(&dir).unwrap();
        draft.write(&dir);
        golden.loader.load(&dir)
    };
    let tied = load("tied", true, &|_| {}).unwrap();
    let head = golden.loader.base.sites().find("lm_head").unwrap();
    assert!(tied.delta.site(head).is_some_and(|change| change.low_rank.is_some()));
    let text = load("differing", true, &|head| head.set(3, 9.0)).unwrap_err().to_string();
    assert!(text.contains("'ensure_weight_tying'") && text.contains("lm_head"), "{text}");
    let text = load("untied", false, &|_| {}).unwrap_err().to_string();
    assert!(text.contains("lm_head.lora_A.weight"), "{text}");
}

#[test]
fn what_is_not_used_of_an_adapters_folder_is_noted() {
    let mut golden = Golden::open("llama", None);
    golden.loader.base_names = vec!["llama".to_owned()];
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    Draft::golden("llama", "lora_qv").write(dir);
    let notes = || golden.loader.read(&Folder::open(dir).unwrap()).unwrap().notes;
    assert_eq!(notes(), Vec::<String>::new());
    let bare = folder.path().join("bare");
    std::fs::create_dir(&bare).unwrap();
    let mut draft = Draft::golden("llama", "lora_qv");
    let names: Vec<String> = draft.tensors.keys().cloned().collect();
    for name in names {
        let tensor = draft.tensors.remove(&name).unwrap();
        draft.tensors.insert(name.replace("base_model.model.", "module."), tensor);
    }
    draft.write(&bare);
    let said = golden.loader.read(&Folder::open(&bare).unwrap()).unwrap().notes;
    assert!(said.len() == 1 && said[0].contains("peft would leave them out"), "{said:?}");
    std::fs::remove_dir_all(&bare).unwrap();
    for name in ["README.md", "optimizer.pt", "chat_template.jinja", "config.json"] {
        std::fs::write(dir.join(name), "").unwrap();
    }
    std::fs::write(dir.join("adapter_model.bin"), "").unwrap();
    std::fs::create_dir(dir.join("checkpoint-3")).unwrap();
    let found = notes();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].starts_with("config.json stands beside"), "{found:?}");
    assert!(found[1].contains("adapter_model.bin beside it is not"), "{found:?}");
    assert_eq!(found[2], "not used: README.md, checkpoint-3/, optimizer.pt");
    std::fs::write(dir.join("new_embeddings.safetensors"), "").unwrap();
    let text = golden.loader.read(&Folder::open(dir).unwrap()).err().unwrap().to_string();
    assert!(text.starts_with("new_embeddings.safetensors holds trained weights"), "{text}");
    std::fs::remove_file(dir.join("new_embeddings.safetensors")).unwrap();
    for i in 0..50 {
        std::fs::write(dir.join(format!("a{i:02}{}", "x".repeat(200))), "").unwrap();
    }
    let last = notes().pop().unwrap();
    assert!(last.ends_with(" and 41 more") && last.len() < 1200, "{last}");
}
