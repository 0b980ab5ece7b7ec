//! Loading and unloading adapters at run time, and what the metrics say.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};
use tessera::ids::Digest;

use crate::client::{get, post, raw};
use crate::fake::{Fake, Script, make_adapter};

const LOAD: &str = "/v1/load_lora_adapter";
const UNLOAD: &str = "/v1/unload_lora_adapter";

/// A root with adapters, and a directory beside it.
fn root() -> (tempfile::TempDir, Fake) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    for name in ["good-7", "good-8", "deep/good-9", "broken", "panic"] {
        make_adapter(&root, name);
    }
    make_adapter(dir.path(), "outside/good-1");
    symlink(dir.path().join("outside"), root.join("out")).unwrap();
    symlink(dir.path().join("nowhere"), root.join("dangling")).unwrap();
    symlink(root.join("deep"), root.join("in")).unwrap();
    symlink("../..", root.join("deep/up")).unwrap();
    symlink("loop", root.join("loop")).unwrap();
    let fake = Fake::new(Script::Echo(1), |app| app.http.adapter_root = Some(root));
    (dir, fake)
}

fn load(fake: &Fake, name: &str, path: &str) -> (u16, String) {
    let answer = post(fake.address, LOAD, &json!({"lora_name": name, "lora_path": path}));
    (answer.status, answer.text().to_owned())
}

