//! The directory that adapters may be loaded from while serving.

use std::io;
use std::path::{Component, Path, PathBuf};

use super::error::LoadError;

/// The root as it was configured, and without symbolic links.
pub(super) struct AdapterRoot {
    configured: PathBuf,
    canonical: PathBuf,
}

impl AdapterRoot {
    /// # Errors
    /// When there is no such directory.
    pub fn new(configured: PathBuf) -> io::Result<Self> {
        let canonical = configured.canonicalize()?;
        Ok(Self { configured, canonical })
    }

    /// Without symbolic links.
    pub fn canonical(&self) -> &Path {
        &self.canonical
    }

    /// Where `path`, relative or absolute, is beneath the root; `None` if there is nothing.
    ///
    /// # Errors
    /// [`LoadError::OutsideRoot`], by what the path says and by what links say, and never by what
    /// is outside.
    pub fn beneath(&self, path: &Path) -> Result<Option<PathBuf>, LoadError> {
        let Self { configured, canonical: root } = self;
        let relative = match path.is_absolute() {
            false => path,
            true => {
                let inside = path.strip_prefix(root).or_else(|_| path.strip_prefix(configured));
                inside.map_err(|_| LoadError::OutsideRoot)?
            }
        };
        // A file system cannot look up a name with a NUL, and no directory is beneath such a path.
        if path.as_os_str().as_encoded_bytes().contains(&0) {
            return Err(LoadError::OutsideRoot);
        }
        let is_plain = |c: &Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if !relative.components().all(|component| is_plain(&component)) {
            return Err(LoadError::OutsideRoot);
        }
        let mut at = root.clone();
        for component in relative.components() {
            let Component::Normal(name) = component else { continue };
            at.push(name);
            let Ok(found) = at.symlink_metadata() else { return Ok(None) };
            if found.is_symlink() {
                // A link to nothing is refused like one to the outside: where it points is not
                // told.
                let target = at.canonicalize().map_err(|_| LoadError::OutsideRoot)?;
                if !target.starts_with(root) {
                    return Err(LoadError::OutsideRoot);
                }
                at = target;
            }
        }
        Ok(Some(at))
    }
}
