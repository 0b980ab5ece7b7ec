//! Keys: limits, usage, what tenants share, and keys that change while the server runs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tessera::http::Keys;
use tessera::ids::Digest;

use crate::client::{Answer, Reader, connect, get, message};
use crate::fake::{BASE, Fake, Script, letters, wait_for};
use crate::http_keys::{ask, file, guarded, keys};
use crate::process::{Server, tessera};
use crate::serve::{golden, text};

const COMPLETIONS: &str = "/v1/completions";
const OPS: &str = "ops-key";
const ACME: &str = "acme-key";
const BETA: &str = "beta-key";

fn complete(fake: &Fake, key: &str) -> Answer {
    let body = json!({"model": "sql", "prompt": "abc", "max_tokens": 2});
    ask(fake, key, "POST", COMPLETIONS, &body)
}

#[test]
fn requests_a_minute_are_counted_by_tenant_and_told() {
    let fake = guarded(Script::Echo(2), "requests_per_minute = 2");
    let first = complete(&fake, ACME);
    assert_eq!(first.status, 200);
    assert_eq!(first.header("x-ratelimit-limit-requests"), Some("2"));
    assert_eq!(first.header("x-ratelimit-remaining-requests"), Some("1"));
    assert!(["30s", "29s"].contains(&first.header("x-ratelimit-reset-requests").unwrap()));
    assert_eq!(first.header("x-ratelimit-limit-tokens"), None);
    // An answer with a fault is one too, and the tenant's other key is no further tenant.
    let wrong = ask(&fake, "acme-old", "POST", COMPLETIONS, &json!({"prompt": 5}));
    assert_eq!((wrong.status, wrong.header("x-ratelimit-remaining-requests")), (400, Some("0")));
    for _ in 0..3 {
        let limited = complete(&fake, ACME);
        assert_eq!((limited.status, limited.error().1.as_str()), (429, "rate_limit_exceeded"));
        assert_eq!(limited.json()["error"]["type"], "rate_limit_error");
        let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
        assert!((25..=30).contains(&wait), "{wait}");
        assert_eq!(limited.header("x-ratelimit-remaining-requests"), Some("0"));
    }
    // What takes no tokens is not limited, and others have limits of their own.
    assert_eq!(ask(&fake, ACME, "GET", "/v1/models", &Value::Null).status, 200);
    let other = complete(&fake, BETA);
    assert_eq!((other.status, other.header("x-ratelimit-limit-requests")), (200, None));
}

#[test]
fn tokens_a_minute_are_those_of_prompts_and_answers() {
    let fake = guarded(Script::Echo(2), "tokens_per_minute = 60");
    let first = complete(&fake, ACME);
    assert_eq!((first.status, first.header("x-ratelimit-limit-tokens")), (200, Some("60")));
    let taken = first.json()["usage"]["total_tokens"].as_u64().unwrap();
    assert_eq!(first.header("x-ratelimit-remaining-tokens"), Some(&*(60 - taken).to_string()));
    // A prompt beyond the limit is served once, and owed.
    let long = json!({"model": "sql", "prompt": "x".repeat(100), "max_tokens": 1});
    assert_eq!(ask(&fake, ACME, "POST", COMPLETIONS, &long).status, 200);
    let limited = complete(&fake, ACME);
    assert_eq!((limited.status, limited.error().1.as_str()), (429, "rate_limit_exceeded"));
    assert!(limited.message().contains("60 tokens a minute"), "{}", limited.message());
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    assert!((40..70).contains(&wait), "{wait}");
    assert!(limited.header("x-ratelimit-reset-tokens").unwrap().starts_with("1m"));
}

#[test]
fn a_tenant_has_so_many_requests_at_once() {
    let fake = guarded(Script::Hang(letters("x")), "concurrency = 2");
    let open = || {
        let body = json!({"model": "sql", "prompt": "a", "stream": true}).to_string();
        let header = format!("authorization: Bearer {ACME}\r\n");
        let bytes = message("POST", COMPLETIONS, &header, body.as_bytes());
        let mut reader = Reader::new(connect(fake.address, &bytes));
        assert_eq!(reader.status, 200);
        reader.frame();
        reader
    };
    let running = (open(), open());
    let limited = complete(&fake, ACME);
    assert_eq!((limited.status, limited.error().1.as_str()), (429, "concurrency_limit_exceeded"));
    assert_eq!(limited.header("retry-after"), Some("1"));
    // Only what computes is counted.
    assert_eq!(ask(&fake, ACME, "GET", "/v1/models", &Value::Null).status, 200);
    drop(running.0);
    wait_for(
        || {
            let body = json!({"model": "none", "prompt": "a"});
            ask(&fake, ACME, "POST", COMPLETIONS, &body).status == 404
        },
        || "a place".to_owned(),
    );
    drop(open());
}

