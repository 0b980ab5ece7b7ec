//! How a model writes the calls that it makes, as its chat template writes them of a history.

/// How calls stand in a model's text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CallSyntax {
    /// `{"name": "f", "arguments": {…}}`, also several in a list: the whole text.
    #[default]
    Json,
    /// `{"name": "f", "parameters": {…}}` likewise, or after `<|python_tag|>`.
    Parameters,
    /// `<tool_call>{"name": "f", "arguments": {…}}</tool_call>`.
    Tagged,
    /// `[TOOL_CALLS][{"name": "f", "arguments": {…}}]`.
    Listed,
    /// `[TOOL_CALLS]f[ARGS]{…}`.
    Named,
    /// `[f(a=1)]`: the whole text.
    Pythonic,
}

pub(super) const TAG: &str = "<tool_call>";
pub(super) const TAG_END: &str = "</tool_call>";
pub(super) const CALLS: &str = "[TOOL_CALLS]";
pub(super) const ARGS: &str = "[ARGS]";
const CALL_ID: &str = "[CALL_ID]";
const PYTHON: &str = "<|python_tag|>";

/// Bytes between a mark and what it marks in a template's text.
const NEAR_BYTES_MAX: usize = 64;

impl CallSyntax {
    /// All of them, by the names that vLLM has for its parsers.
    pub const NAMES: [(&str, Self); 6] = [
        ("json", Self::Json),
        ("llama3_json", Self::Parameters),
        ("hermes", Self::Tagged),
        ("mistral", Self::Listed),
        ("mistral_args", Self::Named),
        ("pythonic", Self::Pythonic),
    ];

    /// What a template has written of a call: `name`, then arguments with `value` in them, or the
    /// other way round.
    pub(super) fn of_text(written: &str, name: &str, value: &str) -> Self {
        let Some(at) = written.rfind(value) else { return Self::default() };
        let (head, tail) = written.split_at(at);
        let near = |text: &str, from: usize| {
            let text = &text[..from];
            let start = text.len().saturating_sub(NEAR_BYTES_MAX);
            let start = (start..=text.len()).find(|&i| text.is_char_boundary(i));
            text[start.unwrap_or(0)..].to_owned()
        };
        let named = head.rfind(name).filter(|&n| at - n < 2 * NEAR_BYTES_MAX + name.len());
        let follows = tail.find(name).is_some_and(|n| n < NEAR_BYTES_MAX);
        // What stands before the call, and between its name and its arguments.
        let (before, between) = match named {
            Some(n) => (near(written, n), &head[n + name.len()..]),
            None if follows => (near(written, at), ""),
            None => return Self::default(),
        };
        match (before.contains(CALLS), before.rfind(TAG)) {
            (true, _) if before.contains('{') => Self::Listed,
            (true, _) => Self::Named,
            (false, Some(tag)) if before[tag + TAG.len()..].trim_start().starts_with('{') => {
                Self::Tagged
            }
            _ if between.starts_with('(') => Self::Pythonic,
            _ if between.contains("\"parameters\"") => Self::Parameters,
            _ => Self::Json,
        }
    }

    /// What a template says of it that writes no call.
    pub(super) fn of_source(source: &str) -> Self {
        let names = |mark: &str| source.contains(mark);
        match () {
            () if names(CALLS) && names(ARGS) => Self::Named,
            () if names(CALLS) => Self::Listed,
            () if names(TAG) && !names("<function=") => Self::Tagged,
            () if names(PYTHON) => Self::Parameters,
            () => Self::Json,
        }
    }

    /// Marks that calls begin with, wherever they stand in a text.
    pub(super) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &[TAG],
            Self::Listed | Self::Named => &[CALLS],
            Self::Parameters => &[PYTHON],
            Self::Json | Self::Pythonic => &[],
        }
    }

    /// What marks a call, or a part of one: parts of the text even where they are special tokens.
    pub fn shown(self) -> &'static [&'static str] {
        match self {
            Self::Tagged => &[TAG, TAG_END],
            Self::Listed | Self::Named => &[CALLS, ARGS, CALL_ID],
            Self::Parameters => &[PYTHON],
            Self::Json | Self::Pythonic => &[],
        }
    }

    /// Whether a text may begin with a call that nothing marks.
    pub(super) fn may_be_bare(self) -> bool {
        matches!(self, Self::Json | Self::Parameters | Self::Pythonic)
    }

    /// Whether ids of calls have nine letters or digits, as the templates want them.
    pub fn has_short_ids(self) -> bool {
        matches!(self, Self::Listed | Self::Named)
    }
}
