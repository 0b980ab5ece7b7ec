//! A server that speaks the Hub's routes, as far as a fetch needs them, and misbehaves on demand.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use ring::digest::{SHA256, digest};
use serde_json::json;

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// One request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    /// The first byte that was asked for.
    pub from: usize,
}

/// What the server holds and how it misbehaves.
#[derive(Default)]
pub struct Plan {
    /// `org/name` to its files.
    pub repositories: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Answer everything with this status and `X-Error-Code`.
    pub refuse: Option<(u16, &'static str)>,
    /// The same for requests of files alone, as the Hub does where a model is gated.
    pub refuse_files: Option<(u16, &'static str)>,
    /// GETs of this file to break off in the middle, and how many.
    pub cut: Option<(String, usize)>,
    /// Answer GETs of this file with a page, after a HEAD that was fine.
    pub error_page: Option<String>,
    /// Send requests of files there, as the Hub does with large ones.
    pub redirect: Option<String>,
    /// The header that names the content there, where it is not the Hub's own.
    pub redirect_etag: Option<&'static str>,
    /// Send requests for `org/old-name` to `org/model`, as the Hub does where one was renamed.
    pub renamed: bool,
    /// Entries of a page of the list of files.
    pub page: Option<usize>,
    /// What a hostile Hub says.
    pub lies: Lies,
}

/// What a hostile Hub says instead of the truth.
#[derive(Default)]
pub struct Lies {
    /// As every ETag.
    pub etag: Option<String>,
    /// As the commit of every revision.
    pub sha: Option<String>,
    /// As `X-Repo-Commit`.
    pub commit: Option<String>,
    /// As the content of this file: other bytes of the same length.
    pub content: Option<String>,
    /// As `X-Repo-Commit` of a content alone.
    pub content_commit: Option<String>,
    /// As the ETag of a content alone.
    pub content_etag: Option<String>,
    /// As the size of this file in the list.
    pub size: Option<(String, u64)>,
    /// As git's hash of this file in the list.
    pub oid: Option<(String, String)>,
    /// So many files more in the list.
    pub entries: usize,
    /// All of a file where a part was asked for.
    pub whole: bool,
    /// A content without its length, and after it so many bytes more.
    pub tail: Option<usize>,
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
    let (path, query) = path.split_once('?').unwrap_or((&path, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let from = range.as_deref().and_then(|range| range.strip_suffix('-'));
    let from = from.map_or(0, |from| from.parse().unwrap());
    let request = Seen { method, path, authorization, from };
    seen.lock().unwrap().push(request.clone());
    let response = respond(&request, &query, &mut plan.lock().unwrap());
    let _ = (&stream).write_all(&response);
}

/// Status line, headers and body; less of the body than announced where it is to be cut.
fn respond(request: &Seen, query: &str, plan: &mut Plan) -> Vec<u8> {
    if let Some((status, code)) = plan.refuse {
        return reply(status, &[("X-Error-Code", code)], b"refused", request);
    }
    if plan.renamed && request.path.contains("org/old-name") {
        let location = request.path.replace("org/old-name", "org/model");
        return reply(307, &[("Location", &location)], b"", request);
    }
    let parts: Vec<&str> = request.path.trim_start_matches('/').splitn(6, '/').collect();
    let missing = || reply(404, &[("X-Error-Code", "RepoNotFound")], b"", request);
    match parts[..] {
        ["api", "models", org, name, what @ ("revision" | "tree"), revision] => {
            let Some(files) = plan.repositories.get(&format!("{org}/{name}")) else {
                return missing();
            };
            if !["main", COMMIT, "refs%2Fpr%2F1"].contains(&revision) {
                return reply(404, &[("X-Error-Code", "RevisionNotFound")], b"", request);
            }
            if what == "tree" {
                return tree(request, query, files, plan);
            }
            let sha = plan.lies.sha.as_deref().unwrap_or(COMMIT);
            let body = json!({ "id": format!("{org}/{name}"), "sha": sha }).to_string();
            reply(200, &[("Content-Type", "application/json")], body.as_bytes(), request)
        }
        [org, name, "resolve", _, file] => {
            let Some(files) = plan.repositories.get(&format!("{org}/{name}")) else {
                return missing();
            };
            let Some(bytes) = files.get(file).cloned() else {
                return reply(404, &[("X-Error-Code", "EntryNotFound")], b"", request);
            };
            send_file(request, plan, file, &bytes)
        }
        // Where redirects lead.
        ["cdn", org, name, file] => {
            if request.method != "GET" {
                return reply(403, &[], b"signed for another method", request);
            }
            let bytes = plan.repositories[&format!("{org}/{name}")][file].clone();
            reply(200, &[], &bytes, request)
        }
        _ => reply(404, &[], b"", request),
    }
}

/// A page of a repository's list of files, and where the next one is.
fn tree(request: &Seen, query: &str, files: &BTreeMap<String, Vec<u8>>, plan: &Plan) -> Vec<u8> {
    let first: usize = query.strip_prefix("cursor=").map_or(0, |cursor| cursor.parse().unwrap());
    let page = plan.page.unwrap_or(files.len());
    let Lies { size, oid, entries: more, .. } = &plan.lies;
    let entry = |(path, bytes): (&String, &Vec<u8>)| {
        let lie = size.as_ref().filter(|(of, _)| of == path);
        let oid = oid.as_ref().filter(|(of, _)| of == path).map_or("0", |(_, oid)| oid);
        let size = lie.map_or(bytes.len() as u64, |(_, size)| *size);
        json!({ "type": "file", "oid": oid, "size": size, "path": path })
    };
    let more = (0..*more).map(|i| json!({ "type": "file", "size": 1, "path": format!("f{i}") }));
    let entries = files.iter().skip(first).take(page).map(entry).chain(more);
    let body = json!(entries.collect::<Vec<_>>()).to_string();
    let next = format!("<{}?cursor={}>; rel=\"next\"", request.path, first + page);
    let mut headers = vec![("Content-Type", "application/json")];
    if first + page < files.len() {
        headers.push(("Link", &next));
    }
    reply(200, &headers, body.as_bytes(), request)
}

fn send_file(request: &Seen, plan: &mut Plan, file: &str, bytes: &[u8]) -> Vec<u8> {
    if let Some((status, code)) = plan.refuse_files {
        return reply(status, &[("X-Error-Code", code)], b"refused", request);
    }
    let hash = digest(&SHA256, bytes);
    let hash: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let etag = format!("\"{}\"", plan.lies.etag.as_ref().unwrap_or(&hash));
    let commit = plan.lies.commit.as_deref().unwrap_or(COMMIT);
    let size = bytes.len().to_string();
    let get = request.method == "GET";
    let other_commit = plan.lies.content_commit.clone().filter(|_| get);
    let commit = other_commit.as_deref().unwrap_or(commit);
    let etag = plan.lies.content_etag.clone().filter(|_| get).unwrap_or(etag);
    if get && plan.error_page.as_deref() == Some(file) {
        return reply(200, &[], b"<html>not today</html>", request);
    }
    if let Some(cdn) = &plan.redirect {
        let (org_name, _) = request.path[1..].split_once("/resolve/").unwrap();
        let location = format!("{cdn}/cdn/{org_name}/{file}");
        let headers = [
            ("Location", location.as_str()),
            (plan.redirect_etag.unwrap_or("X-Linked-Etag"), &etag),
            ("X-Linked-Size", &size),
            ("X-Repo-Commit", commit),
        ];
        return reply(302, &headers, b"", request);
    }
    let mut bytes = bytes.to_vec();
    if plan.lies.content.as_deref() == Some(file) {
        bytes[0] ^= 1;
    }
    let from = if plan.lies.whole { 0 } else { request.from };
    let range = format!("bytes {from}-{}/{size}", bytes.len() - 1);
    let mut headers = vec![("ETag", etag.as_str()), ("X-Repo-Commit", commit)];
    if from > 0 {
        headers.push(("Content-Range", &range));
    }
    let status = if from > 0 { 206 } else { 200 };
    let part = &bytes[from..];
    if let Some(more) = plan.lies.tail.filter(|_| get) {
        let head = "HTTP/1.1 200 X\r\nConnection: close\r\n\r\n".as_bytes();
        return [head, part, &vec![b'x'; more]].concat();
    }
    let mut response = reply(status, &headers, part, request);
    if let Some((_, left)) = plan.cut.as_mut().filter(|(cut, left)| get && cut == file && *left > 0)
    {
        *left -= 1;
        response.truncate(response.len() - part.len() / 2);
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
