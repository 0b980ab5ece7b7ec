//! A template's source, as the template engine must see it to render what jinja2 renders.

use regex::Regex;

/// The source with plain line ends, which jinja2 makes of all others, and without the marks that
/// transformers knows.
pub(super) fn prepared(source: &str) -> Result<String, regex::Error> {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    // It marks the assistant's text for training; for rendering it is a block like any other.
    let marks = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")?;
    let plain = marks.replace_all(&source, |found: &regex::Captures<'_>| {
        let tag = if found.get(2).is_some() { "endwith" } else { "with" };
        format!("{{%{} {tag} {}%}}", &found[1], &found[3])
    });
    Ok(plain.into_owned())
}