#[test]
fn tenants_share_no_kv_whatever_their_salt_is() {
    let fake = guarded(Script::Echo(1), "");
    let salt = |key: &str, path: &str, body: &Value| -> Option<Digest> {
        let before = fake.seen.lock().unwrap().len();
        assert_eq!(ask(&fake, key, "POST", path, body).status, 200);
        fake.seen.lock().unwrap()[before].0.terms().cache_salt
    };
    let plain = json!({"model": "sql", "prompt": "a", "max_tokens": 1});
    let salted = json!({"model": "sql", "prompt": "a", "max_tokens": 1, "cache_salt": "beta"});
    let chat = json!({"model": "sql", "messages": [{"role": "user", "content": "a"}]});
    let embedding = json!({"model": "sql", "input": "a"});
    let pair = json!([{"prompt": "a", "continuation": "b"}]);
    let pair = json!({"model": "sql", "requests": pair});
    for key in [ACME, BETA, OPS] {
        let own = salt(key, COMPLETIONS, &plain);
        assert!(own.is_some());
        let ways = [("/v1/chat/completions", &chat), ("/v1/embeddings", &embedding)];
        for (path, body) in ways.into_iter().chain([("/v1/loglikelihood", &pair)]) {
            assert_eq!(salt(key, path, body), own, "{path}");
        }
    }
    // Two keys of a tenant are one tenant.
    assert_eq!(salt("acme-old", COMPLETIONS, &plain), salt(ACME, COMPLETIONS, &plain));
    let mut all = Vec::new();
    for key in [ACME, BETA, OPS] {
        all.extend([salt(key, COMPLETIONS, &plain), salt(key, COMPLETIONS, &salted)]);
    }
    let open = Fake::new(Script::Echo(1), |_| {});
    assert_eq!(ask(&open, "", "POST", COMPLETIONS, &salted).status, 200);
    all.push(open.seen.lock().unwrap()[0].0.terms().cache_salt);
    for (i, one) in all.iter().enumerate() {
        assert!(!all[..i].contains(one), "{i}");
    }
}

/// Requests, prompt tokens, cached and drawn ones of each row.
fn usage(fake: &Fake, key: &str) -> Vec<(Value, Value, [u64; 4])> {
    let list = ask(fake, key, "GET", "/v1/usage", &Value::Null).json();
    assert_eq!(list["object"], "list");
    let row = |row: &Value| {
        let today = row["day"].as_str().unwrap();
        assert!(today.len() == 10 && today.starts_with("20"), "{today}");
        let fields = ["requests", "prompt_tokens", "cached_tokens", "completion_tokens"];
        let counts = fields.map(|field| row[field].as_u64().unwrap());
        (row["key"].clone(), row["adapter"].clone(), counts)
    };
    list["data"].as_array().unwrap().iter().map(row).collect()
}

