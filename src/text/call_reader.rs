//! Calls of tools in a model's text, found while it streams.

use std::sync::Arc;

use serde_json::Value;

use super::call_object::{CallObject, CallPart, add_arguments};
use super::call_syntax::{
    ARGS, CallSyntax, FENCE, FUNCTION, SECTION, SECTION_END, SECTIONS_END, SEPARATOR, TAG_END,
};
use super::json_scan::{JsonScan, Step};
use super::pythonic::{Pythonic, PythonicStep, is_name};
use super::tag_call::{Functions, TagCall};

/// Blanks that are held back for the call that may follow. More of them are content.
const BLANKS_BYTES_MAX: usize = 64;
/// A name with its marks. A longer one is none.
const NAME_BYTES_MAX: usize = 256;
/// A mark that is begun by more than one character and then cut is no content.
const CUT_MARK_BYTES_MIN: usize = 2;

/// What new text led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// Text that is no part of a call.
    pub content: String,
    /// What is new of calls.
    pub calls: Vec<CallPart>,
}

/// Takes a text apart. Where it is cut into pieces makes no difference.
pub struct CallReader {
    syntax: CallSyntax,
    functions: Functions,
    /// Whether it ends with the first call.
    is_single: bool,
    at: At,
    /// What is content if it turns out to be no call.
    held: String,
    /// The call that is read has a mark.
    is_marked: bool,
    is_list: bool,
    /// A call has begun whose end mark has not come.
    is_unclosed: bool,
    calls: usize,
}

enum At {
    /// Nothing but blanks so far, in a syntax whose calls may have no mark.
    Start,
    Content,
    /// A call may begin.
    Open,
    Object(CallObject),
    /// The name before [`ARGS`].
    Name(String),
    Arguments(JsonScan),
    Python(Pythonic),
    Tags(TagCall),
    /// A call is over.
    After,
    Done,
}

impl CallReader {
    /// `is_single`: there is nothing after the first call.
    pub fn new(syntax: CallSyntax, names: Arc<[String]>, is_single: bool) -> Self {
        let at = if syntax.may_be_bare() { At::Start } else { At::Content };
        Self {
            syntax,
            functions: Functions { names, schemas: Arc::new([]) },
            is_single,
            at,
            held: String::new(),
            is_marked: false,
            is_list: false,
            is_unclosed: false,
            calls: 0,
        }
    }

    /// With the schemas of all functions' arguments: those that are written as plain text get the
    /// types that these say.
    #[must_use]
    pub fn typed_by(mut self, schemas: Arc<[Value]>) -> Self {
        self.functions.schemas = schemas;
        self
    }

    /// Calls that have begun.
    pub fn calls(&self) -> usize {
        self.calls
    }

    /// Whether the only call is over.
    pub fn is_done(&self) -> bool {
        matches!(self.at, At::Done)
    }

