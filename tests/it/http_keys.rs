//! Keys: who may ask for what, however the question is spelled.

use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use ring::digest::{SHA256, digest};
use serde_json::{Value, json};
use tessera::http::{KeyHash, Keys};

use crate::client::{Answer, raw, send};
use crate::fake::{BASE, Fake, Script};

const COMPLETIONS: &str = "/v1/completions";

/// Of the tenant `ops`, which may administer, and `acme`, which may use `sql` alone.
const OPS: &str = "ops-key";
const ACME: &str = "acme-key";
const BETA: &str = "beta-key";

pub fn sha256(key: &str) -> String {
    let hash = digest(&SHA256, key.as_bytes());
    hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file of keys; `acme` has `more` lines.
pub fn file(more: &str) -> String {
    let beta = sha256(BETA);
    format!(
        "[[keys]]\nname = 'ops'\nkey = '{OPS}'\nadmin = true\n\
         [[keys]]\nname = 'acme'\nkey = ['{ACME}', 'acme-old']\nadapters = ['s?l', 'none/*']\n\
         base = false\n{more}\n[[keys]]\nname = 'beta'\nkey = 'sha256:{beta}'\n"
    )
}

pub fn keys(text: &str) -> Arc<Keys> {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), text).unwrap();
    Arc::new(Keys::open(Vec::new(), Some(file.path().to_owned())).unwrap())
}

pub fn guarded(script: Script, more: &str) -> Fake {
    let keys = keys(&file(more));
    Fake::new(script, |app| app.http.keys = Some(keys))
}

/// A request with a key, or without one for an empty one.
pub fn ask(fake: &Fake, key: &str, method: &str, path: &str, body: &Value) -> Answer {
    let header = format!("authorization: Bearer {key}\r\n");
    let header = if key.is_empty() { "" } else { &header };
    let body = if body.is_null() { String::new() } else { body.to_string() };
    send(fake.address, method, path, header, body.as_bytes())
}

/// Route, method and who may ask: a line of the page for each method.
fn page() -> Vec<(String, String, String)> {
    let text = fs::read_to_string(crate::root().join("docs/api.md")).unwrap();
    let table = text.split("| route | methods | who |").nth(1).unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| -> Vec<String> {
        row.split('|').skip(1).take(3).map(|cell| cell.trim().to_owned()).collect()
    };
    let methods = |row: Vec<String>| {
        let (route, who) = (row[0].trim_matches('`').to_owned(), row[2].clone());
        let all = row[1].split(", ").map(str::to_owned).collect::<Vec<_>>();
        all.into_iter().map(move |method| (route.clone(), method, who.clone()))
    };
    rows.map(cells).flat_map(methods).collect()
}

/// Every route of the code with each of its methods, as the page spells them.
fn routes() -> BTreeSet<(String, String)> {
    let code = fs::read_to_string(crate::root().join("src/http/table.rs")).unwrap();
    let constant = |name: &str| {
        let line = code.split(&format!("const {name}: &str = \"")).nth(1).unwrap();
        line.split('"').next().unwrap().to_owned()
    };
    let table = code.split("const ROUTES: ").nth(1).unwrap().split("];").next().unwrap();
    let mut all = BTreeSet::new();
    for row in table.split("(\"").skip(1) {
        let (path, rest) = row.split_once("\",").unwrap();
        let methods = constant(rest.split(',').next().unwrap().trim());
        let is_of_names = path.len() > 1 && path.ends_with('/');
        let path = if is_of_names { format!("{path}{{name}}") } else { path.to_owned() };
        let methods = methods.split(", ").filter(|method| *method != "OPTIONS");
        all.extend(methods.map(|method| (path.clone(), method.to_owned())));
    }
    all
}

