//! Synthetic models and adapters load as real ones do, and `inspect` says so.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use tessera::adapter::{Adapter, AdapterFile, Allowed, Base, FileLimits, lower};
use tessera::cli::synth::{
    AdapterKind, AdapterShape, Family, ModelShape, Preset, synth_adapter, synth_model,
};
use tessera::delta::{Delta, LowRank, SiteDelta};
use tessera::dtype::Dtype;
use tessera::engine::CheckpointBase;
use tessera::files::Folder;
use tessera::model::Checkpoint;

/// Two layers, hidden 32, in f32.
pub fn tiny(family: Family) -> ModelShape {
    ModelShape {
        family,
        layers: 2,
        hidden: 32,
        intermediate: 48,
        heads: 4,
        kv_heads: 2,
        head_dim: 16,
        vocabulary: 300,
        dtype: Dtype::F32,
        tied: false,
        seed: 7,
        shard_bytes_max: 1 << 30,
    }
}

/// Rank 8, every target.
pub fn adapter_shape(kind: AdapterKind) -> AdapterShape {
    AdapterShape { kind, rank: 8, targets: None, shards: 4, dtype: Dtype::F32, seed: 3 }
}

const FAMILIES: [Family; 4] = [Family::Llama, Family::Mistral, Family::Qwen2, Family::Qwen3];

fn open(dir: &Path) -> CheckpointBase {
    CheckpointBase::new(Checkpoint::open(dir, None).unwrap().into())
}

fn read(dir: &Path, base: &CheckpointBase) -> Adapter {
    let file = AdapterFile::read(&Folder::open(dir).unwrap(), &FileLimits::new(1 << 30)).unwrap();
    lower(&file, base, Allowed::default()).unwrap()
}

/// A tiny Llama and the directory it is in.
fn model() -> (TempDir, CheckpointBase) {
    let dir = tempfile::tempdir().unwrap();
    synth_model(&dir.path().join("model"), &tiny(Family::Llama)).unwrap();
    let base = open(&dir.path().join("model"));
    (dir, base)
}

#[test]
fn a_model_of_each_family_width_and_tying_loads() {
    let root = tempfile::tempdir().unwrap();
    for (i, family) in FAMILIES.into_iter().enumerate() {
        for (dtype, tied) in [(Dtype::F32, false), (Dtype::F16, true), (Dtype::BF16, false)] {
            let dir = root.path().join(format!("{i}-{}", dtype.name()));
            synth_model(&dir, &ModelShape { dtype, tied, ..tiny(family) }).unwrap();
            let loaded = Checkpoint::open(&dir, None).unwrap();
            assert_eq!((loaded.dtype, loaded.config.tied), (dtype, tied));
            assert_eq!((loaded.config.layers, loaded.config.head_dim), (2, 16));
            let q = loaded.sites.find("model.layers.1.self_attn.q_proj").unwrap();
            assert_eq!(loaded.bias(q).unwrap().is_some(), family == Family::Qwen2);
            let norm = loaded.sites.find("model.layers.0.self_attn.q_norm");
            assert_eq!(norm.is_some(), family == Family::Qwen3);
            // std 1 / √32, within what 2048 draws allow.
            let weights = loaded.weight(q).unwrap().values.to_f32();
            let mean_square = weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32;
            assert!((mean_square * 32.0 - 1.0).abs() < 0.1, "{mean_square}");
            let tokenizer = fs::read_to_string(dir.join("tokenizer.json")).unwrap();
            let tokenizer: tokenizers::Tokenizer = tokenizer.parse().unwrap();
            assert_eq!(tokenizer.get_vocab_size(true), 300);
        }
    }
}

