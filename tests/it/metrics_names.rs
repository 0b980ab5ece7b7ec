//! Names on the page of metrics come and go with adapters and keys.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera::http::Keys;

use crate::client::{get, post, post_stream};
use crate::fake::{Fake, Script, letters, make_adapter, wait_for};
use crate::http_keys::{ask, file};
use crate::metrics::families;
use crate::process::Server;
use crate::root;

const COMPLETIONS: &str = "/v1/completions";
const REQUESTS: &str = "tessera:adapter_requests_total";

/// Values of a family by one of its labels.
fn by(address: SocketAddr, family: &str, label: &str) -> BTreeMap<String, f64> {
    let page = families(get(address, "/metrics").text(), false);
    let samples = page.get(family).map_or(&[][..], |family| &family.samples);
    let mut sums = BTreeMap::new();
    for (_, labels, value) in samples {
        *sums.entry(labels[label].clone()).or_default() += value;
    }
    sums
}

fn load(address: SocketAddr, name: &str, path: &str) {
    let answer =
        post(address, "/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path}));
    assert_eq!(answer.status, 200, "{name}: {}", answer.text());
}

fn unload(address: SocketAddr, name: &str) {
    let answer = post(address, "/v1/unload_lora_adapter", &json!({"lora_name": name}));
    assert_eq!(answer.status, 200, "{name}: {}", answer.text());
}

fn complete(address: SocketAddr, model: &str) {
    let body = json!({"model": model, "prompt": "a", "max_tokens": 1});
    assert_eq!(post(address, COMPLETIONS, &body).status, 200, "{model}");
}

/// A server that loads adapters of this folder.
fn fake(script: Script) -> (tempfile::TempDir, Fake) {
    let dir = tempfile::tempdir().unwrap();
    make_adapter(dir.path(), "good-7");
    let root = dir.path().to_owned();
    let fake = Fake::new(script, |app| app.http.adapter_root = Some(root));
    (dir, fake)
}

#[test]
fn a_thousand_adapters_that_come_and_go_leave_no_line() {
    let (_dir, fake) = fake(Script::Echo(1));
    let address = fake.address;
    load(address, "stays", "good-7");
    complete(address, "stays");
    let series = || {
        let lines = get(address, "/metrics").text().lines().map(str::to_owned).collect::<Vec<_>>();
        let of_adapters = lines.iter().filter(|line| line.contains("adapter=\""));
        of_adapters.map(|line| line.rsplit_once(' ').unwrap().0.to_owned()).collect::<BTreeSet<_>>()
    };
    let before = series();
    for i in 0..1000 {
        let name = format!("n{i}");
        load(address, &name, "good-7");
        complete(address, &name);
        unload(address, &name);
    }
    assert_eq!(series(), before);
    load(address, "late", "good-7");
    complete(address, "late");
    let requests = by(address, REQUESTS, "adapter");
    assert_eq!(requests, BTreeMap::from([("late".into(), 1.0), ("stays".into(), 1.0)]));
}

#[test]
fn an_adapter_without_a_place_gets_one_that_is_free_and_what_others_share_never_shrinks() {
    let (_dir, fake) = fake(Script::Echo(1));
    let address = fake.address;
    for i in 0..300 {
        let name = format!("n{i}");
        load(address, &name, "good-7");
        complete(address, &name);
    }
    let requests = by(address, REQUESTS, "adapter");
    assert_eq!((requests.len(), requests["other"]), (257, 44.0));
    assert!(requests.contains_key("n255") && !requests.contains_key("n256"));
    (0..100).for_each(|i| unload(address, &format!("n{i}")));
    complete(address, "n299");
    let requests = by(address, REQUESTS, "adapter");
    assert_eq!((requests.len(), requests["other"], requests["n299"]), (158, 44.0, 1.0));
    // One that comes again begins again.
    load(address, "n0", "good-7");
    complete(address, "n0");
    assert_eq!(by(address, REQUESTS, "adapter")["n0"], 1.0);
}

#[test]
fn lines_of_an_unloaded_adapter_stay_while_something_of_it_runs() {
    let (_dir, fake) = fake(Script::Hang(letters("a")));
    let address = fake.address;
    load(address, "x", "good-7");
    let body = json!({"model": "x", "prompt": "a", "max_tokens": 9, "stream": true});
    let mut running = post_stream(address, COMPLETIONS, &body);
    assert!(running.frame().is_some());
    unload(address, "x");
    let requests = || by(address, REQUESTS, "adapter");
    assert_eq!(requests(), BTreeMap::from([("x".into(), 1.0)]));
    // Loaded again meanwhile it goes on.
    load(address, "x", "good-7");
    assert_eq!(requests(), BTreeMap::from([("x".into(), 1.0)]));
    unload(address, "x");
    drop(running);
    wait_for(|| requests().is_empty(), || format!("{:?}", requests()));
}

#[test]
fn an_adapter_that_is_unloaded_while_it_runs_leaves_the_device_and_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, path) = (root().join("demo/adapters/pirate"), dir.path().join("own"));
    fs::create_dir(&path).unwrap();
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        fs::copy(demo.join(name), path.join(name)).unwrap();
    }
    // Another content than that of the demo's own, which stays.
    let config = fs::read_to_string(path.join("adapter_config.json")).unwrap();
    fs::write(path.join("adapter_config.json"), config.trim_end().to_owned() + "\n\n").unwrap();
    let root = dir.path().to_str().unwrap();
    let server = Server::start(&["--allow-runtime-adapters", "--adapter-root", root]);
    let address: SocketAddr = server.address.parse().unwrap();
    let bytes = || by(address, "tessera:adapter_resident_bytes", "adapter");
    for runs in [false, true, true, true] {
        load(address, "own", "own");
        let body = json!({"model": "own", "prompt": "a", "max_tokens": 200, "stream": true,
            "ignore_eos": true});
        let mut reader = post_stream(address, COMPLETIONS, &body);
        assert!(reader.frame().is_some());
        assert!(bytes().contains_key("own"));
        if runs {
            unload(address, "own");
        }
        reader.frames();
        if !runs {
            unload(address, "own");
        }
        wait_for(|| !bytes().contains_key("own"), || format!("{:?}", bytes()));
    }
}

#[test]
fn lines_of_a_tenant_go_with_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    fs::write(&path, file("")).unwrap();
    let keys = Arc::new(Keys::open(Vec::new(), Some(path.clone())).unwrap());
    let fake = Fake::new(Script::Echo(1), |app| app.http.keys = Some(keys));
    let body = json!({"model": "sql", "prompt": "a", "max_tokens": 1});
    for key in ["acme-key", "ops-key"] {
        assert_eq!(ask(&fake, key, "POST", COMPLETIONS, &body).status, 200);
    }
    let tenants = || {
        let requests = by(fake.address, "tessera:tenant_requests_total", "tenant");
        requests.into_keys().collect::<Vec<_>>()
    };
    assert_eq!(tenants(), ["acme", "ops"]);
    fs::write(&path, "[[keys]]\nname = 'acme'\nkey = 'acme-key'\n").unwrap();
    wait_for(|| tenants() == ["acme"], || format!("{:?}", tenants()));
    assert_eq!(ask(&fake, "acme-key", "GET", "/v1/models", &Value::Null).status, 200);
    assert_eq!(by(fake.address, REQUESTS, "adapter")["sql"], 2.0, "the adapter's stay");
}
