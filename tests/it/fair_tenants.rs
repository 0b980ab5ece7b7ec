//! Shares of tenants, from their keys to the tokens that they get.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tessera::request::Share;

use crate::client::send;
use crate::fake::{Fake, Script};
use crate::http_keys::{ask, guarded};
use crate::process::{Server, tessera};
use crate::serve::{golden, text};

const COMPLETIONS: &str = "/v1/completions";

#[test]
fn every_sequence_carries_its_tenants_share_whatever_its_request_says() {
    let fake = guarded(Script::Echo(1), "weight = 2.5\npriority = -7");
    let shares = |fake: &Fake, key: &str, path: &str, body: &Value| -> Vec<Share> {
        let before = fake.seen.lock().unwrap().len();
        assert_eq!(ask(fake, key, "POST", path, body).status, 200);
        let seen = fake.seen.lock().unwrap();
        seen[before..].iter().map(|(request, ..)| request.terms().share).collect()
    };
    let pair = json!([{"prompt": "a", "continuation": "b"}]);
    let prompts = json!({"model": "sql", "prompt": ["a", "b"], "n": 2, "max_tokens": 1});
    let urgent = json!({"model": "sql", "prompt": "a", "priority": -1_000_000, "max_tokens": 1});
    let ways = [
        (COMPLETIONS, prompts, 4),
        (COMPLETIONS, urgent, 1),
        ("/v1/embeddings", json!({"model": "sql", "input": ["a", "b"]}), 2),
        ("/v1/loglikelihood", json!({"model": "sql", "requests": pair}), 1),
    ];
    let mut tenants = Vec::new();
    for (key, weight, priority) in [("acme-key", 2.5, -7), ("beta-key", 1.0, 0)] {
        let mut all = Vec::new();
        for (path, body, count) in &ways {
            let found = shares(&fake, key, path, body);
            assert_eq!(found.len(), *count, "{path}");
            all.extend(found);
        }
        assert!(all.iter().all(|share| *share == all[0]), "{all:?}");
        assert_eq!((all[0].weight.get(), all[0].priority), (weight, priority));
        tenants.push(all[0].tenant);
    }
    assert_ne!(tenants[0], tenants[1]);
    // Another key of the tenant is no other tenant.
    assert_eq!(shares(&fake, "acme-old", COMPLETIONS, &ways[1].1)[0].tenant, tenants[0]);
    let open = Fake::new(Script::Echo(1), |_| {});
    assert_eq!(shares(&open, "", COMPLETIONS, &ways[1].1), [Share::default()]);
}

/// Two tenants send more than there is time for, one ten times as much as the other: what they get
/// is by weight. The first says that its requests are urgent, which is nothing to the second.
#[test]
fn two_keys_get_tokens_by_weight() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    let keys = "[[keys]]\nname = 'ops'\nkey = 'ops'\nadmin = true\n\
                [[keys]]\nname = 'small'\nkey = 'small'\n\
                [[keys]]\nname = 'large'\nkey = 'large'\nweight = 3\n";
    fs::write(&path, keys).unwrap();
    let (model, keys) = (text(&golden()), text(&path));
    let args = ["serve", "--port", "0", &model, "--keys", &keys, "--max-num-seqs", "4"];
    let server = Server::start_command(tessera(&args));
    let address = server.address.parse().unwrap();
    let header = |key: &str| format!("authorization: Bearer {key}\r\n");
    let is_over = AtomicBool::new(false);
    let keep_asking = |key: &str, priority: i32| {
        let body = json!({"prompt": "abc", "max_tokens": 24, "ignore_eos": true,
                          "priority": priority});
        while !is_over.load(Ordering::Relaxed) {
            let body = body.to_string();
            let answer = send(address, "POST", COMPLETIONS, &header(key), body.as_bytes());
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    };
    let drawn = || -> [u64; 2] {
        let usage = send(address, "GET", "/v1/usage", &header("ops"), b"").json();
        ["small", "large"].map(|name| {
            let rows = usage["data"].as_array().unwrap().iter();
            let own = rows.filter(|row| row["key"] == name);
            own.map(|row| row["completion_tokens"].as_u64().unwrap()).sum()
        })
    };
    let got = thread::scope(|scope| {
        let keep_asking = &keep_asking;
        (0..30).for_each(|_| drop(scope.spawn(move || keep_asking("small", -9))));
        (0..6).for_each(|_| drop(scope.spawn(move || keep_asking("large", 9))));
        let deadline = Instant::now() + Duration::from_secs(120);
        let mut got = drawn();
        while got.iter().sum::<u64>() < 8000 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
            got = drawn();
        }
        is_over.store(true, Ordering::Relaxed);
        got
    });
    let ratio = got[1] as f64 / got[0] as f64;
    assert!((2.6..3.4).contains(&ratio), "{got:?}: {ratio}");
}