#[test]
fn every_route_of_the_code_stands_on_the_page_and_is_as_open_as_it_says() {
    let page = page();
    let told: BTreeSet<_> = page.iter().map(|(r, m, _)| (r.clone(), m.clone())).collect();
    assert_eq!(told, routes());
    assert!(told.len() > 30 && told.len() == page.len(), "a row stands there twice");
    let fake = guarded(Script::Echo(1), "");
    for (route, method, who) in &page {
        let path = route.replace("{name}", "nothing");
        let refused = |key: &str| {
            let body = if method == "POST" { json!({}) } else { Value::Null };
            match ask(&fake, key, method, &path, &body).status {
                status @ (401 | 403) => Some(status),
                _ => None,
            }
        };
        let expected = match who.as_str() {
            "open" | "open, or `--metrics-key`" => [None, None, None],
            "any key" => [Some(401), None, None],
            "admin" => [Some(401), Some(403), None],
            other => panic!("{other}"),
        };
        assert_eq!(["", ACME, OPS].map(refused), expected, "{method} {route}: {who}");
    }
    // Without keys all are open, and whatever is sent as one is not looked at.
    let open = Fake::new(Script::Echo(1), |_| {});
    for (route, method, _) in &page {
        let path = route.replace("{name}", "nothing");
        for key in ["", "fake-api-key"] {
            let status = ask(&open, key, method, &path, &json!({})).status;
            assert!(![401, 403].contains(&status), "{method} {route}: {status}");
        }
    }
}

#[test]
fn a_key_is_taken_however_clients_send_it_and_nothing_else_is() {
    let fake = guarded(Script::Echo(1), "");
    let ask = |headers: &str| {
        let head = "GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        raw(fake.address, format!("{head}{headers}\r\n").as_bytes())
    };
    for headers in [
        "authorization: Bearer ops-key\r\n",
        "AUTHORIZATION: bEARER ops-key\r\n",
        "authorization:Bearer   ops-key  \r\n",
        "authorization: Bearer acme-old\r\n",
        "x-api-key: beta-key\r\n",
        "X-Api-Key:  ops-key \r\n",
        "authorization: Bearer ops-key\r\nx-api-key: ops-key\r\n",
        // An empty one is none.
        "authorization: Bearer\r\nx-api-key: ops-key\r\n",
        "authorization: Bearer ops-key\r\nx-api-key: \r\n",
    ] {
        assert_eq!(ask(headers).status, 200, "{headers}");
    }
    let hash = format!("authorization: Bearer sha256:{}\r\n", sha256(BETA));
    let bare_hash = format!("x-api-key: {}\r\n", sha256(BETA));
    let long = format!("authorization: Bearer {}\r\n", "k".repeat(40_000));
    for headers in [
        "",
        "authorization: \r\n",
        "authorization: Bearer\r\n",
        "authorization: Bearer \r\n",
        "authorization: ops-key\r\n",
        "authorization: Bearerops-key\r\n",
        "authorization: Basic ops-key\r\n",
        "authorization: Bearer: ops-key\r\n",
        "authorization: Bearer ops-ke\r\n",
        "authorization: Bearer ops-key2\r\n",
        "authorization: Bearer OPS-KEY\r\n",
        "authorization: Bearer \"ops-key\"\r\n",
        "authorization: Bearer ops-key ops-key\r\n",
        "authorization: Bearer ops-key, Bearer ops-key\r\n",
        "authorization: Bearer Bearer ops-key\r\n",
        "authorization: Bearer ops%2Dkey\r\n",
        "authorization: Bearer clé\r\n",
        "x-api-key: \r\n",
        "x-api-key: Bearer ops-key\r\n",
        "api-key: ops-key\r\n",
        "cookie: authorization=ops-key\r\n",
        "proxy-authorization: Bearer ops-key\r\n",
        "authorization: Bearer ops-key\r\nauthorization: Bearer ops-key\r\n",
        "authorization: Bearer ops-key\r\nauthorization: Bearer wrong\r\n",
        "authorization: Bearer wrong\r\nauthorization: Bearer ops-key\r\n",
        "x-api-key: ops-key\r\nx-api-key: ops-key\r\n",
        "authorization: Bearer ops-key\r\nx-api-key: acme-key\r\n",
        "authorization: Basic ops-key\r\nx-api-key: ops-key\r\n",
        &hash,
        &bare_hash,
        &long,
    ] {
        let answer = ask(headers);
        let shown = &headers[..headers.len().min(80)];
        assert_eq!((answer.status, answer.error()), (401, (None, "invalid_api_key".into())));
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{shown}");
        assert_eq!(answer.json()["error"]["type"], "authentication_error");
        assert!(!answer.text().contains("ops-key"), "{}", answer.text());
    }
}

