//! A server that speaks the Hub's routes, as far as a fetch needs them, and misbehaves on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
}

/// What the server holds and how it misbehaves.
#[derive(Default)]
pub struct Plan {
    /// `org/name` to its files.
    pub repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Answer everything with this status and `X-Error-Code`.
    pub refuse: Option<(u16, &'static str)>,
    /// GETs of this file to break off in the middle, and how many.
    pub cut: Option<(String, usize)>,
    /// Answer GETs of this file with an error page, after a HEAD that was fine.
    pub error_page: Option<String>,
    /// Send GETs of files there, as the Hub does with large ones.
    pub redirect: Option<String>,
}

/// A running server; its thread ends with the process.
pub struct Server {
    pub url: String,
    plan: Arc<Mutex<Plan>>,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub fn start(plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let plan = Arc::new(Mutex::new(plan));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (of_thread, seen_by_thread) = (plan.clone(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (plan, seen) = (of_thread.clone(), seen_by_thread.clone());
                std::thread::spawn(move || answer(stream, &plan, &seen));
            }
        });
        Self { url, plan, seen }
    }

    pub fn change(&self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan.lock().unwrap());
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// GETs of files so far.
    pub fn downloads(&self) -> usize {
        let is_get = |s: &&Seen| s.method == "GET" && s.path.contains("/resolve/");
        self.seen().iter().filter(is_get).count()
    }
}

/// The files of a directory.
pub fn files_of(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let named = |e: std::fs::DirEntry| e.file_name().into_string().unwrap();
    entries.map(|e| (std::fs::read(e.path()).unwrap(), named(e))).map(|(b, n)| (n, b)).collect()
}

fn answer(stream: TcpStream, plan: &Mutex<Plan>, seen: &Mutex<Vec<Seen>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let (mut authorization, mut range) = (None, None);
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        match name.to_lowercase().as_str() {
            "authorization" => authorization = Some(value.to_owned()),
            "range" => range = value.strip_prefix("bytes=").map(str::to_owned),
            _ => {}
        }
    }
    let path = path.split('?').next().unwrap().to_owned();
    let request = Seen { method, path, authorization };
    seen.lock().unwrap().push(request.clone());
    let response = respond(&request, range.as_deref(), &mut plan.lock().unwrap());
    let _ = (&stream).write_all(&response);
}

/// Status line, headers and body; less of the body than announced where it is to be cut.
fn respond(request: &Seen, range: Option<&str>, plan: &mut Plan) -> Vec<u8> {
    if let Some((status, code)) = plan.refuse {
        return reply(status, &[("X-Error-Code", code)], b"refused", request);
    }
    let parts: Vec<&str> = request.path.trim_start_matches('/').splitn(6, '/').collect();
    let missing = || reply(404, &[("X-Error-Code", "RepoNotFound")], b"", request);
    match parts[..] {
        ["api", "models", org, name, what @ ("revision" | "tree"), revision] => {
            let Some(files) = plan.repositories.get(&format!("{org}/{name}")) else {
                return missing();
            };
            if revision != "main" && revision != COMMIT {
                return reply(404, &[("X-Error-Code", "RevisionNotFound")], b"", request);
            }
            let tree = files.iter().map(|(path, bytes)| {
                json!({ "type": "file", "oid": "0", "size": bytes.len(), "path": path })
            });
            let body = match what {
                "tree" => json!(tree.collect::<Vec<_>>()),
                _ => json!({ "id": format!("{org}/{name}"), "sha": COMMIT }),
            };
            let json = ("Content-Type", "application/json");
            reply(200, &[json], body.to_string().as_bytes(), request)
        }
        [org, name, "resolve", _, file] => {
            let Some(files) = plan.repositories.get(&format!("{org}/{name}")) else {
                return missing();
            };
            let Some(bytes) = files.get(file).cloned() else {
                return reply(404, &[("X-Error-Code", "EntryNotFound")], b"", request);
            };
            send_file(request, range, plan, file, &bytes)
        }
        // Where redirects lead.
        ["cdn", org, name, file] => {
            let bytes = plan.repositories[&format!("{org}/{name}")][file].clone();
            reply(200, &[], &bytes, request)
        }
        _ => reply(404, &[], b"", request),
    }
}

fn send_file(
    request: &Seen,
    range: Option<&str>,
    plan: &mut Plan,
    file: &str,
    bytes: &[u8],
) -> Vec<u8> {
    let etag = format!("\"{}\"", blake3::hash(bytes).to_hex());
    let size = bytes.len().to_string();
    let get = request.method == "GET";
    if get && plan.error_page.as_deref() == Some(file) {
        return reply(403, &[], b"<html>not today</html>", request);
    }
    if let Some(cdn) = &plan.redirect {
        let (org_name, _) = request.path[1..].split_once("/resolve/").unwrap();
        let location = format!("{cdn}/cdn/{org_name}/{file}");
        let headers = [
            ("Location", location.as_str()),
            ("X-Linked-Etag", &etag),
            ("X-Linked-Size", &size),
            ("X-Repo-Commit", COMMIT),
        ];
        return reply(302, &headers, b"", request);
    }
    let headers = [("ETag", etag.as_str()), ("X-Repo-Commit", COMMIT), ("Accept-Ranges", "bytes")];
    if let Some((first, last)) = range.and_then(|range| range.split_once('-')) {
        let end = last.parse().map_or(bytes.len(), |last: usize| last + 1);
        let part = &bytes[first.parse().unwrap()..end];
        return reply(206, &headers, part, request);
    }
    let mut response = reply(200, &headers, bytes, request);
    if let Some((_, left)) = plan.cut.as_mut().filter(|(cut, left)| get && cut == file && *left > 0)
    {
        *left -= 1;
        response.truncate(response.len() - bytes.len() / 2);
    }
    response
}

fn reply(status: u16, headers: &[(&str, &str)], body: &[u8], request: &Seen) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
    text += &format!("Content-Length: {}\r\n", body.len());
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    let mut bytes = (text + "\r\n").into_bytes();
    if request.method != "HEAD" {
        bytes.extend(body);
    }
    bytes
}
