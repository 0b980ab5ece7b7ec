//! `tessera serve` from the outside: start-up, requests, adapters at run time, merged mode, end.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::process::{Server, split_reply, tessera};

pub fn golden() -> PathBuf {
    crate::root().join("tests/golden/llama")
}

pub fn text(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

pub fn adapter(name: &str) -> String {
    text(&golden().join("adapters").join(name))
}

/// Prompt ids and greedy ids that transformers + peft give for an adapter.
fn expected(name: &str) -> (Value, Value) {
    let path = golden().join(format!("expected/{name}.json"));
    let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    (json["prompts"][0]["ids"].clone(), json["prompts"][0]["greedy"].clone())
}

/// The ids the server draws greedily for an adapter's first golden prompt.
pub fn greedy(server: &Server, model: &str, like: &str) -> (Value, Value) {
    let (prompt, want) = expected(like);
    let body = json!({"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24,
        "ignore_eos": true, "return_token_ids": true});
    let (status, reply) = server.post("/v1/completions", &body);
    assert_eq!(status, 200, "{reply}");
    (reply["choices"][0]["token_ids"].clone(), want)
}

#[test]
fn many_clients_get_their_own_adapters_tokens_at_once() {
    let names = ["lora_qv", "mos_compact", "ssf", "ia3", "lora_dora", "lora_all_rs"];
    let flags: Vec<String> = names.iter().map(|n| format!("{n}={}", adapter(n))).collect();
    let mut args = vec![text(&golden())];
    flags.into_iter().for_each(|flag| args.extend(["--adapter".into(), flag]));
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let server = Server::start(&args);
    assert!(server.report.iter().any(|line| line.contains("MOS")), "{:#?}", server.report);

    let (status, models) = server.get("/v1/models");
    let models: Value = serde_json::from_str(&models).unwrap();
    assert_eq!((status, &models["data"][0]["id"]), (200, &json!("llama")));
    let ids: Vec<_> = models["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(ids.len(), names.len() + 1);
    assert!(models["data"].as_array().unwrap()[1..].iter().all(|m| m["parent"] == "llama"));

    thread::scope(|scope| {
        for round in 0..3 {
            for name in names {
                let server = &server;
                scope.spawn(move || {
                    let (got, want) = greedy(server, name, name);
                    assert_eq!(got, want, "{name} round {round}");
                });
            }
            let server = &server;
            scope.spawn(move || {
                let (got, want) = greedy(server, "llama", "base");
                assert_eq!(got, want, "base round {round}");
            });
        }
    });
    let (status, reply) = server.post("/v1/completions", &json!({"model": "x", "prompt": "a"}));
    assert_eq!((status, &reply["error"]["code"]), (404, &json!("model_not_found")));
    let (status, metrics) = server.get("/metrics");
    assert!(status == 200 && metrics.contains("mos_compact"), "per-adapter metrics: {metrics}");
}

#[test]
fn a_bad_start_is_one_line_that_names_what_to_mend() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    let copy = |name: &str| {
        let to = dir.path().join(name);
        fs::create_dir(&to).unwrap();
        for entry in fs::read_dir(golden()).unwrap().map(Result::unwrap) {
            if entry.path().is_file() {
                fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
            }
        }
        to
    };
    let cut = copy("cut").join("model.safetensors");
    let whole = fs::read(&cut).unwrap();
    fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let alien = copy("alien").join("config.json");
    let config = fs::read_to_string(&alien).unwrap();
    fs::write(&alien, config.replace("LlamaForCausalLM", "MambaForCausalLM")).unwrap();
    fs::write(copy("yarn").join("config.json"), config.replace("\"default\"", "\"yarn\"")).unwrap();
    fs::remove_file(copy("mute").join("tokenizer.json")).unwrap();
    fs::create_dir(dir.path().join("empty")).unwrap();
    fs::write(dir.path().join("typo.toml"), "max-seqs = 4").unwrap();
    fs::write(dir.path().join("broken.toml"), "port = ").unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let model = text(&golden());
    let bad_adapter = format!("bad={}", path("empty"));
    let once = format!("a={}", adapter("ia3"));
    let base_name = format!("llama={}", adapter("ia3"));

    let cases: Vec<(Vec<&str>, i32, &str)> = vec![
        (vec!["/nowhere/at/all"], 3, "/nowhere/at/all"),
        (vec![&*path("empty").leak()], 3, "config.json"),
        (vec![&*path("cut").leak()], 3, "model.safetensors"),
        (vec![&*path("alien").leak()], 3, "MambaForCausalLM"),
        (vec![&*path("yarn").leak()], 3, "yarn"),
        (vec![&*path("mute").leak()], 3, "tokenizer.json"),
        (vec![&model, "--adapter", &bad_adapter], 2, "'bad'"),
        (vec![&model, "--adapter", "nameless"], 2, "NAME=DIR_OR_ID"),
        (vec![&model, "--adapter", &once, "--adapter", &once], 2, "already loaded"),
        (vec![&model, "--adapter", &base_name], 2, "the base model has this name"),
        (vec![&model, "--merge", "nobody"], 5, "nobody"),
        (vec![&model, "--max-model-len", "100000"], 5, "--max-model-len"),
        (vec![&model, "--kv-cache-bytes", "10"], 5, "--kv-cache-bytes"),
        (vec![&model, "--max-num-batched-tokens", "2"], 5, "--max-num-batched-tokens"),
        (vec![&model, "--dtype", "int3"], 2, "f32, f16 or bf16"),
        (vec![&model, "--no-such-flag"], 2, "--no-such-flag"),
        (vec![&model, "--allow-runtime-adapters"], 2, "--adapter-root"),
        (vec![&model, "--host", "300.1.1.1"], 2, "--host"),
        (vec![&model, "--config", &*path("typo.toml").leak()], 5, "max-num-seqs"),
        (vec![&model, "--config", &*path("broken.toml").leak()], 5, "not TOML"),
        (vec![&model, "--port", &port], 4, "in use"),
    ];
    for (args, code, hint) in cases {
        let port: &[&str] = if args.contains(&"--port") { &[] } else { &["--port", "0"] };
        let output = tessera(&[&["serve"], &args[..], port].concat()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(stderr.trim_end().lines().count(), 1, "{args:?}: {stderr}");
        assert!(stderr.contains(hint), "{args:?}: {stderr}");
    }
}

#[test]
fn a_bad_adapter_is_skipped_on_request() {
    let dir = tempfile::tempdir().unwrap();
    let bad = format!("bad={}", text(dir.path()));
    let good = format!("good={}", adapter("ia3"));
    let server = Server::start(&[
        &text(&golden()),
        "--adapter",
        &bad,
        "--adapter",
        &good,
        "--skip-bad-adapters",
    ]);
    assert!(server.report.iter().any(|l| l.starts_with("skipped") && l.contains("'bad'")));
    let (got, want) = greedy(&server, "good", "ia3");
    assert_eq!(got, want);
}

#[test]
fn a_flag_beats_the_environment_which_beats_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tessera.toml");
    let adapters = format!("[adapter]\nfiled = {:?}\n", adapter("ia3"));
    fs::write(&file, format!("served-model-name = 'file'\nmax_num_seqs = 3\n{adapters}")).unwrap();
    let start = |env: Option<&str>, flag: Option<&str>| {
        let (model, file) = (text(&golden()), text(&file));
        let mut command = tessera(&["serve", &model, "--port", "0", "--config", &file]);
        env.map(|name| command.env("TESSERA_SERVED_MODEL_NAME", name));
        flag.map(|name| command.args(["--served-model-name", name]));
        let server = Server::start_command(command);
        let (_, models) = server.get("/v1/models");
        let models: Value = serde_json::from_str(&models).unwrap();
        assert_eq!(models["data"][1]["id"], "filed");
        assert!(server.report.iter().any(|l| l.contains("3 sequences at once")));
        models["data"][0]["id"].as_str().unwrap().to_owned()
    };
    assert_eq!(start(None, None), "file");
    assert_eq!(start(Some("env"), None), "env");
    assert_eq!(start(Some("env"), Some("flag")), "flag");
}

#[test]
fn merged_mode_serves_its_adapter_and_refuses_others() {
    let merged = format!("mine={}", adapter("mos_compact"));
    let other = format!("another={}", adapter("ia3"));
    let model = text(&golden());
    let args = [&model, "--adapter", &merged, "--adapter", &other, "--merge", "mine"];
    let server = Server::start(&args);
    let (got, want) = greedy(&server, "mine", "mos_compact");
    assert_eq!(got, want);
    for model in ["another", "llama", "unknown"] {
        let body = json!({"model": model, "prompt": "a"});
        let (status, reply) = server.post("/v1/completions", &body);
        assert_eq!(status, 400, "{model}: {reply}");
        assert!(reply["error"]["message"].as_str().unwrap().contains("mine"), "{reply}");
    }
}

#[test]
fn adapters_come_change_and_go_while_the_server_runs() {
    let root = tempfile::tempdir().unwrap();
    for name in ["ia3", "ssf"] {
        fs::create_dir(root.path().join(name)).unwrap();
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let from = golden().join("adapters").join(name).join(file);
            fs::copy(from, root.path().join(name).join(file)).unwrap();
        }
    }
    let root = text(root.path());
    let model = text(&golden());
    let server = Server::start(&[&model, "--allow-runtime-adapters", "--adapter-root", &root]);
    let load = |path: &str, inplace: bool| {
        let body = json!({"lora_name": "tenant", "lora_path": path, "load_inplace": inplace});
        server.post("/v1/load_lora_adapter", &body)
    };
    let (status, reply) = load("ia3", false);
    let said = "Success: LoRA adapter 'tenant' added successfully.";
    assert_eq!((status, reply), (200, json!(said)));
    let (got, want) = greedy(&server, "tenant", "ia3");
    assert_eq!(got, want);
    assert_eq!(load("ssf", false).0, 400, "the name is taken");
    assert_eq!(load("ssf", true).0, 200);
    let (got, want) = greedy(&server, "tenant", "ssf");
    assert_eq!(got, want, "new content under an old name: nothing stale");
    for outside in ["..", "/etc", "ia3/../../..", &model] {
        let (status, reply) = load(outside, true);
        assert_eq!(status, 400, "{outside}: {reply}");
    }
    let resident = || {
        let (_, metrics) = server.get("/metrics");
        let line = metrics.lines().find(|l| l.contains("adapters_resident") && !l.starts_with('#'));
        line.unwrap_or("").rsplit(' ').next().unwrap_or("").to_owned()
    };
    assert_eq!(resident(), "1", "what was replaced has left the device");
    let gone = json!({"lora_name": "tenant"});
    assert_eq!(server.post("/v1/unload_lora_adapter", &gone).0, 200);
    assert_eq!(server.post("/v1/unload_lora_adapter", &gone).0, 404);
    let (status, _) = server.post("/v1/completions", &json!({"model": "tenant", "prompt": "a"}));
    assert_eq!(status, 404);
}

