//! A small HTTP/1.1 client that shows what is on the wire.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer of a test takes.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// A whole answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// Names in lower case, in order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.text()))
    }

    /// `param` and `code` of an error, after checking that it has OpenAI's four keys.
    pub fn error(&self) -> (Option<String>, String) {
        let json = self.json();
        let error = json["error"].as_object().unwrap_or_else(|| panic!("no error: {json}"));
        let keys: Vec<&str> = error.keys().map(String::as_str).collect();
        assert_eq!(keys, ["message", "type", "param", "code"], "{json}");
        assert!(error["message"].is_string() && error["type"].is_string(), "{json}");
        let param = error["param"].as_str().map(str::to_owned);
        (param, error["code"].as_str().unwrap().to_owned())
    }

    /// The error's text.
    pub fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap().to_owned()
    }
}

/// An answer that is being read.
pub struct Reader {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    is_chunked: bool,
    /// Decoded bytes that no line has ended yet.
    pending: Vec<u8>,
}

/// Sends bytes as they are.
pub fn connect(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(READ_TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream.write_all(bytes).unwrap();
    stream
}

/// A request's bytes, with `extra` header lines (each with its line end).
pub fn message(method: &str, path: &str, extra: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut bytes = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n{extra}\r\n"
    )
    .into_bytes();
    bytes.extend_from_slice(body);
    bytes
}

/// One request, one whole answer, which is as `/openapi.json` has it.
pub fn send(address: SocketAddr, method: &str, path: &str, extra: &str, body: &[u8]) -> Answer {
    let extra = format!("connection: close\r\n{extra}");
    let answer = raw(address, &message(method, path, &extra, body));
    crate::openapi::check(method, path, &answer);
    answer
}

/// Sends bytes as they are and reads one whole answer.
pub fn raw(address: SocketAddr, bytes: &[u8]) -> Answer {
    Reader::new(connect(address, bytes)).whole()
}

/// `GET`.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    send(address, "GET", path, "", b"")
}

/// `POST` of JSON.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    send(address, "POST", path, "", body.to_string().as_bytes())
}

/// `POST` of JSON whose answer is a stream.
pub fn post_stream(address: SocketAddr, path: &str, body: &Value) -> Reader {
    Reader::new(connect(address, &message("POST", path, "", body.to_string().as_bytes())))
}

impl Reader {
    /// Reads the head.
    pub fn new(stream: TcpStream) -> Self {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let mut next = || {
            line.clear();
            stream.read_line(&mut line).unwrap();
            line.trim_end().to_owned()
        };
        let status = next();
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.unwrap_or_else(|| panic!("no status line: {status:?}"));
        let mut headers = Vec::new();
        loop {
            let header = next();
            let Some((name, value)) = header.split_once(':') else { break };
            headers.push((name.to_lowercase(), value.trim().to_owned()));
        }
        let chunked = |(n, v): &(String, String)| n == "transfer-encoding" && v == "chunked";
        let is_chunked = headers.iter().any(chunked);
        Self { status: code, headers, stream, is_chunked, pending: Vec::new() }
    }

    /// More of the body; false at its end.
    fn fill(&mut self) -> bool {
        assert!(self.is_chunked, "only chunked bodies are read piece by piece");
        let mut line = String::new();
        if self.stream.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        let bytes = usize::from_str_radix(line.trim_end(), 16).unwrap();
        let mut chunk = vec![0; bytes + 2];
        self.stream.read_exact(&mut chunk).unwrap();
        chunk.truncate(bytes);
        self.pending.extend(chunk);
        bytes > 0
    }

    /// The next event or comment without its blank line; `None` at the end.
    pub fn frame(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|two| two == b"\n\n") {
                let frame = self.pending.drain(..end + 2).collect::<Vec<u8>>();
                return Some(String::from_utf8(frame[..end].to_vec()).unwrap());
            }
            if !self.fill() {
                assert!(self.pending.is_empty(), "a frame without an end");
                return None;
            }
        }
    }

    /// All frames to the end.
    pub fn frames(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.frame()).collect()
    }

    /// The JSON of every frame but the last, which is `[DONE]`.
    pub fn chunks(&mut self) -> Vec<Value> {
        let mut frames = self.frames();
        assert_eq!(frames.pop().as_deref(), Some("data: [DONE]"));
        let json = |frame: &String| {
            serde_json::from_str(frame.strip_prefix("data: ").expect("an event")).unwrap()
        };
        frames.iter().map(json).collect()
    }

    /// The rest of the body.
    pub fn whole(mut self) -> Answer {
        let body = if self.is_chunked {
            while self.fill() {}
            self.pending
        } else {
            let length = self.headers.iter().find(|(name, _)| name == "content-length");
            let mut body = Vec::new();
            match length.and_then(|(_, value)| value.parse().ok()) {
                Some(bytes) => {
                    body.resize(bytes, 0);
                    let mut read = 0;
                    // An answer to HEAD has a length and no body.
                    while read < bytes
                        && let Ok(n @ 1..) = self.stream.read(&mut body[read..])
                    {
                        read += n;
                    }
                    body.truncate(read);
                }
                None => drop(self.stream.read_to_end(&mut body)),
            }
            body
        };
        Answer { status: self.status, headers: self.headers, body }
    }
}
