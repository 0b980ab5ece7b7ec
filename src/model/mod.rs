//! Model families: the forward pass is written once (`decoder`, of the blocks `attention` and
//! `mlp`), each family is one file that says what sets it apart.

mod attention;
mod checkpoint;
pub mod config;
mod decoder;
mod error;
mod family;
mod fields;
mod llama;
mod mistral;
mod mlp;
mod mmap;
mod module;
mod outline;
mod qwen2;
mod qwen3;
mod rope;

pub use checkpoint::{Checkpoint, Source};
pub use config::{FAMILIES, ModelConfig};
pub use decoder::Model;
pub use error::ModelError;
pub use family::{Family, NormPlaces, QkNorm};
pub use outline::sites;
pub use rope::{Rope, RopeScaling};
