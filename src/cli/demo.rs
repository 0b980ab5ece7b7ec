//! The built-in demo: a small trained model and its adapters, so that a first start needs no
//! download. `demo/train.py` made them.

use std::sync::Arc;

use super::CliError;
use crate::adapter::{AdapterError, AdapterFile, Loader};
use crate::dtype::Dtype;
use crate::engine::CheckpointBase;
use crate::model::{Checkpoint, Source};
use crate::text::TextFiles;

/// Its name in requests and replies.
pub const NAME: &str = "demo";

/// A file under `demo/`, in the executable.
macro_rules! demo_file {
    ($path:expr) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/demo/", $path))
    };
}

/// The two files of an adapter under `demo/adapters/`.
macro_rules! demo_adapter {
    ($name:literal) => {
        DemoAdapter {
            name: $name,
            config: demo_file!(concat!("adapters/", $name, "/adapter_config.json")),
            tensors: demo_file!(concat!("adapters/", $name, "/adapter_model.safetensors")),
        }
    };
}

const CONFIG: &[u8] = demo_file!("model/config.json");

/// An adapter in the executable.
pub struct DemoAdapter {
    /// Its name in requests.
    pub name: &'static str,
    config: &'static [u8],
    tensors: &'static [u8],
}

/// The name that the demo had when its adapters were trained.
pub const TRAINED_AS: &str = "tessera-demo";

/// The adapters of the demo.
pub static ADAPTERS: &[DemoAdapter] = &[
    demo_adapter!("pirate"),
    demo_adapter!("poet"),
    demo_adapter!("telegram"),
    demo_adapter!("formal"),
    demo_adapter!("json"),
];

impl DemoAdapter {
    /// Reads it as if from disk.
    ///
    /// # Errors
    /// As for any adapter.
    pub fn read(&self, loader: &Loader<CheckpointBase>) -> Result<AdapterFile, AdapterError> {
        AdapterFile::parse(self.config, self.tensors.to_vec(), &loader.limits)
    }
}

/// The demo's weights, in `dtype` if given.
///
/// # Errors
/// None on a program that was built whole.
pub fn checkpoint(dtype: Option<Dtype>) -> Result<Arc<Checkpoint>, CliError> {
    let weights = Source::Static(demo_file!("model/model.safetensors"));
    let names = vec!["the demo's weights".to_owned()];
    Ok(Arc::new(Checkpoint::new(CONFIG, vec![weights], names, dtype)?))
}

/// The demo's tokenizer and template.
pub fn text_files() -> TextFiles {
    TextFiles {
        tokenizer: Some(demo_file!("model/tokenizer.json").to_vec()),
        tokenizer_config: Some(demo_file!("model/tokenizer_config.json").to_vec()),
        chat_template: Some(demo_file!("model/chat_template.jinja").to_vec()),
        generation_config: Some(demo_file!("model/generation_config.json").to_vec()),
        config: Some(CONFIG.to_vec()),
        ..TextFiles::default()
    }
}