#[test]
fn sigterm_lets_streams_finish_and_ends_with_status_0() {
    let model = text(&golden());
    let mut server = Server::start(&[&model]);
    let body = json!({"model": "llama", "prompt": [5, 6, 7], "max_tokens": 400, "stream": true,
        "ignore_eos": true});
    let mut stream = server.open("POST", "/v1/completions", Some(&body));
    let mut first = [0; 64];
    stream.read_exact(&mut first).unwrap();
    server.terminate();
    thread::sleep(Duration::from_millis(50));
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    let (_, frames) = split_reply(&format!("{}{rest}", String::from_utf8_lossy(&first)));
    assert!(frames.ends_with("data: [DONE]\n\n"), "{}", &frames[frames.len() - 200..]);
    assert!(frames.contains("\"finish_reason\":\"length\""), "{frames}");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn the_healthcheck_asks_the_server() {
    let server = Server::start(&[&text(&golden())]);
    let port = server.address.rsplit(':').next().unwrap().to_owned();
    assert!(tessera(&["healthcheck", "--port", &port]).status().unwrap().success());
    // As 'ready:' prints it, and shorter.
    for address in [format!("http://{}/v1", server.address), server.address.clone(), port.clone()] {
        let output = tessera(&["healthcheck", &address]).output().unwrap();
        assert!(output.status.success(), "{address}: {output:?}");
    }
    let wrong = tessera(&["healthcheck", "ftp://x"]).output().unwrap();
    let error = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(2) && error.contains("http://HOST:PORT"), "{error}");
    drop(server);
    let output = tessera(&["healthcheck", "--port", &port]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
}

/// The value of a metric without labels of its own.
pub fn metric(server: &Server, name: &str) -> u64 {
    let (_, page) = server.get("/metrics");
    let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn an_adapter_that_is_given_under_two_names_is_kept_once() {
    let bytes = |names: &[&str]| {
        let flags: Vec<_> = names.iter().map(|n| format!("{n}={}", adapter("lora_qv"))).collect();
        let model = text(&golden());
        let mut args = vec![model.as_str()];
        flags.iter().for_each(|flag| args.extend(["--adapter", flag]));
        let server = Server::start(&args);
        for name in names {
            let (got, want) = greedy(&server, name, "lora_qv");
            assert_eq!(got, want, "{name}");
        }
        assert_eq!(metric(&server, "tessera:adapters_loaded"), names.len() as u64);
        metric(&server, "tessera:adapters_bytes")
    };
    assert_eq!(bytes(&["a", "b"]), bytes(&["a"]));
}

#[test]
fn a_preempted_requests_prompt_is_counted_once() {
    // A little more than one sequence's KV: several at once preempt each other.
    let flags = ["--max-model-len", "128", "--kv-cache-bytes", "122880", "--no-prefix-cache"];
    let model = text(&golden());
    let server = Server::start(&[&[model.as_str()], &flags[..]].concat());
    let body = |first: u32| {
        json!({"prompt": (first..first + 12).collect::<Vec<_>>(), "max_tokens": 100,
            "ignore_eos": true})
    };
    thread::scope(|scope| {
        for i in 0..4 {
            let server = &server;
            scope.spawn(move || {
                assert_eq!(server.post("/v1/completions", &body(10 + i)).0, 200);
            });
        }
    });
    assert!(metric(&server, "vllm:num_preemptions_total") > 0, "the case does not preempt");
    assert_eq!(metric(&server, "vllm:prompt_tokens_total"), 4 * 12);
    assert_eq!(metric(&server, "vllm:generation_tokens_total"), 4 * 100);
}

#[test]
fn an_adapter_is_inspected_against_a_model_without_a_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(golden().join(file), dir.path().join(file)).unwrap();
    }
    let (adapter, model) = (adapter("ssf"), text(dir.path()));
    let output = tessera(&["inspect", &adapter, "--model", &model]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn load_tells_how_fast_a_server_is_and_what_failed() {
    let flag = format!("ssf={}", adapter("ssf"));
    let server = Server::start(&[&text(&golden()), "--adapter", &flag]);
    let folder = tempfile::tempdir().unwrap();
    let json = text(&folder.path().join("load.json"));
    let shape =
        ["--concurrency", "3", "--requests", "7", "--prompt-tokens", "5", "--max-tokens", "6"];
    let load = |extra: &[&str]| {
        let args = [&["load", &server.address], &shape[..], extra].concat();
        let output = tessera(&args).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, error) = load(&["--json", &json]);
    assert_eq!(code, Some(0), "{out} {error}");
    let results: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    let number = |name: &str| results[name].as_u64();
    assert_eq!((number("models"), number("failed")), (Some(2), Some(0)), "{results}");
    assert_eq!((number("completion_tokens"), number("prompt_tokens")), (Some(42), Some(35)));
    assert!(results["first_token_ms"]["p50"].as_f64().unwrap() > 0.0);
    let (code, out, error) = load(&["--model", "ssf,nobody"]);
    assert!(code == Some(0) && out.contains("3 failed") && out.contains("404"), "{out} {error}");
    let (code, out, error) = load(&["--model", "nobody"]);
    assert!(code == Some(1) && out.is_empty(), "there is nothing to show: {out}");
    let once = error.matches("does not exist").count() == 1 && error.contains("nobody");
    assert!(once && error.contains("There are: llama, ssf"), "{error}");
    let one = ["load", &server.address, "--requests", "2", "--max-tokens", "1", "--json", &json];
    let output = tessera(&one).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && !out.contains("NaN"), "nothing is between tokens: {out}");
    let results: Value = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert!(results["between_tokens_ms"].is_null() && results["request_ms"]["p99"].is_f64());
    let url = format!("http://{}/v1", server.address);
    let there = tessera(&["load", &url, "--requests", "2", "--max-tokens", "2"]).output().unwrap();
    assert!(there.status.success(), "{there:?}");
    let none = tessera(&["load", "127.0.0.1:1"]).output().unwrap();
    let error = String::from_utf8_lossy(&none.stderr).into_owned();
    assert!(none.status.code() == Some(1) && error.contains("no server at"), "{error}");
}
