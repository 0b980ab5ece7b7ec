//! The pages in docs/: what they name is there. `tests/docs/run.py` looks for files, links, flags
//! and metrics, and runs what the pages have a reader run.

use std::fs;

use super::{LAYERS, files};
use crate::root;

/// A name with so many underscores is a test's.
const TEST_UNDERSCORES_MIN: usize = 4;

fn pages() -> Vec<(String, String)> {
    let entries = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().path());
    let pages = entries.filter(|path| path.extension().is_some_and(|e| e == "md"));
    let read = |path: std::path::PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), text)
    };
    pages.map(read).collect()
}

/// What stands in backticks on one line.
fn code_spans(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| line.split('`').skip(1).step_by(2))
}

#[test]
fn every_test_that_a_page_names_is_there() {
    let mut found = Vec::new();
    for folder in ["src", "tests/it"] {
        files(&root().join(folder), &mut found);
    }
    let code: Vec<String> = found.iter().map(|p| fs::read_to_string(p).unwrap()).collect();
    let is_test = |span: &&str| {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        span.matches('_').count() >= TEST_UNDERSCORES_MIN && span.chars().all(is_plain)
    };
    let pages = pages();
    assert!(pages.len() >= 3, "docs/ has lost pages");
    let mut gone = Vec::new();
    for (page, text) in pages {
        for test in code_spans(&text).filter(is_test) {
            // A field of a file may have as long a name, and then stands in the code as a text.
            let known = [format!("fn {test}("), format!("\"{test}\"")];
            if !code.iter().any(|text| known.iter().any(|known| text.contains(known))) {
                gone.push(format!("docs/{page}: {test}"));
            }
        }
    }
    assert!(gone.is_empty(), "{gone:#?}");
}

#[test]
fn the_architecture_page_has_the_layers_that_are_checked() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let rows: Vec<String> = LAYERS.iter().map(|row| row.join("  ")).collect();
    assert!(text.contains(&rows.join("\n")), "expected in docs/architecture.md:\n{rows:#?}");
}

/// Strings of the list that `name` begins in a source file.
fn listed(file: &str, name: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let list = text.split(&format!("const {name}: ")).nth(1).unwrap();
    let list = list.split("];").next().unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn the_page_of_files_names_every_field_that_is_refused_or_left_out() {
    let page = fs::read_to_string(root().join("docs/files.md")).unwrap();
    let mut names = listed("src/text/fields.rs", "REFUSED");
    names.extend(listed("src/text/defaults.rs", "NOT_APPLIED"));
    names.extend(tessera::text::TEXT_FILES.iter().map(|&name| name.to_owned()));
    assert!(names.len() > 35, "{names:?}");
    let spans: Vec<&str> = code_spans(&page).collect();
    let lost: Vec<_> = names.iter().filter(|name| !spans.contains(&name.as_str())).collect();
    assert!(lost.is_empty(), "docs/files.md does not name {lost:?}");
}
