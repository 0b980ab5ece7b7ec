//! Maps a checkpoint file into memory. The only `unsafe` of the module.
#![allow(unsafe_code)]

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

/// Maps `path` read-only.
///
/// # Errors
/// When the file cannot be opened or mapped.
pub fn map(path: &Path) -> std::io::Result<Mmap> {
    let file = File::open(path)?;
    // SAFETY: the mapping is private and read-only. If another process truncates the file, reading
    // past its new end raises SIGBUS; checkpoints are the operator's own files, and adapters (which
    // may be anyone's) are never mapped.
    unsafe { Mmap::map(&file) }
}
