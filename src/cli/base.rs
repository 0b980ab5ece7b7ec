//! Finds a base model: a directory, a Hub id, or the built-in demo.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::hub::{HubSettings, Kind, resolve};
use super::{CliError, demo};
use crate::adapter::{AdapterError, is_a_file, not_opened};
use crate::dtype::Dtype;
use crate::files::{Folder, Root, steadily};
use crate::model::{Checkpoint, of_a_file};
use crate::text::{AdapterTexts, ServedText, TextError, TextFiles, TextSettings};

/// A base model's files, opened.
pub struct BaseModel {
    /// Its name in requests and replies.
    pub name: String,
    /// Weights.
    pub checkpoint: Arc<Checkpoint>,
    /// Tokenizer, template and end-of-sequence ids.
    pub text: TextFiles,
    /// Whether it is the demo, whose adapters come along.
    pub is_demo: bool,
}

impl BaseModel {
    /// What adapters that are for it may call it.
    pub fn names(&self) -> impl Iterator<Item = String> {
        let own = self.is_demo.then(|| demo::TRAINED_AS.to_owned());
        std::iter::once(self.name.clone()).chain(own)
    }

    /// Opens `model`, or the demo where there is none.
    ///
    /// # Errors
    /// One line that says what is wrong and how to mend it.
    pub fn open(model: Option<&str>, dtype: Option<Dtype>) -> Result<Self, CliError> {
        let Some(model) = model else {
            let checkpoint = demo::checkpoint(dtype)?;
            let name = demo::NAME.to_owned();
            return Ok(Self { name, checkpoint, text: demo::text_files(), is_demo: true });
        };
        let dir = find(model)?;
        let checkpoint = open(model, &dir, dtype)?;
        let text = TextFiles::read(&dir).map_err(|e| failed(model, &e))?;
        Ok(Self { name: name_of(model, &dir), checkpoint, text, is_demo: false })
    }
}

/// The weights of `model` alone, or the demo's where there is none: no tokenizer is needed. What is
/// to be said of them goes to stderr: stdout is for the command's own results.
///
/// # Errors
/// [`CliError::Model`] where it cannot be found or opened.
pub fn checkpoint(model: Option<&str>, dtype: Option<Dtype>) -> Result<Arc<Checkpoint>, CliError> {
    let Some(model) = model else { return demo::checkpoint(dtype) };
    told(model, &find(model)?, dtype)
}

/// The same, and what reads the text files of its adapters, as `serve` would without flags; `None`
/// where the model has no tokenizer.
///
/// # Errors
/// [`CliError::Model`] where it cannot be found, opened or served.
pub fn with_texts(
    model: Option<&str>,
) -> Result<(Arc<Checkpoint>, Option<AdapterTexts>), CliError> {
    let Some(model) = model else {
        let checkpoint = demo::checkpoint(None)?;
        let texts = texts(demo::NAME, demo::text_files(), &checkpoint)?;
        return Ok((checkpoint, Some(texts)));
    };
    let dir = find(model)?;
    let checkpoint = told(model, &dir, None)?;
    let texts = match TextFiles::read(&dir) {
        Err(TextError::FileMissing { .. }) => None,
        read => Some(texts(model, read.map_err(|e| failed(model, &e))?, &checkpoint)?),
    };
    Ok((checkpoint, texts))
}

fn told(model: &str, dir: &Path, dtype: Option<Dtype>) -> Result<Arc<Checkpoint>, CliError> {
    let checkpoint = open(model, dir, dtype)?;
    checkpoint.notes.iter().for_each(|note| tracing::warn!("model {model}: {note}"));
    Ok(checkpoint)
}

fn texts(name: &str, files: TextFiles, checkpoint: &Checkpoint) -> Result<AdapterTexts, CliError> {
    let settings = TextSettings {
        context_tokens_max: checkpoint.config.positions_max as u32,
        vocabulary_tokens: checkpoint.config.vocabulary as u32,
        takes_defaults: true,
    };
    let served = ServedText::new(&files, &settings).map_err(|e| failed(name, &e))?;
    Ok(AdapterTexts::new(files, served, settings, true))
}

/// Where an adapter of the command line is.
pub struct AdapterPlace {
    dir: PathBuf,
    /// Of a snapshot in the Hub's cache: its repository's folder, whose blobs its files link to,
    /// and where in it the snapshot is.
    within: Option<(Root, PathBuf)>,
}

impl AdapterPlace {
    /// What `read` makes of its files, all of one version.
    ///
    /// # Errors
    /// [`AdapterError`].
    pub fn read<T>(
        &self,
        read: impl Fn(&Folder) -> Result<T, AdapterError>,
    ) -> Result<T, AdapterError> {
        let opened = || match &self.within {
            Some((repository, snapshot)) => repository.folder(snapshot),
            None => Folder::open(&self.dir),
        };
        steadily(opened, read).map_err(|why| not_opened(&self.dir, why))?
    }
}

/// An adapter of the command line: a directory or a Hub id.
///
/// # Errors
/// [`CliError::Adapter`] where there is none.
pub fn find_adapter(place: &str) -> Result<AdapterPlace, CliError> {
    let path = Path::new(place);
    if path.is_file() {
        return Err(is_a_file(path).into());
    }
    let found = resolve(place, Kind::Adapter, &HubSettings::from_env());
    let dir = found.map_err(|error| CliError::Adapter(error.to_string()))?;
    let within = match dir == path {
        true => None,
        false => Some(snapshot(&dir).map_err(|error| {
            CliError::Adapter(format!("the cache cannot be read at {}: {error}", dir.display()))
        })?),
    };
    Ok(AdapterPlace { dir, within })
}

/// The folder of a snapshot's repository, and the snapshot in it: `snapshots/COMMIT`.
fn snapshot(dir: &Path) -> io::Result<(Root, PathBuf)> {
    let repository = dir.ancestors().nth(2).unwrap_or(dir);
    let root = Root::new(repository, "its repository's folder in the cache")?;
    let below = dir.strip_prefix(repository).unwrap_or(Path::new(""));
    Ok((root, below.to_owned()))
}

fn failed(model: &str, e: &dyn Display) -> CliError {
    CliError::Model(format!("model {model}: {e}"))
}

fn find(model: &str) -> Result<PathBuf, CliError> {
    if Path::new(model).is_file() {
        return Err(failed(model, &of_a_file(Path::new(model))));
    }
    resolve(model, Kind::Model, &HubSettings::from_env()).map_err(|e| failed(model, &e))
}

fn open(model: &str, dir: &Path, dtype: Option<Dtype>) -> Result<Arc<Checkpoint>, CliError> {
    Checkpoint::open(dir, dtype).map(Arc::new).map_err(|e| failed(model, &e))
}

/// A Hub id as it is; of a path, the last part.
fn name_of(model: &str, dir: &Path) -> String {
    if Path::new(model) != dir {
        return model.split('@').next().unwrap_or(model).to_owned();
    }
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    real.file_name().map_or_else(|| "base".into(), |name| name.to_string_lossy().into_owned())
}
