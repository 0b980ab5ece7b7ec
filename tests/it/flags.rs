//! What is said to a value that a flag does not take: in words that have the range in them.

use clap::error::ErrorKind;
use clap::{ArgAction, Command};

use crate::process::tessera;

/// Words of Rust's own errors, and of its ranges.
const RUST: [&str; 8] = [
    "invalid digit",
    "target type",
    "parse integer",
    "empty string",
    "float literal",
    "..=",
    "usize",
    "u64",
];

/// Every command by its words, those within others among them.
fn commands(words: &[String], command: &Command, all: &mut Vec<(Vec<String>, Command)>) {
    for own in command.get_subcommands().filter(|own| own.get_name() != "help") {
        let words = [words, &[own.get_name().to_owned()]].concat();
        commands(&words, own, all);
        all.push((words, own.clone()));
    }
}

#[test]
fn no_flag_answers_with_a_type_of_rust() {
    let command = tessera::cli::command();
    let mut all = Vec::new();
    commands(&["tessera".to_owned()], &command, &mut all);
    let mut refused = 0;
    for (words, own) in &all {
        let takes =
            |arg: &&clap::Arg| matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
        let flags = own.get_arguments().filter(takes).filter_map(|arg| arg.get_long());
        for flag in flags {
            for value in ["abc", "-1", "1.5", "", "99999999999999999999", "1e400", "nan"] {
                let typed = words.iter().cloned().chain([format!("--{flag}={value}")]);
                let Err(error) = command.clone().try_get_matches_from(typed) else { continue };
                if ![ErrorKind::ValueValidation, ErrorKind::InvalidValue].contains(&error.kind()) {
                    continue;
                }
                refused += 1;
                let text = error.to_string();
                let word = RUST.iter().find(|word| text.contains(**word));
                assert_eq!(word, None, "{words:?} --{flag}={value}: {text}");
            }
        }
    }
    assert!(refused > 300, "{refused}");
}

#[test]
fn a_number_out_of_range_is_told_the_range() {
    for (args, range) in [
        (&["serve", "--port", "65536"][..], "from 0 to 65535"),
        (&["healthcheck", "--port=-1"], "from 0 to 65535"),
        (&["serve", "--drain-seconds", "1.5"], "from 0 to 18446744073709551615"),
        (&["generate", "x", "--n", "0"], "from 1 to 4294967295"),
        (&["load", "--concurrency", "65537"], "from 1 to 65536"),
        (&["synth", "model", "x", "--layers", "0"], "from 1 to 16777216"),
    ] {
        let output = tessera(args).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(&format!("expected a whole number {range}")), "{error}");
    }
}

#[test]
fn an_error_about_megabytes_is_short_and_steers_no_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let long = "x\u{1b}[31m\u{202e}\u{9b}\u{2028}".repeat(20_000);
    for (name, text) in [
        ("key", format!("\"{}\" = 1\n", long.replace('\u{1b}', "\\u001b"))),
        ("value", format!("port = \"{}\"\n", long.replace('\u{1b}', "\\u001b"))),
        ("much", "x = 1 # y\n".repeat(200_000)),
        ("number", "\n\nport = 99999999999999999999999\n".to_owned()),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        let output = tessera(&["serve", "--config", path.to_str().unwrap()]).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(5), "{error}");
        assert!(error.len() < 10_000 && error.lines().count() == 1, "{name}: {error}");
        let steers = |c: char| c.is_control() && c != '\n' || "\u{202e}\u{2028}".contains(c);
        assert!(!error.contains(steers), "{name}: {error:?}");
        assert!(!error.contains("i128"), "{error}");
    }
}