#[test]
fn no_spelling_of_a_path_leads_past_its_key() {
    let fake = guarded(Script::Echo(1), "");
    let status = |method: &str, path: &str| send(fake.address, method, path, "", b"{}").status;
    for path in [
        "/v1/models",
        "/v1/models/",
        "/v1/models///",
        "/models",
        "/models/",
        "/models/sql",
        "/v1/models?api_key=ops-key",
        "/v1/models/sql",
        "/v1/models/s%71l",
        "/v1/models/../../health",
        "/v1/adapters/..%2f..%2fhealth",
        "/v1/models/%2e%2e/health",
        "/v1/adapters/validate",
        "http://localhost/v1/models",
        "/tokenizer_info/",
        "/load",
        "/v1/batch",
        "/v1/batch/",
    ] {
        assert_eq!(status("GET", path), 401, "{path}");
        assert_eq!(status("HEAD", path), 401, "{path}");
    }
    for path in [
        "/v1/%6Dodels",
        "//v1/models",
        "/v1//models",
        "/V1/models",
        "/v1/models;x",
        "/v1/models%2f",
        "/v1/./models",
        "/health/../v1/models",
        "/health/v1/models",
        "/healthx",
        "/metrics/v1/models",
        "/page/../v1/models",
        "/page/v1/models",
    ] {
        assert_eq!(status("GET", path), 404, "{path}");
    }
    // Where everything is, and nothing of what it is.
    for path in ["/v1", "/"] {
        let index = send(fake.address, "GET", path, "", b"");
        assert!(index.status == 200 && !index.text().contains("sql"), "{}", index.text());
    }
    for path in ["/completions", "/v1/completions/", "/v1/adapters/validate/", "/tokenize/"] {
        assert_eq!(status("POST", path), 401, "{path}");
    }
    for path in ["/v1/models/sql", "/v1/adapters/sql/", "/models/sql"] {
        assert_eq!(status("DELETE", path), 401, "{path}");
        assert_eq!(ask(&fake, BETA, "DELETE", path, &Value::Null).status, 403, "{path}");
    }
    // Methods that there are not, and the one that tells which there are.
    for method in ["get", "PUT", "TRACE", "PATCH"] {
        assert_eq!(status(method, "/v1/models"), 405, "{method}");
    }
    for path in ["/v1/models", "/v1/models/sql", "/v1/load_lora_adapter", "/v1/usage"] {
        let answer = send(fake.address, "OPTIONS", path, "", b"");
        assert_eq!((answer.status, answer.body.len()), (204, 0), "{path}");
    }
    assert_eq!(fake.catalog.names().len(), 2);
}

#[test]
fn a_key_is_asked_for_before_a_body_is_read_and_before_anything_is_told() {
    let fake = guarded(Script::Echo(1), "");
    let head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n";
    assert_eq!(raw(fake.address, head.as_bytes()).status, 401);
    let expecting = head.replace("\r\n\r\n", "\r\nexpect: 100-continue\r\n\r\n");
    assert_eq!(raw(fake.address, expecting.as_bytes()).status, 401);
    // Whether adapters can be loaded is told to those who may.
    let keys = keys(&file(""));
    let fixed = Fake::new(Script::Echo(1), |app| {
        app.http.keys = Some(keys);
        app.http.runtime_adapters = false;
    });
    let load = |key: &str| ask(&fixed, key, "POST", "/v1/load_lora_adapter", &json!({})).status;
    assert_eq!(["", ACME, OPS].map(load), [401, 403, 404]);
}

