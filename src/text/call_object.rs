//! A call that a model writes as a JSON object: `{"name": "f", "arguments": {…}}`.

use super::json_scan::{JsonScan, Next, Step};

/// Keys that the arguments of a call have in one form or the other.
const ARGUMENTS: [&str; 2] = ["arguments", "parameters"];

/// What is new of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallPart {
    /// The next call begins; it has this name.
    Begin(String),
    /// More of the last call's arguments: JSON, as the model writes it.
    Arguments(String),
}

/// Adds to the arguments of the last call.
pub(super) fn add_arguments(parts: &mut Vec<CallPart>, more: &str) {
    match parts.last_mut() {
        Some(CallPart::Arguments(text)) => text.push_str(more),
        _ => parts.push(CallPart::Arguments(more.to_owned())),
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Within {
    Nothing,
    Key,
    Name,
    Arguments,
}

/// One object, character by character.
pub(super) struct CallObject {
    scan: JsonScan,
    within: Within,
    /// The last key of the object itself.
    key: String,
    /// A string as it is written so far.
    text: String,
    name: Option<String>,
    /// Arguments that came before the name.
    early: Option<String>,
    /// Without arguments it is no call.
    needs_arguments: bool,
    /// The call has been told of.
    pub is_begun: bool,
}

impl CallObject {
    pub fn new(needs_arguments: bool) -> Self {
        Self {
            scan: JsonScan::new(),
            within: Within::Nothing,
            key: String::new(),
            text: String::new(),
            name: None,
            early: None,
            needs_arguments,
            is_begun: false,
        }
    }

    /// Takes the next character. `is_known` says which names are calls.
    pub fn push(
        &mut self,
        c: char,
        is_known: impl Fn(&str) -> bool,
        parts: &mut Vec<CallPart>,
    ) -> Step {
        let before = (self.scan.depth(), self.scan.next());
        let step = self.scan.push(c);
        if step == Step::Wrong {
            return step;
        }
        let mut is_call = true;
        match (self.within, before) {
            (Within::Nothing, (1, Next::Key { .. })) if c == '"' => self.begin(Within::Key, c),
            (Within::Nothing, (1, Next::Value { .. })) if !c.is_whitespace() => {
                is_call = self.value(c, parts);
            }
            (Within::Key | Within::Name, _) => {
                self.text.push(c);
                let is_whole = !matches!(self.scan.next(), Next::Text { .. });
                is_call = !is_whole || self.end_text(&is_known);
            }
            (Within::Arguments, _) => {
                self.add(c, parts);
                if self.scan.depth() == 1 {
                    self.within = Within::Nothing;
                }
            }
            _ => {}
        }
        if !is_call {
            return Step::Wrong;
        }
        match (step, self.is_begun, self.name.take_if(|_| step == Step::Whole)) {
            (Step::Whole, false, Some(name)) if self.early.is_some() || !self.needs_arguments => {
                self.is_begun = true;
                parts.push(CallPart::Begin(name));
                // A function without parameters may be called without arguments.
                add_arguments(parts, self.early.as_deref().unwrap_or("{}"));
                step
            }
            (Step::Whole, false, _) => Step::Wrong,
            _ => step,
        }
    }

    fn begin(&mut self, within: Within, c: char) {
        self.within = within;
        self.text.clear();
        self.text.push(c);
    }

    /// A value of the object itself begins; false if no call has it.
    fn value(&mut self, c: char, parts: &mut Vec<CallPart>) -> bool {
        if self.key == "name" {
            self.begin(Within::Name, c);
            return c == '"' && self.name.is_none() && !self.is_begun;
        }
        if !ARGUMENTS.contains(&self.key.as_str()) {
            return true;
        }
        if c != '{' || self.early.is_some() || self.is_begun {
            return false;
        }
        self.within = Within::Arguments;
        match self.name.take() {
            Some(name) => {
                self.is_begun = true;
                parts.push(CallPart::Begin(name));
            }
            None => self.early = Some(String::new()),
        }
        self.add(c, parts);
        true
    }

    fn add(&mut self, c: char, parts: &mut Vec<CallPart>) {
        match &mut self.early {
            Some(early) => early.push(c),
            None => add_arguments(parts, c.encode_utf8(&mut [0; 4])),
        }
    }

    /// A key or a name is whole; false for the name of no call.
    fn end_text(&mut self, is_known: &impl Fn(&str) -> bool) -> bool {
        let text: String = serde_json::from_str(&self.text).unwrap_or_default();
        let is_name = self.within == Within::Name;
        self.within = Within::Nothing;
        if is_name {
            let is_known = !text.is_empty() && is_known(&text);
            self.name = Some(text);
            return is_known;
        }
        self.key = text;
        true
    }
}
