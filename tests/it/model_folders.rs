//! What a model's directory holds beside `config.json` and the weights, and directories that are
//! no model: served with a note, or refused with what they are and what to do.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tessera::dtype::Dtype;
use tessera::model::{Checkpoint, ModelConfig, RopeScaling, of_a_file};
use tessera::site::SiteKind;

use crate::files::{Draft, Raw, read_tensors, tensor_bytes};
use crate::harness::golden_dir;
use crate::process::{Server, tessera};

/// A golden model's two files, with keys of its config set.
fn model(name: &str, dir: &Path, set: Value) {
    let from = golden_dir().join(name);
    let config = fs::read(from.join("config.json")).unwrap();
    let mut config: Map<String, Value> = serde_json::from_slice(&config).unwrap();
    config.extend(set.as_object().unwrap().clone());
    fs::write(dir.join("config.json"), serde_json::to_vec(&config).unwrap()).unwrap();
    fs::copy(from.join("model.safetensors"), dir.join("model.safetensors")).unwrap();
}

fn refusal(dir: &Path) -> String {
    match Checkpoint::open(dir, None) {
        Ok(_) => panic!("{} was served", dir.display()),
        Err(error) => error.to_string(),
    }
}

fn notes(dir: &Path) -> String {
    Checkpoint::open(dir, None).unwrap().notes.join("\n")
}

/// What must be said, of a directory that this makes.
type Case<'a> = (&'a str, &'a [&'a str], &'a dyn Fn(&Path));

fn touch(dir: &Path, names: &[&str]) {
    names.iter().for_each(|name| fs::write(dir.join(name), "x").unwrap());
}

fn all_are_told(cases: &[Case<'_>]) {
    for (name, wanted, make) in cases {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path());
        let said = refusal(dir.path());
        assert!(wanted.iter().all(|part| said.contains(part)), "{name}: {said}");
        assert!(!said.contains('\n'), "{name}: {said}");
    }
}

fn adapter(dir: &Path) {
    let mut draft = Draft::golden("llama", "lora_qv");
    draft.set("base_model_name_or_path", "org/the-base");
    draft.write(dir);
}

fn with_config(dir: &Path, text: &str) {
    fs::write(dir.join("config.json"), text).unwrap();
}

const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\n";

