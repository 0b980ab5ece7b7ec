//! Limits of the system: each is named as what it is.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::fake::wait_for;
use crate::process::{Server, tessera};
use crate::serve::{golden, text};

/// `tessera` in a shell that has set limits.
fn limited(limits: &str, args: &[&str]) -> Command {
    let program = tessera(args);
    let mut command = Command::new("sh");
    for (name, value) in program.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let script = format!("{limits}; exec \"$0\" \"$@\"");
    command.args(["-c", &script, program.get_program().to_str().unwrap()]);
    command.args(program.get_args());
    command
}

#[test]
fn a_limit_of_threads_or_addresses_is_named_and_nothing_panics() {
    let model = text(&golden());
    let run = |kib: usize, args: &[&str]| {
        let mut command = limited(&format!("ulimit -v {kib}"), args);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let is_told = |(code, error): &(Option<i32>, String)| {
        let told = error.contains("more threads") && error.contains("ulimit -v");
        *code == Some(1) && told && !error.contains("panicked") && !error.contains("--max-num-seqs")
    };
    // Above them it depends on the build which of the threads has no room.
    for kib in [250_000, 350_000, 450_000] {
        let told = run(kib, &["generate", &model, "x"]);
        assert!(is_told(&told), "{kib}: {told:?}");
    }
}

#[test]
fn open_files_are_raised_to_the_hard_limit_and_told_where_they_are_too_few() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let model = text(&golden());
    let start = |limits: &str| {
        let mut command = limited(limits, &["serve", &model, "--port", "0"]);
        command.stderr(Stdio::from(fs::File::create(&log).unwrap()));
        Server::start_command(command)
    };
    let told = || fs::read_to_string(&log).unwrap();
    let server = start("ulimit -Sn 64; ulimit -Hn 300");
    let limits = fs::read_to_string(format!("/proc/{}/limits", server.id())).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), ["300", "300"]);
    let warns = || told().contains("at most 300 files may be open, and 4096 connections");
    wait_for(warns, told);
    // More clients than files: the server goes on.
    let clients: Vec<_> =
        (0..400).map(|_| std::net::TcpStream::connect(&server.address).unwrap()).collect();
    drop(clients);
    assert_eq!(server.get("/health").0, 200);
    drop(server);
    let _server = start("ulimit -Sn 64");
    assert!(!told().contains("files may be open"), "{}", told());
}

#[test]
fn a_log_beyond_the_largest_file_ends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    fs::write(&log, "x".repeat(4096)).unwrap();
    let mut command =
        limited("ulimit -f 1", &["serve", &text(&golden()), "--port", "0", "--log-level", "debug"]);
    let file = fs::File::options().append(true).open(&log).unwrap();
    let server = Server::start_command({
        command.stderr(Stdio::from(file));
        command
    });
    let body = json!({"prompt": "a", "max_tokens": 1});
    for _ in 0..20 {
        assert_eq!(server.post("/v1/completions", &body).0, 200);
    }
    let page = server.get("/metrics").1;
    let lost = page.lines().find(|line| line.starts_with("tessera:log_lines_lost_total")).unwrap();
    assert!(!lost.ends_with(" 0"), "{lost}");
    assert_eq!(fs::read(&log).unwrap().len(), 4096);
}
