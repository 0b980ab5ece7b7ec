//! Memory that requests needed is given back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::process::{Server, split_reply};

const BODIES: usize = 8;
const BODY_BYTES: usize = 16 << 20;
const GROWTH_BYTES_MAX: u64 = 64 << 20;

/// The status of the answer; 0 where the server refused it before all was sent, as it may if there
/// is no room.
fn send(address: &str, body: &str) -> u16 {
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = TcpStream::connect(address).unwrap();
    let mut reply = String::new();
    let sent = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    let _ = sent.and_then(|()| stream.read_to_string(&mut reply));
    split_reply(&reply).0
}

#[test]
fn memory_of_large_bodies_goes_back_to_the_system() {
    let server = Server::start(&["--body-bytes-max", "32MiB"]);
    let (status, _) = server.post("/v1/completions", &json!({"prompt": "The fox"}));
    assert_eq!(status, 200);
    let before = server.memory_bytes();
    let body = format!("{{\"prompt\": [{}7]}}", "7,".repeat(BODY_BYTES / 2));
    for _ in 0..2 {
        let statuses: Vec<u16> = thread::scope(|scope| {
            let send = || send(&server.address, &body);
            let sent: Vec<_> = (0..BODIES).map(|_| scope.spawn(send)).collect();
            sent.into_iter().map(|sent| sent.join().unwrap()).collect()
        });
        assert!(statuses.contains(&400), "{statuses:?}");
    }
    let start = Instant::now();
    loop {
        let growth = server.memory_bytes().saturating_sub(before);
        if growth < GROWTH_BYTES_MAX {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{} MiB are kept", growth >> 20);
        thread::sleep(Duration::from_millis(100));
    }
}