#[test]
fn shards_and_threads_do_not_change_the_weights_and_the_seed_does() {
    let root = tempfile::tempdir().unwrap();
    let dir = |name: &str| root.path().join(name);
    let shape = tiny(Family::Llama);
    synth_model(&dir("one"), &shape).unwrap();
    synth_model(&dir("many"), &ModelShape { shard_bytes_max: 9000, ..shape.clone() }).unwrap();
    synth_model(&dir("other"), &ModelShape { seed: 8, ..shape }).unwrap();
    assert!(dir("many").join("model.safetensors.index.json").exists());
    assert!(!dir("many").join("model.safetensors").exists());
    let [one, many, other] =
        ["one", "many", "other"].map(|name| Checkpoint::open(&dir(name), None).unwrap());
    for (id, site) in one.sites.iter() {
        assert!(one.weight(id).unwrap().values == many.weight(id).unwrap().values, "{}", site.name);
        assert!(
            one.weight(id).unwrap().values != other.weight(id).unwrap().values,
            "{}",
            site.name
        );
    }
}

#[test]
fn an_adapter_of_each_kind_lowers_at_the_sites_and_rank_asked_for() {
    let root = tempfile::tempdir().unwrap();
    for (i, family) in FAMILIES.into_iter().enumerate() {
        let model = root.path().join(format!("model-{i}"));
        synth_model(&model, &tiny(family)).unwrap();
        let base = open(&model);
        // Method, sites of two layers, highest rank.
        let expected = [
            (AdapterKind::Lora, "LORA", 14, 8),
            (AdapterKind::RsLora, "LORA", 14, 8),
            (AdapterKind::Dora, "DORA", 14, 8),
            (AdapterKind::Mos, "MOS", 14, 8),
            (AdapterKind::Ssf, "SSF", 14 + 2 * 2 + 1, 0),
            (AdapterKind::Ia3, "IA3", 6, 0),
        ];
        for (kind, method, sites, rank) in expected {
            for dtype in [Dtype::F32, Dtype::BF16] {
                let dir = root.path().join(format!("{i}-{kind:?}-{}", dtype.name()));
                let shape = AdapterShape { dtype, ..adapter_shape(kind) };
                synth_adapter(&dir, &shape, &base).unwrap();
                let adapter = read(&dir, &base);
                assert_eq!(adapter.method, method);
                assert_eq!(adapter.delta.sites.len(), sites, "{kind:?}");
                assert_eq!(adapter.delta.rank_max(), rank, "{kind:?}");
            }
        }
    }
}

/// The standard deviation of `B A x` for x of standard deviation 1, estimated as `‖BA‖ / √out`.
fn strength(change: &SiteDelta, delta: &Delta) -> f64 {
    let LowRank { rank, down, middle: None, up, end: None } = change.low_rank.as_ref().unwrap()
    else {
        panic!("no kind made here has scales between or after A and B");
    };
    let (wide, out) = (down.width(), up.width());
    let product = |o: usize, i: usize| -> f64 {
        let each = (0..*rank).map(|r| delta.element(up, r, o) * delta.element(down, r, i));
        f64::from(each.sum::<f32>())
    };
    let all = (0..out).flat_map(|o| (0..wide).map(move |i| (o, i)));
    (all.map(|(o, i)| product(o, i).powi(2)).sum::<f64>() / out as f64).sqrt()
}

#[test]
fn low_rank_kinds_change_an_output_by_a_tenth_whatever_the_rank_and_scaling() {
    let (root, base) = model();
    for kind in [AdapterKind::Lora, AdapterKind::RsLora, AdapterKind::Mos] {
        for rank in [2, 16] {
            let dir = root.path().join(format!("{kind:?}-{rank}"));
            synth_adapter(&dir, &AdapterShape { rank, ..adapter_shape(kind) }, &base).unwrap();
            let delta = read(&dir, &base).delta;
            let mean = delta.sites.iter().map(|(_, site)| strength(site, &delta)).sum::<f64>()
                / delta.sites.len() as f64;
            assert!((0.05..0.2).contains(&mean), "{kind:?} of rank {rank}: {mean}");
        }
    }
}

