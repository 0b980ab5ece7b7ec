//! What is logged, on the real server's stderr.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::{Reader, connect, message, post, post_stream, raw, send};
use crate::fake::wait_for;
use crate::process::{Server, tessera};

const COMPLETIONS: &str = "/v1/completions";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A demo whose log is a file.
struct Logged {
    server: Server,
    file: PathBuf,
    _dir: tempfile::TempDir,
}

impl Logged {
    fn start(flags: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("log");
        let mut command = tessera(&[&["serve", "--port", "0"], flags].concat());
        command.env_remove("RUST_LOG").stderr(Stdio::from(fs::File::create(&file).unwrap()));
        Self { server: Server::start_command(command), file, _dir: dir }
    }

    fn address(&self) -> SocketAddr {
        self.server.address.parse().unwrap()
    }

    fn text(&self) -> String {
        fs::read_to_string(&self.file).unwrap()
    }

    /// The lines of requests, as soon as there are so many.
    fn requests(&self, count: usize) -> Vec<Value> {
        let read = || {
            let text = self.text();
            let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole).to_owned();
            let json = whole.lines().map(|line| {
                serde_json::from_str::<Value>(line).unwrap_or_else(|e| panic!("{e}: {line}"))
            });
            json.filter(|line| line["target"] == "tessera::access").collect::<Vec<_>>()
        };
        wait_for(|| read().len() >= count, || self.text());
        let lines = read();
        assert_eq!(lines.len(), count, "{lines:#?}");
        lines
    }
}

#[test]
fn each_request_has_one_line_that_says_all_of_it() {
    let keys = tempfile::NamedTempFile::new().unwrap();
    write!(keys.as_file(), "[[keys]]\nname = 'acme'\nkey = 'acme-key'\nadapters = ['*']\n")
        .unwrap();
    let keys = keys.path().to_str().unwrap();
    let logged = Logged::start(&["--log-format", "json", "--keys", keys]);
    let body = json!({"model": "poet", "prompt": "The sea", "max_tokens": 4, "ignore_eos": true,
        "n": 2});
    let body = body.to_string();
    let head = format!(
        "authorization: Bearer acme-key\r\nx-request-id: mine-1\r\n\
         traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\n"
    );
    let answer = send(logged.address(), "POST", COMPLETIONS, &head, body.as_bytes());
    assert_eq!((answer.status, answer.header("x-request-id")), (200, Some("mine-1")));
    assert_eq!(answer.header("traceparent"), None);
    let line = &logged.requests(1)[0];
    let usage = &answer.json()["usage"];
    let cached = &usage["prompt_tokens_details"]["cached_tokens"];
    let expected = json!({"level": "INFO", "message": "answered", "method": "POST",
        "path": COMPLETIONS, "route": COMPLETIONS, "status": 200, "request_id": "mine-1",
        "trace_id": TRACE, "parent_id": "00f067aa0ba902b7", "tenant": "acme", "model": "poet",
        "prompt_tokens": usage["prompt_tokens"], "cached_tokens": cached, "generation_tokens": 8,
        "finish_reason": "length", "received_bytes": body.len(), "sent_bytes": answer.body.len()});
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&line[name], value, "{name} in {line:#}");
    }
    let ms = |name: &str| line[name].as_f64().unwrap_or_else(|| panic!("{name} in {line:#}"));
    assert!(0.0 < ms("queue_ms") && ms("queue_ms") < ms("ttft_ms") && ms("ttft_ms") < ms("ms"));
    let card = send(logged.address(), "GET", "/v1/adapters/poet", &head, b"").json();
    assert_eq!(line["adapter"], card["digest"]);
    let known: Vec<&str> = expected.as_object().unwrap().keys().map(String::as_str).collect();
    let more = ["timestamp", "target", "ms", "queue_ms", "ttft_ms", "adapter"];
    let keys = line.as_object().unwrap().keys();
    let new: Vec<_> = keys.filter(|key| !known.contains(&key.as_str())).collect();
    assert!(new.iter().all(|key| more.contains(&key.as_str())), "{new:?}");
    assert!(!logged.text().contains("acme-key"));
}