#[test]
fn a_directory_that_is_no_model_is_told_what_it_is_and_what_to_do() {
    all_are_told(&[
        ("an adapter", &["is an adapter", "serve org/the-base --adapter NAME="], &adapter),
        ("MLX's adapter", &["is an adapter", "serve x/y --adapter"], &|dir| {
            fs::write(dir.join("adapter_config.json"), r#"{"model": "x/y"}"#).unwrap();
        }),
        ("a trainer's folder", &["trainer's output", "checkpoint-100"], &|dir| {
            for step in ["checkpoint-100", "checkpoint-20", "checkpoint-best"] {
                fs::create_dir(dir.join(step)).unwrap();
            }
        }),
        ("GGUF", &["m.gguf", "GGUF is llama.cpp's"], &|dir| touch(dir, &["m.gguf"])),
        ("Mistral's own", &["own format", "params.json"], &|dir| {
            touch(dir, &["params.json", "consolidated.safetensors", "tekken.json"]);
        }),
        ("Meta's own", &["own format"], &|dir| touch(dir, &["consolidated.00.pth"])),
        ("a Hub cache", &["snapshots"], &|dir| fs::create_dir(dir.join("snapshots")).unwrap()),
        ("one folder too high", &["/inner has"], &|dir| {
            fs::create_dir(dir.join("inner")).unwrap();
            with_config(&dir.join("inner"), "{}");
        }),
        ("nothing", &["is empty"], &|_| {}),
        ("an adapter's weights", &["an adapter's files"], &|dir| {
            touch(dir, &["adapter_model.safetensors"]);
        }),
        ("weights alone", &["no config.json beside"], &|dir| touch(dir, &["model.safetensors"])),
        ("other files", &["no Hugging Face model", "a.txt"], &|dir| touch(dir, &["a.txt"])),
        ("a pointer", &["config.json", "Git LFS", "git lfs pull"], &|dir| {
            with_config(dir, POINTER);
        }),
        ("a page", &["config.json", "web page"], &|dir| with_config(dir, "\n<!DOCTYPE html>")),
        ("an empty config", &["config.json", "empty"], &|dir| with_config(dir, "")),
    ]);
    assert!(refusal(Path::new("/absent")).contains("/absent is not a directory"));
}

#[test]
fn a_directory_without_weights_is_told_what_it_has_and_what_to_do() {
    let llama = |dir: &Path| {
        model("llama", dir, json!({}));
        fs::remove_file(dir.join("model.safetensors")).unwrap();
    };
    all_are_told(&[
        ("a pickle", &["pytorch_model.bin is a pickle", "save_pretrained"], &|dir| {
            llama(dir);
            touch(dir, &["pytorch_model.bin", "training_args.bin"]);
        }),
        ("a sharded pickle", &["a pickle"], &|dir| {
            llama(dir);
            touch(dir, &["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"]);
        }),
        ("no index", &["index", "is missing"], &|dir| {
            llama(dir);
            touch(dir, &["model-00001-of-00002.safetensors"]);
        }),
        ("a variant", &["rename model.fp16.safetensors"], &|dir| {
            llama(dir);
            touch(dir, &["model.fp16.safetensors"]);
        }),
        ("a config and GGUF", &["GGUF"], &|dir| {
            llama(dir);
            touch(dir, &["m.gguf"]);
        }),
        ("a config and an adapter", &["serve org/the-base --adapter"], &|dir| {
            llama(dir);
            adapter(dir);
        }),
        ("DeepSpeed's parts", &["global_step20", "zero_to_fp32"], &|dir| {
            llama(dir);
            touch(dir, &["global_step20"]);
        }),
        ("a trainer's folder", &["trainer's output", "checkpoint-9"], &|dir| {
            llama(dir);
            fs::create_dir(dir.join("checkpoint-9")).unwrap();
        }),
        ("an index not fetched", &["index.json", "Git LFS pointer"], &|dir| {
            llama(dir);
            fs::write(dir.join("model.safetensors.index.json"), POINTER).unwrap();
        }),
        ("a page for weights", &["model.safetensors", "web page"], &|dir| {
            llama(dir);
            fs::write(dir.join("model.safetensors"), "<html>").unwrap();
        }),
        ("empty weights", &["model.safetensors", "empty"], &|dir| {
            llama(dir);
            fs::write(dir.join("model.safetensors"), "").unwrap();
        }),
        ("GGUF by another name", &["model.safetensors", "it is a GGUF file"], &|dir| {
            llama(dir);
            fs::write(dir.join("model.safetensors"), "GGUF____________").unwrap();
        }),
        ("an adapter's tensors", &["an adapter's tensors", "--adapter"], &|dir| {
            llama(dir);
            adapter(dir);
            fs::remove_file(dir.join("adapter_config.json")).unwrap();
            fs::rename(dir.join("adapter_model.safetensors"), dir.join("model.safetensors"))
                .unwrap();
        }),
        ("flax", &["another library"], &|dir| {
            llama(dir);
            touch(dir, &["flax_model.msgpack"]);
        }),
        ("a config alone", &["download the weights"], &llama),
        ("weights not fetched", &["Git LFS pointer"], &|dir| {
            llama(dir);
            fs::write(dir.join("model.safetensors"), POINTER).unwrap();
        }),
    ]);
}

#[test]
fn a_file_in_place_of_its_directory_is_told_of() {
    let file = golden_dir().join("llama/model.safetensors");
    let said = of_a_file(&file);
    assert!(said.contains("give the directory that holds it") && said.ends_with("llama"), "{said}");
    assert!(of_a_file(Path::new("m.Q4_K_M.gguf")).contains("GGUF"));
    let output = tessera(&["serve", file.to_str().unwrap()]).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("is a file; give the directory"), "{error}");
}

