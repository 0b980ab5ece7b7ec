//! Connections of HTTP/1 where the library leaves something open: who has left and who only says no
//! more, what is no request, and who makes room for whom.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Reader, connect, get, message, post, raw};
use crate::fake::{Fake, Script, letters, wait_for};

const COMPLETIONS: &str = "/v1/completions";
const CODING: &str = "unsupported_transfer_encoding";
const INTERIM: &str = "HTTP/1.1 100 Continue\r\n\r\n";

fn start(fake: &Fake, body: &Value) -> TcpStream {
    connect(fake.address, &message("POST", COMPLETIONS, "", body.to_string().as_bytes()))
}

/// All that comes until the server closes, without interim answers.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap().replace(INTERIM, "")
}

/// Closed without its end being read: the kernel says so at once.
fn reset(stream: &TcpStream) {
    let linger = rustix::net::sockopt::set_socket_linger;
    linger(stream, Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_client_that_leaves_is_noticed_whatever_it_sent_before() {
    let fake = Fake::new(Script::Hang(letters("a")), |_| {});
    let health = message("GET", "/health", "", b"");
    type Last<'a> = &'a dyn Fn(&mut TcpStream);
    let ways: [(&str, Last<'_>); 6] = [
        ("closes", &|_| {}),
        ("resets", &|stream| reset(stream)),
        ("sends a byte", &|stream| stream.write_all(b"x").unwrap()),
        ("sends a request", &|stream| stream.write_all(&health).unwrap()),
        ("sends much", &|stream| {
            stream.set_nonblocking(true).unwrap();
            while stream.write(&[b'x'; 1 << 16]).is_ok() {}
        }),
        ("half closes", &|stream| {
            stream.shutdown(Shutdown::Write).unwrap();
            std::thread::sleep(Duration::from_millis(70));
        }),
    ];
    let mut count = 0;
    for (way, last) in ways {
        for is_streamed in [false, true] {
            let mut stream = start(&fake, &json!({"prompt": "x", "stream": is_streamed}));
            count += 1;
            fake.wait_seen(count);
            if is_streamed {
                // The head and the first event.
                while stream.read(&mut [0; 1]).unwrap() == 1 && !ends(&stream) {}
            }
            last(&mut stream);
            let left = Instant::now();
            drop(stream);
            fake.wait_cancelled(count);
            // Long before anything that is sent now and then would show it.
            assert!(left.elapsed() < Duration::from_secs(4), "{way}, streamed: {is_streamed}");
        }
    }
}

/// Whether all that has come is read.
fn ends(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0; 1]);
    stream.set_nonblocking(false).unwrap();
    peeked.is_err()
}

#[test]
fn a_client_that_has_no_more_to_say_reads_its_answer() {
    let fake = Fake::new(Script::Echo(3), |_| {});
    for is_streamed in [false, true] {
        let body = json!({"prompt": "a", "stream": is_streamed}).to_string();
        let whole = message("POST", COMPLETIONS, "", body.as_bytes());
        let old = String::from_utf8(whole.clone()).unwrap().replace("HTTP/1.1", "HTTP/1.0");
        for bytes in [whole, old.into_bytes()] {
            let stream = connect(fake.address, &bytes);
            stream.shutdown(Shutdown::Write).unwrap();
            let answer = rest(stream);
            let is_whole = answer.contains("200 OK") && answer.contains("aaa");
            let is_stream = answer.matches("\"text\":\"a\"").count() == 3;
            assert!(if is_streamed { is_stream } else { is_whole }, "{answer}");
        }
    }
}

#[test]
fn a_client_that_waits_long_with_no_more_to_say_is_asked_in_between() {
    let fake = Fake::new(Script::Hang(vec![]), |_| {});
    let mut stream = start(&fake, &json!({"prompt": "x"}));
    stream.shutdown(Shutdown::Write).unwrap();
    let mut asked = vec![0; 2 * INTERIM.len()];
    stream.read_exact(&mut asked).unwrap();
    assert_eq!(String::from_utf8(asked).unwrap(), INTERIM.repeat(2));
    assert_eq!(fake.engine.in_flight(), 1);
    // Nothing that is no request of HTTP/1.1 may be answered so.
    let old = b"POST /v1/completions HTTP/1.0\r\ncontent-length: 14\r\n\r\n{\"prompt\":\"x\"}";
    let mut old = connect(fake.address, old);
    fake.wait_seen(2);
    old.shutdown(Shutdown::Write).unwrap();
    old.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert!(old.read(&mut [0; 1]).is_err());
    // It counts as gone after some seconds, as most who close have: a proxy's connections.
    drop(stream);
    fake.wait_cancelled(2);
}

#[test]
fn what_is_no_request_is_told_why_in_our_words() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.header_read_timeout_ms = 300);
    let long = "x".repeat(70_000);
    let many: String = (0..101).map(|i| format!("h{i}: x\r\n")).collect();
    let head = "GET /health HTTP/1.1\r\nhost: localhost\r\n";
    let cases: [(&[u8], u16, &str); 14] = [
        (b"\0\x01\x02\r\n\r\n", 400, "malformed_request"),
        (b"GET\r\n\r\n", 400, "malformed_request"),
        (b"GET /health HTTP/3.0\r\n\r\n", 400, "malformed_request"),
        (b"GET /he alth HTTP/1.1\r\n\r\n", 400, "malformed_request"),
        (b"GET /health HTTP/1.1\r\nhost\r\n\r\n", 400, "malformed_request"),
        (b"GET /health HTTP/1.1\r\nho st: x\r\n\r\n", 400, "malformed_request"),
        (b"GET /health HTTP/1.1\r\ncontent-length: -1\r\n\r\n", 400, "malformed_request"),
        (b"GET / HTTP/1.1\r\ntransfer-encoding: gzip\r\n\r\n", 400, CODING),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03\r\n\r\n", 400, "malformed_request"),
        (&[head.as_bytes(), b"a: ", long.as_bytes()].concat(), 431, "head_too_large"),
        (&[head.as_bytes(), many.as_bytes(), b"\r\n"].concat(), 431, "head_too_large"),
        (&[b"GET /", long.as_bytes(), b" HTTP/1.1\r\n\r\n"].concat(), 431, "head_too_large"),
        (head.as_bytes(), 408, "head_timeout"),
        (b"G", 408, "head_timeout"),
    ];
    for (bytes, status, code) in cases {
        let answer = raw(fake.address, bytes);
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(60)]).into_owned();
        assert_eq!((answer.status, answer.error().1.as_str()), (status, code), "{shown}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("connection"), Some("close"));
    }
    // Also behind a request that was one, and where the client says no more.
    let text = rest(connect(fake.address, &[head.as_bytes(), b"\r\n\0\0\0\r\n\r\n"].concat()));
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("malformed_request"), "{text}");
    let cut = connect(fake.address, head.as_bytes());
    cut.shutdown(Shutdown::Write).unwrap();
    assert!(rest(cut).contains("malformed_request"));
    // Who says nothing is not answered.
    assert_eq!(rest(connect(fake.address, b"")), "");
    let page = get(fake.address, "/metrics");
    let counted = page.text().lines().find(|line| line.contains("code=\"malformed_request\""));
    assert!(counted.is_some_and(|line| line.ends_with(" 10")), "{counted:?}");
}

