//! `/v1/adapters`: what is loaded, unloading in OpenAI's form, and a look at what is not loaded.

use serde_json::{Value, json};

use crate::client::{get, post, send};
use crate::fake::{BASE, Fake, Script, make_adapter};
use crate::process::{Server, tessera};
use crate::serve::{adapter, golden, text};

const VALIDATE: &str = "/v1/adapters/validate";

#[test]
fn adapters_are_listed_with_what_they_are() {
    let names = ["lora_qv", "mos_compact", "lora_saved_norm"];
    let flags: Vec<String> = names.iter().map(|n| format!("{n}={}", adapter(n))).collect();
    let mut args = vec![text(&golden())];
    flags.into_iter().for_each(|flag| args.extend(["--adapter".into(), flag]));
    let server = Server::start(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let list: Value = serde_json::from_str(&server.get("/v1/adapters").1).unwrap();
    assert_eq!(list["object"], "list");
    let data = list["data"].as_array().unwrap();
    assert_eq!(data.iter().map(|card| card["name"].as_str().unwrap()).collect::<Vec<_>>(), names);
    let targets = [
        json!(["q_proj", "v_proj"]),
        json!(["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        json!(["input_layernorm", "v_proj"]),
    ];
    for (card, targets) in data.iter().zip(targets) {
        let name = card["name"].as_str().unwrap();
        let shown = tessera(&["inspect", &adapter(name), "--model", &text(&golden()), "--json"]);
        let report: Value = serde_json::from_slice(&{ shown }.output().unwrap().stdout).unwrap();
        let created = card["created"].as_u64().unwrap();
        assert!(created > 1_700_000_000, "{card}");
        let expected = json!({"id": name, "object": "adapter", "name": name,
            "digest": report["digest"], "method": report["method"], "rank": report["rank_max"],
            "bytes": report["served_bytes"], "targets": targets, "state": "loaded",
            "created": created, "parent": "llama"});
        assert_eq!(*card, expected);
        let one: Value =
            serde_json::from_str(&server.get(&format!("/v1/adapters/{name}")).1).unwrap();
        assert_eq!(one, expected);
    }
    // It was not started with --allow-runtime-adapters.
    for (method, path) in
        [("DELETE", "/v1/adapters/lora_qv"), ("DELETE", "/v1/models/lora_qv"), ("POST", VALIDATE)]
    {
        let (status, reply) = server.send(method, path, Some(&json!({})));
        assert!(status == 404 && reply.contains("runtime_adapters_off"), "{reply}");
    }
    assert_eq!(server.send("DELETE", "/v1/completions", None).0, 405);
}

#[test]
fn a_look_at_an_adapter_is_the_report_of_inspect_and_loads_nothing() {
    let root = golden().join("adapters");
    let flags = ["--allow-runtime-adapters", "--adapter-root", root.to_str().unwrap()];
    let server = Server::start(&[&[&*text(&golden())], &flags[..]].concat());
    for name in ["lora_dora", "ssf"] {
        let shown = tessera(&["inspect", &adapter(name), "--model", &text(&golden()), "--json"]);
        let report: Value = serde_json::from_slice(&{ shown }.output().unwrap().stdout).unwrap();
        let body = json!({"lora_path": name, "lora_name": "new"});
        let (status, mut told) = server.post(VALIDATE, &body);
        assert_eq!(status, 200, "{told}");
        let verdict = ["object", "valid"].map(|key| told.as_object_mut().unwrap().remove(key));
        assert_eq!(verdict, [Some(json!("adapter.validation")), Some(json!(true))]);
        assert_eq!(told, report, "{name}");
    }
    let list: Value = serde_json::from_str(&server.get("/v1/adapters").1).unwrap();
    assert_eq!(list["data"], json!([]));
}

/// A root with adapters of the fake loader.
fn fake() -> (tempfile::TempDir, Fake) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["good-7", "broken", "panic"] {
        make_adapter(&dir.path().join("root"), name);
    }
    let root = dir.path().join("root");
    let fake = Fake::new(Script::Echo(1), |app| app.http.adapter_root = Some(root));
    (dir, fake)
}

#[test]
fn what_would_not_load_is_refused_as_loading_refuses_it() {
    let (dir, fake) = fake();
    let outside = text(dir.path());
    let cases = [
        (json!({}), 400, "missing_field", Some("lora_path")),
        (json!({"lora_path": ""}), 400, "missing_field", Some("lora_path")),
        (json!({"lora_path": 5}), 400, "invalid_value", Some("lora_path")),
        (json!({"lora_path": "../x"}), 400, "path_outside_root", Some("lora_path")),
        (json!({"lora_path": outside}), 400, "path_outside_root", Some("lora_path")),
        (json!({"lora_path": "none"}), 404, "adapter_not_found", Some("lora_path")),
        (json!({"lora_path": "broken"}), 400, "invalid_adapter", Some("lora_path")),
        (json!({"lora_path": "panic"}), 500, "internal_error", None),
        (
            json!({"lora_path": "good-7", "lora_name": "a b"}),
            400,
            "invalid_adapter_name",
            Some("lora_name"),
        ),
        (
            json!({"lora_path": "good-7", "lora_name": BASE}),
            400,
            "adapter_name_conflict",
            Some("lora_name"),
        ),
    ];
    for (body, status, code, param) in cases {
        let answer = post(fake.address, VALIDATE, &body);
        let error = answer.error();
        let got = (answer.status, error.1.as_str(), error.0.as_deref());
        assert_eq!(got, (status, code, param), "{body}: {}", answer.message());
    }
    let good = json!({"lora_path": "good-7"});
    assert_eq!(post(fake.address, VALIDATE, &good).json()["digest"], "07".repeat(32));
    let untyped =
        b"POST /v1/adapters/validate HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
        content-length: 2\r\n\r\n{}";
    assert_eq!(crate::client::raw(fake.address, untyped).status, 415);
}

#[test]
fn deleting_an_adapter_or_its_model_unloads_it() {
    let (_dir, fake) = fake();
    let delete = |path: &str| send(fake.address, "DELETE", path, "", b"");
    let answer = delete("/v1/adapters/sql");
    let expected = json!({"id": "sql", "object": "adapter", "deleted": true});
    assert_eq!((answer.status, answer.json()), (200, expected));
    let again = delete("/v1/adapters/sql");
    assert_eq!((again.status, again.error().1.as_str()), (404, "adapter_not_found"));
    assert_eq!(get(fake.address, "/v1/adapters/sql").status, 404);
    let answer = delete("/v1/models/org%2Fchat/");
    let expected = json!({"id": "org/chat", "object": "model", "deleted": true});
    assert_eq!((answer.status, answer.json()), (200, expected));
    let again = delete("/models/org/chat");
    assert_eq!((again.status, again.error().1.as_str()), (404, "model_not_found"));
    assert!(fake.catalog.names().is_empty());
    for path in ["/v1/models/org/base", "/v1/adapters/org/base"] {
        let answer = delete(path);
        assert_eq!((answer.status, answer.error().1.as_str()), (400, "base_model_fixed"));
    }
    // An adapter may have the name of a route.
    let load = json!({"lora_name": "validate", "lora_path": "good-7"});
    assert_eq!(post(fake.address, "/v1/load_lora_adapter", &load).status, 200);
    assert_eq!(get(fake.address, VALIDATE).json()["name"], "validate");
    assert_eq!(delete(VALIDATE).status, 200);
    assert_eq!(delete("/v1/adapters").status, 405);
}

#[test]
fn a_merged_adapter_is_the_only_one_and_stays() {
    let fake = Fake::new(Script::Echo(1), |app| app.model.merged = Some("sql".to_owned()));
    let list = get(fake.address, "/v1/adapters").json();
    let states: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|c| (&c["name"], &c["state"])).collect();
    assert_eq!(states, [(&json!("sql"), &json!("merged"))]);
    assert_eq!(get(fake.address, "/v1/adapters/org/chat").status, 404);
    let answer = send(fake.address, "DELETE", "/v1/adapters/sql", "", b"");
    assert_eq!((answer.status, answer.error().1.as_str()), (400, "merged_mode"));
}
