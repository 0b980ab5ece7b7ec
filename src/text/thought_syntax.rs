//! How a model marks what it thinks before it answers.

use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

/// The marks around a thought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ThoughtSyntax {
    /// `<think>…</think>`.
    Tagged,
    /// `[THINK]…[/THINK]`.
    Bracketed,
    /// `<seed:think>…</seed:think>`.
    Seeded,
    /// `Here is my thought process: … Here is my response: …`.
    Told,
}

/// What the end of a prompt says of the thought of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// Nothing: the answer may begin with one.
    Free,
    /// It has begun.
    Open,
    /// It is over: there is none in the answer.
    Closed,
}

/// Tokens at the end of a prompt that are looked at for a mark: more than the longest has bytes,
/// and blanks.
const TAIL_TOKENS: usize = 64;

impl ThoughtSyntax {
    /// By the names that vLLM has for its parsers; and whether a model that is said to write so
    /// thinks from its first token on, where no mark of its prompt says otherwise.
    pub const NAMES: [(&str, Self, bool); 10] = [
        ("deepseek_r1", Self::Tagged, true),
        ("deepseek_v3", Self::Tagged, false),
        ("glm45", Self::Tagged, true),
        ("granite", Self::Told, false),
        ("minimax_m2", Self::Tagged, true),
        ("mistral", Self::Bracketed, false),
        ("olmo3", Self::Tagged, true),
        ("qwen3", Self::Tagged, true),
        ("seed_oss", Self::Seeded, true),
        ("step3", Self::Tagged, true),
    ];

    const ALL: [Self; 4] = [Self::Bracketed, Self::Seeded, Self::Told, Self::Tagged];

    /// What a thought begins with.
    pub(super) fn opens(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &["<think>"],
            Self::Bracketed => &["[THINK]"],
            Self::Seeded => &["<seed:think>"],
            Self::Told => &["Here is my thought process:", "Here's my thought process:"],
        }
    }

    /// What it ends with.
    pub fn closes(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &["</think>"],
            Self::Bracketed => &["[/THINK]"],
            Self::Seeded => &["</seed:think>"],
            Self::Told => &["Here is my response:", "Here's my response:"],
        }
    }

    fn marks(self) -> impl Iterator<Item = &'static str> {
        self.opens().iter().chain(self.closes()).copied()
    }

    /// The one whose marks a chat template writes or looks for.
    pub(super) fn of_source(source: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|syntax| syntax.marks().any(|mark| source.contains(mark)))
    }

    /// The one whose marks are tokens.
    pub(super) fn of_vocabulary(tokenizer: &Tokenizer) -> Option<Self> {
        let has = |syntax: &Self| syntax.marks().all(|mark| tokenizer.token_id(mark).is_some());
        Self::ALL.into_iter().find(has)
    }

    /// The marks that are special tokens, which a text shows only if it is told to.
    pub fn special(self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        let ids = self.marks().filter_map(|mark| tokenizer.token_id(mark));
        ids.filter(|&id| tokenizer.is_special(id)).collect()
    }

    /// The tokens of the mark that ends a thought; none if it cannot be spelled.
    pub fn close_tokens(self, tokenizer: &Tokenizer) -> Vec<TokenId> {
        let mark = self.closes().first().copied().unwrap_or_default();
        tokenizer.encode(mark, false).unwrap_or_default()
    }

    /// What a prompt says of the thought, whose end a template has written.
    pub fn opening(self, tokenizer: &Tokenizer, prompt: &[TokenId]) -> Opening {
        let tail = &prompt[prompt.len().saturating_sub(TAIL_TOKENS)..];
        let tail = tokenizer.decode(tail, false);
        let ends_with = |marks: &[&str]| marks.iter().any(|mark| tail.trim_end().ends_with(mark));
        match () {
            () if ends_with(self.opens()) => Opening::Open,
            () if ends_with(self.closes()) => Opening::Closed,
            () => Opening::Free,
        }
    }

    /// The same of an answer whose begin is known.
    pub fn opening_within(self, answer: &str) -> Opening {
        let last = |marks: &[&str]| marks.iter().filter_map(|mark| answer.rfind(*mark)).max();
        if last(self.opens()) > last(self.closes()) { Opening::Open } else { Opening::Closed }
    }
}
