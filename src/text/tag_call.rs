//! Calls that a model writes as tags, each argument as plain text in tags of its own.

use std::sync::Arc;

use serde_json::Value;

use super::call_object::{CallPart, add_arguments};
use super::call_syntax::{FUNCTION, KEY, TAG_END};
use super::json_scan::Step;
use super::pythonic::is_name;
use super::typed::{by_schema, guessed};

const FUNCTION_END: &str = "</function>";
const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const KEY_END: &str = "</arg_key>";
const VALUE: &str = "<arg_value>";
const VALUE_END: &str = "</arg_value>";

/// A name of a function or an argument with its tags and the blanks before it. A longer one is
/// none.
const NAME_BYTES_MAX: usize = 256;

/// The functions that there are.
#[derive(Clone)]
pub(super) struct Functions {
    pub names: Arc<[String]>,
    /// Schemas of their arguments, as many or none.
    pub schemas: Arc<[Value]>,
}

impl Functions {
    fn property(&self, name: &str, key: &str) -> Option<&Value> {
        let i = self.names.iter().position(|known| known == name)?;
        self.schemas.get(i)?.get("properties")?.get(key)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Name,
    /// Before an argument, or the end.
    Between,
    Key,
    /// Between a key and its value.
    Middle,
    Value,
}

/// One call, character by character, after its mark.
pub(super) struct TagCall {
    functions: Functions,
    /// Keys and values have tags of their own; else a key stands in its value's tag.
    is_pairs: bool,
    place: Place,
    /// What has been read since the last tag.
    text: String,
    name: String,
    key: String,
    values: usize,
    /// The call has been told of.
    pub is_begun: bool,
    /// Its end was that of the mark too.
    pub is_closed: bool,
}

impl TagCall {
    pub fn new(functions: Functions, is_pairs: bool) -> Self {
        Self {
            functions,
            is_pairs,
            place: Place::Name,
            text: String::new(),
            name: String::new(),
            key: String::new(),
            values: 0,
            is_begun: false,
            is_closed: false,
        }
    }

    /// What has been read and told nothing of.
    pub fn rest(&mut self) -> String {
        std::mem::take(&mut self.text)
    }

    /// Takes the next character.
    pub fn push(&mut self, c: char, parts: &mut Vec<CallPart>) -> Step {
        self.text.push(c);
        let step = match (self.place, self.is_pairs) {
            (Place::Name, false) => self.function(parts),
            (Place::Name, true) => self.plain_name(parts),
            (Place::Between, _) => self.between(parts),
            (Place::Key, _) => self.key(),
            (Place::Middle, _) => self.expect(&[VALUE], Place::Value),
            (Place::Value, _) if c == '>' || c == '=' => return self.value(parts),
            (Place::Value, _) => return Step::More,
        };
        let is_long = self.text.len() > NAME_BYTES_MAX;
        if step != Step::Whole && (is_long || step == Step::Wrong) {
            // It belongs to what comes after.
            self.text.pop();
            if self.is_begun {
                self.end(parts);
            }
            return Step::Wrong;
        }
        step
    }

    /// The text is over: what is written counts.
    pub fn finish(&mut self, parts: &mut Vec<CallPart>) {
        if !self.is_begun {
            return;
        }
        if self.place == Place::Value {
            let raw = self.rest();
            self.add(&raw, parts);
        }
        self.end(parts);
    }

    fn begin(&mut self, name: &str, parts: &mut Vec<CallPart>) -> Step {
        if name.is_empty() || !name.chars().all(is_name) {
            return Step::Wrong;
        }
        parts.push(CallPart::Begin(name.to_owned()));
        self.name = name.to_owned();
        self.is_begun = true;
        self.go(Place::Between);
        Step::More
    }

    fn go(&mut self, place: Place) {
        self.place = place;
        self.text.clear();
    }

    fn function(&mut self, parts: &mut Vec<CallPart>) -> Step {
        let text = self.text.trim_start();
        let Some(rest) = text.strip_prefix(FUNCTION) else {
            return if FUNCTION.starts_with(text) { Step::More } else { Step::Wrong };
        };
        match rest.strip_suffix('>') {
            Some(name) => {
                let name = name.trim().to_owned();
                self.begin(&name, parts)
            }
            None if rest.contains(['<', '\n']) => Step::Wrong,
            None => Step::More,
        }
    }

