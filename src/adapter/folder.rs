//! What else a directory may be that is given as an adapter's, and what in it is not used.

use std::path::Path;

use serde_json::{Map, Value};

use super::error::AdapterError;
use crate::files::{Folder, NotRead};
use crate::text::TEXT_FILES;

/// The two files of an adapter.
pub const CONFIG: &str = "adapter_config.json";
/// See [`CONFIG`].
pub const TENSORS: &str = "adapter_model.safetensors";
/// Tensors as pickles, which can run code when read.
const PICKLES: &[&str] = &["adapter_model.bin", "adapter_model.pt", "pytorch_adapter.bin"];
/// Weights that trainers save beside the adapter's, and that change what the model computes.
const MORE_WEIGHTS: &[&str] =
    &["new_embeddings.safetensors", "new_embeddings.bin", "non_lora_trainables.bin"];
/// Entries of a directory that are looked at.
const ENTRIES_MAX: usize = 1000;
/// Names in one line, and characters of each.
const NAMES_MAX: usize = 12;
/// See [`NAMES_MAX`].
const NAME_CHARS_MAX: usize = 60;
/// What quantised and repacked copies of a base model add to its name.
const REPACKED: &[&str] = &[
    "-unsloth", "-bnb", "-4bit", "-8bit", "-int4", "-int8", "-awq", "-gptq", "-fp8", "-bf16",
    "-fp16", "-hf", "-mlx", "-gguf",
];

/// The names in a directory, ascending, those of directories with a slash; empty where it cannot
/// be read.
struct Listing(Vec<String>);

impl Listing {
    fn of(dir: &Folder) -> Self {
        let mut names = dir.names(ENTRIES_MAX);
        names.sort_unstable();
        Self(names)
    }

    fn has(&self, name: &str) -> bool {
        self.0.iter().any(|found| found == name)
    }

    fn ending(&self, end: &str) -> Option<&str> {
        self.0.iter().map(String::as_str).find(|name| name.to_ascii_lowercase().ends_with(end))
    }

    /// Directories, without the slash.
    fn dirs(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|name| name.strip_suffix('/'))
    }
}

/// Names in a line, within bounds and without control characters.
fn listed<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(shown).collect();
    let more = names.len().saturating_sub(NAMES_MAX);
    let mut text = names[..names.len() - more].join(", ");
    if more > 0 {
        text.push_str(&format!(" and {more} more"));
    }
    text
}

fn shown(name: &str) -> String {
    let name = name.escape_debug().to_string();
    match name.char_indices().nth(NAME_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &name[..end]),
        None => name,
    }
}

/// Why a file cannot be given in the place of an adapter's directory.
pub fn is_a_file(path: &Path) -> AdapterError {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    AdapterError::Invalid(match name.ends_with(".gguf") {
        true => GGUF.to_owned(),
        false => format!(
            "the path is a file; give the directory that holds it, with {CONFIG} and {TENSORS}"
        ),
    })
}

/// Why the directory of an adapter was not opened, or not read to the end.
pub fn not_opened(path: &Path, why: NotRead) -> AdapterError {
    match why {
        NotRead::Absent => AdapterError::NotFound(no_config()),
        NotRead::NotDirectory => is_a_file(path),
        NotRead::Changed => AdapterError::Invalid(format!("the adapter {why}")),
        why => AdapterError::Invalid(format!("the directory {why}")),
    }
}

fn no_config() -> String {
    format!("there is no {CONFIG} at the given path")
}

const GGUF: &str = "this is a GGUF adapter; give the directory of the \
                    peft adapter that it was converted from (adapter_config.json and \
                    adapter_model.safetensors)";
const MLX: &str = "this is an MLX adapter (mlx-lm writes adapters.safetensors and its own \
                   adapter_config.json), not one of peft; fuse it into the model (mlx_lm.fuse) \
                   and serve that, or convert it to peft's adapter_config.json and \
                   adapter_model.safetensors";

/// # Errors
/// For a directory with trained weights that would not be applied.
pub fn check_complete(dir: &Folder) -> Result<(), AdapterError> {
    match MORE_WEIGHTS.iter().find(|name| dir.holds(name)) {
        None => Ok(()),
        Some(name) => Err(AdapterError::Invalid(format!(
            "{name} holds trained weights beside the adapter's, which would not be applied; save \
             them in the adapter (modules_to_save) or merge them into the base model"
        ))),
    }
}

