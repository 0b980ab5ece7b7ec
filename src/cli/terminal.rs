//! What a model or a server says, on a terminal: text, and nothing that steers it.

use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Write};

use super::CliError;
use crate::http::shortened;

/// Control characters are shown by their pictures, which begin here: U+241B for Escape.
const PICTURES: u32 = 0x2400;
const DELETE: char = '\u{7f}';
const PICTURE_OF_DELETE: char = '\u{2421}';

/// A text in which no character moves the cursor, begins an escape sequence or turns the direction
/// of writing; line ends and tabs stay.
pub fn harmless(text: &str) -> Cow<'_, str> {
    if !text.chars().any(is_harmful) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            c if !is_harmful(c) => shown.push(c),
            DELETE => shown.push(PICTURE_OF_DELETE),
            c if c.is_ascii() => shown.extend(char::from_u32(PICTURES + c as u32)),
            c => shown.extend(c.escape_unicode()),
        }
    }
    Cow::Owned(shown)
}

/// A line of ours about something that may come from a file or a request: it stays one line, and
/// a short one.
pub fn line(text: &str) -> String {
    harmless(&shortened(text)).replace('\n', "␊").replace('\t', "␉")
}

/// A text of JSON in which harmful characters are written as JSON does it.
pub fn harmless_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        match is_harmful(c) {
            // All of them are in the first plane.
            true => shown += &format!("\\u{:04x}", c as u32),
            false => shown.push(c),
        }
    }
    shown
}

/// The same as [`harmless`], on one line.
pub fn one_line(text: &str) -> String {
    harmless(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether a character steers a terminal, or makes a text look like another. Line ends and tabs do
/// not.
pub fn is_harmful(c: char) -> bool {
    // Line ends of Unicode; marks, embeddings, overrides and isolates.
    let turns = ['\u{200e}', '\u{200f}', '\u{61c}', '\u{2028}', '\u{2029}'].contains(&c)
        || ('\u{202a}'..='\u{202e}').contains(&c)
        || ('\u{2066}'..='\u{2069}').contains(&c);
    turns || (c.is_control() && !['\n', '\t'].contains(&c))
}

/// Standard output, as the texts of models are written to it: made harmless on a terminal, as they
/// are elsewhere.
pub struct Screen {
    is_terminal: bool,
    /// Whether the last thing written ended a line.
    is_at_start: bool,
}

impl Screen {
    /// Of this process.
    pub fn new() -> Self {
        Self { is_terminal: io::stdout().is_terminal(), is_at_start: true }
    }

    /// Writes at once what a model says; false when nobody reads any more.
    ///
    /// # Errors
    /// When standard output cannot be written for another reason.
    pub fn say(&mut self, text: &str) -> Result<bool, CliError> {
        match self.is_terminal {
            true => self.raw(&harmless(text)),
            false => self.raw(text),
        }
    }

    /// Writes what this program says itself, escape sequences included.
    ///
    /// # Errors
    /// As for [`Screen::say`].
    pub fn raw(&mut self, text: &str) -> Result<bool, CliError> {
        if let Some(last) = text.chars().next_back() {
            self.is_at_start = last == '\n';
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => {
                Err(CliError::General(format!("standard output cannot be written: {error}")))
            }
        }
    }

    /// Ends the line, if one was begun.
    ///
    /// # Errors
    /// As for [`Screen::say`].
    pub fn end_line(&mut self) -> Result<bool, CliError> {
        match self.is_at_start {
            true => Ok(true),
            false => self.raw("\n"),
        }
    }
}

/// What a variable of the environment says; an empty one counts as not set.
pub fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether colours are wanted on a stream.
pub fn has_colors(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && variable("NO_COLOR").is_none()
}

/// A line about an error or a warning on standard error.
pub fn complain(text: &str) {
    remark(&line(text));
}

/// A remark to the user on standard error, beside the results.
pub fn remark(text: &str) {
    // Whoever closed it wants no remarks.
    let _ = writeln!(io::stderr(), "{}", harmless(text));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_model_writes_steers_the_terminal() {
        assert_eq!(harmless("plain ü 🦊\n\tx"), "plain ü 🦊\n\tx");
        assert_eq!(harmless("\u{1b}[2J\u{7}a\rb\u{7f}"), "␛[2J␇a␍b␡");
        assert_eq!(harmless("\u{9b}31m\u{202e}abc"), "\\u{9b}31m\\u{202e}abc");
        assert_eq!(harmless("\0"), "␀");
        assert!(!(0..0x300).filter_map(char::from_u32).any(|c| {
            harmless(&c.to_string()).chars().any(|c| c.is_control() && !"\n\t".contains(c))
        }));
        assert_eq!(one_line("a\n b\u{1b}"), "a b␛");
    }

    #[test]
    fn a_line_about_something_is_one_and_short_and_keeps_its_end() {
        assert_eq!(line("a\n\tb\r\u{2028}c"), "a␊␉b␍\\u{2028}c");
        let long = line(&format!("no '{}'; see --help", "ü\n".repeat(1_000_000)));
        assert!(long.len() < 10_000 && long.ends_with("'; see --help"), "{long}");
    }

    #[test]
    fn json_stays_json_and_says_the_same() {
        let value = serde_json::json!({"a\u{202e}b": "\u{9b}31m\u{7f}\u{1b}\n\u{2028} ü 🦊"});
        let text = harmless_json(&format!("{value:#}\n"));
        assert!(!text.chars().any(is_harmful), "{text:?}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
