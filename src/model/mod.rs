//! Model families: the forward pass is written once (`decoder`), each family is one file that
//! says what sets it apart.

mod checkpoint;
pub mod config;
mod decoder;
mod llama;
mod mistral;
mod mmap;
mod qwen2;
mod qwen3;

pub use checkpoint::{Checkpoint, Source, sites};
pub use config::ModelConfig;
pub use decoder::Model;

use config::{Family, Fields};

/// Reads what a family's `config.json` says.
type ReadFamily = fn(&Fields<'_>) -> Result<Family, ModelError>;

/// Every family, by the name its `config.json` carries.
pub static FAMILIES: &[(&str, ReadFamily)] = &[
    ("LlamaForCausalLM", llama::family),
    ("MistralForCausalLM", mistral::family),
    ("Qwen2ForCausalLM", qwen2::family),
    ("Qwen3ForCausalLM", qwen3::family),
];

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
