//! Why a request was refused.

/// Why a request was refused; the text is shown to the client with status 400.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Invalid {
    /// The field at fault, as the client spelled it.
    pub param: &'static str,
    /// What was expected, what was found, what to do.
    pub message: String,
    /// A stable machine-readable word.
    pub code: &'static str,
}

impl Invalid {
    /// A field whose value is out of range or of the wrong form.
    pub fn value(param: &'static str, message: impl Into<String>) -> Self {
        Self { param, message: message.into(), code: "invalid_value" }
    }
}
