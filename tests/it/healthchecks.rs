//! `tessera healthcheck` of servers of every kind, and of what is none.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::process::{Server, tessera};

fn check(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut command = tessera(&[&["healthcheck"], args].concat());
    let output = command.envs(variables.iter().copied()).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

/// Where something listens that does this with each connection.
fn listener(act: impl Fn(TcpStream) + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().flatten().for_each(act));
    address
}

/// Answers a request with these bytes, and then nothing.
fn answering(bytes: &'static [u8], ends: bool) -> String {
    let mut kept = Vec::new();
    let sender = move |mut stream: TcpStream| {
        let _ = stream.read(&mut [0; 4096]);
        let _ = stream.write_all(bytes);
        if !ends {
            kept.push(stream);
        }
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    thread::spawn(move || listener.incoming().flatten().for_each(sender));
    address
}

#[test]
fn what_is_no_healthy_server_is_told_in_a_sentence() {
    let hangs = "it takes connections, but has not answered in full within 2s: it hangs";
    let cases = [
        (answering(b"", false), hangs),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", false), hangs),
        (answering(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", true), "broke off"),
        (answering(b"", true), "it ended the connection before its answer was whole"),
        (answering(b"SSH-2.0-x\r\n", false), "speaks no HTTP"),
        (answering(b"\x15\x03\x03\x00\x02\x02\x46", true), "speaks no HTTP"),
        (answering(b"HTTP/1.1 503 X\r\ncontent-length: 5\r\n\r\n\x1b[2Jx", true), "503: ␛[2Jx"),
    ];
    for (address, expected) in cases {
        let start = Instant::now();
        let (code, error) = check(&[&address], &[]);
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(expected) && error.lines().count() == 1, "{expected}: {error}");
        assert!(start.elapsed() < Duration::from_secs(20));
    }
    let plain = answering(b"HTTP/1.1 400 X\r\ncontent-length: 0\r\n\r\n", true);
    let (code, error) = check(&[&format!("https://{plain}")], &[]);
    assert!(code == Some(1) && error.contains("speaks no TLS"), "{error}");
    let silent = listener(|_| thread::sleep(Duration::from_secs(60)));
    let (code, error) = check(&[&format!("https://{silent}")], &[]);
    assert!(code == Some(1) && error.contains("takes no connection within 2s"), "{error}");
}

#[test]
fn a_server_is_asked_at_the_address_that_it_listens_on() {
    let server = Server::start(&["--host", "::1"]);
    let port = server.address.rsplit(':').next().unwrap();
    let address = format!("[::1]:{port}");
    assert_eq!(server.address, address);
    for (args, variables) in [
        (&[address.as_str()][..], &[][..]),
        (&["--host", "::1", "--port", port], &[]),
        (&["--host", "[::]", "--port", port], &[]),
        (&[], &[("TESSERA_HOST", "::1"), ("TESSERA_PORT", port)]),
        (&[], &[("TESSERA_HOST", "::"), ("TESSERA_PORT", port), ("TESSERA_UDS", "")]),
    ] {
        assert_eq!(check(args, variables), (Some(0), String::new()), "{args:?} {variables:?}");
    }
    let (code, error) = check(&["--port", port], &[]);
    assert!(code == Some(1) && error.contains("127.0.0.1"), "{error}");
    let (code, error) = check(&["::1"], &[]);
    assert!(code == Some(2) && error.contains("[::1]:8000"), "{error}");
}

#[test]
fn a_server_that_is_stopped_hangs_and_goes_on() {
    let server = Server::start(&[]);
    server.signal("-STOP");
    let (code, error) = check(&[&server.address], &[]);
    assert!(code == Some(1) && error.contains("it hangs"), "{error}");
    server.signal("-CONT");
    assert_eq!(check(&[&server.address], &[]).0, Some(0));
}
