//! `GET /v1/batch`: what watchers of the batch see, and what they do not.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tessera::engine::{Caption, View, ViewRow};
use tessera::ids::{Digest, SequenceId};

use crate::client::{Reader, connect, get, message, send};
use crate::fake::{Fake, Script, wait_for};
use crate::http_keys::{ask, file, guarded};
use crate::process::Server;
use crate::serve::{golden, text};

const ACCEPT: &str = "accept: text/event-stream\r\n";

fn watch(fake: &Fake, key: &str) -> Reader {
    let extra = format!("{ACCEPT}authorization: Bearer {key}\r\n");
    let reader = Reader::new(connect(fake.address, &message("GET", "/v1/batch", &extra, b"")));
    assert_eq!(reader.status, 200);
    reader
}

/// The next view; comments are passed over.
fn view(reader: &mut Reader) -> Value {
    loop {
        let frame = reader.frame().expect("the stream has ended");
        if let Some(data) = frame.strip_prefix("data: ") {
            return serde_json::from_str(data).unwrap();
        }
        assert_eq!(frame, ": ping");
    }
}

fn row(id: u64, model: &str, key: &str, is_running: bool) -> ViewRow {
    ViewRow {
        id: SequenceId(id),
        caption: Some(Arc::new(Caption { model: model.to_owned(), key: Some(key.to_owned()) })),
        tenant: Digest(blake3::hash(key.as_bytes()).into()),
        is_running,
        prompt_tokens: 7,
        cached_tokens: 0,
        computed_tokens: 9,
        generated_tokens: if is_running { 3 } else { 0 },
        tokens_max: 20,
        blocks: 1,
    }
}

/// Something that runs for as long as it is held: an engine with nothing to do shows nothing.
fn hold(fake: &Fake) -> std::net::TcpStream {
    let body = json!({"prompt": "a"}).to_string();
    let extra = "authorization: Bearer ops-key\r\n";
    let held = connect(fake.address, &message("POST", "/v1/completions", extra, body.as_bytes()));
    fake.wait_seen(1);
    held
}

fn show(fake: &Fake, rows: Vec<ViewRow>) {
    fake.engine.stats().window.show(View { rows, blocks_used: 40 });
}

#[test]
fn a_key_sees_its_own_rows_and_one_that_may_administer_sees_all() {
    let fake = guarded(Script::Hang(vec![]), "");
    let _held = hold(&fake);
    let [mut ops, mut acme, mut beta] =
        ["ops-key", "acme-key", "beta-key"].map(|k| watch(&fake, k));
    let rows = vec![
        row(4, "sql", "acme", false),
        row(5, "org/base", "ops", true),
        row(6, "sql", "acme", true),
    ];
    show(&fake, rows.clone());
    let all = view(&mut ops);
    let models = |view: &Value| -> Vec<(u64, String, String)> {
        let of = |row: &Value| {
            let text = |key: &str| row[key].as_str().unwrap().to_owned();
            (row["id"].as_u64().unwrap(), text("model"), text("state"))
        };
        view["rows"].as_array().unwrap().iter().map(of).collect()
    };
    let named = |id: u64, model: &str, state: &str| (id, model.to_owned(), state.to_owned());
    // Those that run first; numbers of their own for each watcher.
    let expected =
        [named(1, "org/base", "decode"), named(2, "sql", "decode"), named(3, "sql", "waiting")];
    assert_eq!(models(&all), expected);
    assert_eq!((&all["running"], &all["waiting"]), (&json!(2), &json!(1)));
    assert_eq!((&all["blocks_used"], &all["rows"][1]["key"]), (&json!(40), &json!("acme")));
    let own = view(&mut acme);
    assert_eq!(models(&own), [named(1, "sql", "decode"), named(2, "sql", "waiting")]);
    assert_eq!((&own["running"], &own["waiting"]), (&json!(1), &json!(1)));
    assert_eq!(own["blocks_used"], Value::Null);
    let nothing = view(&mut beta);
    assert_eq!((models(&nothing), &nothing["running"]), (vec![], &json!(0)));
    // What changes for others is nothing new for a key.
    let more = [rows[..2].to_vec(), vec![ViewRow { generated_tokens: 4, ..rows[2].clone() }]];
    show(&fake, more.concat());
    assert_eq!(view(&mut acme)["rows"][0]["completion_tokens"], 4);
    show(&fake, vec![row(9, "org/base", "beta", true)]);
    assert_eq!(models(&view(&mut beta)), [named(1, "org/base", "decode")]);
    let once = ask(&fake, "", "GET", "/v1/batch", &Value::Null);
    assert_eq!(once.status, 401);
}

