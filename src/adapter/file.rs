//! An adapter as it stands on disk: names and numbers, no meaning.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use serde_json::{Map, Value};

use super::error::AdapterError;
use super::folder;
use crate::ids::Digest;

/// What peft puts before the names of modules.
pub const PEFT_PREFIX: &str = "base_model.model.";

/// What an adapter's files may measure; more is refused before it is read.
#[derive(Clone, Copy, Debug)]
pub struct FileLimits {
    /// `adapter_config.json`. The largest seen (rank patterns over all layers) is under 100 KB.
    pub config_bytes_max: u64,
    /// `adapter_model.safetensors`.
    pub tensors_bytes_max: u64,
    /// The JSON header of the tensor file: 100 layers of 7 modules need under 200 KB, while a
    /// header of 100 MB costs over a gigabyte to parse.
    pub header_bytes_max: u64,
}

impl FileLimits {
    /// Limits of a server whose adapters may hold `tensors_bytes_max`.
    pub fn new(tensors_bytes_max: u64) -> Self {
        Self { config_bytes_max: 4 << 20, tensors_bytes_max, header_bytes_max: 4 << 20 }
    }
}

/// Names and numbers.
pub struct AdapterFile {
    /// `adapter_config.json`.
    pub config: Map<String, Value>,
    /// By name as written.
    pub tensors: BTreeMap<String, RawTensor>,
    /// BLAKE3 of both files.
    pub digest: Digest,
    /// The tensor file, as read.
    pub bytes: Vec<u8>,
    /// What an operator should know of the directory, a line each; names of files, no paths.
    pub notes: Vec<String>,
}

/// One tensor, uninterpreted.
#[derive(Clone, Debug)]
pub struct RawTensor {
    /// Number type.
    pub dtype: safetensors::Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    range: Range<usize>,
}

impl AdapterFile {
    /// Reads the two files of `dir` into memory: later changes on disk cannot reach us. With
    /// `within`, a file that resolves (through symbolic links) to outside of it is refused.
    ///
    /// # Errors
    /// [`AdapterError`]; names the file, never its path.
    pub fn read(
        dir: &Path,
        limits: &FileLimits,
        within: Option<&Path>,
    ) -> Result<Self, AdapterError> {
        let config_path = dir.join(folder::CONFIG);
        if !config_path.exists() {
            return Err(folder::without_config(dir));
        }
        let config = read_file(&config_path, limits.config_bytes_max, within)?;
        let tensors_path = dir.join(folder::TENSORS);
        if !tensors_path.exists() {
            let config = parse_object(folder::CONFIG, &config)?;
            return Err(folder::without_tensors(dir, &config));
        }
        folder::check_complete(dir)?;
        let bytes = read_file(&tensors_path, limits.tensors_bytes_max, within)?;
        let mut file = Self::parse(&config, bytes, limits)?;
        file.notes.extend(folder::notes(dir));
        Ok(file)
    }

    /// Parses the content of `adapter_config.json` and `adapter_model.safetensors`.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`].
    pub fn parse(config: &[u8], bytes: Vec<u8>, limits: &FileLimits) -> Result<Self, AdapterError> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(b"tessera adapter 1");
        for part in [config, &bytes] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let digest = Digest(*hasher.finalize().as_bytes());
        let config = parse_object(folder::CONFIG, config)?;
        folder::check_config(&config)?;
        let tensors = parse_tensors(&bytes, limits)?;
        let notes = note_on_names(&config, &tensors).into_iter().collect();
        Ok(Self { config, tensors, digest, bytes, notes })
    }

    /// The little-endian bytes of one tensor.
    pub fn bytes(&self, tensor: &RawTensor) -> &[u8] {
        &self.bytes[tensor.range.clone()]
    }
}

fn invalid(text: impl Into<String>) -> AdapterError {
    AdapterError::Invalid(text.into())
}

