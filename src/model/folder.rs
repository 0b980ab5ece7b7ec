//! The files of a model's directory, and what a directory is that is no model.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::error::ModelError;

/// Of the larger libraries, in one file and in several.
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";

/// What a download left in a file's place, by how it begins.
pub fn no_file(start: &[u8]) -> Option<&'static str> {
    match start {
        [] => Some("empty: download it again"),
        [b'<', ..] => Some("a web page, not the file: download it with the Hub's client"),
        _ if start.starts_with(b"version https://git-lfs") => {
            Some("a Git LFS pointer, not the file: run git lfs pull in its repository")
        }
        _ => None,
    }
}

/// A listed directory.
pub struct Folder<'a> {
    dir: &'a Path,
    /// Of files and directories, in order.
    names: Vec<String>,
}

impl<'a> Folder<'a> {
    /// # Errors
    /// [`ModelError::File`] when there is no such directory.
    pub fn open(dir: &'a Path) -> Result<Self, ModelError> {
        let entries = fs::read_dir(dir).map_err(|e| {
            ModelError::File(format!(
                "{} is not a directory that can be read ({e}); give the directory of a Hugging \
                 Face model or a Hub id (organisation/name)",
                dir.display()
            ))
        })?;
        let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
        let mut names: Vec<_> = entries.flatten().map(name).collect();
        names.sort_unstable();
        Ok(Self { dir, names })
    }

    /// The bytes of `config.json`.
    ///
    /// # Errors
    /// [`ModelError::File`] that says what the directory is instead.
    pub fn config(&self) -> Result<Vec<u8>, ModelError> {
        if !self.has("config.json") {
            return Err(self.no_model());
        }
        self.read("config.json")
    }

