//! The directory that adapters may be loaded from while serving.

use std::io;
use std::path::{Component, Path};

use crate::files::{Folder, NotRead, Root};

/// What errors call it.
const WHAT: &str = "the adapter root";

/// The root as it was configured.
pub(super) struct AdapterRoot(Root);

impl AdapterRoot {
    /// # Errors
    /// When there is no such directory.
    pub fn new(configured: &Path) -> io::Result<Self> {
        Root::new(configured, WHAT).map(Self)
    }

    /// The directory at `path`, relative or absolute, beneath the root.
    ///
    /// # Errors
    /// [`NotRead::Outside`] by what the path says and by what links say, and never by what is
    /// outside.
    pub fn folder(&self, path: &Path) -> Result<Folder, NotRead> {
        // A file system cannot look up a name with a NUL, and no directory is beneath such a path.
        let has_nul = path.as_os_str().as_encoded_bytes().contains(&0);
        if has_nul || path.components().any(|component| component == Component::ParentDir) {
            return Err(NotRead::Outside(WHAT));
        }
        self.0.folder(path)
    }
}
