//! Connections: slow ones, broken ones, ones that leave; and the shutdown.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Reader, connect, get, message, post, post_stream, raw};
use crate::fake::{Fake, Script, letters};

const COMPLETIONS: &str = "/v1/completions";

/// A request that is sent and not read.
fn start(fake: &Fake, body: &Value) -> TcpStream {
    connect(fake.address, &message("POST", COMPLETIONS, "", body.to_string().as_bytes()))
}

/// Milliseconds until the server closes the connection.
fn closed_after_ms(mut stream: TcpStream) -> u128 {
    let start = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    start.elapsed().as_millis()
}

#[test]
fn a_client_that_leaves_frees_its_sequences() {
    let fake = Fake::new(Script::Hang(letters("ab")), |_| {});
    // Before and after the first token, whole and streamed, one and several.
    let cases = [
        json!({"prompt": "x"}),
        json!({"prompt": ["x", "y", "z"]}),
        json!({"prompt": "x", "stream": true}),
    ];
    let mut count = 0;
    for body in cases {
        let stream = start(&fake, &body);
        let sequences = body["prompt"].as_array().map_or(1, Vec::len);
        fake.wait_seen(count + sequences);
        drop(stream);
        count += sequences;
        fake.wait_cancelled(count);
    }
    let mut reader =
        post_stream(fake.address, COMPLETIONS, &json!({"prompt": "x", "stream": true}));
    assert!(reader.frame().is_some());
    drop(reader);
    fake.wait_cancelled(count + 1);
    let page = get(fake.address, "/metrics");
    let aborted = format!("finished_reason=\"abort\"}} {}\n", count + 1);
    assert!(page.text().contains(&aborted), "{}", page.text());
}

#[test]
fn a_client_that_stops_reading_is_dropped() {
    let fake = Fake::new(Script::Endless, |app| {
        app.http.write_idle_timeout_ms = 200;
        app.model.limits.context_tokens_max = 1 << 30;
    });
    let stream = start(
        &fake,
        &json!({"prompt": "x", "stream": true, "max_tokens": 1 << 29,
        "ignore_eos": true, "logprobs": 20}),
    );
    // The engine of this test never ends by itself, and the socket's buffers fill.
    fake.wait_cancelled(1);
    drop(stream);
}

#[test]
fn a_slow_head_or_body_is_cut_off() {
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.header_read_timeout_ms = 200;
        app.http.body_idle_timeout_ms = 150;
        app.http.body_timeout_ms = 400;
    });
    let slow_head = connect(fake.address, b"GET /health HTTP/1.1\r\nhost: loc");
    assert!(closed_after_ms(slow_head) < 5_000);
    let idle = connect(fake.address, b"");
    assert!(closed_after_ms(idle) < 5_000);
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{";
    let answer = Reader::new(connect(fake.address, head)).whole();
    assert_eq!((answer.status, answer.error().1.as_str()), (408, "body_timeout"));
    // Never idle for long, but one byte at a time.
    let mut stream = connect(fake.address, head);
    let mut writer = stream.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        while writer.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut first = [0; 12];
    stream.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 408");
    let _ = stream.shutdown(std::net::Shutdown::Both);
    drip.join().unwrap();
}

#[test]
fn a_body_above_the_limit_is_413_whether_or_not_it_says_so() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.body_bytes_max = 10_000);
    let big = json!({"prompt": "x".repeat(20_000)});
    let answer = post(fake.address, COMPLETIONS, &big);
    assert_eq!((answer.status, answer.error().1.as_str()), (413, "body_too_large"));
    assert!(answer.message().contains("10000"));
    let mut chunked =
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    for _ in 0..5 {
        chunked.extend(format!("1000\r\n{}\r\n", "x".repeat(0x1000)).bytes());
    }
    chunked.extend(b"0\r\n\r\n");
    assert_eq!(raw(fake.address, &chunked).status, 413);
    // A client that asks first need not send it.
    let expect = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 20000\r\n\
        expect: 100-continue\r\n\r\n";
    assert_eq!(raw(fake.address, expect).status, 413);
    let fake = Fake::new(Script::Echo(1), |app| app.http.bodies_bytes_max = 10_000);
    let answer = post(fake.address, COMPLETIONS, &big);
    assert_eq!((answer.status, answer.error().1.as_str()), (503, "bodies_full"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    for _ in 0..20 {
        let answer =
            post(fake.address, COMPLETIONS, &json!({"prompt": "x", "u": "x".repeat(5000)}));
        assert_eq!(answer.status, 200, "shares are given back");
    }
}

#[test]
fn requests_that_were_meant_for_another_server_are_refused() {
    let fake = Fake::say("x");
    let status = |lines: &str| {
        raw(fake.address, format!("{lines}\r\nconnection: close\r\n\r\n").as_bytes()).status
    };
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: localhost:8000"), 200);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: LOCALHOST"), 200);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: 127.0.0.1:1"), 200);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: [::1]:8000"), 200);
    assert_eq!(status("GET /health HTTP/1.0\r\naccept: *"), 200);
    assert_eq!(status("GET /health HTTP/1.1\r\naccept: *"), 400);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: localhost\r\nhost: localhost"), 400);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: localhost:80x"), 400);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost:"), 400);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: evil.example"), 403);
    assert_eq!(status("GET http://evil.example/health HTTP/1.1\r\nhost: localhost"), 403);
    assert_eq!(status("GET /health HTTP/1.1\r\nhost: localhost.evil.example"), 403);
    let origin = |origin: &str| format!("GET /health HTTP/1.1\r\nhost: localhost\r\n{origin}");
    assert_eq!(status(&origin("origin: http://localhost:3000")), 200);
    assert_eq!(status(&origin("origin: https://evil.example")), 403);
    assert_eq!(status(&origin("origin: null")), 403);
    assert_eq!(status(&origin("expect: a pony")), 417);
    let lengths = "content-length: 1\r\ncontent-length: 2";
    assert_eq!(status(&origin(lengths)), 400);
    let fake =
        Fake::new(Script::Echo(1), |app| app.http.hosts_allowed = Some(vec!["my.host".to_owned()]));
    let answer = raw(fake.address, b"GET /live HTTP/1.1\r\nhost: my.host\r\n\r\n");
    assert_eq!(answer.status, 200);
    let refused = get(fake.address, "/live");
    assert_eq!(refused.error().1, "host_not_allowed");
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("start it with --allowed-host "), "{message}");
}

