//! Tables in docs/ that are made of the code. These tests fail where a page says something else;
//! with `TESSERA_WRITE_DOCS=1` they write the tables instead:
//!
//! ```text
//! TESSERA_WRITE_DOCS=1 cargo test --test it -- generated the_page_of_metrics
//! ```
//!
//! A table stands between `<!-- NAME: generated -->` and `<!-- NAME: end -->`.

use std::collections::BTreeSet;
use std::fs;

use clap::{Arg, ArgAction, Command};
use tessera::cli::{EXIT_CODES, FOREIGN, Foreign};
use tessera::http::ERROR_CODES;

use crate::root;

/// Checks a table of a page in docs/, or writes it.
pub fn check(page: &str, name: &str, table: &str) {
    let path = root().join("docs").join(page);
    let text = fs::read_to_string(&path).unwrap();
    let (start, end) = (format!("<!-- {name}: generated -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = text.split_once(&start).unwrap_or_else(|| panic!("{page}: no {start}"));
    let (found, after) = rest.split_once(&end).unwrap_or_else(|| panic!("{page}: no {end}"));
    let table = format!("\n{table}\n");
    if std::env::var_os("TESSERA_WRITE_DOCS").is_some() {
        fs::write(&path, format!("{before}{start}{table}{end}{after}")).unwrap();
        return;
    }
    let again = "write it with TESSERA_WRITE_DOCS=1 cargo test --test it -- generated";
    assert!(found == table, "docs/{page}: the table of {name} is an old one; {again}:\n{table}");
}

/// A table of Markdown; a bar in a cell would end it.
pub fn table(heading: &[&str], rows: impl IntoIterator<Item = Vec<String>>) -> String {
    let line = |cells: Vec<String>| {
        let cells = cells.into_iter().map(|cell| cell.replace('|', "\\|"));
        format!("| {} |\n", cells.collect::<Vec<_>>().join(" | "))
    };
    let mut text = line(heading.iter().map(|&cell| cell.to_owned()).collect());
    text += &format!("|{}\n", "---|".repeat(heading.len()));
    rows.into_iter().for_each(|row| text += &line(row));
    text
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

/// One line of help: its lines are broken for the terminal.
fn help(arg: &Arg) -> String {
    let text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn row(arg: &Arg) -> Vec<String> {
    let names = arg.get_value_names().unwrap_or_default();
    let name = names.first().map_or_else(|| arg.get_id().as_str(), |name| name.as_str());
    let flag = match (arg.get_long(), arg.get_action()) {
        (None, _) if names.len() > 1 => names.join(" "),
        (None, _) => name.to_owned(),
        (Some(long), ArgAction::SetTrue) => format!("--{long}"),
        (Some(long), _) => format!("--{long} {name}"),
    };
    let default = match arg.get_action() {
        ArgAction::SetTrue => Vec::new(),
        _ => arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned()).collect(),
    };
    let variable = arg.get_env().map(|name| name.to_string_lossy().into_owned());
    let others = arg.get_visible_aliases().unwrap_or_default().into_iter();
    let flags = std::iter::once(code(&flag)).chain(others.map(|name| code(&format!("--{name}"))));
    let flags = flags.collect::<Vec<_>>().join(", ");
    vec![flags, code(&variable.unwrap_or_default()), code(&default.join(",")), help(arg)]
}

fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_own =
        |arg: &&Arg| !["help", "version"].contains(&arg.get_id().as_str()) && !arg.is_hide_set();
    command.get_arguments().filter(is_own)
}

/// A table for each heading of `--help`.
fn by_heading(command: &Command) -> String {
    let mut headings: Vec<&str> = Vec::new();
    for heading in settings(command).map(|arg| arg.get_help_heading().unwrap_or("Model")) {
        if !headings.contains(&heading) {
            headings.push(heading);
        }
    }
    let tables = headings.into_iter().map(|heading| {
        let own = settings(command);
        let own = own.filter(|arg| arg.get_help_heading().unwrap_or("Model") == heading);
        let rows = table(&["flag", "variable", "default", "meaning"], own.map(row));
        format!("### {heading}\n\n{rows}")
    });
    tables.collect::<Vec<_>>().join("\n")
}

/// A table for each command but `serve`, those within commands too. A command that takes the
/// settings of `serve` has them in its table.
fn others(command: &Command, serve: &Command, path: &str, found: &mut Vec<String>) {
    for sub in command.get_subcommands().filter(|sub| !["serve", "help"].contains(&sub.get_name()))
    {
        let path = format!("{path} {}", sub.get_name());
        if sub.has_subcommands() {
            others(sub, serve, &path, found);
            continue;
        }
        let about = sub.get_about().map(ToString::to_string).unwrap_or_default();
        let takes_all = settings(sub).any(|arg| arg.get_id() == "config");
        let is_serves = |arg: &&Arg| {
            takes_all
                && settings(serve).any(|of| of.get_id() == arg.get_id() && row(of) == row(arg))
        };
        let own = settings(sub).filter(|arg| !is_serves(arg));
        let rows = table(&["flag", "variable", "default", "meaning"], own.map(row));
        let more = "\nAnd those of `tessera serve` that make sense where nobody listens: \
                    [who answers](batch.md#who-answers).\n";
        let more = if takes_all { more } else { "" };
        found.push(format!("### `{path}`\n\n{about}\n\n{rows}{more}"));
    }
}

#[test]
fn generated_tables_of_flags_are_those_of_the_command_line() {
    let mut command = tessera::cli::command();
    command.build();
    let serve = command.find_subcommand("serve").unwrap();
    check("configuration.md", "flags of serve", &by_heading(serve));
    let mut found = Vec::new();
    others(&command, serve, "tessera", &mut found);
    check("configuration.md", "flags of other commands", &found.join("\n"));
    let rows = FOREIGN.iter().map(|Foreign { of, names, instead }| {
        let names: Vec<String> = names.iter().map(|name| code(name)).collect();
        vec![names.join(", "), (*of).to_owned(), (*instead).to_owned()]
    });
    let rows = table(&["flag", "known from", "here"], rows);
    check("configuration.md", "flags of other servers", &rows);
}

#[test]
fn generated_tables_of_errors_are_those_that_are_answered() {
    let rows = ERROR_CODES.iter().map(|(name, status, retry, when)| {
        let retry = retry.map_or_else(String::new, |retry| code(&retry.to_string()));
        vec![code(name), status.to_string(), retry, (*when).to_owned()]
    });
    check("errors.md", "codes", &table(&["`code`", "status", "`x-should-retry`", "when"], rows));
    let rows = EXIT_CODES.iter().map(|(code, when)| vec![code.to_string(), (*when).to_owned()]);
    check("errors.md", "exit codes", &table(&["exit code", "when"], rows));
}

/// Status and code wherever one is written in the source: `row(400, REQUEST, "code", …)`, and
/// `code: "code"` of what is a 400.
fn answered() -> BTreeSet<(String, u16)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root().join("src/http/error")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        for call in text.split("row(").skip(1) {
            let mut parts = call.split(',').map(str::trim);
            let (Some(status), Some(_), Some(code)) = (parts.next(), parts.next(), parts.next())
            else {
                continue;
            };
            if let (Ok(status), Some(code)) = (status.parse::<u16>(), code.strip_prefix('"')) {
                found.insert((code.trim_end_matches('"').to_owned(), status));
            }
        }
    }
    for (file, start) in [
        ("src/request/invalid.rs", "code: \""),
        ("src/request.rs", "code: \""),
        ("src/http/request/parse.rs", "is_data() { \""),
        ("src/http/request/parse.rs", "else { \""),
    ] {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let codes = text.split(start).skip(1).map(|rest| rest.split('"').next().unwrap());
        found.extend(codes.map(|code| (code.to_owned(), 400)));
    }
    found
}