    /// The weight files, and notes about others that are not read.
    ///
    /// # Errors
    /// [`ModelError::File`] when there are none, saying what there is.
    pub fn weights(&self, notes: &mut Vec<String>) -> Result<Vec<PathBuf>, ModelError> {
        let files = if self.has(WEIGHTS) {
            vec![self.dir.join(WEIGHTS)]
        } else if self.has(INDEX) {
            self.shards()?
        } else {
            return Err(self.no_weights());
        };
        if self.has(ADAPTER_CONFIG) {
            let dir = self.dir.display();
            notes.push(format!(
                "the adapter in {dir} is not applied: to serve it too, give --adapter NAME={dir}"
            ));
        }
        let read = |name: &str| files.iter().any(|file| file.ends_with(name));
        let of_index = self.has(WEIGHTS).then_some(INDEX);
        let unread = self.names.iter().map(String::as_str).filter(|name| {
            let old = name.starts_with("pytorch_model") || name.starts_with("consolidated");
            let weights = name.ends_with(".safetensors") || name.ends_with(".gguf") || old;
            // An adapter's are told of above.
            (weights && !name.starts_with("adapter_") && !read(name)) || of_index == Some(*name)
        });
        let unread: Vec<_> = unread.collect();
        if !unread.is_empty() {
            let which = if self.has(WEIGHTS) { WEIGHTS } else { INDEX };
            notes.push(format!("not read beside {which}: {}", unread.join(", ")));
        }
        Ok(files)
    }

    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }

    fn find(&self, matches: impl Fn(&str) -> bool) -> Option<&str> {
        self.names.iter().map(String::as_str).find(|name| matches(name))
    }

    fn read(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let path = self.dir.join(name);
        let shown = path.display();
        let failed = |e| ModelError::File(format!("{shown} cannot be read: {e}"));
        let bytes = fs::read(&path).map_err(failed)?;
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(64)]).into_owned();
        match no_file(text.trim_start().as_bytes()) {
            Some(what) => Err(ModelError::File(format!("{shown} is {what}"))),
            None => Ok(bytes),
        }
    }

    /// What a directory without `config.json` is.
    fn no_model(&self) -> ModelError {
        let dir = self.dir.display();
        let inner = |name: &&String| self.dir.join(name).join("config.json").exists();
        let native = |name: &str| name.starts_with("consolidated.") || name == "tekken.json";
        ModelError::File(if self.has(ADAPTER_CONFIG) {
            format!("{dir} is an adapter, not a model: {}", self.how_to_serve())
        } else if let Some(last) = self.last_checkpoint() {
            format!("{dir} is a trainer's output folder: give a checkpoint in it, as {dir}/{last}")
        } else if let Some(file) = self.find(|name| name.ends_with(".gguf")) {
            format!("{dir} holds {file}: {}", no_gguf())
        } else if self.find(native).is_some() || self.has("params.json") {
            format!(
                "{dir} holds weights in their author's own format (params.json, consolidated \
                 files): give the model in Hugging Face's format (config.json, {WEIGHTS})"
            )
        } else if self.has("snapshots") {
            format!("{dir} is a repository in the Hub's cache: give a folder in {dir}/snapshots")
        } else if let Some(name) = self.names.iter().find(inner) {
            format!("{dir} has no config.json, but {dir}/{name} has: give that folder")
        } else if self.names.is_empty() {
            format!("{dir} is empty: give a Hugging Face model's directory, with its config.json")
        } else if self.find(|name| name.starts_with("adapter")).is_some() {
            format!("{dir} holds an adapter's files, but neither {ADAPTER_CONFIG} nor config.json")
        } else if self.find(|name| name.ends_with(".safetensors")).is_some() {
            format!("{dir} has no config.json beside its weights: copy it from the same model")
        } else {
            let few: Vec<_> = self.names.iter().take(5).map(String::as_str).collect();
            format!(
                "{dir} has no config.json, so it is no Hugging Face model (found: {})",
                few.join(", ")
            )
        })
    }

    /// Of a trainer's folders the one of the latest step.
    fn last_checkpoint(&self) -> Option<&String> {
        let steps = self.names.iter().filter_map(|name| {
            let step: u64 = name.strip_prefix("checkpoint-")?.parse().ok()?;
            Some((step, name))
        });
        steps.max().map(|(_, name)| name)
    }

    /// The command for an adapter that was given as the model.
    fn how_to_serve(&self) -> String {
        let config: Option<Value> =
            self.read(ADAPTER_CONFIG).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let base = config.as_ref().and_then(|config| {
            // peft's field, and MLX's.
            config.get("base_model_name_or_path").or_else(|| config.get("model"))?.as_str()
        });
        let base = base.filter(|base| !base.is_empty()).unwrap_or("BASE");
        format!("serve it with tessera serve {base} --adapter NAME={}", self.dir.display())
    }

    /// What a directory without weights that are read has.
    fn no_weights(&self) -> ModelError {
        let dir = self.dir.display();
        let convert = "convert it once: AutoModelForCausalLM.from_pretrained(DIR)\
                       .save_pretrained(OUT) with transformers";
        let pickle = |name: &str| {
            let is_old = name.ends_with(".bin") || name.ends_with(".pth") || name.ends_with(".pt");
            is_old && !name.starts_with("training_args") && !name.starts_with("adapter_")
        };
        let shard = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
        let variant = |name: &str| name.starts_with("model.") && name.ends_with(".safetensors");
        let foreign =
            |name: &str| [".h5", ".msgpack", ".onnx"].iter().any(|end| name.ends_with(end));
        let parts = |name: &str| name.starts_with("global_step") || name.ends_with(".distcp");
        let native = |name: &str| name.starts_with("consolidated.");
        let what = if let Some(name) = self.find(shard) {
            format!("{name} is there, but the index {INDEX} that lists the files is missing")
        } else if let Some(name) = self.find(variant) {
            format!("rename {name} to {WEIGHTS} if it is the model")
        } else if let Some(name) = self.find(pickle) {
            format!("{name} is a pickle, which can run code when read, and is not read; {convert}")
        } else if let Some(name) = self.find(native) {
            format!("{name} is in its author's own format, with other names of tensors")
        } else if let Some(name) = self.find(|name| name.ends_with(".gguf")) {
            format!("{name}: {}", no_gguf())
        } else if self.has(ADAPTER_CONFIG) {
            format!("it holds an adapter: {}", self.how_to_serve())
        } else if let Some(name) = self.find(foreign) {
            format!("{name} is of another library; {convert}")
        } else if let Some(name) = self.find(parts) {
            format!(
                "{name} holds a training's parts: put them together (DeepSpeed's zero_to_fp32.py, \
                 accelerate merge-weights) and save the model"
            )
        } else if let Some(last) = self.last_checkpoint() {
            format!("it is a trainer's output folder: give a checkpoint in it, as {dir}/{last}")
        } else {
            "it has a config.json alone: download the weights too".into()
        };
        ModelError::File(format!("{dir} holds neither {WEIGHTS} nor {INDEX}; {what}"))
    }

    /// The files of a sharded checkpoint.
    fn shards(&self) -> Result<Vec<PathBuf>, ModelError> {
        let index: Value = serde_json::from_slice(&self.read(INDEX)?)
            .map_err(|e| ModelError::File(format!("{INDEX} is not JSON: {e}")))?;
        let map = index.get("weight_map").and_then(|map| map.as_object());
        let files = map.map(|map| map.values().map(|v| v.as_str()).collect::<Option<Vec<_>>>());
        let Some(Some(mut files)) = files else {
            return Err(ModelError::File(format!("{INDEX} has no 'weight_map' of file names")));
        };
        files.sort_unstable();
        files.dedup();
        let outside = |file: &&&str| file.contains(['/', '\\']) || file.starts_with('.');
        if let Some(bad) = files.iter().find(outside) {
            return Err(ModelError::File(format!(
                "{INDEX} names '{bad}', which is not a plain file name"
            )));
        }
        Ok(files.into_iter().map(|file| self.dir.join(file)).collect())
    }
}

fn no_gguf() -> &'static str {
    "GGUF is llama.cpp's format and is not read; give the Hugging Face model it was made of"
}

/// What to say of a file that is given where a model's directory is wanted.
pub fn of_a_file(path: &Path) -> String {
    let shown = path.display();
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("gguf") => format!("{shown} is a GGUF file: {}", no_gguf()),
        _ => {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
            let dir = dir.unwrap_or(Path::new(".")).display();
            format!("{shown} is a file; give the directory that holds it: {dir}")
        }
    }
}