#[test]
fn files_beside_those_that_are_read_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    model("llama", dir, json!({}));
    assert_eq!(notes(dir), "", "an ordinary model needs no note");
    let others = [
        "consolidated.safetensors",
        "model.safetensors.index.json",
        "m.gguf",
        "pytorch_model.bin",
        "model-00001-of-00002.safetensors",
    ];
    touch(dir, &others);
    let said = notes(dir);
    assert!(others.iter().all(|name| said.contains(name)), "{said}");
    Draft::golden("llama", "lora_qv").write(dir);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(golden_dir().join("llama").join(name), dir.join(name)).unwrap();
    }
    let said = notes(dir);
    assert!(said.contains("is not applied") && said.contains("--adapter NAME="), "{said}");
    let report = &Server::start(&[dir.to_str().unwrap()]).report;
    let told = |part: &str| report.iter().any(|l| l.starts_with("warning") && l.contains(part));
    assert!(told("is not applied") && told("m.gguf"), "{report:#?}");
    let of = golden_dir().join("llama/adapters/lora_qv");
    let inspect = ["inspect", of.to_str().unwrap(), "--model", dir.to_str().unwrap()];
    let output = tessera(&inspect).output().unwrap();
    let logs = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && logs.contains("is not applied"), "{logs}");
}

#[test]
fn what_of_a_config_is_not_used_is_named() {
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    let cases = [
        ("qwen2", json!({"rope_scaling": linear}), "'rope_theta' 1000000.0 is not used"),
        ("llama", json!({"rope_theta": 5.0}), "'rope_theta' 5.0 is not used"),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "default", "factor": 2}}),
            "rope 'factor' 2",
        ),
        ("llama3", json!({"rope_scaling": linear}), "'low_freq_factor' 1.0, "),
        (
            "llama",
            json!({"rope_scaling": {"rope_type": "linear", "factor": 2, "beta_fast": 32}}),
            "rotary parameters, not read: 'beta_fast'",
        ),
        ("llama3", json!({"original_max_position_embeddings": 32}), "is not used: it is 32 above"),
        ("llama", json!({"sliding_window": 16, "mup_scale": 2}), "'sliding_window', 'mup_scale'"),
        ("llama", json!({"layer_types": ["sliding_attention"]}), "'layer_types'"),
        ("mistral", json!({"attention_bias": true}), "'attention_bias'"),
        ("llama", json!({"torch_dtype": "float16"}), "'torch_dtype' \"float16\" is not used"),
        ("llama", json!({"dtype": "bfloat16"}), "--dtype bf16 rounds them"),
        ("llama", json!({"architectures": ["LlamaModel"]}), "says LlamaModel"),
        (
            "llama",
            json!({"logits_scaling": 8, "num_experts": 4}),
            "'logits_scaling', 'num_experts'",
        ),
        ("llama", json!({"tie_word_embeddings": true}), "lm_head.weight is not the embedding"),
    ];
    for (name, set, wanted) in cases {
        let dir = tempfile::tempdir().unwrap();
        model(name, dir.path(), set);
        let said = notes(dir.path());
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
    let off = json!({"logits_scaling": null, "qk_layernorm": false, "alibi": [], "_x": 1,
        "use_cache": true, "pretraining_tp": 2, "unsloth_fixed": true, "torch_dtype": "float32"});
    for name in ["llama", "llama-bias", "llama3", "mistral", "qwen2", "qwen3"] {
        let dir = tempfile::tempdir().unwrap();
        model(name, dir.path(), off.clone());
        assert_eq!(notes(dir.path()), "", "{name}");
    }
}