#[test]
fn a_silent_stream_is_kept_open_with_comments() {
    let fake = Fake::new(Script::Hang(vec![]), |app| app.http.keep_alive_ms = 30);
    let mut reader =
        post_stream(fake.address, COMPLETIONS, &json!({"prompt": "x", "stream": true}));
    assert_eq!(reader.status, 200);
    for _ in 0..3 {
        assert_eq!(reader.frame().as_deref(), Some(": ping"));
    }
}

#[test]
fn connections_are_kept_for_further_requests() {
    let fake = Fake::say("x");
    let mut stream = connect(fake.address, b"");
    for _ in 0..3 {
        let body = json!({"prompt": "x"}).to_string();
        stream.write_all(&message("POST", COMPLETIONS, "", body.as_bytes())).unwrap();
        let answer = Reader::new(stream.try_clone().unwrap()).whole();
        assert_eq!(answer.status, 200);
    }
}

#[test]
fn a_shutdown_lets_requests_end_and_takes_no_new_ones() {
    let mut fake = Fake::new(Script::Hang(letters("a")), |app| {
        app.http.drain_notice_ms = 1_500;
        app.http.drain_timeout_ms = 1_000;
    });
    let stream = json!({"prompt": "x", "stream": true});
    let mut streamed = post_stream(fake.address, COMPLETIONS, &stream);
    assert!(streamed.frame().is_some());
    let plain = start(&fake, &json!({"prompt": "x"}));
    let mut idle = connect(fake.address, b"");
    fake.wait_seen(2);
    fake.shut_down();
    crate::fake::wait_for(|| get(fake.address, "/ready").status == 503, || "503".to_owned());
    assert_eq!(get(fake.address, "/live").status, 200);
    // Then it takes no connections, and the requests in flight still run.
    crate::fake::wait_for(|| TcpStream::connect(fake.address).is_err(), || "closed".to_owned());
    assert_eq!(idle.read(&mut [0; 1]).unwrap(), 0, "an idle connection is closed");
    assert_eq!(fake.engine.in_flight(), 2);
    let frames = streamed.frames();
    assert_eq!(frames.len(), 1, "{frames:?}");
    assert!(frames[0].contains("\"code\":\"draining\""), "{frames:?}");
    let answer = Reader::new(plain).whole();
    assert_eq!((answer.status, answer.error().1.as_str()), (503, "draining"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    fake.wait_cancelled(2);
    fake.join();
}

#[test]
fn a_shutdown_with_nothing_to_do_is_quick() {
    let mut fake = Fake::say("x");
    assert_eq!(post(fake.address, COMPLETIONS, &json!({"prompt": "x"})).status, 200);
    let idle = connect(fake.address, b"");
    let start = Instant::now();
    fake.shut_down();
    fake.join();
    assert!(start.elapsed() < Duration::from_secs(2));
    drop(idle);
}

#[test]
fn health_is_quick_while_long_texts_are_tokenized() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let body = json!({"prompt": "a".repeat(60_000)}).to_string();
    let message = message("POST", COMPLETIONS, "", body.as_bytes());
    let busy: Vec<_> = (0..20).map(|_| connect(fake.address, &message)).collect();
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(get(fake.address, "/health").status, 200);
    }
    // The probes of a cluster wait for a second each.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    drop(busy);
}
