//! Whether a file has changed.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What tells a file from the one that was there before: inode, time, length.
pub(super) type Seen = (u64, i64, i64, u64);

/// `None` where there is none.
pub(super) fn seen(file: &Path) -> Option<Seen> {
    let found = fs::metadata(file).ok()?;
    Some((found.ino(), found.mtime(), found.mtime_nsec(), found.len()))
}