#[test]
fn targets_and_the_embedding_can_be_chosen() {
    let (root, base) = model();
    let targets = |names: &[&str]| Some(names.iter().map(|&name| name.to_owned()).collect());
    for kind in [AdapterKind::Lora, AdapterKind::Dora] {
        let dir = root.path().join(format!("{kind:?}"));
        let targets = targets(&["q_proj", "embed_tokens", "lm_head"]);
        synth_adapter(&dir, &AdapterShape { targets, ..adapter_shape(kind) }, &base).unwrap();
        let adapter = read(&dir, &base);
        let names = adapter.delta.sites.iter().map(|(id, _)| base.sites().get(*id).name.as_str());
        let expected = [
            "model.embed_tokens",
            "model.layers.0.self_attn.q_proj",
            "model.layers.1.self_attn.q_proj",
            "lm_head",
        ];
        assert_eq!(names.collect::<Vec<_>>(), expected);
    }
    let refused = |shape: AdapterShape| {
        let dir = root.path().join("refused");
        let error = synth_adapter(&dir, &shape, &base).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(!dir.exists());
        error.to_string()
    };
    let lora = adapter_shape(AdapterKind::Lora);
    let unknown = refused(AdapterShape { targets: targets(&["qkv_proj"]), ..lora.clone() });
    assert!(unknown.contains("no module 'qkv_proj'; it has"), "{unknown}");
    let norm = refused(AdapterShape { targets: targets(&["norm"]), ..lora });
    assert!(norm.contains("cannot change model.norm"), "{norm}");
    let shards = refused(AdapterShape { shards: 3, ..adapter_shape(AdapterKind::Mos) });
    assert!(shards.contains("3 shards do not divide"), "{shards}");
}

#[test]
fn doras_magnitudes_are_near_the_bases_own() {
    let (root, base) = model();
    let dir = root.path().join("dora");
    synth_adapter(&dir, &adapter_shape(AdapterKind::Dora), &base).unwrap();
    for (_, change) in &read(&dir, &base).delta.sites {
        let scale = change.scale.as_ref().unwrap();
        assert!(scale.iter().all(|s| (0.8..1.2).contains(s)), "{scale:?}");
    }
}

#[test]
fn the_presets_have_the_parameters_of_their_names() {
    let parameters = |shape: ModelShape| {
        let attention = (2 * shape.heads + 2 * shape.kv_heads) * shape.head_dim * shape.hidden;
        let layer = attention + 3 * shape.hidden * shape.intermediate + 2 * shape.hidden;
        shape.layers * layer + (2 * shape.vocabulary + 1) * shape.hidden
    };
    assert_eq!(parameters(Preset::M403.shape()) / 1_000_000, 402);
    assert_eq!(parameters(Preset::B8.shape()), 8_030_261_248);
}

fn tessera(args: &[&str]) -> Output {
    Command::new(crate::binary())
        .args(args)
        // Nothing of the machine's own may decide.
        .env_clear()
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", "/nonexistent")
        .output()
        .unwrap()
}

/// Standard error, which must be one line, of a command that must fail with `code`.
fn fails(code: i32, args: &[&str]) -> String {
    let output = tessera(args);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(output.stdout.is_empty());
    text
}

