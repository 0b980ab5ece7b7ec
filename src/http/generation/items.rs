//! What a choice says, taken apart: a thought, texts and calls, in their order.

use super::called::CallNews;
use super::choices::CompletionOutput;
use super::logprobs::Drawn;

/// A part of an answer that stands by itself.
pub(in crate::http) enum Item {
    Thought {
        text: String,
    },
    Text {
        text: String,
        /// The tokens that said it, if they are to be told of.
        drawn: Vec<Drawn>,
    },
    Call {
        id: String,
        name: String,
        /// As the model wrote them.
        arguments: String,
    },
}

/// What is new. `at` is the item's place.
pub(in crate::http) enum Change {
    Open { at: usize },
    Thought { at: usize, text: String },
    Text { at: usize, text: String, drawn: Vec<Drawn> },
    Arguments { at: usize, arguments: String },
    Close { at: usize },
}

/// All of a choice so far. A whole answer and a stream that are read by it have the same items.
pub(in crate::http) struct Items {
    pub all: Vec<Item>,
    /// The last of them goes on.
    is_open: bool,
    /// Tokens before any item, which have said nothing yet.
    early: Vec<Drawn>,
    /// There may be none: an answer that says nothing is no empty text.
    may_be_none: bool,
}

impl Items {
    /// Of an answer that may hold calls, or none.
    pub fn new(may_call: bool) -> Self {
        Self { all: Vec::new(), is_open: false, early: Vec::new(), may_be_none: may_call }
    }

    /// Whether there is a call.
    pub fn has_calls(&self) -> bool {
        self.all.iter().any(|item| matches!(item, Item::Call { .. }))
    }

    /// Takes what is new. `drawn` are its tokens, if they are to be told of: those of a call are
    /// not.
    pub fn add(&mut self, output: &CompletionOutput, drawn: &[Drawn]) -> Vec<Change> {
        let CompletionOutput { thought, text, calls, finish, .. } = output;
        let mut changes = Vec::new();
        if !thought.is_empty() {
            self.thought(thought, &mut changes);
        }
        // What the last call goes on with comes before text, and text before a new call.
        let begun = calls.iter().position(|call| call.begin.is_some()).unwrap_or(calls.len());
        let (more, new) = calls.split_at(begun);
        more.iter().for_each(|call| self.call(call, &mut changes));
        if !text.is_empty() {
            self.text(text, drawn, &mut changes);
        } else if calls.is_empty() {
            self.silent(drawn, finish.is_some(), &mut changes);
        }
        new.iter().for_each(|call| self.call(call, &mut changes));
        if finish.is_some() {
            self.close(&mut changes);
        }
        changes
    }

    fn thought(&mut self, new: &str, changes: &mut Vec<Change>) {
        if !matches!(self.all.last(), Some(Item::Thought { .. })) {
            self.open(Item::Thought { text: String::new() }, changes);
            // They were its mark.
            self.early.clear();
        }
        if let Some(Item::Thought { text }) = self.all.last_mut() {
            text.push_str(new);
        }
        changes.push(Change::Thought { at: self.all.len() - 1, text: new.to_owned() });
    }

    fn text(&mut self, text: &str, drawn: &[Drawn], changes: &mut Vec<Change>) {
        if !self.is_in_text() {
            self.open(Item::Text { text: String::new(), drawn: Vec::new() }, changes);
        }
        let mut new = std::mem::take(&mut self.early);
        new.extend_from_slice(drawn);
        let at = self.all.len().saturating_sub(1);
        if let Some(Item::Text { text: all, drawn: told }) = self.all.last_mut() {
            all.push_str(text);
            told.extend_from_slice(&new);
        }
        changes.push(Change::Text { at, text: text.to_owned(), drawn: new });
    }

    /// Tokens that say nothing belong to the text around them. An answer that says nothing at all
    /// is an empty text, for clients that look for one, unless it may hold calls.
    fn silent(&mut self, drawn: &[Drawn], is_last: bool, changes: &mut Vec<Change>) {
        let is_empty = self.all.is_empty();
        if is_empty && !is_last {
            self.early.extend_from_slice(drawn);
        } else if (is_empty && !self.may_be_none) || (self.is_in_text() && !drawn.is_empty()) {
            self.text("", drawn, changes);
        }
    }

    fn call(&mut self, new: &CallNews, changes: &mut Vec<Change>) {
        if let Some((id, name)) = &new.begin {
            let (id, name) = (id.clone(), name.clone());
            self.open(Item::Call { id, name, arguments: String::new() }, changes);
            self.early.clear();
        }
        let at = self.all.len().saturating_sub(1);
        let Some(Item::Call { arguments, .. }) = self.all.last_mut() else { return };
        if !new.arguments.is_empty() {
            arguments.push_str(&new.arguments);
            changes.push(Change::Arguments { at, arguments: new.arguments.clone() });
        }
    }

    fn is_in_text(&self) -> bool {
        self.is_open && matches!(self.all.last(), Some(Item::Text { .. }))
    }

    fn open(&mut self, item: Item, changes: &mut Vec<Change>) {
        self.close(changes);
        changes.push(Change::Open { at: self.all.len() });
        self.all.push(item);
        self.is_open = true;
    }

    fn close(&mut self, changes: &mut Vec<Change>) {
        if std::mem::take(&mut self.is_open) {
            changes.push(Change::Close { at: self.all.len() - 1 });
        }
    }
}
