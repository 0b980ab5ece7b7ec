//! Bodies that come slowly, that are large, and many of them at once.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::client::{Answer, Reader, connect, message, post, send};
use crate::fake::{Fake, Script, wait_for};

const PATH: &str = "/v1/completions";
const KIB: usize = 1024;

fn small(fake: &Fake) -> Answer {
    post(fake.address, PATH, &json!({"prompt": "x", "max_tokens": 1}))
}

/// A request that says it has so many bytes, and of them sends so few.
fn begun(fake: &Fake, bytes: usize, sent: usize) -> TcpStream {
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {bytes}\r\n\r\n"
    );
    connect(fake.address, &[head.as_bytes(), &vec![b' '; sent]].concat())
}

#[test]
fn large_bodies_that_stand_still_leave_room_for_small_ones() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.bodies_bytes_max = KIB * KIB);
    let held: Vec<_> = (0..8).map(|_| begun(&fake, 31 << 20, 256 * KIB)).collect();
    let large = json!({"prompt": "x", "max_tokens": 1, "user": "x".repeat(300 * KIB)});
    let ask = || post(fake.address, PATH, &large);
    wait_for(|| ask().status == 503, || "all room is taken".to_owned());
    let answer = ask();
    assert_eq!(answer.error().1, "bodies_full");
    assert_eq!(answer.header("retry-after"), Some("1"));
    for _ in 0..20 {
        let answer = small(&fake);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    drop(held);
    wait_for(|| ask().status == 200, || "the room is there again".to_owned());
}

#[test]
fn small_bodies_that_stand_still_leave_the_room_that_others_have() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.bodies_bytes_max = KIB * KIB);
    // A quarter is for small ones; beyond it they share what all have.
    let held: Vec<_> = (0..8).map(|_| begun(&fake, 60 * KIB, 50 * KIB)).collect();
    for _ in 0..5 {
        assert_eq!(small(&fake).status, 200);
    }
    drop(held);
}

#[test]
fn a_body_that_comes_too_slowly_is_408_however_steadily_it_comes() {
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.body_idle_timeout_ms = 300;
        app.http.body_bytes_per_s_min = 1_000_000;
    });
    // 50 KB/s.
    let stream = begun(&fake, 10_000_000, 0);
    let mut writer = stream.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        for _ in 0..1000 {
            if writer.write_all(&[b' '; 1000]).is_err() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let mut reader = Reader::new(stream);
    assert_eq!(reader.status, 408);
    assert!(reader.headers.contains(&("x-should-retry".to_owned(), "true".to_owned())));
    drop(reader.headers.drain(..));
    drop(reader);
    drip.join().unwrap();
    // What is no more than an idle time's worth is never too slow for its rate.
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.body_idle_timeout_ms = 10_000;
        app.http.body_bytes_per_s_min = 1_000;
    });
    let mut body = json!({"prompt": "x", "max_tokens": 1}).to_string().into_bytes();
    body.resize(200, b' ');
    let bytes = message("POST", PATH, "connection: close\r\n", &body);
    let mut stream = connect(fake.address, &bytes[..bytes.len() - 100]);
    for byte in &bytes[bytes.len() - 100..] {
        stream.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[test]
fn many_bombs_at_once_are_refused_and_give_back_all_room() {
    let limit = 256 * KIB;
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.body_bytes_max = limit;
        app.http.bodies_bytes_max = KIB * KIB;
    });
    let mut bomb = json!({"prompt": "x", "max_tokens": 1}).to_string().into_bytes();
    bomb.resize(20_000_000, b' ');
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&bomb).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::stream::encode_all(&bomb[..], 1).unwrap();
    let kinds = [("gzip", &gzip), ("zstd", &zstd)];
    let held: Vec<_> = (0..32)
        .map(|i| {
            let (coding, body) = kinds[i % 2];
            assert!(body.len() < limit, "{coding}: {}", body.len());
            let coding = format!("content-encoding: {coding}\r\nconnection: close\r\n");
            connect(fake.address, &message("POST", PATH, &coding, body))
        })
        .collect();
    for _ in 0..10 {
        let answer = small(&fake);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    for stream in held {
        let answer = Reader::new(stream).whole();
        assert!([413, 503].contains(&answer.status), "{}", answer.text());
    }
    // Had each kept its share, there would be room for none.
    let mut whole = json!({"prompt": "x", "max_tokens": 1}).to_string().into_bytes();
    whole.resize(limit, b' ');
    for _ in 0..3 {
        let answer = send(fake.address, "POST", PATH, "", &whole);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}