fn digest(fake: &Fake, model: &str) -> Option<Digest> {
    let answer = post(fake.address, "/v1/completions", &json!({"model": model, "prompt": "x"}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    fake.seen.lock().unwrap().last().unwrap().1
}

#[test]
fn an_adapter_is_loaded_used_replaced_and_unloaded_with_vllms_texts() {
    let (dir, fake) = root();
    let added = (200, "Success: LoRA adapter 'new' added successfully.".to_owned());
    assert_eq!(load(&fake, "new", "good-7"), added);
    assert_eq!(digest(&fake, "new"), Some(Digest([7; 32])));
    let again = post(fake.address, LOAD, &json!({"lora_name": "new", "lora_path": "good-8"}));
    assert_eq!(again.status, 400);
    let text = "The lora adapter 'new' has already been loaded. If you want to load the adapter in \
                place, set 'load_inplace' to True.";
    assert_eq!(again.message(), text);
    assert_eq!(again.error().1, "adapter_already_loaded");
    let absolute = dir.path().join("root/good-8");
    let body = json!({"lora_name": "new", "lora_path": absolute, "load_inplace": true,
        "is_3d_lora_weight": false});
    assert_eq!(post(fake.address, LOAD, &body).text(), added.1);
    assert_eq!(digest(&fake, "new"), Some(Digest([8; 32])));
    let cards = get(fake.address, "/v1/models").json();
    assert_eq!(cards["data"][3]["root"], "08".repeat(32));
    assert!(!cards.to_string().contains(dir.path().to_str().unwrap()), "no path is told");
    let unload = json!({"lora_name": "new", "lora_int_id": null});
    let answer = post(fake.address, UNLOAD, &unload);
    let removed = "Success: LoRA adapter 'new' removed successfully.";
    assert_eq!((answer.status, answer.text()), (200, removed));
    let answer = post(fake.address, UNLOAD, &unload);
    assert_eq!(answer.status, 404);
    assert_eq!(answer.message(), "The lora adapter 'new' cannot be found.");
    let model = json!({"model": "new", "prompt": "x"});
    assert_eq!(post(fake.address, "/v1/completions", &model).status, 404);
}

#[test]
fn a_bad_load_is_the_clients_error_with_vllms_text() {
    let (_dir, fake) = root();
    let cases: [(Value, u16, &str, &str); 17] = [
        (json!({}), 400, "missing_field", "Both 'lora_name' and 'lora_path' must be provided."),
        (
            json!({"lora_name": "", "lora_path": "x"}),
            400,
            "missing_field",
            "Both 'lora_name' and 'lora_path' must be provided.",
        ),
        (
            json!({"lora_name": "org/base", "lora_path": "good-7"}),
            400,
            "adapter_name_conflict",
            "The lora adapter 'org/base' conflicts with a served base model.",
        ),
        (
            json!({"lora_name": "org/base:x", "lora_path": "good-7"}),
            400,
            "adapter_name_conflict",
            "The lora adapter 'org/base:x' conflicts with a served base model.",
        ),
        (
            json!({"lora_name": "a", "lora_path": "none/here"}),
            404,
            "adapter_not_found",
            "Loading lora a failed: No adapter found for none/here",
        ),
        (
            json!({"lora_name": "a", "lora_path": "broken"}),
            400,
            "invalid_adapter",
            "Loading lora a failed: rank 0 in 'r'; expected 1 or above",
        ),
        (json!({"lora_name": "../a", "lora_path": "good-7"}), 400, "invalid_adapter_name", ""),
        (json!({"lora_name": ".", "lora_path": "good-7"}), 400, "invalid_adapter_name", ""),
        (json!({"lora_name": "a/", "lora_path": "good-7"}), 400, "invalid_adapter_name", ""),
        (json!({"lora_name": "a//b", "lora_path": "good-7"}), 400, "invalid_adapter_name", ""),
        (json!({"lora_name": "./a", "lora_path": "good-7"}), 400, "invalid_adapter_name", ""),
        (json!({"lora_name": "other", "lora_path": "good-7"}), 400, "invalid_adapter_name", ""),
        (json!({"lora_name": "a\u{0}", "lora_path": "good-7"}), 400, "invalid_adapter_name", ""),
        (json!({"lora_name": 5, "lora_path": "good-7"}), 400, "invalid_value", ""),
        (
            json!({"lora_name": "a", "lora_path": "good-7", "load_inplace": "yes"}),
            400,
            "invalid_value",
            "",
        ),
        (
            json!({"lora_name": "a", "lora_path": "good-7", "is_3d_lora_weight": true}),
            400,
            "unsupported_parameter",
            "",
        ),
        (json!({"lora_name": "a", "lora_path": "panic"}), 500, "internal_error", ""),
    ];
    for (body, status, code, text) in cases {
        let answer = post(fake.address, LOAD, &body);
        assert_eq!((answer.status, answer.error().1.as_str()), (status, code), "{body}");
        assert!(text.is_empty() || answer.message() == text, "{}", answer.message());
    }
    let answer = post(fake.address, UNLOAD, &json!({}));
    assert_eq!(answer.message(), "'lora_name' needs to be provided to unload a LoRA adapter.");
    assert_eq!(post(fake.address, UNLOAD, &json!({"lora_name": "org/base"})).status, 404);
    assert_eq!(load(&fake, "after", "good-7").0, 200, "the server goes on");
}

#[test]
fn a_path_that_leaves_the_root_is_refused_whether_or_not_it_exists() {
    let (dir, fake) = root();
    let outside = dir.path().join("outside/good-1");
    let texts = [
        outside.to_str().unwrap().to_owned(),
        "/etc".to_owned(),
        "/no/such/thing".to_owned(),
        "..".to_owned(),
        "../outside/good-1".to_owned(),
        "../nothing".to_owned(),
        "good-7/../good-8".to_owned(),
        "good-7/../../outside/good-1".to_owned(),
        "out/good-1".to_owned(),
        "out/nothing".to_owned(),
        "out".to_owned(),
        "dangling".to_owned(),
        "dangling/good-1".to_owned(),
        "deep/up/outside/good-1".to_owned(),
        "loop".to_owned(),
        "good-7\u{0}".to_owned(),
        format!("{}/root/../outside/good-1", dir.path().display()),
        format!("{}/rootless", dir.path().display()),
    ];
    let mut messages = std::collections::BTreeSet::new();
    for path in &texts {
        let answer = post(fake.address, LOAD, &json!({"lora_name": "a", "lora_path": path}));
        assert_eq!(
            (answer.status, answer.error().1.as_str()),
            (400, "path_outside_root"),
            "{path}"
        );
        messages.insert(answer.message());
    }
    assert_eq!(messages.len(), 1, "the text says nothing of what is there");
    for (i, path) in ["deep/good-9", "./deep//good-9/", "in/good-9"].iter().enumerate() {
        assert_eq!(load(&fake, &format!("fine-{i}"), path).0, 200, "{path}");
    }
    let fake = Fake::new(Script::Echo(1), |_| {});
    assert!(load(&fake, "a", "good-7").1.contains("path_outside_root"), "there is no root");
}

#[test]
fn the_routes_are_absent_unless_allowed_and_take_only_json() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.runtime_adapters = false);
    for path in [LOAD, UNLOAD] {
        let answer = post(fake.address, path, &json!({"lora_name": "a", "lora_path": "b"}));
        assert_eq!(answer.status, 404);
    }
    let (_dir, fake) = root();
    for kind in ["", "content-type: text/plain\r\n", "content-type: multipart/form-data\r\n"] {
        let text = format!(
            "POST {LOAD} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n{kind}\r\n{{}}"
        );
        assert_eq!(raw(fake.address, text.as_bytes()).status, 415, "{kind}");
    }
}