#[test]
fn every_code_of_an_error_is_listed_and_every_listed_one_is_answered() {
    let listed = ERROR_CODES.iter().map(|(code, status, ..)| ((*code).to_owned(), *status));
    assert!(ERROR_CODES.is_sorted_by(|a, b| a.0 < b.0), "by code, each once");
    assert_eq!(listed.collect::<BTreeSet<_>>(), answered());
}

/// What stands in quotes.
fn quoted(text: &str) -> Vec<&str> {
    text.split('"').skip(1).step_by(2).collect()
}

#[test]
fn generated_table_of_methods_has_every_method_with_what_its_file_says() {
    let mut rows = Vec::new();
    for entry in fs::read_dir(root().join("src/adapter")).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        if !text.contains("impl Method for ") {
            continue;
        }
        let doc = text.lines().take_while(|line| line.starts_with("//!"));
        let doc = doc.map(|line| line.trim_start_matches("//!").trim()).collect::<Vec<_>>();
        // The first paragraph says what is computed.
        let doc = doc.split(|line| line.is_empty()).next().unwrap().join(" ");
        let body = |name: &str| text.split(name).nth(1).unwrap().split("\n    }\n").next().unwrap();
        // Another project's files are no files of this one.
        let spans = doc.split('`').enumerate();
        let doc: String = spans
            .map(|(i, span)| match i % 2 == 1 && !span.ends_with(".py") {
                true => code(span),
                false => span.to_owned(),
            })
            .collect();
        let name = quoted(body("fn name("))[0].to_owned();
        let told: Vec<String> = quoted(body("fn reads(")).into_iter().map(code).collect();
        rows.push(vec![name, told.join(", "), doc]);
    }
    rows.sort();
    assert_eq!(rows.len(), tessera::adapter::METHODS.len());
    let known = |row: &Vec<String>| tessera::adapter::METHODS.iter().any(|m| m.name() == row[0]);
    assert!(rows.iter().all(known), "{rows:?}");
    let heading = ["method", "told by, in `adapter_config.json`", "computes"];
    check("methods.md", "methods", &table(&heading, rows));
}
