//! Finds a base model: a directory, a Hub id, or the built-in demo.

use std::path::Path;
use std::sync::Arc;

use super::hub::{HubSettings, Kind, resolve};
use super::{CliError, demo};
use crate::dtype::Dtype;
use crate::model::Checkpoint;
use crate::text::TextFiles;

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
    /// Opens `model`, or the demo where there is none.
    ///
    /// # Errors
    /// One line that says what is wrong and how to mend it.
    pub fn open(model: Option<&str>, dtype: Option<Dtype>) -> Result<Self, CliError> {
        let Some(model) = model else {
            let checkpoint = Arc::new(demo::checkpoint(dtype)?);
            let name = demo::NAME.to_owned();
            return Ok(Self { name, checkpoint, text: demo::text_files(), is_demo: true });
        };
        let failed = |e: &dyn std::fmt::Display| CliError::Model(format!("model {model}: {e}"));
        let dir = resolve(model, Kind::Model, &HubSettings::from_env()).map_err(|e| failed(&e))?;
        let checkpoint = Checkpoint::open(&dir, dtype).map_err(|e| failed(&e))?;
        let text = TextFiles::read(&dir).map_err(|e| failed(&e))?;
        let name = name_of(model, &dir);
        Ok(Self { name, checkpoint: Arc::new(checkpoint), text, is_demo: false })
    }
}

/// A Hub id as it is; of a path, the last part.
fn name_of(model: &str, dir: &Path) -> String {
    if Path::new(model) != dir {
        return model.split('@').next().unwrap_or(model).to_owned();
    }
    let real = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    real.file_name().map_or_else(|| "base".into(), |name| name.to_string_lossy().into_owned())
}