#[test]
fn loads_of_many_clients_at_once_all_end() {
    let (_dir, fake) = root();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let load = |i: usize| {
            let fake = &fake;
            scope.spawn(move || load(fake, &format!("n{}", i / 2), "good-7").0)
        };
        let threads: Vec<_> = (0..20).map(load).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Each name twice: one is first, the other is too late.
    assert_eq!(statuses.iter().filter(|&&status| status == 200).count(), 10);
    assert_eq!(statuses.iter().filter(|&&status| status == 400).count(), 10);
}

/// Every sample of a page, after checking the page's form.
fn samples(text: &str) -> Vec<(String, f64)> {
    let mut kinds = std::collections::HashMap::new();
    let mut samples = Vec::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {name}");
        } else if !line.starts_with("# HELP ") {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let name = series.split('{').next().unwrap();
            let ends = ["_bucket", "_sum", "_count"];
            let family = ends.iter().find_map(|end| name.strip_suffix(end));
            let family = family.filter(|f| kinds.contains_key(*f)).unwrap_or(name);
            assert!(kinds.contains_key(family), "{line} has no type");
            assert!(series.ends_with('}') && series.matches('"').count() % 2 == 0, "{line}");
            samples.push((series.to_owned(), value.parse().unwrap()));
        }
    }
    samples
}

