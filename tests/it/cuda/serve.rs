//! The real binary on a card.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::card::{cache, is_real, libraries};
use crate::process::{Server, tessera};
use crate::serve::{adapter, golden, greedy, text};

/// `tessera` where the emulated libraries are found first; `settings` are of the card.
pub(super) fn on_card(args: &[&str], settings: &[(&str, &str)]) -> Command {
    let mut command = tessera(args);
    if !is_real() {
        command.env("LD_LIBRARY_PATH", libraries());
    }
    command.envs(settings.iter().map(|(name, value)| (format!("TESSERA_EMULATE_{name}"), value)));
    command.env("XDG_CACHE_HOME", cache());
    command
}

pub(super) fn serve(extra: &[&str], settings: &[(&str, &str)]) -> Command {
    let model = text(&golden());
    // Few: every width of a step is rehearsed.
    let serve = ["serve", "--port", "0", "--max-num-seqs", "5", &model];
    on_card(&[&serve, extra].concat(), settings)
}

/// `--adapter` and its value for each name.
fn adapters(names: &[&str]) -> Vec<String> {
    let flags = names.iter().map(|n| ["--adapter".to_owned(), format!("{n}={}", adapter(n))]);
    flags.flatten().collect()
}

/// What it prints when it does not start.
fn refusal(mut command: Command) -> (Option<i32>, String) {
    refusal_of(&mut command)
}

