//! Spans as a collector gets them. Runs in builds with the feature `otlp` only.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::client::send;
use crate::fake::wait_for;
use crate::process::{Server, tessera};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A collector: the heads and bodies of what is sent to it.
fn collector() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (address, got) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<u8>>>::default());
    let sink = got.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, sink) = (stream.unwrap(), sink.clone());
            std::thread::spawn(move || {
                let mut part = [0; 65536];
                while let Ok(n @ 1..) = stream.read(&mut part) {
                    sink.lock().unwrap().extend_from_slice(&part[..n]);
                    // The spans of a test fit one packet.
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
                }
            });
        }
    });
    (address, got)
}

fn start(endpoint: &str) -> Server {
    Server::start_command(tessera(&["serve", "--port", "0", "--otlp-traces-endpoint", endpoint]))
}

fn complete(server: &Server, traceparent: &str) {
    let body = json!({"model": "poet", "prompt": "a", "max_tokens": 3, "ignore_eos": true});
    let head = format!("traceparent: {traceparent}\r\ntracestate: vendor=known\r\n");
    let address = server.address.parse().unwrap();
    let answer = send(address, "POST", "/v1/completions", &head, body.to_string().as_bytes());
    assert_eq!(answer.status, 200);
}

fn bytes(hex: &str) -> Vec<u8> {
    let byte = |i: usize| u8::from_str_radix(&hex[i..i + 2], 16).unwrap();
    (0..hex.len()).step_by(2).map(byte).collect()
}

#[test]
fn a_collector_gets_a_span_for_each_request_with_its_callers_for_parent() {
    let (address, got) = collector();
    let server = start(&format!("http://{address}/v1/traces"));
    let holds = |what: &[u8]| got.lock().unwrap().windows(what.len()).any(|part| part == what);
    let unsampled = "ab".repeat(16);
    complete(&server, &format!("00-{unsampled}-{PARENT}-00"));
    assert_eq!(server.get("/health").0, 200);
    complete(&server, &format!("00-{TRACE}-{PARENT}-01"));
    wait_for(|| holds(&bytes(TRACE)), || "a span".to_owned());
    for text in [
        "POST /v1/traces HTTP/1.1",
        "POST /v1/completions",
        "vendor=known",
        "service.name",
        "tessera",
        "gen_ai.request.model",
        "poet",
        "gen_ai.usage.input_tokens",
        "gen_ai.usage.output_tokens",
        "gen_ai.latency.time_to_first_token",
        "gen_ai.latency.time_in_queue",
        "gen_ai.response.finish_reasons",
        "length",
        "http.response.status_code",
    ] {
        assert!(holds(text.as_bytes()), "{text}");
    }
    assert!(holds(&bytes(PARENT)) && !holds(&bytes(&unsampled)) && !holds(b"/health"));
}

#[test]
fn a_collector_that_is_away_or_silent_stops_no_request() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = format!("http://{}/v1/traces", silent.local_addr().unwrap());
    for endpoint in ["http://127.0.0.1:9/v1/traces", &silent] {
        let mut server = start(endpoint);
        (0..3).for_each(|_| complete(&server, "none"));
        std::thread::sleep(Duration::from_millis(1500));
        complete(&server, "none");
        let begun = Instant::now();
        server.terminate();
        assert_eq!(server.wait().code(), Some(0));
        assert!(begun.elapsed() < Duration::from_secs(15), "{endpoint}");
    }
    for wrong in ["localhost:4318", "grpc://localhost", "http://"] {
        let output = tessera(&["serve", "--otlp-traces-endpoint", wrong]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(5), "{error}");
        assert!(error.contains("--otlp-traces-endpoint: expected"), "{error}");
    }
}
