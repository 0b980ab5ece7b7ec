//! Loading and unloading adapters; statuses and texts are vLLM's, which control planes compare.

use super::row::{NOT_FOUND, REQUEST, Row, row, shown};
use crate::adapter::{AdapterError, Full, NameError};

/// Why an adapter was not loaded or unloaded.
#[derive(Debug)]
pub(in crate::http) enum LoadError {
    /// The server was started without the flag.
    Off,
    /// Adapters cannot change while one is merged.
    MergedIsFixed(String),
    /// `lora_name` or `lora_path` is missing at a load.
    LoadFields,
    /// `lora_name` is missing at an unload.
    UnloadFields,
    /// An adapter named like the base.
    NameConflict(String),
    /// A path that is not beneath the root, whether or not it exists.
    OutsideRoot,
    /// Nothing at the path.
    NotFound { name: String, path: String },
    /// No adapter of this name is loaded.
    Unknown(String),
    /// The same, of the path of a request.
    NoAdapter(String),
    /// The base model is no adapter.
    BaseIsFixed,
    /// The adapter was refused.
    Adapter { name: String, error: AdapterError },
    /// Its files changed each time that they were read.
    Changed(String),
    /// The name will not do.
    Name(NameError),
    /// There is no room.
    Full(Full),
}

impl LoadError {
    pub(super) fn row(&self) -> Row {
        match self {
            Self::Off => row(
                404,
                NOT_FOUND,
                "runtime_adapters_off",
                "Not Found: start the server with --allow-runtime-adapters to load and unload \
                 adapters.",
            ),
            Self::MergedIsFixed(served) => {
                let message = format!(
                    "Adapters cannot be loaded or unloaded while '{served}' is merged into the \
                     weights. Start the server without --merge."
                );
                row(400, REQUEST, "merged_mode", message)
            }
            Self::LoadFields => {
                let message = "Both 'lora_name' and 'lora_path' must be provided.";
                row(400, REQUEST, "missing_field", message)
            }
            Self::UnloadFields => {
                let message = "'lora_name' needs to be provided to unload a LoRA adapter.";
                row(400, REQUEST, "missing_field", message)
            }
            Self::NameConflict(name) => {
                let name = shown(name);
                let message =
                    format!("The lora adapter '{name}' conflicts with a served base model.");
                row(400, REQUEST, "adapter_name_conflict", message).at("lora_name")
            }
            Self::OutsideRoot => {
                let message =
                    "'lora_path' must be a directory beneath the server's --adapter-root.";
                row(400, REQUEST, "path_outside_root", message).at("lora_path")
            }
            Self::NotFound { name, path } => {
                let path = shown(path);
                let message = format!("Loading lora {name} failed: No adapter found for {path}");
                row(404, NOT_FOUND, "adapter_not_found", message).at("lora_path")
            }
            Self::Unknown(name) => {
                let message = format!("The lora adapter '{}' cannot be found.", shown(name));
                row(404, NOT_FOUND, "adapter_not_found", message).at("lora_name")
            }
            Self::NoAdapter(name) => {
                let message = format!("The adapter `{}` does not exist.", shown(name));
                row(404, NOT_FOUND, "adapter_not_found", message)
            }
            Self::BaseIsFixed => {
                let message = "The base model cannot be unloaded; stop the server instead.";
                row(400, REQUEST, "base_model_fixed", message)
            }
            Self::Adapter { name, error } => {
                let message = format!("Loading lora {name} failed: {error}");
                row(400, REQUEST, "invalid_adapter", message).at("lora_path")
            }
            // openai-python tries again by itself.
            Self::Changed(name) => {
                let name = shown(name);
                let message = format!(
                    "Loading lora {name} failed: its files changed while they were read, time and \
                     again. Try again when they are in place."
                );
                row(409, REQUEST, "adapter_changing", message).at("lora_path").retry_after_1_s()
            }
            Self::Name(error) => name_row(error),
            // A 4xx that openai-python does not retry by itself.
            Self::Full(error) => row(400, REQUEST, "adapter_store_full", error.to_string()),
        }
    }
}

fn name_row(error: &NameError) -> Row {
    match error {
        NameError::Taken(name) => {
            let message = format!(
                "The lora adapter '{name}' has already been loaded. If you want to load the \
                 adapter in place, set 'load_inplace' to True."
            );
            row(400, REQUEST, "adapter_already_loaded", message).at("lora_name")
        }
        NameError::Illegal(_) => {
            row(400, REQUEST, "invalid_adapter_name", error.to_string()).at("lora_name")
        }
    }
}
