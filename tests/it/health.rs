//! `/health` and `/ready` tell the truth, and nothing that a start is told makes it panic.

use std::fs;

use serde_json::{Value, json};
use tessera::backend::cpu::Cpu;
use tessera::engine::{Engine, StartError};
use tessera::model::Model;

use crate::client::get;
use crate::fake::{Fake, Script, wait_for};
use crate::harness::{Golden, roomy};
use crate::process::{Server, tessera};
use crate::serve::{golden, text};

#[test]
fn a_step_that_does_not_end_is_told_until_it_ends() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.step_ms_max = 20);
    let status = |path: &str| get(fake.address, path).status;
    assert_eq!((status("/ready"), status("/health")), (200, 200), "there is nothing to do");
    fake.engine.stats().pulse.beat();
    wait_for(|| status("/ready") == 503, || "a step of more than 20 ms".to_owned());
    assert_eq!((status("/health"), status("/ping"), status("/live")), (503, 503, 200));
    fake.engine.stats().pulse.rest();
    assert_eq!((status("/ready"), status("/health")), (200, 200), "it has ended");
}

#[test]
fn an_engine_without_memory_for_its_cache_does_not_start() {
    let golden = Golden::open("llama", None);
    let backend = Cpu::new(1);
    let model = Model::load(&golden.checkpoint, &backend, 64, &|_| {}).unwrap();
    let blocks = 1 << 44;
    let engine = Engine {
        backend,
        model,
        kv_shape: Model::<Cpu>::kv_shape(&golden.checkpoint, blocks, 16),
        scheduler: roomy(),
        adapter_slots_max: 1,
        recipe_parts_max: 1,
    };
    let Err(error) = engine.start(8) else { panic!("started with {blocks} blocks") };
    assert!(matches!(error, StartError::Device(_)), "{error}");
    assert!(error.to_string().contains("no memory for a KV cache"), "{error}");
}

#[test]
fn numbers_beyond_all_measure_are_told_and_never_a_panic() {
    let model = text(&golden());
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden()).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    let config = dir.path().join("config.json");
    let written: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    let refused = |args: &[&str], codes: &[i32], part: &str| {
        let args = [&["serve", "--port", "0", "--drain-seconds", "0"], args].concat();
        let output = tessera(&args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(codes.contains(&output.status.code().unwrap()), "{args:?}: {error}");
        assert!(error.contains(part) && error.lines().count() == 1, "{args:?}: {error}");
    };
    for (flag, value) in [
        ("--adapter-slots", "9223372036854775808"),
        ("--adapter-slots", "1000000000"),
        ("--queue-requests", "18446744073709551615"),
        ("--max-num-seqs", "18446744073709551615"),
        ("--max-num-batched-tokens", "18446744073709551615"),
        ("--max-model-len", "18446744073709551615"),
        ("--max-adapter-rank", "18446744073709551615"),
        ("--threads", "18446744073709551615"),
        ("--kv-cache-bytes", "900TiB"),
        ("--kv-cache-bytes", "18446744073709551000"),
    ] {
        refused(&[&model, flag, value], &[2, 5], flag);
    }
    refused(&[&model, "--max-num-seqs", "9", "--max-num-batched-tokens", "8"], &[5], "--max-num");
    for key in [
        "num_hidden_layers",
        "hidden_size",
        "num_attention_heads",
        "vocab_size",
        "head_dim",
        "intermediate_size",
        "num_key_value_heads",
        "max_position_embeddings",
    ] {
        for value in [json!(4_000_000_000_u64), json!(u64::MAX), json!(1e300), json!(-1)] {
            let mut config_of = written.clone();
            config_of[key] = value;
            fs::write(&config, config_of.to_string()).unwrap();
            refused(&[&text(dir.path())], &[3], key);
        }
    }
}

#[test]
fn numbers_that_are_large_and_possible_are_served() {
    let model = text(&golden());
    let args = [
        &*model,
        "--adapter-slots",
        "65536",
        "--queue-requests",
        "1000000",
        "--max-num-seqs",
        "1000",
        "--drain-seconds",
        "18446744073709551615",
        "--step-seconds-max",
        "18446744073709551615",
    ];
    let server = Server::start(&args);
    assert_eq!(server.get("/ready").0, 200);
    let body = json!({"model": "llama", "prompt": [1, 2, 3], "max_tokens": 2});
    assert_eq!(server.send("POST", "/v1/completions", Some(&body)).0, 200);
}

#[test]
fn a_hangup_ends_nothing() {
    let mut server = Server::start(&[&text(&golden())]);
    server.signal("-HUP");
    let body = json!({"model": "llama", "prompt": [1, 2, 3], "max_tokens": 200});
    assert_eq!(server.send("POST", "/v1/completions", Some(&body)).0, 200);
    server.signal("-HUP");
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
}