#[test]
fn a_head_stored_apart_is_no_longer_tied_for_anyone() {
    let dir = tempfile::tempdir().unwrap();
    let [embedding, head] = ["model.embed_tokens.weight", "lm_head.weight"];
    model("qwen2", dir.path(), json!({}));
    let path = dir.path().join("model.safetensors");
    let original = read_tensors(&path);
    let bytes_alone = Checkpoint::open(dir.path(), None).unwrap().weight_bytes();
    let open = |change: &dyn Fn(&mut std::collections::BTreeMap<String, Raw>)| {
        let mut tensors = original.clone();
        change(&mut tensors);
        fs::write(&path, tensor_bytes(&tensors)).unwrap();
        Checkpoint::open(dir.path(), None).unwrap()
    };
    let table = original[embedding].clone();

    let equal = open(&|tensors| drop(tensors.insert(head.into(), table.clone())));
    assert!(equal.config.tied && equal.notes.is_empty(), "{:?}", equal.notes);

    let mut other = table.clone();
    other.set(7, 0.5);
    let apart = open(&|tensors| drop(tensors.insert(head.into(), other.clone())));
    assert!(!apart.config.tied);
    assert_eq!(apart.weight_bytes(), bytes_alone + table.bytes.len() as u64);
    let weight = |checkpoint: &Checkpoint, name: &str| {
        checkpoint.weight(checkpoint.sites.find(name).unwrap()).unwrap().values.to_f32()
    };
    assert_eq!(weight(&apart, "lm_head"), other.floats());
    assert_eq!(weight(&apart, "model.embed_tokens"), table.floats());

    let biased = open(&|tensors| {
        tensors.insert("lm_head.bias".into(), Raw::f32(&[512], &[0.0; 512]));
    });
    assert!(biased.config.tied && biased.notes.join("").contains("(lm_head.bias)"));

    let only = open(&|tensors| {
        tensors.remove(embedding);
        tensors.insert(head.into(), other.clone());
    });
    assert!(only.config.tied);
    assert_eq!(only.weight_bytes(), bytes_alone);
    assert_eq!(weight(&only, "model.embed_tokens"), other.floats());

    // Apart in f32, one matrix in the width they are served in: tied, as transformers compares.
    let mut near = table.clone();
    near.set(7, f32::from_bits(table.floats()[7].to_bits() ^ 1));
    open(&|tensors| drop(tensors.insert(head.into(), near.clone())));
    assert!(!Checkpoint::open(dir.path(), Some(Dtype::F32)).unwrap().config.tied);
    assert!(Checkpoint::open(dir.path(), Some(Dtype::BF16)).unwrap().config.tied);
}

#[test]
fn f64_weights_are_rounded_as_torch_rounds_them() {
    let dir = tempfile::tempdir().unwrap();
    model("llama", dir.path(), json!({}));
    let path = dir.path().join("model.safetensors");
    let mut tensors = read_tensors(&path);
    tensors.values_mut().for_each(Raw::widen);
    // torch 2.15: tensor(X, dtype=float64).to(bfloat16), .to(float16), .to(float32). It goes by way
    // of f32, so that the first is a tie in bf16, which it is not in f64.
    let numbers: [(f64, f32, f32, f32); 5] = [
        (1.0 + 2f64.powi(-8) + 2f64.powi(-40), 1.0, 257.0 / 256.0, 257.0 / 256.0),
        (1.0 + 3.0 * 2f64.powi(-8) - 2f64.powi(-40), 260.0 / 256.0, 259.0 / 256.0, 259.0 / 256.0),
        (0.1, 205.0 / 2048.0, 819.0 / 8192.0, 0.1),
        (1e-46, 0.0, 0.0, 0.0),
        (65519.999999, 65536.0, f32::INFINITY, 65520.0),
    ];
    let name = "model.layers.0.self_attn.q_proj.weight";
    for (i, (number, ..)) in numbers.iter().enumerate() {
        tensors.get_mut(name).unwrap().bytes[i * 8..][..8].copy_from_slice(&number.to_le_bytes());
    }
    fs::write(&path, tensor_bytes(&tensors)).unwrap();
    let opened = Checkpoint::open(dir.path(), None).unwrap();
    assert_eq!(opened.dtype, Dtype::F32);
    assert!(opened.notes[0].contains("F64 and rounded to f32"), "{:?}", opened.notes);
    let read = |dtype| {
        let checkpoint = Checkpoint::open(dir.path(), Some(dtype)).unwrap();
        let site = checkpoint.sites.find("model.layers.0.self_attn.q_proj").unwrap();
        checkpoint.weight(site).unwrap().values.to_f32()
    };
    let [bf16, f16, f32] = [Dtype::BF16, Dtype::F16, Dtype::F32].map(read);
    for (i, (_, b, h, s)) in numbers.into_iter().enumerate() {
        assert_eq!((bf16[i], f16[i], f32[i]), (b, h, s), "number {i}");
    }
}