#[test]
fn usage_is_what_answers_say_and_shown_to_whom_it_is() {
    let fake = guarded(Script::Echo(2), "");
    let mut expected = [0; 4];
    let bodies = [
        json!({"model": "sql", "prompt": "abc", "max_tokens": 2}),
        json!({"model": "sql", "prompt": ["abc", "defg"], "n": 3, "max_tokens": 2}),
    ];
    for body in &bodies {
        let told = ask(&fake, ACME, "POST", COMPLETIONS, body).json()["usage"].clone();
        let cached = &told["prompt_tokens_details"]["cached_tokens"];
        let counts = [&json!(1), &told["prompt_tokens"], cached, &told["completion_tokens"]];
        counts.iter().enumerate().for_each(|(i, n)| expected[i] += n.as_u64().unwrap());
    }
    assert!(expected.iter().all(|&n| n > 1), "{expected:?}");
    let stream = json!({"prompt": "abc", "stream": true, "max_tokens": 2});
    assert_eq!(ask(&fake, BETA, "POST", COMPLETIONS, &stream).status, 200);
    let embedding = json!({"model": "org/chat", "input": ["a", "b"]});
    let told = ask(&fake, BETA, "POST", "/v1/embeddings", &embedding).json()["usage"].clone();
    // What is refused, and what computes nothing, is no row.
    let nothing = json!({"model": "org/chat", "prompt": "abc"});
    assert_eq!(ask(&fake, OPS, "POST", "/tokenize", &nothing).status, 200);
    assert_eq!(ask(&fake, OPS, "POST", COMPLETIONS, &json!({"prompt": ""})).status, 400);
    let acme = (json!("acme"), json!("sql"), expected);
    let prompt = told["prompt_tokens"].as_u64().unwrap();
    let chat = (json!("beta"), json!("org/chat"), [1, prompt, 4, 0]);
    assert_eq!(usage(&fake, ACME), std::slice::from_ref(&acme));
    let beta = usage(&fake, BETA);
    assert_eq!((beta.len(), &beta[0].1, beta[0].2[3]), (2, &json!(BASE), 2));
    assert_eq!(beta[1], chat);
    assert_eq!(usage(&fake, OPS), [vec![acme], beta].concat());
    let page = get(fake.address, "/metrics");
    let names = ["requests", "prompt_tokens", "cached_tokens", "generation_tokens"];
    for (name, n) in names.into_iter().zip(expected) {
        let start = format!("tessera:tenant_{name}_total{{");
        let line = page.text().lines().find(|line| line.starts_with(&start));
        let of = |line: &&str| line.contains("tenant=\"acme\"") && line.contains("adapter=\"sql\"");
        let lines = page.text().lines().filter(|line| line.starts_with(&start));
        let found: Vec<&str> = lines.filter(of).collect();
        assert!(found.len() == 1 && found[0].ends_with(&format!(" {n}")), "{line:?}");
    }
    assert!(!page.text().contains("-key"), "a key is on the page");
    // Without keys there is one tenant without a name.
    let open = Fake::new(Script::Echo(2), |_| {});
    complete(&open, "");
    let rows = usage(&open, "");
    assert_eq!((rows.len(), &rows[0].0, &rows[0].1), (1, &Value::Null, &json!("sql")));
    assert!(!get(open.address, "/metrics").text().contains("tenant"));
}

#[test]
fn names_can_be_hidden_in_the_metrics() {
    let keys = keys(&file(""));
    let fake = Fake::new(Script::Echo(2), |app| {
        app.http.keys = Some(keys);
        app.http.metrics_hide_names = true;
    });
    assert_eq!(complete(&fake, ACME).status, 200);
    assert_eq!(complete(&fake, BETA).status, 200);
    let page = get(fake.address, "/metrics");
    for name in ["sql", "acme", "beta"] {
        assert!(!page.text().contains(name), "{name}");
    }
    for label in ["tenant=\"tenant_1\"", "tenant=\"tenant_2\"", "adapter=\"adapter_1\""] {
        assert!(page.text().contains(label), "{label}");
    }
}

/// As an operator does it: never half a file.
fn put(path: &Path, text: &str) {
    let new = path.with_extension("new");
    fs::write(&new, text).unwrap();
    fs::rename(&new, path).unwrap();
}

#[test]
fn new_keys_are_used_soon_and_broken_ones_never() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    put(&path, &file("requests_per_minute = 2"));
    let keys = Arc::new(Keys::open(Vec::new(), Some(path.clone())).unwrap());
    let fake = Fake::new(Script::Echo(1), |app| app.http.keys = Some(keys));
    let models = |key: &str| ask(&fake, key, "GET", "/v1/models", &Value::Null).status;
    assert_eq!([complete(&fake, ACME).status, complete(&fake, ACME).status], [200, 200]);
    for broken in ["", "[[keys]]\nname = 'ops'", "keys = [", "port = 1\n"] {
        put(&path, broken);
        std::thread::sleep(Duration::from_millis(1300));
        assert_eq!([OPS, ACME, "new-key", ""].map(models), [200, 200, 401, 401], "{broken}");
    }
    fs::remove_file(&path).unwrap();
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!([OPS, ""].map(models), [200, 401]);
    let more = "requests_per_minute = 2\n[[keys]]\nname = 'new'\nkey = 'new-key'\n";
    put(&path, &file(more).replace("'ops-key'", "'ops-2'"));
    wait_for(|| models("new-key") == 200, || "the new key".to_owned());
    assert_eq!([OPS, "ops-2", ACME].map(models), [401, 200, 200]);
    // What was taken stays taken.
    assert_eq!(complete(&fake, ACME).status, 429);
}