#[test]
fn what_a_key_may_not_use_looks_like_what_is_not_there() {
    let fake = guarded(Script::Echo(1), "");
    let ids = |key: &str, path: &str| -> Vec<String> {
        let list = ask(&fake, key, "GET", path, &Value::Null).json();
        let data = list["data"].as_array().unwrap();
        data.iter().map(|card| card["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(ACME, "/v1/models"), ["sql"]);
    assert_eq!(ids(ACME, "/v1/adapters"), ["sql"]);
    assert_eq!(ids(OPS, "/v1/models"), [BASE, "sql", "org/chat"]);
    assert_eq!(ids(BETA, "/v1/adapters"), ["sql", "org/chat"]);
    // As unlike in length as the names, and alike in all else.
    let told = |method: &str, path: &str, body: Value, name: &str| {
        let path = path.replace("NAME", &name.replace('/', "%2F"));
        let body = serde_json::from_str(&body.to_string().replace("NAME", name)).unwrap();
        let answer = ask(&fake, ACME, method, &path, &body);
        let names: Vec<String> = answer.headers.iter().map(|(name, _)| name.clone()).collect();
        (answer.status, names, answer.text().replace(name, "NAME"))
    };
    let pair = json!([{"prompt": "a", "continuation": "b"}]);
    let chat = json!([{"role": "user", "content": "x"}]);
    let ways = [
        ("GET", "/v1/models/NAME", Value::Null),
        ("GET", "/v1/adapters/NAME", Value::Null),
        ("GET", "/tokenizer_info?model=NAME", Value::Null),
        ("POST", COMPLETIONS, json!({"model": "NAME", "prompt": "x"})),
        ("POST", "/v1/chat/completions", json!({"model": "NAME", "messages": chat})),
        ("POST", "/v1/embeddings", json!({"model": "NAME", "input": "x"})),
        ("POST", "/v1/loglikelihood", json!({"model": "NAME", "requests": pair})),
        ("POST", "/tokenize", json!({"model": "NAME", "prompt": "x"})),
        ("POST", "/detokenize", json!({"model": "NAME", "tokens": [9]})),
    ];
    for (method, path, body) in ways {
        let there = told(method, path, body.clone(), "org/chat");
        assert_eq!(there.0, 404, "{method} {path}: {}", there.2);
        assert_eq!(there, told(method, path, body.clone(), "org/none"), "{method} {path}");
        for name in [BASE, "org/base:org/chat"] {
            let there = told(method, path, body.clone(), name);
            assert_eq!(there, told(method, path, body.clone(), "org/none"), "{method} {path}");
        }
        assert_eq!(told(method, path, body, "sql").0, 200, "{method} {path}");
    }
    // No name is the base.
    for body in [json!({"prompt": "x"}), json!({"prompt": "x", "model": ""})] {
        let answer = ask(&fake, ACME, "POST", COMPLETIONS, &body);
        assert_eq!((answer.status, answer.error().1.as_str()), (404, "model_not_found"));
        assert_eq!(ask(&fake, BETA, "POST", COMPLETIONS, &body).status, 200);
    }
    let body = json!({"prompt": "x", "model": "org/base:sql"});
    assert_eq!(ask(&fake, ACME, "POST", COMPLETIONS, &body).status, 200);
}

#[test]
fn a_merged_adapter_is_for_those_who_may_use_it() {
    let keys = keys(&file(""));
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.keys = Some(keys);
        app.model.merged = Some("org/chat".to_owned());
    });
    for body in [json!({"prompt": "x"}), json!({"prompt": "x", "model": "org/chat"})] {
        assert_eq!(ask(&fake, ACME, "POST", COMPLETIONS, &body).status, 404);
        assert_eq!(ask(&fake, BETA, "POST", COMPLETIONS, &body).status, 200);
    }
    for path in ["/v1/models", "/v1/adapters"] {
        let list = ask(&fake, ACME, "GET", path, &Value::Null);
        assert_eq!(list.json()["data"], json!([]), "{path}");
    }
    let other = json!({"prompt": "x", "model": "sql"});
    let answer = ask(&fake, ACME, "POST", COMPLETIONS, &other);
    assert!(!answer.text().contains("org/chat"), "{}", answer.text());
}

#[test]
fn metrics_are_open_or_have_a_key_of_their_own() {
    let keys = keys(&file(""));
    let of_metrics = KeyHash::read("metrics-key").unwrap();
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.keys = Some(keys);
        app.http.metrics_key = Some(of_metrics);
    });
    let status = |key: &str| ask(&fake, key, "GET", "/metrics/", &Value::Null).status;
    let asked = ["", "wrong", ACME, OPS, "metrics-key"].map(status);
    assert_eq!(asked, [401, 401, 403, 200, 200]);
    // It is a key for nothing else.
    assert_eq!(ask(&fake, "metrics-key", "GET", "/v1/models", &Value::Null).status, 401);
    let of_metrics = KeyHash::read("metrics-key").unwrap();
    let open = Fake::new(Script::Echo(1), |app| app.http.metrics_key = Some(of_metrics));
    let status = |key: &str| ask(&open, key, "GET", "/metrics", &Value::Null).status;
    assert_eq!(["", "wrong", "metrics-key"].map(status), [401, 401, 200]);
}
