//! What a model thinks, told apart from what it answers while it streams.

use super::thought_syntax::{Opening, ThoughtSyntax};

/// Blanks before a mark that opens a thought. After more of them there is none.
const BLANKS_BYTES_MAX: usize = 64;
/// A mark that is begun by so many characters and then cut is no part of an answer.
const CUT_MARK_BYTES_MIN: usize = 2;

/// What new text led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Split {
    /// What is thought.
    pub thought: String,
    /// What is answered.
    pub text: String,
}

/// Takes a text apart. Where it is cut into pieces makes no difference. Only its begin may be a
/// thought: marks in an answer are what somebody says of them.
#[derive(Clone, Debug)]
pub struct ThoughtReader {
    syntax: ThoughtSyntax,
    at: At,
    /// What may be a mark.
    held: String,
    /// Blanks that are thought if more follows.
    blanks: String,
    /// Something but blanks has been thought.
    is_begun: bool,
    /// Blanks after the thought are parts of the answer.
    keeps_blanks: bool,
    has_thought: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// A mark may come that opens a thought.
    Start,
    /// The same, in a thought that is open already.
    Opened,
    Thought,
    /// Blanks after a thought.
    After,
    Text,
}

impl ThoughtReader {
    /// For a text from its first character on.
    pub fn new(syntax: ThoughtSyntax, opening: Opening) -> Self {
        let at = match opening {
            Opening::Free => At::Start,
            Opening::Open => At::Opened,
            Opening::Closed => At::Text,
        };
        Self {
            syntax,
            at,
            held: String::new(),
            blanks: String::new(),
            is_begun: false,
            keeps_blanks: false,
            has_thought: at == At::Opened,
        }
    }

    /// The same, for an answer whose form says where blanks stand if `keeps_blanks`.
    pub fn keeping_blanks(self, keeps_blanks: bool) -> Self {
        Self { keeps_blanks, ..self }
    }

    /// Whether a thought has begun.
    pub fn has_thought(&self) -> bool {
        self.has_thought
    }

    /// Whether what comes is answer.
    pub fn is_over(&self) -> bool {
        matches!(self.at, At::After | At::Text)
    }

    /// What may follow for a thought to begin, where none has: the rest of each mark that may have
    /// begun.
    pub fn rests(&self) -> impl Iterator<Item = &'static str> {
        let begun = self.held.trim_start();
        let opens = if self.at == At::Start { self.syntax.opens() } else { &[] };
        opens.iter().filter_map(move |mark| mark.strip_prefix(begun))
    }

    /// Whether a thought may end within this text.
    pub fn may_end(&self, text: &str) -> bool {
        !self.held.is_empty() || self.syntax.closes().iter().any(|mark| text.contains(mark))
    }

    /// Takes more text.
    pub fn push(&mut self, text: &str) -> Split {
        let mut split = Split::default();
        for c in text.chars() {
            self.take(c, &mut split);
        }
        split
    }

    /// What is left once no more will come. `is_cut`: the text did not end by itself, so that what
    /// it ends with may be the begin of a mark.
    pub fn finish(&mut self, is_cut: bool) -> Split {
        let mut split = Split::default();
        let mut held = std::mem::take(&mut self.held);
        let begun = held.trim_start();
        // Words may begin any text.
        let is_tag = !begun.starts_with(|c: char| c.is_alphanumeric());
        // In a thought that is cut one character less tells of nothing.
        let least = if self.has_thought { 1 } else { CUT_MARK_BYTES_MIN };
        if is_cut && is_tag && begun.len() >= least {
            held.clear();
        }
        match self.at {
            At::Start => split.text = held,
            At::Opened | At::Thought => {
                held.chars().for_each(|c| self.think(c, &mut split));
                self.blanks.clear();
            }
            At::After | At::Text => {}
        }
        self.at = At::Text;
        split
    }

    fn take(&mut self, c: char, split: &mut Split) {
        match self.at {
            At::Start | At::Opened => self.open(c, split),
            At::Thought => self.thought(c, split),
            At::After if c.is_whitespace() => {}
            At::After | At::Text => {
                self.at = At::Text;
                split.text.push(c);
            }
        }
    }

    fn open(&mut self, c: char, split: &mut Split) {
        self.held.push(c);
        let begun = self.held.trim_start();
        let blanks = self.held.len() - begun.len();
        if self.syntax.opens().contains(&begun) {
            self.at = At::Thought;
            self.has_thought = true;
            return self.held.clear();
        }
        let may_open = self.syntax.opens().iter().any(|mark| mark.starts_with(begun));
        if may_open && blanks <= BLANKS_BYTES_MAX {
            return;
        }
        let held = std::mem::take(&mut self.held);
        self.at = if self.at == At::Opened { At::Thought } else { At::Text };
        held.chars().for_each(|c| self.take(c, split));
    }

    /// As much of the end as may be a mark is held back.
    fn thought(&mut self, c: char, split: &mut Split) {
        self.held.push(c);
        let closes = self.syntax.closes();
        if closes.iter().any(|mark| self.held.ends_with(mark)) {
            let whole = closes.iter().filter(|mark| self.held.ends_with(*mark));
            let mark = whole.map(|mark| mark.len()).max().unwrap_or(0);
            self.held.truncate(self.held.len() - mark);
            let rest = std::mem::take(&mut self.held);
            rest.chars().for_each(|c| self.think(c, split));
            self.blanks.clear();
            self.at = if self.keeps_blanks { At::Text } else { At::After };
            return;
        }
        let begun = |mark: &&str| {
            let lengths = (1..mark.len()).rev().filter(|&n| mark.is_char_boundary(n));
            lengths.into_iter().find(|&n| self.held.ends_with(&mark[..n])).unwrap_or(0)
        };
        let begun = closes.iter().map(begun).max().unwrap_or(0);
        let held = self.held.split_off(self.held.len() - begun);
        let rest = std::mem::replace(&mut self.held, held);
        rest.chars().for_each(|c| self.think(c, split));
    }

    /// A character of the thought; blanks at its end are no part of it, nor at its begin.
    fn think(&mut self, c: char, split: &mut Split) {
        if !c.is_whitespace() {
            self.is_begun = true;
            split.thought += &std::mem::take(&mut self.blanks);
            split.thought.push(c);
        } else if self.is_begun {
            self.blanks.push(c);
        }
    }
}
