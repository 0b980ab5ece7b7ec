//! One line of the table from what went wrong to what a client reads.

use std::borrow::Cow;

use super::codes::{Retry, should_retry};

/// `type` of an error, as OpenAI spells it.
pub(super) const REQUEST: &str = "invalid_request_error";
pub(super) const NOT_FOUND: &str = "not_found_error";
pub(super) const AUTHENTICATION: &str = "authentication_error";
pub(super) const PERMISSION: &str = "permission_error";
pub(super) const RATE: &str = "rate_limit_error";
pub(super) const SERVER: &str = "server_error";

/// Longer values of clients are cut in messages.
const SHOWN_CHARS_MAX: usize = 256;

/// What a client reads of an error.
#[derive(Clone)]
pub(super) struct Row {
    pub status: u16,
    /// `type`.
    pub kind: &'static str,
    /// `code`: a stable word for programs.
    pub code: &'static str,
    /// `param`: the field at fault.
    pub param: Option<String>,
    pub message: String,
    /// A header beside those of every answer.
    pub header: Option<(&'static str, Cow<'static, str>)>,
    /// Whether a client should try again by itself.
    pub retry: Retry,
}

pub(super) fn row(
    status: u16,
    kind: &'static str,
    code: &'static str,
    message: impl Into<String>,
) -> Row {
    let (message, retry) = (message.into(), should_retry(code));
    Row { status, kind, code, param: None, message, header: None, retry }
}

impl Row {
    /// With the field at fault.
    pub fn at(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }

    /// With a further header, its name in lower case.
    pub fn with_header(mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> Self {
        self.header = Some((name, value.into()));
        self
    }

    /// For what will have passed after a second.
    pub fn retry_after_1_s(self) -> Self {
        self.with_header("retry-after", "1")
    }
}

/// At most [`SHOWN_CHARS_MAX`] of what a client sent.
pub(in crate::http) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
