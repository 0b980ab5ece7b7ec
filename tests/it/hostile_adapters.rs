//! Adapters whose author means no good: what they may cost, and what is told of them.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tessera::adapter::{Adapter, Allowed, FileLimits, LoadAdapter, Loader};

use crate::files::{Draft, Raw};
use crate::harness::Golden;
use crate::process::{Server, tessera};
use crate::serve::{golden, text};

/// Addresses that a process may use, in KiB: room for the program, and not for a file of 3 GiB.
const ADDRESSES_KIB: u64 = 1_500_000;

/// What `tessera inspect` says of an adapter, with little memory.
fn inspected(dir: &Path) -> String {
    let program = tessera(&[]);
    let mut command = Command::new("sh");
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let script = format!("ulimit -v {ADDRESSES_KIB}; exec \"$0\" inspect \"$1\" --model \"$2\"");
    command.args(["-c", &script, program.get_program().to_str().unwrap()]);
    let output = command.arg(dir).arg(golden()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    error
}

#[test]
fn a_file_is_read_no_further_than_its_header_where_that_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    Draft::golden("llama", "lora_qv").write(dir.path());
    let path = dir.path().join("adapter_model.safetensors");
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(3 << 30).unwrap();
    let error = inspected(dir.path());
    assert!(error.contains("by its header it has") && error.contains("3221225472"), "{error}");
}

#[test]
fn thousands_of_plain_names_are_served_as_peft_reads_them() {
    let golden = Golden::open("llama", None);
    let mut draft = Draft::golden("llama", "lora_qv");
    let rank = draft.config["r"].clone();
    let others = (0..5000).map(|i| (format!("model.layers.{}.mlp.up_proj", i + 100), json!(1)));
    let own = ["q_proj", "model.layers.0.self_attn.v_proj", "v_proj"];
    let own = own.map(|name| (name.to_owned(), rank.clone()));
    draft.set("rank_pattern", Value::Object(others.chain(own).collect()));
    draft.set("r", 3);
    let dir = tempfile::tempdir().unwrap();
    draft.write(dir.path());
    let loaded = golden.loader.load(dir.path()).unwrap();
    let sites = |adapter: &Adapter| format!("{:?}", adapter.delta.sites);
    assert_eq!(sites(&loaded), sites(&golden.adapter("lora_qv")));
    // The first that matches decides.
    let early = [("self_attn.q_proj".to_owned(), json!(5)), ("q_proj".to_owned(), rank)];
    draft.set("rank_pattern", Value::Object(early.into_iter().collect()));
    draft.write(dir.path());
    let error = golden.loader.load(dir.path()).unwrap_err().to_string();
    assert!(error.contains("q_proj") && error.contains("'rank_pattern' is 5"), "{error}");
}

#[test]
fn a_rank_beyond_the_limit_is_refused_by_its_flag() {
    let dir = tempfile::tempdir().unwrap();
    let draft = Draft::golden("llama", "lora_qv");
    let rank = draft.config["r"].as_u64().unwrap() as usize;
    draft.write(dir.path());
    let load = |rank_max| {
        let loader = Loader {
            base: Golden::open("llama", None).loader.base,
            fits: None,
            limits: FileLimits::new(1 << 20),
            base_names: Vec::new(),
            allowed: Allowed { rank_max, ..Allowed::default() },
        };
        loader.load(dir.path())
    };
    let error = load(rank - 1).unwrap_err().to_string();
    assert!(error.contains("--max-adapter-rank") && error.contains("q_proj"), "{error}");
    assert_eq!(load(rank).unwrap().delta.rank_max(), rank);
    let (model, named) = (text(&golden()), format!("a={}", text(dir.path())));
    let limit = (rank - 1).to_string();
    let args = ["serve", &model, "--adapter", &named, "--max-adapter-rank", &limit, "--port", "0"];
    let output = tessera(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn numbers_that_overflow_are_the_adapters_fault_and_nobody_elses() {
    let dir = tempfile::tempdir().unwrap();
    let mut draft = Draft::golden("llama", "lora_qv");
    for (name, raw) in draft.tensors.clone() {
        let huge = vec![1e30; raw.floats().len()];
        draft.insert(&name, Raw::f32(&raw.shape, &huge));
    }
    draft.write(dir.path());
    let named = format!("huge={}", text(dir.path()));
    let server = Server::start(&[&text(&golden()), "--adapter", &named]);
    let asked = |model: &str| {
        let one = json!({"model": model, "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0});
        let scored = json!({"model": model, "prompt": [1, 2, 3], "max_tokens": 0, "echo": true,
            "logprobs": 1});
        let embedded = json!({"model": model, "input": [1, 2, 3]});
        [("/v1/completions", one), ("/v1/completions", scored), ("/v1/embeddings", embedded)]
            .map(|(path, body)| server.send("POST", path, Some(&body)))
    };
    for (status, body) in asked("huge") {
        assert!(status == 400 && body.contains("adapter_not_finite"), "{status} {body}");
    }
    for (status, body) in asked("llama") {
        assert_eq!(status, 200, "{body}");
    }
    let (status, page) = server.get("/metrics");
    assert_eq!(status, 200);
    assert!(!page.contains("code=\"500\""), "{page}");
    fs::remove_dir_all(dir.path()).unwrap();
}

#[test]
fn whatever_an_adapter_names_is_told_in_a_short_line() {
    let dir = tempfile::tempdir().unwrap();
    let wild = "x\u{1b}[31m\u{9b}2J\u{202e}\nFORGED\r\u{7}";
    let long = wild.repeat(50_000);
    let draft = |name: &str, change: &dyn Fn(&mut Draft)| {
        let mut draft = Draft::golden("llama", "lora_qv");
        change(&mut draft);
        let path = dir.path().join(name);
        draft.write(&path);
        path
    };
    let own = |name: &str, file: &str, text: String| {
        let path = draft(name, &|_| {});
        fs::write(path.join(file), text).unwrap();
        path
    };
    let adapters = [
        draft("key", &|draft| draft.set(&long, 1)),
        draft("type", &|draft| draft.set("peft_type", wild)),
        draft("target", &|draft| draft.set("target_modules", json!([long]))),
        own("eos", "tokenizer_config.json", json!({"eos_token": long}).to_string()),
        own("version", "tokenizer.json", json!({"version": long}).to_string()),
        own("template", "chat_template.jinja", format!("{{{{ {wild} }}}}")),
    ];
    let root = text(dir.path());
    let args = ["--allow-runtime-adapters", "--adapter-root", &root];
    let server = Server::start(&[&[text(&golden()).as_str()][..], &args].concat());
    for path in adapters {
        let error = inspected(&path);
        assert!(error.len() < 10_000 && error.lines().count() == 1, "{path:?}: {error}");
        let steers = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
        assert!(!error.contains(steers), "{path:?}: {error:?}");
        let body = json!({"lora_name": "a", "lora_path": path});
        let (status, answer) = server.post("/v1/load_lora_adapter", &body);
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().len() < 10_000, "{path:?}");
    }
}