#[test]
fn a_body_whose_length_is_given_in_two_ways_ends_its_connection() {
    let fake = Fake::say("x");
    let first = message("GET", "/live", "", b"");
    let chunked = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n\
        transfer-encoding: chunked\r\n\r\ne\r\n{\"prompt\":\"x\"}\r\n0\r\n\r\n";
    for lines in [
        "content-length: 40\r\ntransfer-encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 40",
        "transfer-encoding: chunked\r\nx: y\r\ncontent-length: 0",
        "content-length: 5\r\ntransfer-encoding: identity",
    ] {
        // What follows could be taken for a request of its own by one of two servers in a row.
        let both = format!(
            "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n{lines}\r\n\r\n0\r\n\r\n\
             GET /version HTTP/1.1\r\nhost: localhost\r\n\r\n"
        );
        for before in [&[][..], &first, chunked, &[&first[..], chunked].concat()] {
            let expected = before.windows(9).filter(|w| w == b" HTTP/1.1").count();
            for cut in [0, before.len(), before.len() + 30, before.len() + both.len() - 60] {
                let all = [before, both.as_bytes()].concat();
                let mut stream = connect(fake.address, &all[..cut]);
                std::thread::sleep(Duration::from_millis(5));
                let _ = stream.write_all(&all[cut..]);
                let text = rest(stream);
                assert_eq!(text.matches("HTTP/1.1 200").count(), expected, "{text}");
                assert_eq!(text.matches("HTTP/1.1 400").count(), 1, "{text}");
                assert!(text.contains("framed_twice"), "{text}");
            }
        }
    }
    // Behind a request, a coding, a long head and a line feed that ends what hyper goes on reading.
    let long = "x".repeat(100_000);
    for (bad, code) in [
        ("POST / HTTP/1.1\r\ntransfer-encoding: gzip, chunked\r\n\r\n".to_owned(), CODING),
        (format!("GET /live HTTP/1.1\r\nhost: localhost\r\nx: {long}\r\n\r\n"), "head_too_large"),
    ] {
        let all = [&first[..], bad.as_bytes(), &first].concat();
        let text = rest(connect(fake.address, &all));
        assert_eq!(text.matches("HTTP/1.1 200").count(), 1, "{text}");
        assert!(text.contains(code) && text.matches("HTTP/1.1").count() == 2, "{text}");
    }
    let chunks = &chunked[..chunked.len() - 4];
    for end in ["\n", "X: y\n\r\n"] {
        let mut stream = connect(fake.address, chunks);
        stream.write_all(format!("\r\n{end}").as_bytes()).unwrap();
        stream.write_all(&first).unwrap();
        let text = rest(stream);
        assert!(text.contains("body_broken") && text.matches("HTTP/1.1").count() == 1, "{text}");
    }
    // One after the other on one connection, a body may be given in either way.
    let length = message("POST", COMPLETIONS, "connection: close\r\n", b"{\"prompt\":\"x\"}");
    let all = [&chunked[..], &first, chunked, &length].concat();
    assert_eq!(rest(connect(fake.address, &all)).matches("HTTP/1.1 200").count(), 4);
}

#[test]
fn a_connection_above_the_limit_may_ask_how_the_server_is() {
    let fake = Fake::new(Script::Hang(vec![]), |app| app.http.connections_max = 2);
    let held = [start(&fake, &json!({"prompt": "x"})), start(&fake, &json!({"prompt": "x"}))];
    fake.wait_seen(2);
    for path in ["/health", "/ready", "/live", "/metrics", "/version"] {
        assert_eq!(get(fake.address, path).status, 200, "{path}");
    }
    // A large body that nobody reads does not take the answer away.
    for body in ["x".repeat(14), "x".repeat(3 << 20)] {
        let answer = post(fake.address, COMPLETIONS, &json!({"prompt": body}));
        assert_eq!((answer.status, answer.error().1.as_str()), (503, "too_many_connections"));
        assert_eq!(answer.header("retry-after"), Some("1"));
    }
    assert_eq!(get(fake.address, "/v1/models").error().1, "too_many_connections");
    let silent = raw(fake.address, b"");
    assert_eq!((silent.status, silent.error().1.as_str()), (503, "too_many_connections"));
    drop(held);
    fake.wait_cancelled(2);
    assert_eq!(get(fake.address, "/v1/models").status, 200);
}

#[test]
fn a_flood_of_connections_leaves_room_to_ask_how_the_server_is() {
    let fake = Fake::new(Script::Hang(vec![]), |app| app.http.connections_max = 1);
    let held = start(&fake, &json!({"prompt": "x"}));
    fake.wait_seen(1);
    let flood: Vec<_> = (0..400).map(|_| connect(fake.address, b"GET /v1/mod")).collect();
    for _ in 0..5 {
        assert_eq!(get(fake.address, "/health").status, 200);
    }
    // Those that are still there are told, as are those that come at once.
    let told = flood.into_iter().map(rest).filter(|text| text.contains("too_many_connections"));
    assert!(told.count() > 100);
    let list = message("GET", "/v1/models", "", b"");
    let burst: Vec<_> = (0..400).map(|_| connect(fake.address, &list)).collect();
    for stream in burst {
        assert_eq!(Reader::new(stream).whole().error().1, "too_many_connections");
    }
    drop(held);
}

#[test]
fn places_come_back_however_often_the_limit_is_reached() {
    let fake = Fake::new(Script::Hang(vec![]), |app| app.http.connections_max = 100);
    let open = || {
        let page = get(fake.address, "/metrics");
        let line = page.text().lines().find(|line| line.starts_with("tessera:http_connections{"));
        line.and_then(|line| line.split(' ').nth(1)).map(str::to_owned)
    };
    for _ in 0..4 {
        let flood: Vec<_> = (0..260)
            .map(|i| {
                // An idle connection makes room after 100 ms.
                if i % 90 == 0 {
                    std::thread::sleep(Duration::from_millis(120));
                }
                connect(fake.address, b"")
            })
            .collect();
        drop(flood);
        // The one that asks.
        wait_for(|| open().as_deref() == Some("1"), || format!("{:?}", open()));
    }
    let busy: Vec<_> = (0..98).map(|_| start(&fake, &json!({"prompt": "x"}))).collect();
    fake.wait_seen(98);
    assert_eq!(get(fake.address, "/v1/models").status, 200);
    drop(busy);
    fake.wait_cancelled(98);
}

#[test]
fn connections_that_keep_the_server_waiting_make_room() {
    let fake = Fake::new(Script::Hang(vec![]), |app| app.http.connections_max = 8);
    let busy = start(&fake, &json!({"prompt": "x"}));
    fake.wait_seen(1);
    let list = message("GET", "/v1/models", "", b"");
    let kept = || {
        let stream = connect(fake.address, &list);
        assert_eq!(Reader::new(stream.try_clone().unwrap()).whole().status, 200);
        stream
    };
    let head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{";
    let slow_body = connect(fake.address, head);
    let slow_head = connect(fake.address, b"POST /v1/comp");
    let silent = connect(fake.address, b"");
    let idle: Vec<_> = (0..4).map(|_| kept()).collect();
    // A body has a second.
    std::thread::sleep(Duration::from_millis(1200));
    let new: Vec<_> = (0..7).map(|_| kept()).collect();
    assert!(rest(slow_body).contains("too_many_connections"));
    assert!(rest(slow_head).contains("too_many_connections"));
    assert_eq!(rest(silent), "");
    assert!(idle.into_iter().all(|stream| rest(stream).is_empty()));
    assert_eq!(fake.engine.in_flight(), 1, "whoever is served stays");
    drop((busy, new));
    fake.wait_cancelled(1);
    let value = |what: &str| {
        let page = get(fake.address, "/metrics");
        let line = page.text().lines().find(|line| line.contains(what) && !line.starts_with('#'));
        line.and_then(|line| line.split(' ').nth(1)).map(str::to_owned)
    };
    let counts = || (value("connections_evicted_total"), value("code=\"too_many_connections\""));
    let expected = (Some("7".to_owned()), Some("2".to_owned()));
    wait_for(|| counts() == expected, || format!("{:?}", counts()));
}