fn file_name(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn read_file(path: &Path, bytes_max: u64, within: Option<&Path>) -> Result<Vec<u8>, AdapterError> {
    let name = file_name(path);
    let failed = |e: std::io::Error| invalid(format!("{name} cannot be read: {}", e.kind()));
    let real: PathBuf = path.canonicalize().map_err(failed)?;
    if within.is_some_and(|root| !real.starts_with(root)) {
        return Err(invalid(format!("{name} is a link to outside the adapter root")));
    }
    // Checked before opening: opening a FIFO would block the loader for ever.
    let metadata = real.metadata().map_err(failed)?;
    if metadata.is_dir() {
        return Err(invalid(format!("{name} is a directory, not a regular file")));
    }
    if !metadata.is_file() {
        return Err(invalid(format!("{name} is a pipe, socket or device, not a regular file")));
    }
    if metadata.len() > bytes_max {
        let found = metadata.len();
        return Err(invalid(format!("{name} is {found} bytes; at most {bytes_max} are read")));
    }
    let mut bytes = Vec::with_capacity(metadata.len() as usize);
    let file = File::open(&real).map_err(failed)?;
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > bytes_max {
        return Err(invalid(format!("{name} grew past {bytes_max} bytes while it was read")));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(invalid(format!(
            "{name} is a Git LFS pointer, not the file itself; run 'git lfs pull' where it came \
             from"
        )));
    }
    let start = bytes[..bytes.len().min(9)].to_ascii_lowercase();
    if start.starts_with(b"<!doctype") || start.starts_with(b"<html") {
        return Err(invalid(format!(
            "{name} is an HTML page, perhaps an error or log-in page saved in its place"
        )));
    }
    Ok(bytes)
}

/// Parses a JSON object and refuses a key that is there twice, which serde_json would let pass.
fn parse_object(name: &str, bytes: &[u8]) -> Result<Map<String, Value>, AdapterError> {
    let text = std::str::from_utf8(bytes)
        .map_err(|e| invalid(format!("{name} is not UTF-8 from byte {}", e.valid_up_to())))?;
    let object: UniqueObject = serde_json::from_str(text)
        .map_err(|e| invalid(format!("{name} is not a JSON object with unique keys: {e}")))?;
    Ok(object.0)
}

struct UniqueObject(Map<String, Value>);

impl<'de> serde::Deserialize<'de> for UniqueObject {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = UniqueObject;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: serde::de::MapAccess<'de>>(
                self,
                mut access: A,
            ) -> Result<UniqueObject, A::Error> {
                let mut map = Map::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    if map.contains_key(&key) {
                        let text = format!("the key '{key}' is there twice");
                        return Err(serde::de::Error::custom(text));
                    }
                    map.insert(key, value);
                }
                Ok(UniqueObject(map))
            }
        }
        deserializer.deserialize_map(Visitor)
    }
}

/// Names that peft itself would drop when it loads its own kinds, and this server applies.
fn note_on_names(
    config: &Map<String, Value>,
    tensors: &BTreeMap<String, RawTensor>,
) -> Option<String> {
    let kind = config.get("peft_type")?.as_str()?;
    if !["LORA", "IA3"].contains(&kind) {
        return None;
    }
    let other = tensors.keys().find(|name| !name.starts_with(PEFT_PREFIX))?;
    Some(format!(
        "warning: the tensors are not named as peft names them ('{other}' does not begin with \
         {PEFT_PREFIX}): peft would leave them out, and here they are applied"
    ))
}

fn parse_tensors(
    bytes: &[u8],
    limits: &FileLimits,
) -> Result<BTreeMap<String, RawTensor>, AdapterError> {
    const NAME: &str = "adapter_model.safetensors";
    let Some(prefix) = bytes.first_chunk::<8>() else {
        let found = bytes.len();
        return Err(invalid(format!("{NAME} is {found} bytes; a safetensors file has at least 8")));
    };
    let header = u64::from_le_bytes(*prefix);
    if header > limits.header_bytes_max || header > bytes.len() as u64 - 8 {
        let (max, size) = (limits.header_bytes_max, bytes.len());
        return Err(invalid(format!(
            "{NAME} announces a header of {header} bytes; the file is {size} bytes and at most \
             {max} are read: not a safetensors file, or a truncated one"
        )));
    }
    parse_object(NAME, &bytes[8..8 + header as usize])?;
    let parsed = SafeTensors::deserialize(bytes)
        .map_err(|e| invalid(format!("{NAME} is not a valid safetensors file: {e}")))?;
    let base = bytes.as_ptr() as usize;
    let tensors = parsed.iter().map(|(name, view)| {
        let start = view.data().as_ptr() as usize - base;
        let range = start..start + view.data().len();
        let shape = view.shape().to_vec();
        (name.to_owned(), RawTensor { dtype: view.dtype(), shape, range })
    });
    let tensors: BTreeMap<_, _> = tensors.collect();
    if tensors.is_empty() {
        return Err(invalid(format!("{NAME} holds no tensors")));
    }
    Ok(tensors)
}