#[test]
fn a_server_is_started_with_keys_and_tells_them_to_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let (path, log) = (dir.path().join("keys.toml"), dir.path().join("log"));
    put(&path, &file("concurrency = 3"));
    let (model, keys) = (text(&golden()), text(&path));
    let args = ["serve", "--port", "0", &model, "--api-key", "own-secret", "--keys", &keys];
    let mut command = tessera(&args);
    command.env("RUST_LOG", "trace").env("TESSERA_METRICS_KEY", "metrics-secret");
    command.stderr(Stdio::from(fs::File::create(&log).unwrap()));
    let server = Server::start_command(command);
    let told = server.report.join("\n");
    for line in [
        "key default: adapters *, the base, may administer",
        "key acme: adapters s?l none/*, not the base, 3 requests at once",
    ] {
        assert!(told.contains(line), "{told}");
    }
    let models = |key: &str| {
        let header = format!("authorization: Bearer {key}\r\nconnection: close\r\n");
        let head = message("GET", "/v1/models", &header, b"");
        Reader::new(connect(server.address.parse().unwrap(), &head)).whole().status
    };
    let asked = ["own-secret", OPS, "wrong-secret", "metrics-secret"].map(models);
    assert_eq!(asked, [200, 200, 401, 401]);
    // A file that is as it was is read again when that is asked for.
    let read = |what: &str| fs::read_to_string(&log).unwrap().matches(what).count();
    assert_eq!(read("the keys have been read again"), 0);
    server.signal("-HUP");
    wait_for(|| read("the keys have been read again") == 1, || "SIGHUP".to_owned());
    put(&path, "[[keys]]\nname = 'x'\nkey = 'broken-secret '\n");
    server.signal("-HUP");
    wait_for(|| read("the keys in use stay") > 0, || "a warning".to_owned());
    assert_eq!(models(OPS), 200);
    let log = fs::read_to_string(&log).unwrap();
    for secret in ["secret", "ops-key", "acme-key", "acme-old"] {
        assert!(!log.contains(secret) && !told.contains(secret), "{secret} is in the log");
    }
}

/// What a start says that fails.
fn failed(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_is_wrong_with_keys_is_said_before_a_model_is_loaded_and_without_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys.toml");
    put(&path, "[[keys]]\nname = 'default'\nkey = 'file-secret'\n");
    let double = dir.path().join("double.toml");
    let entry = |name: &str| format!("[[keys]]\nname = '{name}'\nkey = 'the-secret'\n");
    put(&double, &(entry("a") + &entry("b")));
    let (path, double) = (text(&path), text(&double));
    let cases: [(&[&str], &str); 8] = [
        (&["--require-auth"], "there is no key"),
        (&["--require-auth", "--host", "0.0.0.0"], "there is no key"),
        (&["--api-key", ""], "--api-key: a key must be 1 to 1024"),
        (&["--api-key", "two secrets"], "--api-key: a key must be 1 to 1024"),
        (&["--metrics-key", "sha256:secret"], "--metrics-key: a key after sha256:"),
        (&["--keys", "/none"], "the keys of /none: "),
        (&["--keys", &double], "'a' and 'b' have the same key"),
        (&["--keys", &path, "--api-key", "a-secret"], "that of --api-key has this one"),
    ];
    for (args, hint) in cases {
        let args = [&["serve", "/nowhere", "--port", "0"], args].concat();
        let (code, error) = failed(&mut tessera(&args));
        assert!(code == Some(5) && error.contains(hint), "{hint}: {error}");
        assert!(!error.replace("sha256:", "").contains("secret"), "{error}");
    }
    // An empty variable is a mistake, and no open server.
    let mut command = tessera(&["serve", "/nowhere", "--port", "0"]);
    let (code, error) = failed(command.env("TESSERA_API_KEY", ""));
    assert!(code == Some(5) && error.contains("--api-key"), "{error}");
    let config = dir.path().join("config.toml");
    put(&config, "api-key = ['file-secret']\nmetrics-key = 'file-secret'\n");
    for args in [&["serve", "--help"][..], &["serve", "--config", &text(&config), "--prot", "1"]] {
        let mut command = tessera(args);
        let command = command.env("TESSERA_API_KEY", "my-secret");
        let output = command.env("TESSERA_METRICS_KEY", "my-secret").output().unwrap();
        let all = [output.stdout, output.stderr].concat();
        let all = String::from_utf8_lossy(&all);
        assert!(!all.contains("-secret"), "{all}");
        assert!(args[1] != "--help" || all.contains("--require-auth"), "{all}");
    }
}

#[test]
fn a_public_server_without_a_key_says_so_loudly() {
    let warned = |args: &[&str]| {
        let server = Server::start(&[&[&*text(&golden())], args].concat());
        server.report.iter().any(|line| line.contains("OPEN TO THE NETWORK WITHOUT A KEY"))
    };
    assert!(warned(&["--host", "0.0.0.0"]));
    assert!(!warned(&["--host", "0.0.0.0", "--api-key", "a", "--require-auth"]));
    assert!(!warned(&[]));
}
