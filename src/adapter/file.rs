//! An adapter as it stands on disk: names and numbers, no meaning.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::ops::Range;

use safetensors::tensor::Metadata;
use serde_json::{Map, Value};

use super::error::AdapterError;
use super::folder;
use crate::files::{Folder, NotRead};
use crate::ids::Digest;
use crate::json;

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

/// Enough of a file to see what it is.
const START_BYTES: u64 = 64;
/// Bytes of one tensor's name; names of modules have some fifty.
const NAME_BYTES_MAX: usize = 1024;

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
    /// Reads the two files of a directory into memory: later changes on disk cannot reach us. That
    /// they are of one version, whoever opened it makes sure ([`crate::files::steadily`]).
    ///
    /// # Errors
    /// [`AdapterError`]; names the file, never its path.
    pub fn read(folder: &Folder, limits: &FileLimits) -> Result<Self, AdapterError> {
        let any = |_: &mut Vec<u8>, _: &File, _: u64| Ok(());
        let config = read_file(folder, folder::CONFIG, limits.config_bytes_max, any)?;
        let config = config.ok_or_else(|| folder::without_config(folder))?;
        if folder.holds(folder::TENSORS) {
            folder::check_complete(folder)?;
        }
        let header =
            |bytes: &mut Vec<u8>, file: &File, size: u64| check_header(bytes, file, size, limits);
        let bytes = read_file(folder, folder::TENSORS, limits.tensors_bytes_max, header)?;
        let Some(bytes) = bytes else {
            let config = parse_object(folder::CONFIG, &config)?;
            return Err(folder::without_tensors(folder, &config));
        };
        let mut file = Self::parse(&config, bytes, limits)?;
        file.notes.extend(folder::notes(folder));
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
        let size = bytes.len() as u64;
        let header = 8..8 + header_len(&bytes, size, limits)?;
        let tensors = parse_header(&bytes[header], size)?;
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

/// Reads a whole file, if it is there. `check` comes after its first bytes: it is given those, the
/// file, of which it may read on into them, and the size, and refuses what is not worth reading.
fn read_file(
    folder: &Folder,
    name: &str,
    bytes_max: u64,
    check: impl Fn(&mut Vec<u8>, &File, u64) -> Result<(), AdapterError>,
) -> Result<Option<Vec<u8>>, AdapterError> {
    let failed = |e: std::io::Error| invalid(format!("{name} cannot be read: {}", e.kind()));
    let (file, size) = match folder.file(name) {
        Ok(opened) => opened,
        Err(NotRead::Absent) => return Ok(None),
        Err(why) => return Err(invalid(format!("{name} {why}"))),
    };
    if size > bytes_max {
        return Err(invalid(format!("{name} is {size} bytes; at most {bytes_max} are read")));
    }
    let mut bytes = Vec::new();
    (&*file).take(START_BYTES).read_to_end(&mut bytes).map_err(failed)?;
    check_start(name, &bytes)?;
    check(&mut bytes, &file, size)?;
    bytes.reserve_exact((size as usize).saturating_sub(bytes.len()));
    let rest = (size + 1).saturating_sub(bytes.len() as u64);
    (&*file).take(rest).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() as u64 == size {
        true => Ok(Some(bytes)),
        false => Err(invalid(format!("{name} changed while it was read"))),
    }
}

/// What often lies in the place of a file.
fn check_start(name: &str, bytes: &[u8]) -> Result<(), AdapterError> {
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
    Ok(())
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

/// The length of the header that a tensor file of `size` bytes announces.
fn header_len(bytes: &[u8], size: u64, limits: &FileLimits) -> Result<usize, AdapterError> {
    const NAME: &str = folder::TENSORS;
    let Some(prefix) = bytes.first_chunk::<8>() else {
        return Err(invalid(format!("{NAME} is {size} bytes; a safetensors file has at least 8")));
    };
    let header = u64::from_le_bytes(*prefix);
    if header > limits.header_bytes_max || header > size.saturating_sub(8) {
        let max = limits.header_bytes_max;
        return Err(invalid(format!(
            "{NAME} announces a header of {header} bytes; the file is {size} bytes and at most \
             {max} are read: not a safetensors file, or a truncated one"
        )));
    }
    Ok(header as usize)
}

/// Reads the header and checks it against the size of the file, before the rest is read.
fn check_header(
    bytes: &mut Vec<u8>,
    mut file: &File,
    size: u64,
    limits: &FileLimits,
) -> Result<(), AdapterError> {
    let end = 8 + header_len(bytes, size, limits)?;
    let more = end.saturating_sub(bytes.len()) as u64;
    let read = (&mut file).take(more).read_to_end(bytes);
    read.map_err(|e| invalid(format!("{} cannot be read: {}", folder::TENSORS, e.kind())))?;
    match bytes.get(8..end) {
        Some(header) => parse_header(header, size).map(drop),
        None => Err(invalid(format!("{} changed while it was read", folder::TENSORS))),
    }
}

/// The tensors that a header says are in a file of `size` bytes.
fn parse_header(header: &[u8], size: u64) -> Result<BTreeMap<String, RawTensor>, AdapterError> {
    const NAME: &str = folder::TENSORS;
    parse_object(NAME, header)?;
    let broken = |e: String| invalid(format!("{NAME} is not a valid safetensors file: {e}"));
    json::check_objects(header).map_err(broken)?;
    let parsed: Metadata = serde_json::from_slice(header).map_err(|e| broken(e.to_string()))?;
    let start = 8 + header.len();
    let expected = (start as u64).saturating_add(parsed.data_len() as u64);
    if expected != size {
        return Err(broken(format!("by its header it has {expected} bytes, and it has {size}")));
    }
    let mut tensors = BTreeMap::new();
    for (name, info) in parsed.tensors() {
        if name.len() > NAME_BYTES_MAX {
            let (shown, bytes) = (name.chars().take(40).collect::<String>(), name.len());
            return Err(invalid(format!(
                "{NAME} names a tensor '{shown}…' by {bytes} bytes; at most {NAME_BYTES_MAX} are \
                 read"
            )));
        }
        let (from, to) = info.data_offsets;
        let shape = info.shape.clone();
        let raw = RawTensor { dtype: info.dtype, shape, range: start + from..start + to };
        tensors.insert(name, raw);
    }
    match tensors.is_empty() {
        true => Err(invalid(format!("{NAME} holds no tensors"))),
        false => Ok(tensors),
    }
}
