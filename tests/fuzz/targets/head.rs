//! Bytes as they come over a connection. Whatever they are, each answer is whole and none of them
//! is the server's own fault, and the server goes on answering others.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use tessera::http::Listener;
use tokio::net::UnixListener;

use super::Target;
use crate::client::Answer;
use crate::fake::{EOS, Fake, Script, letters};

/// Silence after which a connection that stays open is left.
const SILENCE_MS: u64 = 100;
/// For a good request, on a busy machine.
const ANSWER_MS: u64 = 20_000;
/// Inputs between two good requests.
const ASKED_EVERY: u64 = 50;
/// How HTTP/2 begins, which is answered in frames.
const PREFACE: &[u8] = b"PRI * HTTP/2.0";
const HEALTH: &[u8] = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";

/// A server on a Unix socket, whose connections leave no port behind.
pub struct Server {
    pub fake: Fake,
    dir: tempfile::TempDir,
}

impl Server {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("socket");
        let mut tokens = letters("fox{\"a\":1}");
        tokens.push(EOS);
        let script = Script::Say(tokens, tessera::engine::FinishReason::Stop);
        let becomes = {
            let path = path.clone();
            move |_| Listener::unix(UnixListener::bind(&path).expect("a socket"), path)
        };
        let fake = Fake::listening(script, |_| {}, becomes);
        let server = Self { fake, dir };
        crate::fake::wait_for(|| server.path().exists(), || "a socket".to_owned());
        server
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("socket")
    }

    /// What comes back for these bytes, and whether the connection was closed then.
    pub fn exchange(&self, bytes: &[u8], wait_ms: u64) -> (Vec<u8>, bool) {
        // What the engine was asked is not looked at.
        self.fake.seen.lock().expect("no panic").clear();
        exchange(&self.path(), bytes, wait_ms)
    }
}

fn exchange(path: &Path, bytes: &[u8], wait_ms: u64) -> (Vec<u8>, bool) {
    let mut stream = UnixStream::connect(path).expect("a connection");
    let timeout = Some(Duration::from_millis(wait_ms));
    stream.set_read_timeout(timeout).expect("a timeout");
    stream.set_write_timeout(timeout).expect("a timeout");
    // It may be closed before all is sent.
    let _ = stream.write_all(bytes);
    let (mut came, mut chunk) = (Vec::new(), [0; 16 << 10]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) => return (came, true),
            Ok(count) => came.extend(&chunk[..count]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return (came, error.kind() == ErrorKind::ConnectionReset),
        }
    }
}

/// The answers in what came, those that are cut at the end left out.
///
/// # Errors
/// When something else than answers came.
pub fn answers(mut came: &[u8]) -> Result<Vec<Answer>, String> {
    let mut answers = Vec::new();
    let broken = |rest: &[u8]| {
        let start = rest.iter().take(60).copied().collect::<Vec<_>>();
        format!("no answer: {:?}", String::from_utf8_lossy(&start))
    };
    while !came.is_empty() {
        let Some(end) = came.windows(4).position(|four| four == b"\r\n\r\n") else {
            return if came.starts_with(b"HTTP/1.") { Ok(answers) } else { Err(broken(came)) };
        };
        let head = std::str::from_utf8(&came[..end]).map_err(|_| broken(came))?;
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.strip_prefix("HTTP/1."));
        let status = status.and_then(|line| line.get(2..5)?.parse::<u16>().ok());
        let status = status.ok_or_else(|| broken(came))?;
        let pair = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap_or((line, ""));
            (name.to_ascii_lowercase(), value.to_owned())
        };
        let headers: Vec<(String, String)> = lines.map(pair).collect();
        came = &came[end + 4..];
        let mut answer = Answer { status, headers, body: Vec::new() };
        match body(&answer, came) {
            None => return Ok(answers),
            Some((body, bytes)) => {
                answer.body = body;
                came = &came[bytes..];
            }
        }
        answers.push(answer);
    }
    Ok(answers)
}

/// The body of an answer, and the bytes that it took; `None` where it is cut.
fn body(answer: &Answer, rest: &[u8]) -> Option<(Vec<u8>, usize)> {
    let length = answer.header("content-length").and_then(|text| text.parse::<usize>().ok());
    if let Some(length) = length {
        // An answer to HEAD has a length and no body: what follows is another answer, or nothing.
        let has_none = rest.is_empty() || rest.starts_with(b"HTTP/1.");
        let length = if has_none { 0 } else { length };
        return Some((rest.get(..length)?.to_vec(), length));
    }
    if answer.header("transfer-encoding") != Some("chunked") {
        return Some((Vec::new(), 0));
    }
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line = rest[at..].windows(2).position(|two| two == b"\r\n")?;
        let size = std::str::from_utf8(&rest[at..at + line]).ok()?;
        let size = usize::from_str_radix(size, 16).ok()?;
        at += line + 2;
        body.extend(rest.get(at..at + size)?);
        at += size + 2;
        if size == 0 {
            return Some((body, at.min(rest.len())));
        }
    }
}