#[test]
fn metrics_count_requests_and_tokens_by_adapter_under_vllms_names() {
    let (_dir, fake) = root();
    for model in ["sql", "sql", "org/base:org/chat", "org/base"] {
        digest(&fake, model);
    }
    fake.engine.stats().blocks_used.store(1, std::sync::atomic::Ordering::Relaxed);
    fake.engine.stats().blocks_total.store(4, std::sync::atomic::Ordering::Relaxed);
    let page = get(fake.address, "/metrics");
    assert_eq!(page.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    let samples = samples(page.text());
    let value = |name: &str, label: &str| {
        let model = "model_name=\"org/base\",engine=\"0\"";
        let comma = if label.is_empty() { "" } else { "," };
        let series = format!("{name}{{{model}{comma}{label}}}");
        let found = samples.iter().find(|(s, _)| *s == series);
        found.unwrap_or_else(|| panic!("no {series} in {}", page.text())).1
    };
    assert_eq!(value("tessera:adapter_requests_total", "adapter=\"sql\""), 2.0);
    assert_eq!(value("tessera:adapter_requests_total", "adapter=\"org/chat\""), 1.0);
    assert_eq!(value("tessera:adapter_prompt_tokens_total", "adapter=\"sql\""), 4.0);
    assert_eq!(value("tessera:adapter_generation_tokens_total", "adapter=\"org/base\""), 1.0);
    assert_eq!(value("vllm:request_success_total", "finished_reason=\"length\""), 4.0);
    assert_eq!(value("vllm:request_success_total", "finished_reason=\"abort\""), 0.0);
    assert_eq!(value("vllm:kv_cache_usage_perc", ""), 0.25);
    assert_eq!(value("tessera:adapters_loaded", ""), 2.0);
    for histogram in ["time_to_first_token", "e2e_request_latency"] {
        let name = format!("vllm:{histogram}_seconds");
        assert_eq!(value(&format!("{name}_count"), ""), 4.0);
        assert_eq!(value(&format!("{name}_bucket"), "le=\"+Inf\""), 4.0);
        let prefix = format!("{name}_bucket");
        let buckets: Vec<f64> =
            samples.iter().filter(|(s, _)| s.starts_with(&prefix)).map(|(_, v)| *v).collect();
        assert!(buckets.is_sorted());
    }
    for name in [
        "num_requests_running",
        "num_requests_waiting",
        "prompt_tokens_total",
        "generation_tokens_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "num_preemptions_total",
        "inter_token_latency_seconds_count",
    ] {
        value(&format!("vllm:{name}"), "");
    }
}

#[test]
fn the_bounds_of_histograms_are_vllms() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    digest(&fake, "sql");
    let page = get(fake.address, "/metrics");
    let bounds = |name: &str| -> Vec<&str> {
        let prefix = format!("{name}_bucket{{model_name=\"org/base\",engine=\"0\",le=\"");
        let bound = |line: &'_ str| line.find('"').unwrap_or_default();
        let rests = page.text().lines().filter_map(|line| line.strip_prefix(&prefix));
        rests.map(|rest| &rest[..bound(rest)]).collect()
    };
    // vLLM's, as Prometheus' own library for Go writes numbers.
    let ttft = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 \
                640 2560 +Inf";
    let itl = "0.001 0.0025 0.005 0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 \
               10 20 40 80 +Inf";
    let e2e = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680 +Inf";
    assert_eq!(bounds("vllm:time_to_first_token_seconds").join(" "), ttft);
    assert_eq!(bounds("vllm:inter_token_latency_seconds").join(" "), itl);
    assert_eq!(bounds("vllm:e2e_request_latency_seconds").join(" "), e2e);
    for phase in ["queue", "prefill", "decode", "inference"] {
        assert_eq!(bounds(&format!("vllm:request_{phase}_time_seconds")).join(" "), e2e);
    }
    assert_eq!(bounds("vllm:request_time_per_output_token_seconds").join(" "), itl);
    let step = "1 8 16 32 64 128 256 512 1024 2048 4096 8192 16384 +Inf";
    assert_eq!(bounds("vllm:iteration_tokens_total").join(" "), step);
    assert_eq!(bounds("vllm:request_params_n").join(" "), "1 2 5 10 20 +Inf");
    // Up to the context.
    let lengths = "1 2 5 10 20 50 100 200 500 +Inf";
    for what in ["prompt", "generation", "max_num_generation"] {
        assert_eq!(bounds(&format!("vllm:request_{what}_tokens")).join(" "), lengths);
    }
    assert_eq!(bounds("vllm:request_params_max_tokens").join(" "), lengths);
}

#[test]
fn metrics_have_lines_for_at_most_so_many_adapters() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    for i in 0..300 {
        crate::harness::name(&fake.catalog, &format!("a{i}"), &crate::fake::adapter(3), 0);
        digest(&fake, &format!("a{i}"));
    }
    let page = get(fake.address, "/metrics");
    let requests: Vec<_> =
        page.text().lines().filter(|l| l.starts_with("tessera:adapter_requests_total{")).collect();
    assert_eq!(requests.len(), 257);
    let other = requests.iter().find(|line| line.contains("adapter=\"other\"")).unwrap();
    assert!(other.ends_with(" 44"), "{other}");
}