/// What a directory without an `adapter_config.json` is.
pub fn without_config(dir: &Folder) -> AdapterError {
    let listing = Listing::of(dir);
    let none = no_config();
    let Some(what) = kind_without_config(dir, &listing) else {
        return AdapterError::NotFound(none);
    };
    AdapterError::Invalid(format!("{none}: {what}"))
}

fn kind_without_config(dir: &Folder, listing: &Listing) -> Option<String> {
    let holds = |name: &str| dir.holds(&format!("{name}/{CONFIG}"));
    let number = |name: &str| name.strip_prefix("checkpoint-")?.parse::<u64>().ok();
    let mut steps: Vec<(u64, &str)> =
        listing.dirs().filter_map(|name| Some((number(name)?, name))).collect();
    steps.sort_unstable();
    let is_model = listing.has("config.json")
        && (listing.ending(".safetensors").is_some_and(|name| name.starts_with("model"))
            || listing.has("model.safetensors.index.json")
            || listing.has("pytorch_model.bin"));
    if let Some((_, newest)) = steps.iter().rev().find(|(_, name)| holds(name)) {
        return Some(format!(
            "it is the output folder of a trainer; give one of its checkpoints, of which \
             {newest} is the newest"
        ));
    }
    if is_model {
        return Some(
            "it holds a whole model (config.json and its weights), not an adapter; serve it as \
             the base: tessera serve DIRECTORY"
                .into(),
        );
    }
    if let Some((_, newest)) = steps.last() {
        return Some(format!(
            "it is the output folder of a trainer, and {newest} holds no adapter either"
        ));
    }
    if listing.ending(".gguf").is_some() {
        return Some(GGUF.into());
    }
    if listing.has("adapters.safetensors") || listing.has("adapters.npz") {
        return Some(MLX.into());
    }
    if listing.has("lora.safetensors") {
        return Some(
            "lora.safetensors is what a trainer with a format of its own writes (params.json \
             beside it); convert it to a peft adapter"
                .into(),
        );
    }
    if let Some(name) = listing.ending("pytorch_lora_weights.safetensors") {
        return Some(format!("{name} is an adapter of diffusers, for a model of images"));
    }
    let has_tensors = |name: &&str| listing.has(name);
    if let Some(name) = [TENSORS].iter().chain(PICKLES).copied().find(has_tensors) {
        return Some(format!(
            "{name} is there; copy the {CONFIG} that was saved with it beside it"
        ));
    }
    let below = listing.dirs().filter(|name| holds(name));
    let below = listed(below);
    if !below.is_empty() {
        return Some(format!("there is one in {below}; give that directory"));
    }
    let name = listing.ending(".safetensors")?;
    Some(format!(
        "{} is a tensor file without one, as kohya's trainers write for models of images; a peft \
         adapter has {CONFIG} and {TENSORS}",
        shown(name)
    ))
}

/// Why there is no tensor file beside an `adapter_config.json`.
pub fn without_tensors(dir: &Folder, config: &Map<String, Value>) -> AdapterError {
    let listing = Listing::of(dir);
    let missing = format!("{TENSORS} is missing beside {CONFIG}");
    let text = if let Some(name) = PICKLES.iter().find(|name| listing.has(name)) {
        format!(
            "{name} is a pickle, which can run code when read; save the adapter as {TENSORS} \
             (peft: save_pretrained(..., safe_serialization=True))"
        )
    } else if is_mlx(config) || listing.has("adapters.safetensors") {
        MLX.to_owned()
    } else if listing.has("adapter_model.safetensors.index.json") {
        format!(
            "{missing}: adapter_model.safetensors.index.json says that it was saved in parts, \
             which peft does not read either; save it in one file"
        )
    } else if listing.ending(".gguf").is_some() {
        format!("{missing}: {GGUF}")
    } else if let Some(name) = listing.ending(".safetensors") {
        format!("{missing}; {} has another name", shown(name))
    } else {
        missing
    };
    AdapterError::Invalid(text)
}

fn is_mlx(config: &Map<String, Value>) -> bool {
    !config.contains_key("peft_type")
        && (config.contains_key("fine_tune_type") || config.contains_key("lora_parameters"))
}