#[test]
fn a_stream_tells_changes_alone_and_that_it_is_alive() {
    let fake = Fake::new(Script::Hang(vec![]), |app| app.http.keep_alive_ms = 40);
    let mut watcher = watch(&fake, "any");
    let empty = view(&mut watcher);
    assert_eq!((&empty["object"], &empty["rows"]), (&json!("batch"), &json!([])));
    assert_eq!(watcher.frame().as_deref(), Some(": ping"));
    let held = hold(&fake);
    let one = vec![row(1, "sql", "", true)];
    show(&fake, one.clone());
    assert_eq!(view(&mut watcher)["rows"][0]["model"], "sql");
    for _ in 0..3 {
        show(&fake, one.clone());
        assert_eq!(watcher.frame().as_deref(), Some(": ping"));
    }
    // The engine's last view may be late or lost: nothing in flight is nothing to see.
    drop(held);
    fake.wait_cancelled(1);
    assert_eq!(view(&mut watcher), empty);
}

#[test]
fn rows_are_limited_and_the_rest_is_counted() {
    let fake = Fake::new(Script::Hang(vec![]), |_| {});
    let _held = hold(&fake);
    let mut watcher = watch(&fake, "any");
    show(&fake, (0..300).map(|id| row(id, "sql", "", id >= 200)).collect());
    let seen = view(&mut watcher);
    let rows = seen["rows"].as_array().unwrap();
    assert_eq!((rows.len(), &seen["rows_left_out"]), (256, &json!(44)));
    assert_eq!((&seen["running"], &seen["waiting"]), (&json!(100), &json!(200)));
    assert!(rows[..100].iter().all(|row| row["state"] == "decode"), "those that run come first");
}

#[test]
fn watchers_are_limited_and_who_leaves_makes_room() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.watchers_max = 1);
    let mut watcher = watch(&fake, "any");
    view(&mut watcher);
    let refused = get(fake.address, "/v1/batch");
    assert_eq!((refused.status, refused.error().1.as_str()), (429, "watchers_full"));
    assert_eq!(refused.header("retry-after"), Some("1"));
    drop(watcher);
    wait_for(|| get(fake.address, "/v1/batch").status == 200, || "no room".to_owned());
}

#[test]
fn a_watcher_does_not_hold_up_a_shutdown() {
    let mut fake = Fake::say("x");
    let mut watcher = watch(&fake, "any");
    view(&mut watcher);
    let begun = Instant::now();
    fake.shut_down();
    assert_eq!(watcher.frame(), None);
    fake.join();
    assert!(begun.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_engine_shows_a_request_while_it_runs_and_then_nothing() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    fs::write(keys.path(), file("")).unwrap();
    let adapter = format!("sql={}", text(&golden().join("adapters/lora_qv")));
    let args = [&text(&golden()), "--adapter", &adapter, "--keys", &text(keys.path())];
    let server = Server::start(&args);
    let address = server.address.parse().unwrap();
    let open = |key: &str| {
        let extra = format!("{ACCEPT}authorization: Bearer {key}\r\n");
        Reader::new(connect(address, &message("GET", "/v1/batch", &extra, b"")))
    };
    let mut watchers = ["ops-key", "acme-key", "beta-key"].map(open);
    for watcher in &mut watchers {
        assert_eq!(view(watcher)["rows"], json!([]));
    }
    let complete = |key: &str, model: &str| {
        let body = json!({"model": model, "prompt": "a b c", "max_tokens": 200,
            "ignore_eos": true, "temperature": 0});
        let extra = format!("authorization: Bearer {key}\r\n");
        let answer = send(address, "POST", "/v1/completions", &extra, body.to_string().as_bytes());
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()["usage"].clone()
    };
    // A short request may be over before anybody has looked: it is sent until it is seen.
    let seen = |key: &str, model: &str, watcher: &mut Reader| {
        let is_seen = AtomicBool::new(false);
        thread::scope(|scope| {
            let sent = scope.spawn(|| {
                loop {
                    let usage = complete(key, model);
                    if is_seen.load(Ordering::Relaxed) {
                        return usage;
                    }
                }
            });
            let first = view(watcher);
            is_seen.store(true, Ordering::Relaxed);
            (first, sent.join().unwrap())
        })
    };
    let [mut ops, mut acme, mut beta] = watchers;
    let (first, usage) = seen("acme-key", "sql", &mut acme);
    let row = &first["rows"][0];
    assert_eq!((&row["model"], &row["key"]), (&json!("sql"), &json!("acme")));
    assert_eq!((&row["max_tokens"], &row["prompt_tokens"]), (&json!(200), &usage["prompt_tokens"]));
    let [computed, written, prompt] = ["computed_tokens", "completion_tokens", "prompt_tokens"]
        .map(|field| row[field].as_u64().unwrap());
    assert!(row["state"] == "decode" && written >= 1, "{row}");
    // The last token drawn has not been computed yet.
    assert_eq!(computed, prompt + written - 1);
    let block_tokens = first["block_tokens"].as_u64().unwrap();
    assert_eq!(row["blocks"].as_u64().unwrap(), computed.div_ceil(block_tokens));
    assert!(view(&mut ops)["blocks_used"].as_u64().unwrap() >= 1);
    let until_empty = |watcher: &mut Reader| while view(watcher)["rows"] != json!([]) {};
    until_empty(&mut acme);
    until_empty(&mut ops);
    // The first that this key sees is its own.
    let (first, _) = seen("beta-key", "llama", &mut beta);
    assert_eq!(first["rows"][0]["key"], "beta");
    until_empty(&mut beta);
}
