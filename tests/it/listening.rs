//! `tessera serve` on a Unix socket and over TLS.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tessera::http::{Listener, Tls};
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::client::connect;
use crate::fake::{Fake, Script, wait_for};
use crate::process::{Server, split_reply, tessera};
use crate::serve::{golden, text};

fn pem(name: &str) -> PathBuf {
    crate::root().join("tests/data/tls").join(name)
}

fn certificate(name: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(pem(name)).unwrap()
}

/// A TLS connection to a server that must have one of the two certificates.
fn tls(address: &str) -> StreamOwned<ClientConnection, TcpStream> {
    tls_for(address, &[])
}

/// One that asks for these protocols.
fn tls_for(address: &str, protocols: &[&str]) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    ["one.pem", "two.pem"].into_iter().for_each(|name| roots.add(certificate(name)).unwrap());
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let config = config.with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
    let client = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    StreamOwned::new(client, stream)
}

/// `GET path` on a connection that then ends.
fn ask(mut stream: impl Read + Write, path: &str) -> (u16, String) {
    let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).unwrap();
    let mut reply = String::new();
    stream.read_to_string(&mut reply).unwrap();
    split_reply(&reply)
}

#[test]
fn a_unix_socket_is_listened_on_alone_and_goes_with_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tessera.sock");
    let args = [text(&golden()), "--uds".to_owned(), text(&path)];
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // What a killed server leaves makes room.
    drop(UnixListener::bind(&path).unwrap());
    let mut server = Server::start(&args);
    assert_eq!(server.address, format!("unix:{}", path.display()));
    let (status, body) = ask(UnixStream::connect(&path).unwrap(), "/v1/models");
    assert!(status == 200 && body.contains("llama"), "{body}");
    // Any name will do: whoever forwards requests here is known by the file's permissions.
    let mut named = UnixStream::connect(&path).unwrap();
    named.write_all(b"GET /health HTTP/1.0\r\nhost: example.org\r\n\r\n").unwrap();
    let mut reply = String::new();
    named.read_to_string(&mut reply).unwrap();
    assert!(reply.starts_with("HTTP/1.0 200"), "{reply}");
    let healthy = tessera(&["healthcheck", "--uds", path.to_str().unwrap()]).output().unwrap();
    assert!(healthy.status.success(), "{healthy:?}");
    let address = server.address.as_str();
    let healthy = tessera(&["healthcheck", address]).output().unwrap();
    assert!(healthy.status.success(), "{healthy:?}");
    let load = ["load", address, "--requests", "2", "--max-tokens", "2", "--prompt-tokens", "4"];
    let loaded = tessera(&load).output().unwrap();
    assert!(loaded.status.success(), "{loaded:?}");
    // A second server does not take it away.
    let second = tessera(&[&["serve"], &args[..]].concat()).output().unwrap();
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(second.status.code() == Some(4) && error.contains("in use"), "{error}");
    assert_eq!(ask(UnixStream::connect(&path).unwrap(), "/health").0, 200);
    server.terminate();
    assert!(server.wait().success());
    assert!(!path.exists());
    let gone = tessera(&["healthcheck", "--uds", path.to_str().unwrap()]).output().unwrap();
    assert_eq!(gone.status.code(), Some(1));
    fs::write(&path, "mine").unwrap();
    let third = tessera(&[&["serve"], &args[..]].concat()).output().unwrap();
    let error = String::from_utf8_lossy(&third.stderr);
    assert!(third.status.code() == Some(5) && error.contains("no socket"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
}

#[test]
fn a_server_with_a_certificate_speaks_tls_and_only_tls() {
    let (one, key) = (text(&pem("one.pem")), text(&pem("one.key")));
    let server = Server::start(&[&text(&golden()), "--ssl-certfile", &one, "--ssl-keyfile", &key]);
    let address = server.address.strip_prefix("https://").unwrap();
    let (status, body) = ask(tls(address), "/v1/models");
    assert!(status == 200 && body.contains("llama"), "{body}");
    let port = address.rsplit(':').next().unwrap();
    let checked = |flags: &[&str]| {
        let output = tessera(&[&["healthcheck", "--port", port], flags].concat()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(checked(&["--ssl-certfile", &one]), (true, String::new()));
    let (is_healthy, error) = checked(&["--ssl-certfile", &text(&pem("two.pem"))]);
    assert!(!is_healthy && error.contains("another"), "{error}");
    assert!(!checked(&[]).0);
    let url = format!("{}/v1", server.address);
    let (is_healthy, error) = checked(&[&url, "--ssl-certfile", &one]);
    assert!(is_healthy, "{error}");
    let (is_healthy, error) = checked(&[&url]);
    assert!(!is_healthy && !error.contains("it answered"), "the system knows it not: {error}");
    let load = ["load", &url, "--requests", "2", "--max-tokens", "2", "--ssl-certfile", &one];
    let loaded = tessera(&load).output().unwrap();
    assert!(loaded.status.success(), "{loaded:?}");
    let mut plain = TcpStream::connect(address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let mut reply = Vec::new();
    let _ = plain.read_to_end(&mut reply);
    assert!(!reply.starts_with(b"HTTP"), "{reply:?}");
    assert_eq!(ask(tls(address), "/health").0, 200);
    // The newest protocol that both sides know.
    let mut new = tls_for(address, &["h2", "http/1.1"]);
    new.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut settings = [0; 9];
    new.read_exact(&mut settings).unwrap();
    assert_eq!((new.conn.alpn_protocol(), settings[3]), (Some(&b"h2"[..]), 4));
    assert_eq!(ask(tls_for(address, &["http/1.1"]), "/health").0, 200);
}

#[test]
fn a_certificate_that_cannot_be_used_is_one_line_before_a_model_is_loaded() {
    let path = |name: &str| text(&pem(name));
    let (one, two, key) = (path("one.pem"), path("two.pem"), path("one.key"));
    let cases: [(&[&str], i32, &str); 5] = [
        (&["--ssl-certfile", &one], 2, "--ssl-keyfile"),
        (&["--ssl-certfile", "/none", "--ssl-keyfile", &key], 5, "/none cannot be read"),
        (&["--ssl-certfile", &key, "--ssl-keyfile", &key], 5, "one.key must hold certificates"),
        (&["--ssl-certfile", &one, "--ssl-keyfile", &one], 5, "one.pem must hold a private key"),
        (&["--ssl-certfile", &two, "--ssl-keyfile", &key], 5, "cannot be used"),
    ];
    for (args, code, hint) in cases {
        let output = tessera(&[&["serve", "/nowhere", "--port", "0"], args].concat()).output();
        let output = output.unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && error.contains(hint), "{hint}: {error}");
    }
}

#[test]
fn a_new_certificate_is_used_for_new_connections_and_a_broken_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = (dir.path().join("c.pem"), dir.path().join("k.pem"));
    let put = |name: &str, to: &PathBuf| {
        // As an operator does it: never half a file.
        let new = dir.path().join("new");
        fs::copy(pem(name), &new).unwrap();
        fs::rename(&new, to).unwrap();
    };
    put("one.pem", &certificate);
    put("one.key", &key);
    let files = Tls::open(certificate.clone(), key.clone()).unwrap();
    let fake = Fake::listening(
        Script::Echo(1),
        |_| {},
        |listener| Listener::from(listener).with_tls(files),
    );
    let address = fake.address.to_string();
    let shown = || {
        let mut stream = tls(&address);
        stream.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
        stream.conn.peer_certificates().unwrap()[0].clone().into_owned()
    };
    assert_eq!(shown(), self::certificate("one.pem"));
    let mut old = tls(&address);
    old.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    // The certificate comes before its key: until then the old pair is in use.
    put("two.pem", &certificate);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(shown(), self::certificate("one.pem"));
    put("two.key", &key);
    wait_for(|| shown() == self::certificate("two.pem"), || "the new certificate".to_owned());
    fs::write(&key, "broken").unwrap();
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(shown(), self::certificate("two.pem"));
    assert_eq!(ask(old, "/live").0, 200);
}

#[test]
fn a_handshake_that_does_not_end_is_closed_as_a_head_that_does_not() {
    let limit = 300;
    let fake = Fake::listening(
        Script::Echo(1),
        |app| app.http.header_read_timeout_ms = limit,
        |listener| {
            Listener::from(listener).with_tls(Tls::open(pem("one.pem"), pem("one.key")).unwrap())
        },
    );
    let closed_after = |bytes: &[u8]| {
        let start = Instant::now();
        let mut stream = connect(fake.address, bytes);
        let _ = stream.read_to_end(&mut Vec::new());
        start.elapsed().as_millis() as u64
    };
    // Nothing, and the head of a ClientHello.
    for bytes in [&[][..], &[22, 3, 1, 1, 0, 1]] {
        let ms = closed_after(bytes);
        assert!((limit - 50..5_000).contains(&ms), "{ms}");
    }
    let mut idle = tls(&fake.address.to_string());
    idle.write_all(b"GET /live HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    let start = Instant::now();
    let _ = idle.read_to_end(&mut Vec::new());
    assert!(start.elapsed() < Duration::from_secs(5));
}
