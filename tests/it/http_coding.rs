//! Compressed request bodies: read within the limits of their content, or refused by name.

use std::io::Write;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

use crate::client::{Answer, send};
use crate::fake::{Fake, Script, letter};

const PATH: &str = "/v1/completions";

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = GzEncoder::new(Vec::new(), Compression::default());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 3).unwrap()
}

fn ask(fake: &Fake, coding: &str, body: &[u8]) -> Answer {
    send(fake.address, "POST", PATH, &format!("content-encoding: {coding}\r\n"), body)
}

#[test]
fn a_compressed_body_is_read_as_the_plain_one() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let body = json!({"prompt": "x".repeat(300), "max_tokens": 1}).to_string();
    let body = body.as_bytes();
    let (one, other) = body.split_at(20);
    let several = [gzip(one), gzip(other)].concat();
    let frames = [zstd(one), zstd(other)].concat();
    let cases = [
        ("gzip", gzip(body)),
        ("x-gzip", gzip(body)),
        ("GZIP", gzip(body)),
        ("identity, gzip", gzip(body)),
        ("gzip", several),
        ("zstd", zstd(body)),
        ("zstd", frames),
        ("identity", body.to_vec()),
        ("", body.to_vec()),
    ];
    for (coding, body) in cases {
        let answer = ask(&fake, coding, &body);
        assert_eq!(answer.status, 200, "{coding}: {}", answer.text());
        let (request, _) = fake.seen.lock().unwrap().pop().unwrap();
        assert_eq!(request.prompt().last(), Some(&letter('x')), "{coding}");
        assert!(request.prompt().len() > 10);
    }
}

#[test]
fn another_coding_is_415_and_says_what_is_taken() {
    let fake = Fake::say("x");
    for coding in ["br", "deflate", "gzip, zstd", "gzip, gzip", "compress", "zstd;q=1", "*"] {
        let answer = ask(&fake, coding, b"{}");
        let code = answer.error().1;
        assert_eq!((answer.status, code.as_str()), (415, "unsupported_content_encoding"));
        assert_eq!(answer.header("accept-encoding"), Some("gzip, zstd"));
        assert!(answer.message().contains(coding), "{}", answer.message());
    }
}

#[test]
fn a_body_that_is_not_what_it_says_is_400() {
    let fake = Fake::say("x");
    let body = json!({"prompt": "x".repeat(500)}).to_string();
    let (gz, zs) = (gzip(body.as_bytes()), zstd(body.as_bytes()));
    let mut wrong = gz.clone();
    let at = wrong.len() - 6;
    wrong[at] ^= 1;
    let cases: [(&str, &[u8]); 9] = [
        ("gzip", b""),
        ("zstd", b""),
        ("gzip", body.as_bytes()),
        ("zstd", body.as_bytes()),
        ("zstd", &gz),
        ("gzip", &gz[..gz.len() - 1]),
        ("zstd", &zs[..zs.len() - 1]),
        ("gzip", &wrong),
        ("gzip", &[&gz[..], b"more"].concat()),
    ];
    for (coding, body) in cases {
        let answer = ask(&fake, coding, body);
        assert_eq!((answer.status, answer.error().1.as_str()), (400, "body_broken"), "{coding}");
    }
}

#[test]
fn the_limit_is_on_the_content_and_a_bomb_is_413_without_its_memory() {
    let limit = 20_000;
    let fake = Fake::new(Script::Echo(1), |app| {
        app.http.body_bytes_max = limit;
        app.http.bodies_bytes_max = 2 * limit;
    });
    let padded = |bytes: usize| {
        let mut body = json!({"prompt": "x", "max_tokens": 1}).to_string().into_bytes();
        body.resize(bytes, b' ');
        body
    };
    assert_eq!(ask(&fake, "gzip", &gzip(&padded(limit))).status, 200);
    assert_eq!(ask(&fake, "zstd", &zstd(&padded(limit))).status, 200);
    // 15 MB in less than 20 KB: more than twice the limit of all bodies would be 503.
    let bomb = padded(15_000_000);
    for (coding, body) in [("gzip", gzip(&bomb)), ("zstd", zstd(&bomb))] {
        assert!(body.len() < limit, "{}", body.len());
        let answer = ask(&fake, coding, &body);
        assert_eq!((answer.status, answer.error().1.as_str()), (413, "body_too_large"), "{coding}");
    }
    for (coding, body) in [("gzip", gzip(&padded(limit + 1))), ("zstd", zstd(&padded(limit + 1)))] {
        assert_eq!(ask(&fake, coding, &body).status, 413);
    }
}

#[test]
fn a_zstd_frame_that_asks_for_a_large_window_is_refused() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let with_window = |log: u32| {
        let mut writer = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
        writer.window_log(log).unwrap();
        writer.include_contentsize(false).unwrap();
        writer.write_all(br#"{"prompt": "x", "max_tokens": 1}"#).unwrap();
        writer.finish().unwrap()
    };
    assert_eq!(ask(&fake, "zstd", &with_window(23)).status, 200);
    let answer = ask(&fake, "zstd", &with_window(27));
    assert_eq!((answer.status, answer.error().1.as_str()), (400, "body_broken"));
}