#[test]
fn streams_errors_and_clients_that_leave_have_their_lines_at_their_ends() {
    let logged = Logged::start(&["--log-format", "json"]);
    let address = logged.address();
    let body = |stream: bool, tokens: u32| {
        json!({"model": "poet", "prompt": "a", "max_tokens": tokens, "ignore_eos": true,
            "stream": stream})
    };
    assert_eq!(post_stream(address, COMPLETIONS, &body(true, 3)).frames().len(), 4);
    let line = &logged.requests(1)[0];
    assert_eq!((&line["finish_reason"], &line["generation_tokens"]), (&json!("length"), &json!(3)));
    assert_eq!(line["client_left"], Value::Null, "{line}");
    let mut left = post_stream(address, COMPLETIONS, &body(true, 100));
    assert!(left.frame().is_some());
    drop(left);
    let line = &logged.requests(2)[1];
    let is_whole = line["finish_reason"] == "length" && line["client_left"].is_null();
    let is_left = line["finish_reason"] == "abort" && line["client_left"] == true;
    assert!(line["status"] == 200 && (is_left || is_whole), "{line}");
    assert_eq!(post(address, COMPLETIONS, &json!({"model": "nobody", "prompt": "a"})).status, 404);
    let line = &logged.requests(3)[2];
    assert_eq!((&line["status"], &line["error"]), (&json!(404), &json!("model_not_found")));
    assert_eq!(line["model"], "nobody", "what was asked for in vain");
    assert_eq!((&line["level"], &line["generation_tokens"]), (&json!("INFO"), &Value::Null));
    // Known once the model is, though the request fails later.
    assert_eq!(post(address, COMPLETIONS, &json!({"model": "poet", "prompt": ""})).status, 400);
    let line = &logged.requests(4)[3];
    assert_eq!((&line["model"], &line["finish_reason"]), (&json!("poet"), &Value::Null));
}

#[test]
fn what_asks_how_the_server_is_has_a_line_only_where_all_is_told_and_none_where_none_is_wanted() {
    for (flags, count) in [
        (&["--log-format", "json"][..], 1),
        (&["--log-format", "json", "--log-level", "debug"], 6),
        (&["--log-format", "json", "--log-level", "warn"], 0),
        (&["--log-format", "json", "--log-level", "debug", "--no-access-log"], 0),
    ] {
        let logged = Logged::start(flags);
        for path in ["/health", "/ready", "/live", "/ping", "/metrics", "/v1/models"] {
            assert_eq!(send(logged.address(), "GET", path, "", b"").status, 200, "{path}");
        }
        logged.requests(count);
    }
}

#[test]
fn no_client_can_forge_a_line_of_the_log() {
    for format in ["text", "json"] {
        let logged = Logged::start(&["--log-format", format, "--log-level", "trace"]);
        let address = logged.address();
        let body = json!({"model": "x\nFORGED", "prompt": "a", "f\nFORGED\u{1b}[31m": 1});
        assert_eq!(post(address, COMPLETIONS, &body).status, 404);
        let body = json!({"model": "poet", "prompt": "a", "max_tokens": 1, "f\rFORGED\u{7}": 1,
            "f\u{9b}31m\u{202e}\u{2028}\u{7f}": 1});
        assert_eq!(post(address, COMPLETIONS, &body).status, 200);
        let head = "host: localhost\r\nx-request-id: a\tFORGED\r\nconnection: close\r\n\r\n";
        let long = "/".to_owned() + &"%0aFORGED".repeat(100);
        for path in ["/%0aFORGED\"", long.as_str()] {
            assert_eq!(
                raw(address, format!("GET {path} HTTP/1.1\r\n{head}").as_bytes()).status,
                404
            );
        }
        let lines = || logged.text().lines().filter(|line| line.contains("answered")).count();
        wait_for(|| lines() == 4, || logged.text());
        let text = logged.text();
        for line in text.lines() {
            let begins = if format == "json" { "{\"timestamp\":" } else { "20" };
            assert!(line.starts_with(begins), "{line:?}");
            assert!(line.len() < 1500, "{line}");
        }
        let harmful = ['\u{1b}', '\u{7}', '\r', '\t', '\u{9b}', '\u{202e}', '\u{2028}', '\u{7f}'];
        assert!(!text.contains(harmful), "{text:?}");
    }
}

#[test]
fn a_log_that_nobody_reads_stops_no_request_and_what_is_lost_is_counted() {
    let args = ["serve", "--port", "0", "--log-format", "json"];
    let mut command = tessera(&args);
    // The other end is held, and never read.
    let (reader, writer) = std::io::pipe().unwrap();
    command.env_remove("RUST_LOG").stderr(Stdio::from(writer));
    let mut server = Server::start_command(command);
    let address: SocketAddr = server.address.parse().unwrap();
    let lost = || {
        let page = send(address, "GET", "/metrics", "", b"");
        let line =
            page.text().lines().find(|line| line.starts_with("tessera:log_lines_lost_total"));
        line.unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap()
    };
    assert_eq!(lost(), 0);
    let start = Instant::now();
    let request = message("GET", "/v1/models", "", b"");
    // A pipe and 4096 lines take no more than this.
    let mut keep = connect(address, b"");
    let mut drain = keep.try_clone().unwrap();
    let read = std::thread::spawn(move || std::io::copy(&mut drain, &mut std::io::sink()));
    for _ in 0..6000 {
        keep.write_all(&request).unwrap();
    }
    wait_for(|| lost() > 0, || "lines are lost".to_owned());
    keep.shutdown(std::net::Shutdown::Write).unwrap();
    assert!(read.join().unwrap().unwrap() > 6000 * 100, "all were answered");
    assert!(start.elapsed() < Duration::from_secs(60));
    // Nor does it keep the server from ending.
    server.terminate();
    assert_eq!(server.wait().code(), Some(0));
    drop(reader);
}

