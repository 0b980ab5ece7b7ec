//! The command line on a terminal: a pseudo-terminal of 100 columns, by `script` of util-linux.

use std::process::{Command, Stdio};

use crate::process::tessera;
use crate::serve::{golden, text};

/// Exit code and everything that came, of `tessera` on a terminal.
fn on_terminal(args: &[&str], settings: &[(&str, &str)]) -> (Option<i32>, String) {
    // For its environment, which is without the caller's settings.
    let plain = tessera(args);
    let quoted: Vec<String> = std::iter::once(plain.get_program())
        .chain(plain.get_args())
        .map(|word| format!("'{}'", word.to_str().unwrap()))
        .collect();
    let line = format!("stty rows 30 cols 100; exec {}", quoted.join(" "));
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line, "/dev/null"]);
    for (name, value) in plain.get_envs() {
        match value {
            Some(value) => script.env(name, value),
            None => script.env_remove(name),
        };
    }
    script.env("TERM", "xterm-256color").env_remove("NO_COLOR").envs(settings.iter().copied());
    let output = script.stdin(Stdio::null()).output().expect("script of util-linux");
    (output.status.code(), String::from_utf8_lossy(&output.stdout).replace("\r\n", "\n"))
}

/// Without what moves cursors and chooses colours.
fn plain(text: &str) -> String {
    let mut parts = text.split('\x1b');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| c.is_ascii_alphabetic()).map_or(part.len(), |at| at + 1);
        plain.push_str(&part[end..]);
    }
    plain
}

#[test]
fn help_is_wrapped_and_has_bold_headings() {
    let (code, help) = on_terminal(&[], &[]);
    assert_eq!(code, Some(2), "{help}");
    assert!(help.contains("\x1b[1m\x1b[4mExamples:\x1b[0m"), "{help:?}");
    let (code, help) = on_terminal(&["serve", "--help"], &[]);
    assert_eq!(code, Some(0));
    for heading in ["Adapters:", "Server:", "Access:", "Engine:", "Examples:"] {
        assert!(plain(&help).lines().any(|line| line == heading), "{heading}: {help}");
    }
    let widest = plain(&help).lines().map(|line| line.chars().count()).max().unwrap();
    assert!((60..=100).contains(&widest), "{widest}");
}

#[test]
fn doctor_has_colours_on_a_terminal_unless_they_are_not_wanted() {
    let args = ["doctor", "--port", "0", "--device", "cpu"];
    let (code, colored) = on_terminal(&args, &[]);
    assert!(code == Some(0) && colored.contains("\x1b[32mok"), "{colored:?}");
    let (_, bare) = on_terminal(&args, &[("NO_COLOR", "1")]);
    assert!(!bare.contains('\x1b') && bare.contains("ok       cpu"), "{bare:?}");
    let (_, json) = on_terminal(&[&args[..], &["--json"]].concat(), &[]);
    assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok(), "{json}");
}

#[test]
fn settings_are_the_same_text_on_a_terminal() {
    let args = ["serve", "--port", "9000", "--print-config"];
    let (code, shown) = on_terminal(&args, &[]);
    let piped = tessera(&args).output().unwrap();
    assert_eq!((code, shown.as_str()), (Some(0), std::str::from_utf8(&piped.stdout).unwrap()));
}

#[test]
fn no_setting_steers_the_terminal_that_shows_it() {
    let args = ["serve", "--served-model-name", "a\u{9b}31m\u{202e}b", "--print-config"];
    let (code, shown) = on_terminal(&args, &[]);
    let harmful = |c: char| c.is_control() && c != '\n' || c == '\u{202e}';
    assert!(code == Some(0) && !shown.contains(harmful), "{shown:?}");
    assert!(shown.contains("31m"), "{shown}");
}

#[test]
fn bench_says_how_long_it_takes_and_shows_how_far_it_is_on_a_terminal_alone() {
    let model = text(&golden());
    let shape = ["--rows", "1", "--rounds", "1", "--cases", "base,one", "--prefill", "4"];
    let rest = ["--device", "cpu", "--context", "8", "--threads", "1", "--rank", "2"];
    let args = [&["bench", model.as_str()], &shape[..], &rest].concat();
    let (code, shown) = on_terminal(&args, &[]);
    assert!(code == Some(0) && shown.contains("this takes about "), "{shown}");
    assert!(
        shown.contains("steps") && shown.contains("/8"),
        "2 widths, 2 rounds, 2 cases: {shown}"
    );
    let piped = tessera(&args).output().unwrap();
    let (out, error) = (String::from_utf8_lossy(&piped.stdout), piped.stderr);
    assert!(out.contains("this takes about ") && out.contains("decode, 1 rows"), "{out}");
    assert!(error.is_empty(), "{}", String::from_utf8_lossy(&error));
}
