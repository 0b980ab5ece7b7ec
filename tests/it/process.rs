//! The real binary, started and spoken to as a user would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

/// A model of 3 layers loads in milliseconds; a busy machine may still take its time.
const READY_TIMEOUT: Duration = Duration::from_secs(60);

/// `tessera` without the caller's own settings.
pub fn tessera(args: &[&str]) -> Command {
    let mut command = Command::new(crate::binary());
    for (key, _) in std::env::vars() {
        if key.starts_with("TESSERA_") {
            command.env_remove(key);
        }
    }
    command.args(args).env("HF_HUB_OFFLINE", "1");
    // Thousands of requests are nothing to read.
    command.env("RUST_LOG", "warn,tessera=info,tessera::access=off,ureq=off,rustls=off");
    command
}

/// A running `tessera serve`, killed when dropped.
pub struct Server {
    child: Child,
    pub address: String,
    /// What it printed until it was ready.
    pub report: Vec<String>,
}

impl Server {
    /// Starts on a free port and waits until ready.
    pub fn start(args: &[&str]) -> Self {
        Self::start_command(tessera(&[&["serve", "--port", "0"], args].concat()))
    }

    pub fn start_command(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut report = Vec::new();
        let start = Instant::now();
        let address = loop {
            assert!(start.elapsed() < READY_TIMEOUT, "not ready: {report:#?}");
            let Some(Ok(line)) = lines.next() else { panic!("ended before ready: {report:#?}") };
            if let Some(rest) = line.strip_prefix("ready: ") {
                let rest = rest.strip_prefix("http://").unwrap_or(rest);
                break rest.trim_end_matches("/v1").to_owned();
            }
            report.push(line);
        };
        // Keeps the pipe open and empty.
        thread::spawn(move || lines.for_each(drop));
        Self { child, address, report }
    }

    /// One request; status and body.
    pub fn send(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, String) {
        let mut stream = self.open(method, path, body);
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        split_reply(&reply)
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        self.send("GET", path, None)
    }

    /// A POST whose reply is JSON.
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let (status, text) = self.send("POST", path, Some(body));
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Sends a request and leaves its reply unread.
    pub fn open(&self, method: &str, path: &str, body: Option<&Value>) -> TcpStream {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = body.map_or(String::new(), Value::to_string);
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        stream
    }

    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    pub fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a whole reply; chunked bodies are put together.
pub fn split_reply(reply: &str) -> (u16, String) {
    let (head, body) = reply.split_once("\r\n\r\n").unwrap_or((reply, ""));
    let status = head.split(' ').nth(1).unwrap_or("0").parse().unwrap_or(0);
    if !head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        return (status, body.to_owned());
    }
    let (mut rest, mut whole) = (body, String::new());
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        if size == 0 {
            break;
        }
        whole.push_str(&after[..size]);
        rest = after[size..].trim_start_matches("\r\n");
    }
    (status, whole)
}