#[test]
fn tensors_that_hold_no_floats_or_foreign_names_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    model("llama", dir.path(), json!({}));
    let path = dir.path().join("model.safetensors");
    let original = read_tensors(&path);
    let mut integers = original.clone();
    integers.insert("model.norm.count".into(), Raw::i64(&[1], &[3]));
    fs::write(&path, tensor_bytes(&integers)).unwrap();
    let said = refusal(dir.path());
    assert!(said.contains("'model.norm.count'") && said.contains("I64"), "{said}");

    let renamed = |rename: &dyn Fn(&str) -> String| {
        let all = original.iter().map(|(name, raw)| (rename(name), raw.clone()));
        fs::write(&path, tensor_bytes(&all.collect())).unwrap();
        refusal(dir.path())
    };
    for (prefix, reason) in [
        ("base_model.model.", "merge_and_unload"),
        ("module.", "DataParallel"),
        ("_orig_mod.", "torch.compile"),
        ("model.language_model.", "language model alone"),
        ("transformer.", "'transformer."),
    ] {
        let said = renamed(&|name| format!("{prefix}{name}"));
        assert!(said.contains(reason), "{prefix}: {said}");
    }
    let said = renamed(&|name| name.replace("q_proj.weight", "q_proj.base_layer.weight"));
    assert!(said.contains("adapter inside"), "{said}");
    let said = renamed(&|name| name.replace("lm_head", "lm_tail"));
    assert!(said.contains("'lm_head.weight'") && said.contains("tie_word_embeddings"), "{said}");
}

#[test]
fn a_stretched_context_is_the_context() {
    let golden = fs::read(golden_dir().join("llama/config.json")).unwrap();
    let parse = |set: Value| {
        let mut config: Map<String, Value> = serde_json::from_slice(&golden).unwrap();
        config.shift_remove("rope_parameters");
        config.extend(set.as_object().unwrap().clone());
        ModelConfig::parse(&serde_json::to_vec(&config).unwrap()).unwrap()
    };
    let context = |scaling: Value| parse(json!({ "rope_scaling": scaling })).positions_max;
    assert_eq!(context(json!({"type": "linear", "factor": 4})), 2048);
    assert_eq!(context(json!({"type": "linear", "factor": 2.5})), 1280);
    let original =
        json!({"type": "linear", "factor": 4.0, "original_max_position_embeddings": 128});
    assert_eq!(context(original), 512, "max_position_embeddings is the stretched one already");
    assert_eq!(context(json!({"type": "default", "factor": 4.0})), 512);
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0});
    assert_eq!(context(llama3.clone()), 512);
    let RopeScaling::Llama3 { original, .. } =
        parse(json!({ "rope_scaling": llama3 })).ropes[0].scaling
    else {
        panic!("llama3")
    };
    assert!((original - 512.0).abs() < 1e-9, "transformers takes max_position_embeddings");
}