    /// Whether a call has been told of that is not whole.
    pub fn is_within(&self) -> bool {
        match &self.at {
            At::Object(object) => object.is_begun,
            At::Tags(tags) => tags.is_begun,
            At::Arguments(_) => true,
            _ => false,
        }
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Read {
        let mut read = Read::default();
        for c in text.chars() {
            self.take(c, &mut read);
        }
        read
    }

    /// What is left once no more will come. `is_cut`: the text did not end by itself, so that what
    /// it ends with may be the begin of a call.
    pub fn finish(&mut self, is_cut: bool) -> Read {
        let mut calls = Vec::new();
        if let At::Tags(tags) = &mut self.at
            && !is_cut
        {
            tags.finish(&mut calls);
        }
        let mut content = std::mem::take(&mut self.held);
        let is_blank = content.trim().is_empty();
        let is_mark = match self.at {
            At::Content => is_cut && content.trim_start().len() >= CUT_MARK_BYTES_MIN,
            // Marked calls only: JSON without a mark may be an answer.
            At::Open | At::Name(_) | At::Object(_) | At::Python(_) | At::Tags(_) => {
                is_cut && (self.is_marked || self.calls > 0)
            }
            At::After => true,
            _ => false,
        };
        if is_mark || (is_blank && self.calls > 0) {
            content.clear();
        }
        self.at = At::Content;
        Read { content, calls }
    }

    fn take(&mut self, c: char, read: &mut Read) {
        let is_blank = c.is_ascii_whitespace();
        let before = read.calls.len();
        let bare = !self.is_marked;
        match &mut self.at {
            At::Done => {}
            At::Start if is_blank && self.held.len() < BLANKS_BYTES_MAX => self.held.push(c),
            At::Start if c == '{' || c == '[' => {
                self.at = At::Open;
                self.take(c, read);
            }
            At::Start => {
                self.at = At::Content;
                self.take(c, read);
            }
            At::Content => self.content(c, read),
            At::Open => self.open(c, is_blank, read),
            At::Object(object) => {
                let is_known =
                    |name: &str| !bare || self.functions.names.iter().any(|known| known == name);
                let step = object.push(c, is_known, &mut read.calls);
                let is_begun = object.is_begun;
                self.step(step, is_begun, c, before, read);
            }
            At::Name(name) => {
                name.push(c);
                self.name(c, read);
            }
            At::Arguments(scan) => {
                let step = scan.push(c);
                if step != Step::Wrong {
                    add_arguments(&mut read.calls, c.encode_utf8(&mut [0; 4]));
                }
                self.step(step, true, c, before, read);
            }
            At::Python(python) => {
                let step = python.push(c, &mut read.calls);
                self.python(step, c, before, read);
            }
            At::Tags(tags) => {
                let step = tags.push(c, &mut read.calls);
                self.tags(step, c, before, read);
            }
            At::After => self.after(c, is_blank, read),
        }
    }

    /// Text in which a mark may begin: as much of its end as may be one is held back, and the
    /// blanks before that.
    fn content(&mut self, c: char, read: &mut Read) {
        self.held.push(c);
        let marks = self.syntax.marks();
        if marks.iter().any(|mark| self.held.ends_with(mark)) {
            self.is_marked = true;
            (self.is_list, self.is_unclosed) = (false, false);
            self.at = if self.syntax.is_typed() { self.begin_tags(read) } else { At::Open };
            return;
        }
        let end = self.syntax.end();
        if self.is_unclosed && self.held.ends_with(end) {
            self.held.truncate(self.held.len() - end.len());
            self.is_unclosed = false;
            return;
        }
        let end = [end].into_iter().filter(|_| self.is_unclosed);
        let begun = |mark: &&str| {
            let lengths = (1..mark.len()).rev().filter(|&n| mark.is_char_boundary(n));
            lengths.into_iter().find(|&n| self.held.ends_with(&mark[..n])).unwrap_or(0)
        };
        let begun = marks.iter().copied().chain(end).map(|mark| begun(&mark)).max().unwrap_or(0);
        let text = &self.held[..self.held.len() - begun];
        let blanks = text.len() - text.trim_end_matches(|c: char| c.is_ascii_whitespace()).len();
        let held = match marks.is_empty() && self.calls == 0 {
            true => 0,
            false => begun + blanks.min(BLANKS_BYTES_MAX),
        };
        let held = self.held.split_off(self.held.len() - held);
        read.content += &std::mem::replace(&mut self.held, held);
    }

    /// A call in tags, of which a mark may be the first.
    fn begin_tags(&mut self, read: &mut Read) -> At {
        let is_pairs = self.syntax == CallSyntax::Pairs;
        let mut tags = TagCall::new(self.functions.clone(), is_pairs);
        if self.held.ends_with(FUNCTION) {
            for c in FUNCTION.chars() {
                tags.push(c, &mut read.calls);
            }
        }
        At::Tags(tags)
    }

    fn open(&mut self, c: char, is_blank: bool, read: &mut Read) {
        let is_python = self.syntax == CallSyntax::Pythonic;
        let is_named = matches!(self.syntax, CallSyntax::Named | CallSyntax::Listed);
        match c {
            _ if is_blank => {}
            '[' if is_python => self.at = At::Python(Pythonic::new(self.functions.names.clone())),
            '[' if !self.is_list && self.syntax != CallSyntax::Tagged => self.is_list = true,
            '{' if !is_python => {
                let mut object = CallObject::new(!self.is_marked);
                // An opening bracket is always taken.
                object.push(c, |_| true, &mut read.calls);
                self.at = At::Object(object);
            }
            _ if is_named && !self.is_list && is_name(c) => self.at = At::Name(c.into()),
            _ if self.syntax.is_sectioned() && (c == '<' || is_name(c)) => {
                self.at = At::Name(c.into());
            }
            _ => return self.fail(c, read),
        }
        self.held.push(c);
    }

    /// A character of a call has been taken.
    fn step(&mut self, step: Step, is_begun: bool, c: char, before: usize, read: &mut Read) {
        let begun = |part: &&CallPart| matches!(part, CallPart::Begin(_));
        self.calls += read.calls.get(before..).map_or(0, |new| new.iter().filter(begun).count());
        if is_begun {
            self.held.clear();
            self.is_unclosed = self.syntax.is_tagged() || self.syntax == CallSyntax::Piped;
        }
        match step {
            Step::More if is_begun => {}
            Step::More => self.held.push(c),
            Step::Whole => self.at = if self.is_single { At::Done } else { At::After },
            // What is told of stays told.
            Step::Wrong if is_begun => {
                self.at = At::After;
                self.take(c, read);
            }
            Step::Wrong => self.fail(c, read),
        }
    }

    fn tags(&mut self, step: Step, c: char, before: usize, read: &mut Read) {
        let At::Tags(tags) = &mut self.at else { return };
        let (is_begun, is_closed) = (tags.is_begun, tags.is_closed);
        if step == Step::Wrong && is_begun {
            // What led to nothing may be content.
            let rest = tags.rest();
            self.at = At::After;
            self.held = rest;
            return self.take(c, read);
        }
        self.step(step, is_begun, c, before, read);
        if step == Step::Whole && is_closed {
            self.is_unclosed = false;
            self.at = if self.is_single { At::Done } else { At::Content };
        }
    }

    fn python(&mut self, step: PythonicStep, c: char, before: usize, read: &mut Read) {
        match step {
            PythonicStep::More => self.step(Step::More, false, c, before, read),
            PythonicStep::Call => self.step(Step::More, true, c, before, read),
            PythonicStep::Whole => {
                self.held.clear();
                self.at = At::After;
            }
            PythonicStep::Wrong => self.fail(c, read),
        }
        if self.is_single && self.calls > 0 {
            self.at = At::Done;
        }
    }

    /// A name may go on, or its arguments begin.
    fn name(&mut self, c: char, read: &mut Read) {
        let At::Name(name) = &self.at else { return };
        if c != '{' {
            let fits = is_name(c) || "[] \n\t".contains(c);
            let fits = fits || (self.syntax.is_sectioned() && "<｜▁>`".contains(c));
            let may_be_one = name.len() <= NAME_BYTES_MAX && fits;
            return if may_be_one { self.held.push(c) } else { self.fail(c, read) };
        }
        let name = name.trim_end_matches('{').trim();
        let name = match self.syntax.is_sectioned() {
            true => section_name(name),
            false => {
                let name = name.strip_suffix(ARGS).unwrap_or(name);
                // An id of the model's own may stand between.
                name.split('[').next().unwrap_or_default().trim()
            }
        };
        if name.is_empty() || !name.chars().all(is_name) {
            return self.fail(c, read);
        }
        let before = read.calls.len();
        read.calls.push(CallPart::Begin(name.to_owned()));
        let mut scan = JsonScan::new();
        let step = scan.push(c);
        add_arguments(&mut read.calls, "{");
        self.at = At::Arguments(scan);
        self.step(step, true, c, before, read);
    }

    /// What may stand between two calls, and after the last.
    fn after(&mut self, c: char, is_blank: bool, read: &mut Read) {
        let is_close = self.syntax.is_tagged() && TAG_END.starts_with(self.held.trim());
        self.held.push(c);
        if self.held.len() > BLANKS_BYTES_MAX + TAG_END.len() {
            return self.resume(read);
        }
        if self.syntax.is_sectioned() {
            return self.after_section(read);
        }
        if is_blank && (self.held.trim().is_empty() || !is_close) {
            return;
        }
        let rest = self.held.trim();
        match (self.syntax, c) {
            (syntax, _) if syntax.is_tagged() && rest == TAG_END => {
                self.is_unclosed = false;
                self.held.clear();
                self.at = At::Content;
            }
            (syntax, _) if syntax.is_tagged() && TAG_END.starts_with(rest) => {}
            (CallSyntax::Named, _) => self.resume(read),
            (syntax, _) if syntax.is_tagged() => self.resume(read),
            (_, ',') if self.is_list && rest == "," => self.at = At::Open,
            (_, ']') if self.is_list && rest == "]" => {
                self.held.clear();
                self.at = At::Content;
            }
            (CallSyntax::Json | CallSyntax::Parameters, ';' | ',') if rest.len() == 1 => {
                self.at = At::Open;
            }
            (CallSyntax::Json | CallSyntax::Parameters, '{') if !self.is_list && rest == "{" => {
                self.held.pop();
                self.at = At::Open;
                self.take(c, read);
            }
            _ => self.resume(read),
        }
    }

    /// The end of a section, then another one or the end of all.
    fn after_section(&mut self, read: &mut Read) {
        let held = self.held.trim();
        let rest = held.strip_prefix("```").unwrap_or(held).trim_start();
        let is_begun = |mark: &&str| mark.starts_with(rest);
        match rest {
            SECTION_END => self.held.clear(),
            SECTIONS_END => {
                self.held.clear();
                self.at = At::Content;
            }
            SECTION => {
                self.is_marked = true;
                self.at = At::Open;
            }
            _ if [SECTION_END, SECTIONS_END, SECTION].iter().any(is_begun) => {}
            _ if "```".starts_with(held) => {}
            _ => self.resume(read),
        }
    }

    /// What is held is content; a mark may begin with its last character.
    fn resume(&mut self, read: &mut Read) {
        self.at = At::Content;
        let held = std::mem::take(&mut self.held);
        for c in held.chars() {
            self.take(c, read);
        }
    }

    /// It was no call.
    fn fail(&mut self, c: char, read: &mut Read) {
        read.content += &std::mem::take(&mut self.held);
        self.at = At::Content;
        self.is_marked = false;
        self.take(c, read);
    }
}

/// The name in what stands between the mark of a section and its arguments.
fn section_name(head: &str) -> &str {
    let head = head.strip_prefix(SECTION).unwrap_or(head).trim();
    match head.split_once(SEPARATOR) {
        // The type of what is called stands before its name.
        Some((_, name)) if !name.trim().is_empty() => {
            let name = name.trim();
            name.strip_suffix(FENCE).unwrap_or(name).trim()
        }
        Some((name, _)) => name.trim(),
        None => "",
    }
}
