//! Web pages of other origins: refused unless they are allowed, and then told so.

use serde_json::json;

use crate::client::{Answer, send};
use crate::fake::{Fake, Script};

const COMPLETIONS: &str = "/v1/completions";
const PAGE: &str = "https://app.example.org";

fn allowing(origins: &[&str]) -> Fake {
    let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
    Fake::new(Script::Echo(1), |app| app.http.origins_allowed = origins)
}

fn ask(fake: &Fake, method: &str, path: &str, extra: &str) -> Answer {
    let body = json!({"prompt": "x", "max_tokens": 1}).to_string();
    send(fake.address, method, path, extra, body.as_bytes())
}

fn preflight(fake: &Fake, origin: &str, path: &str) -> Answer {
    let extra = format!(
        "origin: {origin}\r\naccess-control-request-method: POST\r\n\
         access-control-request-headers: authorization, content-type\r\n"
    );
    send(fake.address, "OPTIONS", path, &extra, b"")
}

fn cors_headers(answer: &Answer) -> Vec<&str> {
    let names = answer.headers.iter().map(|(name, _)| name.as_str());
    names.filter(|name| name.starts_with("access-control") || *name == "vary").collect()
}

#[test]
fn without_the_setting_no_answer_speaks_of_origins() {
    let fake = allowing(&[]);
    for origin in ["http://localhost:3000", PAGE] {
        let extra = format!("origin: {origin}\r\n");
        let answer = ask(&fake, "POST", COMPLETIONS, &extra);
        assert!(cors_headers(&answer).is_empty(), "{:?}", answer.headers);
        assert_eq!(answer.status, if origin == PAGE { 403 } else { 200 });
        let answer = preflight(&fake, origin, COMPLETIONS);
        assert!(cors_headers(&answer).is_empty(), "{:?}", answer.headers);
    }
}

#[test]
fn an_allowed_page_reads_every_answer_and_another_none() {
    let fake = allowing(&["http://other.org", PAGE]);
    for path in [COMPLETIONS, "/v1/nothing", "/v1/embeddings", "/health"] {
        let answer = ask(&fake, "POST", path, &format!("origin: {PAGE}\r\n"));
        let header = |name: &str| answer.header(name).map(str::to_owned);
        assert_eq!(header("access-control-allow-origin").as_deref(), Some(PAGE), "{path}");
        assert_eq!(header("vary").as_deref(), Some("Origin"));
        assert!(header("access-control-expose-headers").unwrap().contains("x-request-id"));
        assert_eq!(header("access-control-allow-credentials"), None);
    }
    assert_eq!(ask(&fake, "POST", COMPLETIONS, &format!("origin: {PAGE}\r\n")).status, 200);
    // A cache must know that the answer depends on who asks, also if nobody says.
    assert_eq!(cors_headers(&ask(&fake, "POST", COMPLETIONS, "")), ["vary"]);
    let near = [
        "https://evil.org",
        "http://app.example.org",
        "https://app.example.org.evil.org",
        "https://app.example.org:444",
        "https://xapp.example.org",
        "null",
        "https://app.example",
    ];
    for origin in near {
        let answer = ask(&fake, "POST", COMPLETIONS, &format!("origin: {origin}\r\n"));
        assert_eq!((answer.status, cors_headers(&answer)), (403, vec!["vary"]), "{origin}");
        assert_eq!(cors_headers(&preflight(&fake, origin, COMPLETIONS)), ["vary"], "{origin}");
    }
    // The page of the server's own host is none of another origin.
    let own = ask(&fake, "POST", COMPLETIONS, "origin: http://localhost:8000\r\n");
    assert_eq!((own.status, cors_headers(&own)), (200, vec!["vary"]));
}

#[test]
fn a_preflight_names_the_routes_methods_and_the_headers_asked_for() {
    let fake = allowing(&[PAGE]);
    let answer = preflight(&fake, PAGE, COMPLETIONS);
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert_eq!(answer.header("access-control-allow-origin"), Some(PAGE));
    assert_eq!(answer.header("access-control-allow-methods"), Some("POST, OPTIONS"));
    let headers = answer.header("access-control-allow-headers");
    assert_eq!(headers, Some("authorization, content-type"));
    assert_eq!(answer.header("access-control-max-age"), Some("600"));
    let answer = preflight(&fake, PAGE, "/v1/models/");
    assert_eq!(answer.header("access-control-allow-methods"), Some("GET, HEAD, OPTIONS"));
    let plain = send(fake.address, "OPTIONS", COMPLETIONS, "", b"");
    assert_eq!((plain.status, cors_headers(&plain)), (204, vec!["vary"]));
    assert_eq!(preflight(&fake, PAGE, "/v1/nothing").status, 404);
}

#[test]
fn a_star_allows_any_page_but_no_other_name_of_the_server() {
    let fake = allowing(&["*"]);
    for origin in [PAGE, "null", "http://[::1]:3000"] {
        let answer = ask(&fake, "POST", COMPLETIONS, &format!("origin: {origin}\r\n"));
        assert_eq!(answer.header("access-control-allow-origin"), Some("*"), "{origin}");
        assert_eq!((answer.status, answer.header("vary")), (200, None));
        assert_eq!(preflight(&fake, origin, COMPLETIONS).status, 204);
    }
    let rebound = b"POST /v1/completions HTTP/1.1\r\nhost: evil.org\r\ncontent-length: 2\r\n\
        origin: http://evil.org\r\nconnection: close\r\n\r\n{}";
    assert_eq!(crate::client::raw(fake.address, rebound).status, 403);
}
