//! Calls that a model writes as Python: `[f(a=1, b='x'), g()]`.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::call_object::CallPart;

/// Lists and dicts within each other.
const DEPTH_MAX: usize = 64;

/// What a character made of the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PythonicStep {
    /// It goes on.
    More,
    /// A call of it is whole.
    Call,
    /// It is over.
    Whole,
    /// The character cannot stand here.
    Wrong,
}

/// A list of calls, after its bracket.
pub(super) struct Pythonic {
    names: Arc<[String]>,
    /// The call that is read.
    text: String,
    /// Brackets of it that are open.
    depth: usize,
    quote: Option<char>,
    is_escaped: bool,
    calls: usize,
    /// A comma has been read since the last call.
    goes_on: bool,
}

impl Pythonic {
    /// Only these names are calls.
    pub fn new(names: Arc<[String]>) -> Self {
        let (text, quote) = (String::new(), None);
        Self { names, text, depth: 0, quote, is_escaped: false, calls: 0, goes_on: true }
    }

    /// Takes the next character.
    pub fn push(&mut self, c: char, parts: &mut Vec<CallPart>) -> PythonicStep {
        let step = match self.quote {
            Some(quote) => {
                self.quote = Some(quote).filter(|_| self.is_escaped || c != quote);
                self.is_escaped = !self.is_escaped && c == '\\';
                PythonicStep::More
            }
            None if self.depth == 0 => return self.between(c),
            None => match c {
                '\'' | '"' => {
                    self.quote = Some(c);
                    PythonicStep::More
                }
                '(' | '[' | '{' => {
                    self.depth += 1;
                    PythonicStep::More
                }
                ')' | ']' | '}' => {
                    self.depth -= 1;
                    if self.depth == 0 { PythonicStep::Call } else { PythonicStep::More }
                }
                _ => PythonicStep::More,
            },
        };
        self.text.push(c);
        if step != PythonicStep::Call {
            return step;
        }
        let text = std::mem::take(&mut self.text);
        let Some((name, arguments)) = call(&text) else { return PythonicStep::Wrong };
        parts.push(CallPart::Begin(name));
        parts.push(CallPart::Arguments(arguments));
        self.calls += 1;
        self.goes_on = false;
        step
    }

    /// Names, and what stands between calls.
    fn between(&mut self, c: char) -> PythonicStep {
        match c {
            c if c.is_ascii_whitespace() && self.text.is_empty() => {}
            ']' if self.text.is_empty() && self.calls > 0 => return PythonicStep::Whole,
            ',' if self.text.is_empty() && !self.goes_on => self.goes_on = true,
            '(' if self.goes_on && self.names.contains(&self.text) => {
                self.text.push(c);
                self.depth = 1;
            }
            c if self.goes_on && is_name(c) => self.text.push(c),
            _ => return PythonicStep::Wrong,
        }
        PythonicStep::More
    }
}

/// Whether a character may stand in a function's name.
pub(super) fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-.".contains(c)
}

/// A call's name, and its arguments as JSON.
fn call(text: &str) -> Option<(String, String)> {
    let (name, rest) = text.split_once('(')?;
    let mut reader = Reader { rest };
    let mut arguments = Map::new();
    while !reader.takes(')') {
        let end = reader.rest.find('=')?;
        let key = reader.rest[..end].trim();
        let is_plain = |c: char| c.is_alphanumeric() || c == '_';
        if key.is_empty() || !key.chars().all(is_plain) {
            return None;
        }
        let key = key.to_owned();
        reader.rest = &reader.rest[end + 1..];
        let value = reader.value(0)?;
        if arguments.insert(key, value).is_some() {
            return None;
        }
        if !reader.takes(',') && !reader.rest.starts_with(')') {
            return None;
        }
    }
    reader.rest.is_empty().then(|| (name.to_owned(), Value::Object(arguments).to_string()))
}

/// The value that a literal of Python is.
pub(super) fn literal(text: &str) -> Option<Value> {
    let mut reader = Reader { rest: text };
    reader.value(0).filter(|_| reader.rest.is_empty())
}

/// Literals of Python.
struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    /// Whether this comes next, which is then read, and the blanks around it.
    fn takes(&mut self, c: char) -> bool {
        self.rest = self.rest.trim_start();
        let rest = self.rest.strip_prefix(c);
        self.rest = rest.map_or(self.rest, str::trim_start);
        rest.is_some()
    }

    fn value(&mut self, depth: usize) -> Option<Value> {
        self.rest = self.rest.trim_start();
        let first = self.rest.chars().next().filter(|_| depth < DEPTH_MAX)?;
        let value = match first {
            '\'' | '"' => self.text()?.into(),
            '[' => self.items('[', ']', depth)?,
            '(' => self.items('(', ')', depth)?,
            '{' => {
                self.takes('{');
                let mut fields = Map::new();
                while !self.takes('}') {
                    let key = self.text()?;
                    if !self.takes(':') {
                        return None;
                    }
                    fields.insert(key, self.value(depth + 1)?);
                    if !self.takes(',') && !self.rest.starts_with('}') {
                        return None;
                    }
                }
                fields.into()
            }
            _ => {
                let is_word = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
                let end = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
                let (word, rest) = self.rest.split_at(end);
                self.rest = rest;
                match word {
                    "True" | "true" => true.into(),
                    "False" | "false" => false.into(),
                    "None" | "null" => Value::Null,
                    number => serde_json::from_str(number).ok().filter(Value::is_number)?,
                }
            }
        };
        self.rest = self.rest.trim_start();
        Some(value)
    }

    fn items(&mut self, open: char, close: char, depth: usize) -> Option<Value> {
        self.takes(open);
        let mut items = Vec::new();
        while !self.takes(close) {
            items.push(self.value(depth + 1)?);
            if !self.takes(',') && !self.rest.starts_with(close) {
                return None;
            }
        }
        Some(items.into())
    }

    fn text(&mut self) -> Option<String> {
        self.rest = self.rest.trim_start();
        let mut chars = self.rest.chars();
        let quote = chars.next().filter(|c| "'\"".contains(*c))?;
        let mut text = String::new();
        loop {
            match chars.next()? {
                c if c == quote => break,
                '\\' => {
                    let escape = chars.next()?;
                    let digits = match escape {
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        _ => 0,
                    };
                    match escape {
                        'n' => text.push('\n'),
                        't' => text.push('\t'),
                        'r' => text.push('\r'),
                        '\n' => {}
                        '\\' | '\'' | '"' => text.push(escape),
                        _ if digits > 0 => {
                            let hex: String = chars.by_ref().take(digits).collect();
                            text.push(char::from_u32(u32::from_str_radix(&hex, 16).ok()?)?);
                        }
                        // Python leaves what it does not know.
                        other => text.extend(['\\', other]),
                    }
                }
                c => text.push(c),
            }
        }
        self.rest = chars.as_str();
        Some(text)
    }
}
