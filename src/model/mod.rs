//! Model families: the forward pass is written once (`decoder`, of the blocks `attention` and
//! `mlp`), each family is one file that says what sets it apart.

mod attention;
mod checkpoint;
pub mod config;
mod decoder;
mod error;
mod family;
mod fields;
mod folder;
mod foreign;
mod identity;
mod leftovers;
mod llama;
mod mistral;
mod mlp;
mod module;
mod outline;
mod qwen2;
mod qwen3;
mod rope;
mod rotary;
mod weight_file;
mod weights;

pub use checkpoint::Checkpoint;
pub use config::{FAMILIES, ModelConfig};
pub use decoder::Model;
pub use error::ModelError;
pub use family::{Defaults, Family, NormPlaces, QkNorm};
pub use folder::of_a_file;
pub use outline::sites;
pub use rope::{Rope, RopeScaling};
pub use weight_file::Source;