#[test]
fn lines_that_were_lost_are_told_once_somebody_reads_again() {
    let mut command = tessera(&["serve", "--port", "0", "--log-level", "debug"]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    command.env_remove("RUST_LOG").stderr(Stdio::from(writer));
    let server = Server::start_command(command);
    let address: SocketAddr = server.address.parse().unwrap();
    let request = message("GET", "/v1/models", "", b"");
    let mut keep = connect(address, b"");
    let mut drain = keep.try_clone().unwrap();
    let answered = std::thread::spawn(move || std::io::copy(&mut drain, &mut std::io::sink()));
    for _ in 0..7000 {
        keep.write_all(&request).unwrap();
    }
    keep.shutdown(std::net::Shutdown::Write).unwrap();
    answered.join().unwrap().unwrap();
    let (told, line) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(&mut reader));
        let lost = lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("were lost")));
        // Nobody waits any more where it came too late.
        let _ = told.send(lost);
        lines.for_each(drop);
    });
    let line = line.recv_timeout(Duration::from_secs(60)).unwrap().unwrap().unwrap();
    assert!(line.contains("WARN") && line.contains("lines="), "{line}");
}

/// A pipe that is full and that nobody reads.
fn full_pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let flags = rustix::fs::fcntl_getfl(&writer).unwrap();
    rustix::fs::fcntl_setfl(&writer, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
    while writer.write(&[b'x'; 512]).is_ok() {}
    while writer.write(b"x").is_ok() {}
    rustix::fs::fcntl_setfl(&writer, flags).unwrap();
    (reader, writer)
}

#[test]
fn a_server_whose_outputs_are_stuck_full_or_closed_starts_serves_and_ends() {
    for kind in ["stuck", "full", "closed", "none"] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let path = socket.to_str().unwrap();
        let program = tessera(&["serve", "--uds", path, "--log-level", "debug"]);
        let mut command = program;
        let mut kept = Vec::new();
        let mut output = || match kind {
            "stuck" => {
                let (reader, writer) = full_pipe();
                kept.push(reader);
                Stdio::from(writer)
            }
            "full" => Stdio::from(fs::File::options().write(true).open("/dev/full").unwrap()),
            "closed" => Stdio::from(std::io::pipe().unwrap().1),
            _ => Stdio::null(),
        };
        let (out, error) = (output(), output());
        let mut server = command.stdout(out).stderr(error).spawn().unwrap();
        let healthy = || {
            tessera(&["healthcheck", "--uds", path])
                .stderr(Stdio::null())
                .status()
                .unwrap()
                .success()
        };
        wait_for(healthy, || format!("{kind}: not ready"));
        for _ in 0..20 {
            let mut stream = std::os::unix::net::UnixStream::connect(&socket).unwrap();
            stream.write_all(&message("GET", "/v1/models", "connection: close\r\n", b"")).unwrap();
            let mut answer = String::new();
            std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
            assert!(answer.starts_with("HTTP/1.1 200"), "{kind}: {answer}");
        }
        let start = Instant::now();
        let pid = server.id().to_string();
        assert!(
            std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success()
        );
        assert_eq!(server.wait().unwrap().code(), Some(0), "{kind}");
        assert!(start.elapsed() < Duration::from_secs(20), "{kind}: {:?}", start.elapsed());
    }
}

#[test]
fn a_server_whose_log_is_closed_serves() {
    let mut command = tessera(&["serve", "--port", "0"]);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stderr(Stdio::from(writer));
    let server = Server::start_command(command);
    let body = json!({"model": "poet", "prompt": "a", "max_tokens": 2, "stream": true});
    let request = message("POST", COMPLETIONS, "", body.to_string().as_bytes());
    let frames = Reader::new(connect(server.address.parse().unwrap(), &request)).frames();
    assert_eq!(frames.last().map(String::as_str), Some("data: [DONE]"));
}

#[test]
#[cfg(not(feature = "otlp"))]
fn a_build_that_sends_no_traces_says_how_to_have_one_that_does() {
    let args = ["serve", "--otlp-traces-endpoint", "http://localhost:4318/v1/traces"];
    let output = tessera(&args).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(5), "{error}");
    assert!(error.contains("--features otlp"), "{error}");
}