pub(super) fn refusal_of(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn a_card_serves_every_adapter_and_says_what_memory_it_took() {
    let names = ["lora_qv", "mos_compact", "ssf", "ia3", "lora_dora", "lora_all_rs"];
    let flags = adapters(&names);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let server = Server::start_command(serve(&[&["--device", "cuda"], &flags[..]].concat(), &[]));
    let says = |text: &str| server.report.iter().any(|line| line.contains(text));
    assert!(says("device: cuda:0") && says("KV cache"), "{:#?}", server.report);
    let memory = server.report.iter().find(|line| line.starts_with("GPU memory")).unwrap();
    assert_eq!(memory.matches(" bytes").count(), 4, "{memory}");
    std::thread::scope(|scope| {
        for name in names {
            let server = &server;
            scope.spawn(move || {
                let (got, want) = greedy(server, name, name);
                assert_eq!(got, want, "{name}");
            });
        }
        let (got, want) = greedy(&server, "llama", "base");
        assert_eq!(got, want);
    });
    let (_, metrics) = server.get("/metrics");
    let loads = metrics.lines().find(|line| line.starts_with("tessera:adapter_loads_total"));
    assert!(loads.is_some_and(|line| line.ends_with(" 6")), "{loads:?}");
}

#[test]
fn merged_mode_on_a_card_serves_one_adapter_alone() {
    let flags = adapters(&["lora_all_rs"]);
    let args = ["--device", "cuda", "--merge", "lora_all_rs", &flags[0], &flags[1]];
    let server = Server::start_command(serve(&args, &[]));
    let (got, want) = greedy(&server, "lora_all_rs", "lora_all_rs");
    assert_eq!(got, want);
}

#[test]
fn without_a_card_that_can_be_used_the_model_runs_on_the_cpu_and_a_line_says_why() {
    if is_real() {
        return;
    }
    for (settings, why) in [
        (("CARDS", "0"), "CUDA_ERROR_NO_DEVICE"),
        (("DRIVER", "11080"), "supports CUDA 11.8 and 12.4 or newer is needed"),
        (("CAPABILITY", "75"), "compute capability 7.5 and 8.0 (Ampere) or newer is needed"),
    ] {
        let server = Server::start_command(serve(&[], &[settings]));
        let line = server.report.iter().find(|line| line.contains(why));
        let line = line.unwrap_or_else(|| panic!("{:#?}", server.report));
        assert!(line.ends_with("the model runs on the CPU"), "{line}");
        assert!(server.report.iter().any(|line| line.starts_with("device: cpu")));
        let (got, want) = greedy(&server, "llama", "base");
        assert_eq!(got, want);
        let (code, error) = refusal(serve(&["--device", "cuda"], &[settings]));
        assert!(code == Some(2) && error.contains(why), "{code:?} {error}");
    }
    // Compiled for this process: nothing else has kept its kernels in a folder of its own.
    let cache = tempfile::tempdir().unwrap();
    let mut broken = serve(&["--device", "cuda"], &[("COMPILE_FAILS", "1")]);
    let (code, error) = refusal_of(broken.env("XDG_CACHE_HOME", cache.path()));
    let log = "does not compile for sm_90a: NVRTC_ERROR_COMPILATION";
    assert!(code == Some(2) && error.contains(log), "{error}");
    assert!(error.contains("(7): error: expected a semicolon"), "{error}");
    for (missing, why) in [
        ("libnvrtc.so.13", "NVRTC (libnvrtc.so.13 or libnvrtc.so.12) is not found"),
        ("libcublasLt.so.13", "cuBLASLt (libcublasLt.so.13 or libcublasLt.so.12) is not found"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        for name in ["libcuda.so", "libnvrtc.so.13", "libcublasLt.so.13"] {
            if name != missing {
                std::fs::copy(libraries().join(name), folder.path().join(name)).unwrap();
            }
        }
        let mut command = serve(&["--device", "cuda"], &[]);
        let (code, error) = refusal_of(command.env("LD_LIBRARY_PATH", folder.path()));
        assert!(code == Some(2) && error.contains(why), "{code:?} {error}");
        assert!(error.contains("LD_LIBRARY_PATH"), "what to do: {error}");
    }
    let (code, error) = refusal(serve(&["--device", "cuda:1"], &[]));
    assert!(code == Some(2) && error.contains("GPU 1 was asked for and there are 1"), "{error}");
    let mut none = tessera(&["serve", "--port", "0", "--device", "cuda"]);
    none.env_remove("LD_LIBRARY_PATH");
    let (code, error) = refusal(none);
    assert!(code == Some(2) && error.contains("libcuda.so is not installed"), "{error}");
}

#[test]
fn a_model_or_an_adapter_that_does_not_fit_is_refused_with_numbers() {
    if is_real() {
        return;
    }
    let (code, error) = refusal(serve(&[], &[("MEMORY", "40000000")]));
    assert!(code == Some(3) && error.contains("are free"), "{code:?} {error}");
    let flags = adapters(&["lora_qv"]);
    let small = ["--adapter-gpu-bytes", "1000", &flags[0], &flags[1]];
    let (code, error) = refusal(serve(&small, &[]));
    let expected = "adapter 'lora_qv': the adapter takes ";
    assert!(code == Some(2) && error.contains(expected), "{code:?} {error}");
    assert!(error.contains("raise --adapter-gpu-bytes"), "{error}");
    // At run time the load is refused, and serving goes on.
    let root = golden().join("adapters");
    let root = root.to_str().unwrap();
    let open = ["--allow-runtime-adapters", "--adapter-root", root];
    let args = [&open[..], &["--adapter-gpu-bytes", "1000"]].concat();
    let server = Server::start_command(serve(&args, &[]));
    let load = json!({"lora_name": "x", "lora_path": Path::new(root).join("lora_qv")});
    let (status, reply) = server.post("/v1/load_lora_adapter", &load);
    let message = reply["error"]["message"].as_str().unwrap_or_default();
    assert!(status < 500 && message.contains("raise --adapter-gpu-bytes"), "{status} {reply}");
    let (got, want) = greedy(&server, "llama", "base");
    assert_eq!(got, want);
}

#[test]
fn a_card_that_is_lost_fails_its_requests_and_health_says_so() {
    if is_real() {
        return;
    }
    let server = Server::start_command(serve(&[], &[("BREAK_IN", "400")]));
    let body = json!({"model": "llama", "prompt": [1, 2, 3], "max_tokens": 20});
    let mut replies = (0..9).map(|_| server.post("/v1/completions", &body));
    let (status, reply): (u16, Value) = replies.find(|(status, _)| *status != 200).unwrap();
    let message = reply["error"]["message"].as_str().unwrap_or_default();
    assert!(status == 500 && message.contains("ILLEGAL_ADDRESS"), "{status} {reply}");
    let deadline = Instant::now() + Duration::from_secs(20);
    while server.get("/health").0 != 503 {
        assert!(Instant::now() < deadline, "health does not tell that the card is lost");
    }
    assert_eq!(server.post("/v1/completions", &body).0, 503);
}

#[test]
fn a_bench_on_a_card_checks_itself_and_tells_of_every_case() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("bench.json");
    let model = text(&golden());
    let cases = "base,idle,eight@3,mix,merged";
    let mut args = vec!["bench", &model, "--device", "cuda", "--dtype", "f16", "--rank", "4"];
    args.extend(["--rows", "1,4", "--context", "20", "--prefill", "24", "--rounds", "2"]);
    args.extend(["--cases", cases, "--json", json.to_str().unwrap()]);
    let output = on_card(&args, &[("MEMORY", "300000000")]).output().unwrap();
    let (out, error) = (output.stdout, String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{} {error}", String::from_utf8_lossy(&out));
    let results: Value = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    assert!(results["distance_from_cpu"].as_f64().is_some_and(|d| d > 0.0 && d < 0.02));
    assert!(results["ceilings"]["copy_bytes_per_second"].as_f64().unwrap() > 0.0);
    let kernels = results["kernels"].as_array().unwrap();
    for kernel in ["delta_shrink", "silu_mul_tiles", "rope_store_tiles", "sample"] {
        let line = kernels.iter().find(|k| k["kernel"] == kernel && k["case"] == "mix").unwrap();
        assert!(line["bytes_per_second"].as_f64().unwrap() > 0.0, "{line}");
    }
    let steps = results["steps"].as_array().unwrap();
    for case in cases.split(',') {
        let of = |rows: u64| steps.iter().find(|s| s["case"] == case && s["rows"] == rows);
        for rows in [1, 4, 24] {
            let step = of(rows).unwrap_or_else(|| panic!("{case} {rows}"));
            assert!(step["of_base"].as_f64().is_some_and(|r| r > 0.0), "{step}");
        }
    }
}

#[test]
fn doctor_finds_a_card_and_names_the_library_that_is_missing_beside_it() {
    let doctor = |folder: Option<&Path>| -> (Option<i32>, Value) {
        let args = ["doctor", "--device", "cuda", "--port", "0", "--json"];
        let mut command = on_card(&args, &[]);
        if let Some(folder) = folder {
            command.env("LD_LIBRARY_PATH", folder);
        }
        let output = command.output().unwrap();
        (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
    };
    let check = |report: &Value, name: &str| -> Value {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == name).unwrap().clone()
    };
    let (code, whole) = doctor(None);
    assert_eq!(
        (code, check(&whole, "gpu")["verdict"].as_str()),
        (Some(0), Some("ok")),
        "{whole:#}"
    );
    assert!(check(&whole, "gpu")["found"].to_string().contains("driver of CUDA"), "{whole:#}");
    assert!(check(&whole, "nvrtc")["found"].to_string().contains("libnvrtc.so."), "{whole:#}");
    if is_real() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for name in ["libcuda.so", "libcublasLt.so.13"] {
        std::fs::copy(libraries().join(name), folder.path().join(name)).unwrap();
    }
    let (code, report) = doctor(Some(folder.path()));
    let nvrtc = check(&report, "nvrtc");
    assert_eq!((code, &nvrtc["verdict"]), (Some(1), &json!("problem")), "{report:#}");
    assert!(nvrtc["found"].to_string().contains("tried libnvrtc.so.13, libnvrtc.so.12"), "{nvrtc}");
    assert!(nvrtc["advice"].to_string().contains("nvidia-cuda-nvrtc"), "{nvrtc}");
}