/// Refuses a config that is not peft's.
///
/// # Errors
/// When it is MLX's.
pub fn check_config(config: &Map<String, Value>) -> Result<(), AdapterError> {
    match is_mlx(config) {
        true => Err(AdapterError::Invalid(MLX.into())),
        false => Ok(()),
    }
}

/// What in the directory of an adapter is not used.
pub fn notes(dir: &Folder) -> Vec<String> {
    let listing = Listing::of(dir);
    let mut notes = Vec::new();
    if listing.has("config.json") {
        notes.push(format!(
            "config.json stands beside {CONFIG}: of a folder that holds a model as well, only the \
             adapter is read"
        ));
    }
    if let Some(name) = PICKLES.iter().find(|name| listing.has(name)) {
        notes.push(format!("{TENSORS} is read, {name} beside it is not"));
    }
    // Whoever reads the text files says what of them is not used.
    let told = [&[CONFIG, TENSORS, "config.json"], TEXT_FILES, PICKLES].concat();
    let used = |name: &str| told.contains(&name);
    let unused = listed(listing.0.iter().map(String::as_str).filter(|name| !used(name)));
    if !unused.is_empty() {
        notes.push(format!("not used: {unused}"));
    }
    notes
}

/// A word where an adapter names another base model than `served`, the names of the one it is to
/// change. Names alone do not tell, so it is no reason to refuse.
pub fn note_on_base(config: &Map<String, Value>, served: &[String]) -> Option<String> {
    let named = config.get("base_model_name_or_path")?.as_str()?.trim();
    let first = served.first()?;
    if named.is_empty() || served.iter().any(|name| plain_name(name) == plain_name(named)) {
        return None;
    }
    Some(format!(
        "warning: {CONFIG} says that its base model is '{}' and the one served is called '{}': if \
         those are not the same weights, its answers are wrong",
        shown(named),
        shown(first)
    ))
}

/// The last part of a path or Hub id, without what repacked copies add.
fn plain_name(name: &str) -> String {
    let mut parts = name.split(['/', '\\']).filter(|part| !part.is_empty());
    let cached = parts.clone().find_map(|part| part.strip_prefix("models--"));
    let last = cached.or_else(|| parts.next_back()).unwrap_or_default();
    let last = last.rsplit("--").next().unwrap_or_default();
    let last = last.split('@').next().unwrap_or_default();
    let mut name = last.to_lowercase().replace('_', "-");
    while let Some(shorter) = REPACKED.iter().find_map(|end| name.strip_suffix(end)) {
        name = shorter.to_owned();
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_is_the_same_under_every_name_that_its_copies_have() {
        let note = |named: &str, served: &str| {
            let config = Map::from_iter([("base_model_name_or_path".to_owned(), named.into())]);
            note_on_base(&config, &[served.to_owned()])
        };
        for (named, served) in [
            ("maker/Large-3.1-8B", "maker/Large-3.1-8B"),
            ("unsloth/Maker-Large-3.1-8B-unsloth-bnb-4bit", "maker/Maker-Large-3.1-8B"),
            ("unsloth/large-3.1-8b-bnb-4bit", "maker/Large-3.1-8B"),
            ("/data/models/Large-3.1-8B/", "maker/Large-3.1-8B"),
            (r"C:\models\Large-3.1-8B", "Large-3.1-8B"),
            ("/c/models--maker--Large-3.1-8B/snapshots/0e9e39f2", "Large-3.1-8B"),
            ("maker/Large-3.1-8B", "/c/models--maker--Large-3.1-8B/snapshots/0e9e"),
            ("maker/Large-3.1-8B@main", "Large-3.1-8B"),
            ("", "Large-3.1-8B"),
        ] {
            assert_eq!(note(named, served), None, "{named} on {served}");
        }
        for (named, served) in [
            ("maker/Large-3.1-8B-Instruct", "maker/Large-3.1-8B"),
            ("somebody/another-13b-chat", "Large-3.1-8B"),
            ("maker/Large-3.2-1B", "maker/Large-3.2-3B"),
        ] {
            let text = note(named, served).unwrap();
            assert!(text.contains(named) && text.contains(served), "{text}");
        }
        assert_eq!(note_on_base(&Map::new(), &["a".to_owned()]), None);
    }
}
