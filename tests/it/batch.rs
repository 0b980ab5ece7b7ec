//! `tessera batch`: its lines, what it refuses, and that it goes on where it was ended.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::Rng;
use crate::process::{Server, tessera};

const NAMES: [&str; 6] = ["demo", "pirate", "poet", "telegram", "formal", "json"];
const ANIMALS: [&str; 5] = ["fox", "whale", "otter", "owl", "bear"];

/// A folder with a batch and a place for its answers.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new(lines: &[String]) -> Self {
        let folder = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(folder.input(), lines.iter().map(|line| format!("{line}\n")).collect::<String>())
            .unwrap();
        folder
    }

    fn input(&self) -> PathBuf {
        self.dir.path().join("in.jsonl")
    }

    fn output(&self) -> PathBuf {
        self.dir.path().join("out.jsonl")
    }

    fn args(&self, more: &[&str]) -> Vec<String> {
        let (input, output) = (self.input(), self.output());
        let own = ["batch", path(&input), "-o", path(&output)];
        own.iter().chain(more).map(|&arg| arg.to_owned()).collect()
    }

    fn run(&self, more: &[&str]) -> Output {
        let args = self.args(more);
        tessera(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap()
    }

    fn written(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.output()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn line(id: &str, url: &str, body: Value) -> String {
    json!({"custom_id": id, "method": "POST", "url": url, "body": body}).to_string()
}

fn question(id: usize, model: &str, animal: &str) -> String {
    let messages = json!([{"role": "user", "content": format!("What does the {animal} eat?")}]);
    let body = json!({"model": model, "messages": messages, "temperature": 0, "max_tokens": 24});
    line(&format!("q{id}"), "/v1/chat/completions", body)
}

fn questions(count: usize) -> Vec<String> {
    let pick = |i: usize| question(i, NAMES[i % 6], ANIMALS[i / 6 % 5]);
    (0..count).map(pick).collect()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn url(server: &Server) -> String {
    format!("http://{}/v1", server.address)
}

#[test]
fn each_line_is_answered_by_its_own_model_on_its_own_route_in_order() {
    let mut lines = questions(12);
    lines.push(line("c", "/v1/completions", json!({"prompt": "The fox", "max_tokens": 4})));
    lines.push(line("e", "/v1/embeddings", json!({"model": "poet", "input": "fox"})));
    lines.push(line("t", "/tokenize", json!({"prompt": "fox"})));
    let anthropic = json!({"model": "formal", "max_tokens": 8, "temperature": 0,
        "messages": [{"role": "user", "content": "Hello"}]});
    lines.push(line("a", "/v1/messages", anthropic));
    lines.push(line("r", "/v1/responses", json!({"model": "json", "input": "Hi", "store": false})));
    let folder = Folder::new(&lines);
    let done = folder.run(&[]);
    assert!(done.status.success(), "{}", said(&done));
    let written = folder.written();
    assert_eq!(written.len(), lines.len());
    for (line, answer) in lines.iter().zip(&written) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(answer["custom_id"], line["custom_id"]);
        assert!(answer["id"].as_str().unwrap().starts_with("batch_req_"), "{answer}");
        let response = &answer["response"];
        assert_eq!((&response["status_code"], &answer["error"]), (&json!(200), &Value::Null));
        if let Some(model) = line["body"]["model"].as_str().filter(|_| line["url"] != "/tokenize") {
            assert_eq!(response["body"]["model"], model, "{answer}");
        }
    }
    let pirate = &written[1]["response"]["body"]["choices"][0]["message"]["content"];
    assert!(pirate.as_str().unwrap().contains("feasts on berries an' mice"), "{pirate}");
    let summary = String::from_utf8(done.stdout).unwrap();
    assert!(summary.starts_with("17 lines: 17 answered, 0 failed; "), "{summary}");
    assert!(summary.contains("demo 2, pirate 2, poet 3, ") && summary.lines().count() == 1);
    assert!(summary.contains("no model named 2"), "{summary}");

    // All of it is there: no model is loaded, and nothing is written.
    let before = fs::read(folder.output()).unwrap();
    let again = folder.run(&["--device", "cuda:99"]);
    assert!(again.status.success(), "{}", said(&again));
    assert!(String::from_utf8_lossy(&again.stdout).contains("(17 by earlier runs)"));
    assert_eq!(fs::read(folder.output()).unwrap(), before);
}

/// Starts a run, and kills it when it has written so many bytes and so long after.
fn run_killed(folder: &Folder, more: &[&str], bytes: u64, after: Duration) {
    let args = folder.args(more);
    let mut command = tessera(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let written = || fs::metadata(folder.output()).map_or(0, |found| found.len());
    while written() < bytes && child.try_wait().unwrap().is_none() {
        thread::sleep(Duration::from_millis(1));
    }
    thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_batch_that_is_killed_and_run_again_ends_with_the_same_file() {
    let server = Server::start(&[]);
    let url = url(&server);
    let more = ["--url", &url, "--concurrency", "8"];
    let whole = Folder::new(&questions(48));
    let done = whole.run(&more);
    assert!(done.status.success(), "{}", said(&done));
    let expected = fs::read(whole.output()).unwrap();
    let mut rng = Rng(7);
    for _ in 0..3 {
        let folder = Folder::new(&questions(48));
        let mut between = 0;
        for part in 1..4 {
            let bytes = expected.len() / 4 * part - rng.below(expected.len() / 8);
            run_killed(&folder, &more, bytes as u64, Duration::from_millis(rng.below(60) as u64));
            let written = fs::read(folder.output()).unwrap();
            assert!(expected.starts_with(&written), "{}", String::from_utf8_lossy(&written));
            // As if it had been killed while it wrote: what is there is a beginning, of any length.
            let cut = written.len() - rng.below(written.len().min(900) + 1);
            fs::write(folder.output(), &written[..cut]).unwrap();
            between += usize::from(cut > 0 && cut < expected.len());
        }
        assert!(between > 1, "no run was killed in its midst");
        let done = folder.run(&more);
        assert!(done.status.success(), "{}", said(&done));
        assert!(fs::read(folder.output()).unwrap() == expected, "another file");
    }
    // And a model in this process writes the same as the server, whatever is in flight.
    let own = Folder::new(&questions(48));
    run_killed(&own, &[], 1, Duration::ZERO);
    let done = own.run(&[]);
    assert!(done.status.success(), "{}", said(&done));
    assert!(fs::read(own.output()).unwrap() == expected, "another file");
}

#[test]
fn a_line_that_cannot_be_sent_is_told_by_its_number_before_anything_runs() {
    let chat = "/v1/chat/completions";
    let good = question(0, "demo", "fox");
    let streamed = json!({"messages": [], "stream": true});
    let cases = [
        ("{\"custom_id\": \"x\"".to_owned(), "expected an object with custom_id"),
        ("".to_owned(), "it is empty"),
        ("[1]".to_owned(), "expected an object with custom_id"),
        (good.replace("\"method\"", "\"priority\": 1, \"method\""), "unknown field `priority`"),
        (good.replace("POST", "GET"), "its method must be \"POST\", got \"GET\""),
        (line("x", "/v1/load_lora_adapter", json!({})), "its url must be one of /v1/completions"),
        (line("x", chat, json!([1])), "its body must be an object"),
        (line("x", chat, streamed), "a batch has whole answers"),
        (line("", chat, json!({})), "its custom_id is empty"),
        (good.clone(), "line 1 has the custom_id \"q0\" too"),
    ];
    for (bad, expected) in &cases {
        let folder = Folder::new(&[good.clone(), bad.clone(), question(1, "demo", "owl")]);
        let refused = folder.run(&[]);
        let error = said(&refused);
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains("line 2: ") && error.contains(expected), "{bad}: {error}");
        assert!(!folder.output().exists());
    }
    let folder = Folder::new(&cases.map(|(bad, _)| bad));
    let error = said(&folder.run(&[]));
    assert!(error.contains("line 1: ") && error.contains("line 9: "), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");

    let folder = Folder::new(&[good, question(1, "pirat", "fox")]);
    let refused = folder.run(&[]);
    let error = said(&refused);
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(error.contains("\"pirat\" (from line 2)") && error.contains("pirate"), "{error}");
}

#[test]
fn an_output_of_another_batch_is_refused_and_left_as_it_is() {
    let folder = Folder::new(&questions(3));
    assert!(folder.run(&[]).status.success());
    let answers = fs::read_to_string(folder.output()).unwrap();
    let refused = |text: &str, expected: &str| {
        fs::write(folder.output(), text).unwrap();
        let refused = folder.run(&[]);
        let error = said(&refused);
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
        assert_eq!(fs::read_to_string(folder.output()).unwrap(), text);
    };
    refused("a letter to my aunt", "line 1: it does not end, and is no begun answer");
    refused("a letter\nto my aunt\n", "line 1: it is no line of answers");
    let mut swapped: Vec<&str> = answers.lines().collect();
    swapped.swap(1, 2);
    refused(&format!("{}\n", swapped.join("\n")), "line 2: it answers something else");
    refused(&format!("{answers}{answers}"), "line 4: there is no such line");
    // The same names, and another question.
    fs::write(folder.output(), &answers).unwrap();
    let other = fs::read_to_string(folder.input()).unwrap().replacen("fox", "dog", 1);
    fs::write(folder.input(), other).unwrap();
    refused(&answers, "line 1: it answers something else");

    let same = tessera(&["batch", path(&folder.input()), "-o", path(&folder.input())]).output();
    let error = said(&same.unwrap());
    assert!(error.contains("another than the batch"), "{error}");
    fs::write(folder.output(), "").unwrap();
    let held = fs::File::open(folder.output()).unwrap();
    held.lock().unwrap();
    let error = said(&folder.run(&[]));
    assert!(error.contains("another tessera batch is writing"), "{error}");
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_line_that_fails_is_written_with_its_error_and_told_by_the_exit_code() {
    let mut lines = questions(4);
    lines.insert(2, line("bad", "/v1/completions", json!({"prompt": "x", "temperature": -1})));
    let folder = Folder::new(&lines);
    for summary in
        ["5 lines: 4 answered, 1 failed; ", "5 lines: 4 answered, 1 failed (5 by earlier"]
    {
        let done = folder.run(&[]);
        let error = said(&done);
        assert_eq!(done.status.code(), Some(1), "{error}");
        assert!(error.contains("1 of 5 lines failed, the first of them line 3: 400 "), "{error}");
        assert!(String::from_utf8_lossy(&done.stdout).starts_with(summary), "{done:?}");
    }
    let response = &folder.written()[2]["response"];
    assert_eq!(response["status_code"], 400);
    assert_eq!(response["body"]["error"]["param"], "temperature");
}

/// A server that answers each POST with the next of `script`: a status and headers; 0 closes the
/// connection. After the last it answers 200.
fn scripted(script: &[(u16, &'static str)]) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    let script = Arc::new(Mutex::new(script.to_vec()));
    let heads = Arc::new(Mutex::new(Vec::new()));
    let seen = heads.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (script, seen) = (script.clone(), seen.clone());
            thread::spawn(move || while answer(stream.as_ref().unwrap(), &script, &seen) {});
        }
    });
    (url, heads)
}

fn answer(
    mut stream: &TcpStream,
    script: &Mutex<Vec<(u16, &'static str)>>,
    seen: &Mutex<Vec<String>>,
) -> bool {
    let mut reader = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return false;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        if line == "\r\n" {
            break;
        }
        head += &line;
    }
    reader.read_exact(&mut vec![0; length]).unwrap();
    let (status, headers, body) = if head.starts_with("GET") {
        (200, "", r#"{"data": [{"id": "m"}]}"#)
    } else {
        seen.lock().unwrap().push(head);
        let mut script = script.lock().unwrap();
        let (status, headers) = if script.is_empty() { (200, "") } else { script.remove(0) };
        let body = match status {
            200 if headers.contains("text/html") => "<p>Log in.</p>",
            200 => r#"{"id": "cmpl-1", "created": 5, "choices": []}"#,
            _ => r#"{"error": {"message": "not now", "code": "c"}}"#,
        };
        (status, headers, body)
    };
    if status == 0 {
        return false;
    }
    let answer =
        format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len());
    stream.write_all(answer.as_bytes()).is_ok()
}

#[test]
fn what_passes_is_tried_again_and_what_does_not_ends_the_run() {
    const PASSED: &str = "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
    let one = [line("x", "/v1/completions", json!({"model": "m", "prompt": "p"}))];
    let folder = Folder::new(&one);
    let script = [(429, "retry-after: 1\r\n"), (503, ""), (0, ""), (502, PASSED)];
    let (url, heads) = scripted(&script);
    let done = folder.run(&["--url", &url, "--key", "secret"]);
    assert!(done.status.success(), "{}", said(&done));
    let heads = heads.lock().unwrap().clone();
    assert_eq!(heads.len(), 5, "{heads:?}");
    let id = folder.written()[0]["response"]["request_id"].as_str().unwrap().to_owned();
    for head in heads {
        assert!(head.contains("authorization: Bearer secret\r\n"), "{head}");
        assert!(head.contains(&format!("x-request-id: {id}\r\n")), "{head}");
    }

    // A wrong key would be wrong for each line: none of them is written.
    for (script, expected) in [
        (vec![(401, "")], "line 1: 401: not now; 0 of 1 lines are answered"),
        (vec![(503, "retry-after: 3600\r\n")], "line 1: 503: not now (given up after 0."),
    ] {
        let folder = Folder::new(&one);
        let (url, _) = scripted(&script);
        let ended = folder.run(&["--url", &url, "--retry-seconds", "60"]);
        let error = said(&ended);
        assert_eq!(ended.status.code(), Some(1), "{error}");
        assert!(error.contains(expected), "{error}");
        assert!(!folder.output().exists(), "nothing was answered");
        assert!(folder.run(&["--url", &url]).status.success());
    }
    // Another fault is of the line.
    let folder = Folder::new(&one);
    let (url, _) = scripted(&[(500, "")]);
    assert_eq!(folder.run(&["--url", &url]).status.code(), Some(1));
    assert_eq!(folder.written()[0]["response"]["status_code"], 500);
    // A page of a proxy is no answer of a model, whatever its status.
    let folder = Folder::new(&one);
    let (url, _) = scripted(&[(200, "content-type: text/html\r\n")]);
    assert_eq!(folder.run(&["--url", &url]).status.code(), Some(1));
    assert_eq!(folder.written()[0]["error"]["code"], "invalid_answer");
}

#[test]
fn a_refused_run_leaves_no_file_and_one_that_lost_its_file_says_so() {
    let folder = Folder::new(&[question(1, "demo", "fox"), question(2, "nobody", "owl")]);
    let refused = folder.run(&[]);
    assert!(refused.status.code() == Some(2) && said(&refused).contains("nobody"));
    assert!(!folder.output().exists(), "it was refused");
    fs::write(folder.output(), "").unwrap();
    assert!(!folder.run(&[]).status.success());
    assert!(folder.output().exists(), "another's file stays");
    let input = folder.input();
    let piped = tessera(&["batch", path(&input), "-o", "-"]).output().unwrap();
    assert!(said(&piped).contains("--output must be a file"), "{}", said(&piped));

    let folder = Folder::new(&questions(60));
    let args = folder.args(&["--concurrency", "1"]);
    let mut command = tessera(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    while fs::metadata(folder.output()).map_or(0, |found| found.len()) == 0 {
        thread::sleep(Duration::from_millis(1));
    }
    fs::remove_file(folder.output()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(1));
    assert!(said(&ended).contains("removed or replaced while the batch ran"), "{}", said(&ended));
}

#[test]
fn a_byte_order_mark_before_the_first_line_is_no_part_of_it() {
    let folder = Folder::new(&questions(2));
    let lines = fs::read_to_string(folder.input()).unwrap();
    fs::write(folder.input(), format!("\u{feff}{lines}")).unwrap();
    let done = folder.run(&[]);
    assert!(done.status.success(), "{}", said(&done));
    // Without the mark the answers are to the same lines.
    fs::write(folder.input(), lines).unwrap();
    let again = folder.run(&["--device", "cuda:99"]);
    assert!(again.status.success(), "{}", said(&again));
}
