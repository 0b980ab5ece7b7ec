//! The page at `/`: who gets it, what it is made of, and what a browser is told of it. What it does
//! is tried in a browser by `tests/page/run.mjs`.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::client::{Answer, get, send};
use crate::fake::{Fake, Script};
use crate::process::Server;
use crate::serve::{golden, text};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; \
    connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

fn browse(fake: &Fake, path: &str) -> Answer {
    let accept = "accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n";
    send(fake.address, "GET", path, accept, b"")
}

#[test]
fn a_browser_gets_the_page_and_a_program_where_everything_is() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.runtime_adapters = false);
    let page = browse(&fake, "/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(page.text().starts_with("<!doctype html>"));
    for accept in ["", "accept: */*\r\n", "accept: application/json\r\n"] {
        let told = send(fake.address, "GET", "/", accept, b"");
        assert_eq!((told.status, told.header("vary")), (200, Some("accept")), "{accept}");
        assert_eq!(told.json(), get(fake.address, "/v1").json());
    }
    let index = get(fake.address, "/v1/").json();
    assert_eq!((&index["page"], &index["runtime_adapters"]), (&json!("/"), &json!(false)));
    let document = get(fake.address, "/openapi.json").json();
    let routes: Vec<Value> =
        document["paths"].as_object().unwrap().keys().map(|path| path.as_str().into()).collect();
    assert_eq!(index["routes"], Value::from(routes));
    for link in ["docs", "openapi", "models", "adapters"] {
        assert_eq!(get(fake.address, index[link].as_str().unwrap()).status, 200, "{link}");
    }
    let other = Fake::say("x");
    assert_eq!(get(other.address, "/v1").json()["runtime_adapters"], true);
}

/// What follows each `before` in a text, up to the next `"`.
fn quoted<'a>(text: &'a str, before: &str) -> Vec<&'a str> {
    text.split(before).skip(1).map(|rest| rest.split('"').next().unwrap()).collect()
}

/// The page and all that it loads, by path.
fn files(fake: &Fake) -> Vec<(String, Answer)> {
    let mut all = vec![("/".to_owned(), browse(fake, "/"))];
    let mut known = BTreeSet::new();
    let mut next = 0;
    while let Some((_, answer)) = all.get(next) {
        let text = answer.text();
        let linked = quoted(text, "=\"page/").into_iter().chain(quoted(text, " from \"./"));
        let names: Vec<String> = linked.map(str::to_owned).collect();
        for name in names {
            if known.insert(name.clone()) {
                let path = format!("/page/{name}");
                let answer = get(fake.address, &path);
                assert_eq!(answer.status, 200, "{path}");
                all.push((path, answer));
            }
        }
        next += 1;
    }
    all
}

#[test]
fn the_page_is_whole_and_leaves_the_browser_nothing_to_guess() {
    let fake = Fake::say("x");
    let all = files(&fake);
    let code = std::fs::read_dir(crate::root().join("src/http/page")).unwrap();
    // The page itself goes by `/`, and `mod.rs` by nothing.
    assert_eq!(all.len(), code.count() - 1, "a file is not served, or nothing loads it");
    for (path, answer) in &all {
        let kind = match path.rsplit('.').next().unwrap() {
            "css" => "text/css; charset=utf-8",
            "js" => "text/javascript; charset=utf-8",
            "svg" => "image/svg+xml",
            _ => "text/html; charset=utf-8",
        };
        for (name, value) in [
            ("content-type", kind),
            ("content-security-policy", POLICY),
            ("x-content-type-options", "nosniff"),
            ("referrer-policy", "no-referrer"),
            ("cache-control", "no-cache"),
        ] {
            assert_eq!(answer.header(name), Some(value), "{path}");
        }
        let head = send(fake.address, "HEAD", path, "accept: text/html\r\n", b"");
        assert_eq!((head.status, head.header("content-type")), (200, Some(kind)), "{path}");
    }
}

#[test]
fn the_page_loads_nothing_from_elsewhere_keeps_nothing_and_makes_no_html_of_texts() {
    let fake = Fake::say("x");
    for (path, answer) in files(&fake) {
        let text = answer.text().replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for word in [
            "http:",
            "https:",
            "\"//",
            "url(",
            "@import",
            "<style",
            " style=",
            " onclick",
            "HTML(",
            "innerHTML",
            "outerHTML",
            "document.write",
            "DOMParser",
            "eval(",
            "Function(",
            "localStorage",
            "sessionStorage",
            "indexedDB",
            "cookie",
            "import(",
            "javascript:",
        ] {
            assert!(!text.contains(word), "{path} has {word}");
        }
        for script in text.split("<script").skip(1) {
            assert!(script.starts_with(" type=\"module\" src=\"page/"), "{path}: {script}");
        }
    }
}

#[test]
fn without_a_page_nothing_of_it_is_there() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.page = false);
    let told = browse(&fake, "/");
    assert_eq!((told.header("content-type"), told.status), (Some("application/json"), 200));
    assert_eq!(told.json()["page"], Value::Null);
    for path in ["/page/app.js", "/page/page.css"] {
        let answer = browse(&fake, path);
        assert_eq!((answer.status, answer.error().1.as_str()), (404, "route_not_found"), "{path}");
    }
    assert_eq!(browse(&fake, "/docs").status, 200);
    let server = Server::start(&[&text(&golden()), "--no-page"]);
    let index: Value = serde_json::from_str(&server.get("/").1).unwrap();
    assert_eq!(index["page"], Value::Null);
}
