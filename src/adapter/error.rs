//! Why adapters are refused.

/// Why an adapter was refused. The text names the field or tensor and never a path.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdapterError {
    /// There is no adapter at the path.
    #[error("no adapter found: {0}")]
    NotFound(String),
    /// There is one and it cannot be served exactly.
    #[error("{0}")]
    Invalid(String),
}