fn succeeds(args: &[&str]) -> String {
    let output = tessera(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    String::from_utf8(output.stdout).unwrap()
}

fn with_config(dir: &Path, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let path = dir.join("adapter_config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(path, config.to_string()).unwrap();
}

#[test]
fn the_commands_write_what_inspect_then_accepts() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (model, adapter) = (path("model"), path("mos"));
    let shape = "--layers 2 --hidden 32 --intermediate 48 --heads 4 --kv-heads 2 --vocab 300";
    let mut args = vec!["synth", "model", &model, "--dtype", "f16", "--family", "qwen3"];
    args.extend(shape.split(' '));
    assert_eq!(succeeds(&args), format!("{model}\n"));
    let kind = "--kind mos --rank 6 --shards 2 --targets q_proj,down_proj --seed 4";
    let mut args = vec!["synth", "adapter", &adapter, "--model", &model];
    args.extend(kind.split(' '));
    succeeds(&args);

    let table = succeeds(&["inspect", &adapter, "--model", &model]);
    assert!(table.starts_with("method    MOS\ndigest    "), "{table}");
    assert!(table.contains("rank max  6\n"), "{table}");
    let line = table.lines().find(|l| l.starts_with("mos.q_proj.index_A")).unwrap();
    assert!(line.contains("(shared)") && line.contains("shards of A [2, 6, 2]"), "{line}");
    assert!(line.ends_with(&(2 * 6 * 2 * 8).to_string()), "{line}");

    let report = succeeds(&["inspect", &adapter, "--model", &model, "--json"]);
    let report: serde_json::Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["rank_max"], 6);
    assert_eq!(report["tensors"].as_array().unwrap().len(), 8);
    assert_eq!(report["digest"].as_str().unwrap().len(), 64);
    let file = fs::metadata(format!("{adapter}/adapter_model.safetensors")).unwrap().len();
    let bytes = report["file_bytes"].as_u64().unwrap();
    assert!(bytes < file && bytes > file / 2, "{bytes} of {file}");

    let again = fails(2, &["synth", "model", &model, "--preset", "403m"]);
    assert!(again.contains("is not empty"), "{again}");
}

#[test]
fn inspect_refuses_with_exit_code_2_and_the_reason() {
    let (root, base) = model();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let (model, adapter) = (path("model"), path("lora"));
    synth_adapter(adapter.as_ref(), &adapter_shape(AdapterKind::Lora), &base).unwrap();
    with_config(adapter.as_ref(), |config| {
        config.insert("use_something".into(), true.into());
    });
    let inspect = ["inspect", &adapter, "--model", &model];
    let reason = fails(2, &inspect);
    assert!(reason.contains("sets 'use_something' to true"), "{reason}");
    succeeds(&[&inspect[..], &["--allow-unknown-config-keys"]].concat());
    with_config(adapter.as_ref(), |config| {
        config.insert("target_modules".into(), "q_proj|v_proj".into());
    });
    let reason = fails(2, &inspect);
    assert!(reason.contains("'target_modules'"), "{reason}");

    let none = fails(2, &["inspect", &model, "--model", &model]);
    assert!(none.contains("no adapter_config.json"), "{none}");
    let nowhere = fails(2, &["inspect", "org/absent", "--model", &model]);
    assert!(nowhere.contains("HF_HUB_OFFLINE"), "{nowhere}");
    let no_model = fails(3, &["inspect", &adapter, "--model", "/absent"]);
    assert!(no_model.contains("neither a directory nor a Hub id"), "{no_model}");
    fs::write(root.path().join("model/config.json"), "{}").unwrap();
    let broken = fails(3, &inspect);
    assert!(broken.contains("config.json: 'architectures'"), "{broken}");
}

#[test]
fn a_wrong_flag_is_one_line_and_exit_code_2() {
    let text = fails(2, &["inspect", "x", "--moddel", "y"]);
    assert!(text.contains("--moddel") && text.contains("see tessera --help"), "{text}");
    let text = fails(2, &["synth", "model", "never-written", "--layers", "2"]);
    assert!(text.contains("--hidden"), "{text}");
    let text = fails(2, &["synth", "model", "x", "--preset", "403m", "--dtype", "int8"]);
    assert!(text.contains("expected f32, f16 or bf16; see"), "{text}");
    let small =
        "synth model never-written --layers 2 --hidden 32 --intermediate 4 --heads 2 --vocab";
    let small: Vec<&str> = small.split(' ').chain(["200"]).collect();
    assert!(fails(2, &small).contains("vocabulary of 200 is too small"));
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    let (root, base) = model();
    let adapter = root.path().join("lora");
    synth_adapter(&adapter, &adapter_shape(AdapterKind::Lora), &base).unwrap();
    let model = root.path().join("model");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(crate::binary());
    command.arg("inspect").arg(&adapter).arg("--model").arg(&model);
    let output = command.stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut help = Command::new(crate::binary());
    let status = help.arg("--help").stdout(writer).status().unwrap();
    assert!(status.success());
}
