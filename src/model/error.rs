//! What can be wrong with a model.

/// Why a model could not be loaded.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// A file is absent or cannot be read.
    #[error("{0}")]
    File(String),
    /// `config.json` is wrong.
    #[error("config.json: {0}")]
    Config(String),
    /// Something this server does not do, by name.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// The weights do not fit the config.
    #[error("{0}")]
    Weights(String),
}