    /// A name that ends with its line, or where a tag begins.
    fn plain_name(&mut self, parts: &mut Vec<CallPart>) -> Step {
        let end = self.text.find('<').unwrap_or(self.text.len());
        let (name, tag) = self.text.split_at(end);
        let is_line = name.ends_with('\n') && !name.trim().is_empty();
        let (name, tag) = (name.trim().to_owned(), tag.to_owned());
        if !name.chars().all(is_name) {
            return Step::Wrong;
        }
        match tag.as_str() {
            "" if is_line => self.begin(&name, parts),
            "" => Step::More,
            tag if tag == KEY || tag == TAG_END => match self.begin(&name, parts) {
                Step::More => {
                    tag.clone_into(&mut self.text);
                    self.between(parts)
                }
                step => step,
            },
            tag if KEY.starts_with(tag) || TAG_END.starts_with(tag) => Step::More,
            _ => Step::Wrong,
        }
    }

    fn between(&mut self, parts: &mut Vec<CallPart>) -> Step {
        let text = self.text.trim_start();
        if text == TAG_END || (text == FUNCTION_END && !self.is_pairs) {
            self.is_closed = text == TAG_END;
            self.end(parts);
            return Step::Whole;
        }
        if self.is_pairs {
            return self.expect(&[KEY, TAG_END], Place::Key);
        }
        let Some(key) = text.strip_prefix(PARAMETER) else {
            return self.expect(&[PARAMETER, FUNCTION_END, TAG_END], Place::Between);
        };
        let Some(key) = key.strip_suffix('>') else { return Step::More };
        self.key = key.trim().to_owned();
        self.go(Place::Value);
        Step::More
    }

    /// After blanks one of these comes; the first leads to `next`.
    fn expect(&mut self, tags: &[&str], next: Place) -> Step {
        let text = self.text.trim_start();
        if text == tags[0] && next != self.place {
            self.go(next);
            return Step::More;
        }
        match tags.iter().any(|tag| tag.starts_with(text)) {
            true => Step::More,
            false => Step::Wrong,
        }
    }

    fn key(&mut self) -> Step {
        if let Some(key) = self.text.strip_suffix(KEY_END) {
            self.key = key.trim().to_owned();
            self.go(Place::Middle);
        }
        Step::More
    }

    /// Where a value's own end is missing it ends with the line before the next tag.
    fn value(&mut self, parts: &mut Vec<CallPart>) -> Step {
        let own = if self.is_pairs { VALUE_END } else { PARAMETER_END };
        let next = [PARAMETER, FUNCTION_END, TAG_END].into_iter().find(|tag| {
            let before = self.text.strip_suffix(tag);
            !self.is_pairs && before.is_some_and(|before| before.ends_with('\n'))
        });
        let Some(end) = Some(own).filter(|own| self.text.ends_with(own)).or(next) else {
            return Step::More;
        };
        let raw = self.text[..self.text.len() - end.len()].to_owned();
        self.add(&raw, parts);
        self.go(Place::Between);
        if end == own {
            return Step::More;
        }
        end.clone_into(&mut self.text);
        self.between(parts)
    }

    fn add(&mut self, raw: &str, parts: &mut Vec<CallPart>) {
        let property = self.functions.property(&self.name, &self.key);
        let value = if self.is_pairs {
            guessed(raw, property)
        } else {
            let raw = raw.strip_prefix('\n').unwrap_or(raw);
            by_schema(raw.strip_suffix('\n').unwrap_or(raw), property)
        };
        let before = if self.values == 0 { "{" } else { ", " };
        self.values += 1;
        add_arguments(parts, &format!("{before}{}: {value}", Value::from(self.key.as_str())));
    }

    fn end(&self, parts: &mut Vec<CallPart>) {
        add_arguments(parts, if self.values == 0 { "{}" } else { "}" });
    }
}
