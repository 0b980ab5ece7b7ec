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
    /// `<tool_call><function=f><parameter=a>1</parameter></function></tool_call>`.
    Functions,
    /// `<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>`.
    Pairs,
    /// `<｜tool▁calls▁begin｜>`, for each call `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{…}` and
    /// `<｜tool▁call▁end｜>`, then `<｜tool▁calls▁end｜>`.
    Sections,
    /// `<|tool_call|>[{"name": "f", "arguments": {…}}]`.
    Piped,
    /// `functools[{"name": "f", "arguments": {…}}]`.
    Functools,
    /// [`CallSyntax::Sections`] with `function<｜tool▁sep｜>f` and the arguments in a fence of JSON.
    Fenced,
}

pub(super) const TAG: &str = "<tool_call>";
pub(super) const TAG_END: &str = "</tool_call>";
pub(super) const CALLS: &str = "[TOOL_CALLS]";
pub(super) const ARGS: &str = "[ARGS]";
pub(super) const FUNCTION: &str = "<function=";
pub(super) const KEY: &str = "<arg_key>";
const PARAMETER: &str = "<parameter=";
const PIPED: &str = "<|tool_call|>";
const PIPED_END: &str = "<|/tool_call|>";
const FUNCTOOLS: &str = "functools";
const SECTIONS: &str = "<｜tool▁calls▁begin｜>";
pub(super) const SECTIONS_END: &str = "<｜tool▁calls▁end｜>";
pub(super) const SECTION: &str = "<｜tool▁call▁begin｜>";
pub(super) const SECTION_END: &str = "<｜tool▁call▁end｜>";
pub(super) const SEPARATOR: &str = "<｜tool▁sep｜>";
pub(super) const FENCE: &str = "```json";
const CALL_ID: &str = "[CALL_ID]";
const PYTHON: &str = "<|python_tag|>";

/// Bytes between a mark and what it marks in a template's text.
const NEAR_BYTES_MAX: usize = 64;

impl CallSyntax {
    /// All of them, by the names that vLLM has for its parsers.
    pub const NAMES: [(&str, Self); 13] = [
        ("json", Self::Json),
        ("llama3_json", Self::Parameters),
        ("hermes", Self::Tagged),
        ("mistral", Self::Listed),
        ("mistral_args", Self::Named),
        ("pythonic", Self::Pythonic),
        ("qwen3_coder", Self::Functions),
        ("qwen3_xml", Self::Functions),
        ("glm45", Self::Pairs),
        ("granite", Self::Piped),
        ("phi4_mini_json", Self::Functools),
        ("deepseek_v3", Self::Fenced),
        ("deepseek_v31", Self::Sections),
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
            _ if before.contains(SECTION) && between.contains("```") => Self::Fenced,
            _ if before.contains(SECTION) => Self::Sections,
            _ if before.contains(PIPED) => Self::Piped,
            _ if before.contains(FUNCTOOLS) => Self::Functools,
            (false, Some(_)) if between.contains(PARAMETER) => Self::Functions,
            (false, Some(_)) if between.contains(KEY) => Self::Pairs,
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
            () if names(SECTION) && names(FENCE) => Self::Fenced,
            () if names(SECTION) => Self::Sections,
            () if names(TAG) && names(FUNCTION) && names(PARAMETER) => Self::Functions,
            () if names(TAG) && names(KEY) => Self::Pairs,
            () if names(TAG) && !names(FUNCTION) => Self::Tagged,
            () if names(PIPED) => Self::Piped,
            () if names(FUNCTOOLS) => Self::Functools,
            () if names(PYTHON) => Self::Parameters,
            () => Self::Json,
        }
    }

    /// Marks that calls begin with, wherever they stand in a text.
    pub(super) fn marks(self) -> &'static [&'static str] {
        match self {
            Self::Tagged | Self::Pairs => &[TAG],
            // Some models leave out the outer tag.
            Self::Functions => &[TAG, FUNCTION],
            Self::Sections | Self::Fenced => &[SECTIONS, SECTION],
            Self::Piped => &[PIPED],
            Self::Functools => &[FUNCTOOLS],
            Self::Listed | Self::Named => &[CALLS],
            Self::Parameters => &[PYTHON],
            Self::Json | Self::Pythonic => &[],
        }
    }

    /// What marks a call, or a part of one: parts of the text even where they are special tokens.
    pub fn shown(self) -> &'static [&'static str] {
        match self {
            Self::Tagged | Self::Functions | Self::Pairs => &[TAG, TAG_END],
            Self::Sections | Self::Fenced => {
                &[SECTIONS, SECTION, SEPARATOR, SECTION_END, SECTIONS_END]
            }
            Self::Listed | Self::Named => &[CALLS, ARGS, CALL_ID],
            Self::Parameters => &[PYTHON],
            Self::Piped => &[PIPED, PIPED_END],
            Self::Json | Self::Pythonic | Self::Functools => &[],
        }
    }

    /// What may stand after a call and be no part of the text.
    pub(super) fn end(self) -> &'static str {
        if self == Self::Piped { PIPED_END } else { TAG_END }
    }

    /// Whether a text may begin with a call that nothing marks.
    pub(super) fn may_be_bare(self) -> bool {
        matches!(self, Self::Json | Self::Parameters | Self::Pythonic)
    }

    /// Whether each call stands in tags.
    pub(super) fn is_tagged(self) -> bool {
        matches!(self, Self::Tagged | Self::Functions | Self::Pairs)
    }

    /// Whether each call stands between marks of its own.
    pub(super) fn is_sectioned(self) -> bool {
        matches!(self, Self::Sections | Self::Fenced)
    }

    /// Whether arguments are plain texts, whose types the functions' schemas say.
    pub fn is_typed(self) -> bool {
        matches!(self, Self::Functions | Self::Pairs)
    }

    /// The nearest one that a mask can hold calls to.
    pub fn masked(self) -> Self {
        match self {
            Self::Pythonic => Self::Json,
            Self::Functions | Self::Pairs => Self::Tagged,
            other => other,
        }
    }

    /// Whether ids of calls have nine letters or digits, as the templates want them.
    pub fn has_short_ids(self) -> bool {
        matches!(self, Self::Listed | Self::Named)
    }
}