/// An answer that is nobody's fault but the sender's.
pub fn check(answer: &Answer) -> Result<(), String> {
    let Answer { status, body, .. } = answer;
    let shown = || String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
    if *status >= 500 && ![501, 505].contains(status) {
        return Err(format!("status {status}: {}", shown()));
    }
    let is_json = answer.header("content-type").is_some_and(|kind| kind.contains("json"));
    if is_json && !body.is_empty() && serde_json::from_slice::<serde_json::Value>(body).is_err() {
        return Err(format!("status {status}, and no JSON: {}", shown()));
    }
    Ok(())
}

/// The bytes.
pub const HEAD: Target = Target {
    name: "head",
    seeds: || {
        let body = r#"{"model":"sql","prompt":"x"}"#;
        [
            "GET /v1/models HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n\r\n".to_owned(),
            "HEAD /health HTTP/1.0\r\n\r\nGET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".into(),
            format!(
                "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: \
                 application/json\r\nContent-Length: {}\r\nExpect: 100-continue\r\n\r\n{body}",
                body.len()
            ),
            format!(
                "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: \
                 chunked\r\nContent-Encoding: identity\r\nConnection: keep-alive\r\n\r\n\
                 {:x}\r\n{body}\r\n0\r\nTrailer: x\r\n\r\nOPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
                body.len()
            ),
            "GET http://localhost/v1/adapters/sql?x=%41 HTTP/1.1\r\nHost: localhost\r\nOrigin: \
             http://localhost\r\nAuthorization: Bearer x\r\nX-Request-Id: 1\r\ntraceparent: \
             00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n"
                .into(),
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".into(),
        ]
        .map(String::into_bytes)
        .into()
    },
    words: &[
        "GET ",
        "POST ",
        "HEAD ",
        "OPTIONS ",
        "DELETE ",
        "PUT ",
        "CONNECT ",
        "TRACE ",
        "PRI * ",
        " HTTP/1.1\r\n",
        " HTTP/1.0\r\n",
        " HTTP/2.0\r\n",
        "\r\n",
        "\n",
        "\r",
        "\r\n\r\n",
        "Host: ",
        "Content-Length: ",
        "Transfer-Encoding: chunked\r\n",
        "Connection: close\r\n",
        "Connection: upgrade\r\nUpgrade: h2c\r\n",
        "Expect: 100-continue\r\n",
        "Origin: null\r\n",
        "Content-Encoding: gzip\r\n",
        "Content-Encoding: zstd, gzip\r\n",
        "Content-Type: text\r\n",
        "Accept: text/event-stream\r\n",
        "Authorization: Bearer ",
        "x-api-key: ",
        "Cookie: ",
        "traceparent: ",
        "If-None-Match: ",
        "Range: bytes=0-\r\n",
        "Access-Control-Request-Method: ",
        "/v1/models/",
        "/v1/adapters/",
        "/v1/batch",
        "/v1/usage",
        "/metrics",
        "/health",
        "/ping",
        "/docs",
        "/openapi.json",
        "/page/",
        "/load",
        "/tokenizer_info",
        "/v1",
        "/",
        "//",
        "/../",
        "%2e%2e",
        "%00",
        "%2F",
        "?",
        "#",
        "*",
        "@",
        "http://",
        "http://[::1]:8/",
        "0\r\n\r\n",
        "ffffffffffffffff\r\n",
        "5;x=y\r\n",
        "\0",
        "\u{80}",
    ],
    start: || {
        let server = Server::start();
        let mut count = 0;
        Box::new(move |parts| {
            count += 1;
            if count % ASKED_EVERY == 0 {
                let (came, _) = server.exchange(HEALTH, ANSWER_MS);
                if !came.starts_with(b"HTTP/1.1 200") {
                    return Err("a good request has no answer".to_owned());
                }
            }
            let bytes = parts.concat();
            let (came, is_closed) = server.exchange(&bytes, SILENCE_MS);
            if bytes.starts_with(PREFACE) && !came.starts_with(b"HTTP/1.") {
                return Ok(format!("frames, closed: {is_closed}"));
            }
            let answers = answers(&came)?;
            answers.iter().try_for_each(check)?;
            let spelled = |answer: &Answer| answer.status.to_string().chars().map(letter).collect();
            let spelled: Vec<String> = answers.iter().map(spelled).collect();
            Ok(format!("{spelled:?}, closed: {is_closed}").replace('"', ""))
        })
    },
    slice: 100,
    heap_bytes_max: 64 << 20,
};

/// A digit as a letter: kinds of answers are told apart without their numbers.
pub fn letter(c: char) -> char {
    c.to_digit(10).and_then(|digit| char::from_u32('a' as u32 + digit)).unwrap_or(c)
}
