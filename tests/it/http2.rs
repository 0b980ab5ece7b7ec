//! HTTP/2, frame by frame: what it serves, and what it does not put up with.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::connect;
use crate::fake::{Fake, Script, letters};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status 200` and `:status 400` of the static table.
const OK: u8 = 0x88;
const BAD: u8 = 0x8c;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Headers as literals that nobody remembers.
fn block(method: &str, path: &str, authority: &str) -> Vec<u8> {
    let all = [
        (":method", method),
        (":path", path),
        (":scheme", "http"),
        (":authority", authority),
        ("content-type", "application/json"),
    ];
    let literal = |(name, value): (&str, &str)| {
        let mut bytes = vec![0, name.len() as u8];
        bytes.extend(name.bytes());
        bytes.push(value.len() as u8);
        bytes.extend(value.bytes());
        bytes
    };
    all.into_iter().flat_map(literal).collect()
}

fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &block("GET", path, "localhost"))
}

fn post(stream: u32, path: &str, body: &Value) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &block("POST", path, "localhost"));
    [head, frame(DATA, END_STREAM, stream, body.to_string().as_bytes())].concat()
}

/// A client that has said hello, with these settings.
struct Peer(TcpStream);

impl Peer {
    fn new(fake: &Fake, settings: &[u8]) -> Self {
        let hello = [PREFACE, &frame(SETTINGS, 0, 0, settings)].concat();
        Self(connect(fake.address, &hello))
    }

    fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    /// Kind, flags, stream and payload of the next frame; `None` when the connection is closed.
    fn next(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).ok()?;
        let bytes = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; bytes as usize];
        self.0.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
        Some((head[3], head[4], stream, payload))
    }

    /// The first byte of a stream's headers, which is the status, and all of its data.
    fn answer(&mut self, stream: u32) -> (u8, String) {
        let (mut status, mut body) = (0, Vec::new());
        loop {
            let (kind, flags, of, payload) = self.next().expect("an open connection");
            match kind {
                HEADERS if of == stream => status = payload[0],
                DATA if of == stream => body.extend(payload),
                RST_STREAM if of == stream => panic!("reset: {payload:?}"),
                _ => continue,
            }
            if flags & END_STREAM != 0 {
                return (status, String::from_utf8(body).unwrap());
            }
        }
    }

    /// The code of a stream's reset.
    fn reset(&mut self, stream: u32) -> u8 {
        loop {
            let (kind, _, of, payload) = self.next().expect("an open connection");
            if (kind, of) == (RST_STREAM, stream) {
                return payload[3];
            }
        }
    }

    /// Waits for the connection's end; whether it was told why.
    fn end(mut self) -> bool {
        let mut is_told = false;
        while let Some((kind, ..)) = self.next() {
            is_told |= kind == GOAWAY;
        }
        is_told
    }
}

#[test]
fn requests_share_a_connection() {
    let fake = Fake::say("Hi");
    let mut peer = Peer::new(&fake, &[]);
    peer.send(&get(1, "/live"));
    assert_eq!(peer.answer(1), (OK, String::new()));
    let body = json!({"prompt": "x"});
    peer.send(&[post(3, "/v1/completions", &body), post(5, "/tokenize", &body)].concat());
    let answer: Value = serde_json::from_str(&peer.answer(3).1).unwrap();
    assert_eq!(answer["choices"][0]["text"], "Hi");
    peer.send(&post(7, "/v1/completions", &json!({"prompt": "x", "stream": true})));
    let (status, events) = peer.answer(7);
    assert_eq!((status, events.matches("data: ").count()), (OK, 4), "{events}");
    assert!(events.ends_with("data: [DONE]\n\n"), "{events}");
    peer.send(&post(9, "/v1/completions", &json!({"prompt": 5})));
    let (status, error) = peer.answer(9);
    assert!(status == BAD && error.contains("\"param\":\"prompt\""), "{error}");
    let head = block("HEAD", "/v1/models", "localhost");
    peer.send(&frame(HEADERS, END_STREAM | END_HEADERS, 11, &head));
    assert_eq!(peer.answer(11), (OK, String::new()));
    // An answer of many parts.
    let tokens: Vec<u32> = vec![letters("x")[0]; 40_000];
    peer.send(&post(13, "/detokenize", &json!({"tokens": tokens[..3000]})));
    let answer: Value = serde_json::from_str(&peer.answer(13).1).unwrap();
    assert_eq!(answer["prompt"].as_str().unwrap().len(), 3000);
}

#[test]
fn another_hosts_name_is_refused() {
    let fake = Fake::say("Hi");
    let mut peer = Peer::new(&fake, &[]);
    let head = block("GET", "/v1/models", "evil.example");
    peer.send(&frame(HEADERS, END_STREAM | END_HEADERS, 1, &head));
    let (_, error) = peer.answer(1);
    assert!(error.contains("host_not_allowed"), "{error}");
}

#[test]
fn who_sends_nothing_or_only_a_begin_is_cut_off() {
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.header_read_timeout_ms = 200;
        app.http.write_idle_timeout_ms = 300;
    });
    let half = frame(HEADERS, END_STREAM, 1, &block("GET", "/live", "localhost"));
    let hello = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
    let begins = [
        PREFACE[..9].to_vec(),
        PREFACE.to_vec(),
        hello.clone(),
        // Headers that never end.
        [hello, half].concat(),
    ];
    for begin in begins {
        let start = Instant::now();
        let mut stream = connect(fake.address, &begin);
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(start.elapsed() < Duration::from_secs(5), "{begin:?}");
    }
    // Requests keep it open.
    let mut peer = Peer::new(&fake, &[]);
    for stream in [1, 3, 5, 7] {
        std::thread::sleep(Duration::from_millis(100));
        peer.send(&get(stream, "/live"));
        assert_eq!(peer.answer(stream).0, OK);
    }
}

#[test]
fn a_stream_whose_window_stays_closed_is_reset_and_the_others_go_on() {
    let fake = Fake::new(Script::Endless, |app| {
        app.http.write_idle_timeout_ms = 300;
        app.model.limits.context_tokens_max = 1 << 30;
    });
    // SETTINGS_INITIAL_WINDOW_SIZE of 0.
    let mut peer = Peer::new(&fake, &[0, 4, 0, 0, 0, 0]);
    let body = json!({"prompt": "x", "stream": true, "max_tokens": 1 << 29});
    peer.send(&post(1, "/v1/completions", &body));
    fake.wait_seen(1);
    // CANCEL.
    assert_eq!(peer.reset(1), 8);
    fake.wait_cancelled(1);
    peer.send(&get(3, "/live"));
    assert_eq!(peer.answer(3).0, OK);
}

#[test]
fn a_client_that_leaves_or_resets_frees_its_sequences() {
    let fake = Fake::new(Script::Hang(letters("ab")), |_| {});
    let mut peer = Peer::new(&fake, &[]);
    let body = json!({"prompt": "x", "stream": true});
    peer.send(&post(1, "/v1/completions", &body));
    peer.send(&post(3, "/v1/completions", &json!({"prompt": ["x", "y"]})));
    fake.wait_seen(3);
    // NO_ERROR is as good as any.
    peer.send(&frame(RST_STREAM, 0, 1, &[0; 4]));
    let fake_in_flight = || fake.engine.in_flight();
    crate::fake::wait_for(|| fake_in_flight() == 2, || "stream 1 is not freed".to_owned());
    drop(peer);
    fake.wait_cancelled(3);
}

#[test]
fn more_streams_than_the_limit_are_refused() {
    let fake = Fake::new(Script::Hang(vec![]), |_| {});
    let mut peer = Peer::new(&fake, &[]);
    for i in 0..129 {
        peer.send(&post(2 * i + 1, "/v1/completions", &json!({"prompt": "x"})));
    }
    // REFUSED_STREAM: it may be asked again.
    assert_eq!(peer.reset(2 * 128 + 1), 7);
    fake.wait_seen(128);
    drop(peer);
    fake.wait_cancelled(128);
}

#[test]
fn floods_of_resets_and_of_headers_leave_the_server_to_others() {
    let fake = Fake::new(Script::Hang(vec![]), |app| app.http.header_read_timeout_ms = 500);
    let mut peer = Peer::new(&fake, &[]);
    let body = json!({"prompt": "x"});
    let mut flood = Vec::new();
    for i in 0..2000_u32 {
        flood.extend(post(2 * i + 1, "/v1/completions", &body));
        flood.extend(frame(RST_STREAM, 0, 2 * i + 1, &[0, 0, 0, 8]));
    }
    // The server may close before all of it is there.
    let _ = peer.0.write_all(&flood);
    peer.end();
    let mut peer = Peer::new(&fake, &[]);
    peer.send(&frame(HEADERS, END_STREAM, 1, &block("GET", "/live", "localhost")));
    let more = frame(CONTINUATION, 0, 1, &[&[0, 1, b'a', 127][..], &[b'b'; 127]].concat());
    let mut sent = 0;
    while sent < 16 << 20 && peer.0.write_all(&more).is_ok() {
        sent += more.len();
    }
    assert!(sent < 16 << 20, "headers of any size were taken");
    let mut peer = Peer::new(&fake, &[]);
    peer.send(&get(1, "/live"));
    assert_eq!(peer.answer(1).0, OK);
    drop(peer);
    crate::fake::wait_for(|| fake.engine.in_flight() == 0, || "in flight".to_owned());
}

#[test]
fn a_shutdown_lets_requests_end_and_closes() {
    let mut fake = Fake::say("Hi");
    let mut peer = Peer::new(&fake, &[]);
    peer.send(&get(1, "/live"));
    assert_eq!(peer.answer(1).0, OK);
    fake.shut_down();
    assert!(peer.end(), "GOAWAY comes first");
    fake.join();
}