#[test]
fn numbers_that_a_config_leaves_out_are_its_familys() {
    // transformers 5.23, models/*/configuration_*.py: vocabulary, inner width, key/value heads,
    // width of a head, positions, sliding window of a layer.
    let cases = [
        ("llama", 32000, 11008, 32, 128, 2048, None),
        ("mistral", 32000, 14336, 8, 128, 131_072, Some(4096)),
        ("qwen2", 151_936, 22016, 32, 128, 32768, None),
        ("qwen3", 151_936, 22016, 32, 128, 32768, None),
    ];
    for (kind, vocabulary, inner, kv_heads, head_dim, positions, window) in cases {
        let text = json!({ "model_type": kind }).to_string();
        let config = ModelConfig::parse(text.as_bytes()).unwrap();
        let found = (config.vocabulary, config.inner, config.kv_heads, config.head_dim);
        assert_eq!(found, (vocabulary, inner, kv_heads, head_dim), "{kind}");
        assert_eq!((config.hidden, config.layers, config.heads), (4096, 32, 32), "{kind}");
        assert_eq!((config.positions_max, config.tied), (positions, false), "{kind}");
        assert!((config.eps - 1e-6).abs() < 1e-12, "{kind}");
        assert!((config.ropes[0].theta - 10000.0).abs() < 1e-9, "{kind}");
        assert_eq!(config.family.windows, vec![window; 32], "{kind}");
        let null = json!({"model_type": kind, "num_key_value_heads": null}).to_string();
        assert_eq!(ModelConfig::parse(null.as_bytes()).unwrap().kv_heads, 32, "{kind}");
    }
}

#[test]
fn stored_rotary_frequencies_are_told_of_where_they_are_others() {
    let dir = tempfile::tempdir().unwrap();
    model("llama", dir.path(), json!({}));
    let path = dir.path().join("model.safetensors");
    let mut tensors = read_tensors(&path);
    let used: Vec<f32> = (0..8).map(|i| 10000f32.powf(-f32::from(i as u8) / 8.0)).collect();
    for (factor, told) in [(1.0, false), (0.999, false), (0.5, true)] {
        let stored: Vec<f32> = used.iter().map(|f| f * factor).collect();
        let name = "model.layers.0.self_attn.rotary_emb.inv_freq".to_owned();
        tensors.insert(name, Raw::f32(&[8], &stored));
        fs::write(&path, tensor_bytes(&tensors)).unwrap();
        assert_eq!(notes(dir.path()).contains("inv_freq"), told, "{factor}");
    }
}

#[test]
fn zero_biases_and_a_value_head_are_left_out_with_a_note() {
    let dir = tempfile::tempdir().unwrap();
    model("llama", dir.path(), json!({}));
    let path = dir.path().join("model.safetensors");
    let mut tensors = read_tensors(&path);
    tensors.insert("lm_head.bias".into(), Raw::f32(&[512], &[0.0; 512]));
    tensors.insert("v_head.summary.weight".into(), Raw::f32(&[1, 2], &[1.0, 2.0]));
    fs::write(&path, tensor_bytes(&tensors)).unwrap();
    let said = notes(dir.path());
    assert!(said.contains("lm_head.bias") && said.contains("v_head.summary.weight"), "{said}");
    let checkpoint = Checkpoint::open(dir.path(), None).unwrap();
    let linears = checkpoint.modules.iter().filter(|(_, m)| m.kind == SiteKind::Linear);
    assert!(linears.into_iter().all(|(_, module)| !module.has_bias));
    tensors.get_mut("lm_head.bias").unwrap().set(3, 1e-30);
    fs::write(&path, tensor_bytes(&tensors)).unwrap();
    assert!(refusal(dir.path()).contains("'lm_head.bias'"));
}
