//! What tells a file that changed from one that did not.

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longer than a tick of the clock that file systems take times from, which is at most 10 ms. What
/// changed so short a time ago can change once more and keep its time.
const FRESH: Duration = Duration::from_millis(15);

/// Which file it is, and when it changed last.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of a file.
    ///
    /// # Errors
    /// The system's.
    pub fn of(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        let changed = (found.ctime(), found.ctime_nsec());
        Ok(Self { bytes: found.len(), changed, ..Self::of_entries(&found) })
    }

    /// Of what is in a file: it may lose its name to another, which changes nothing in it.
    ///
    /// # Errors
    /// The system's.
    pub fn of_content(file: &File) -> io::Result<Self> {
        let found = file.metadata()?;
        Ok(Self { bytes: found.len(), ..Self::of_entries(&found) })
    }

    /// Of the names in a directory: it may get another name itself, as when it is replaced whole.
    ///
    /// # Errors
    /// The system's.
    pub fn of_names(dir: &File) -> io::Result<Self> {
        dir.metadata().map(|found| Self::of_entries(&found))
    }

    fn of_entries(found: &Metadata) -> Self {
        let modified = (found.mtime(), found.mtime_nsec());
        let (device, inode) = (found.dev(), found.ino());
        Self { device, inode, bytes: 0, modified, changed: modified }
    }

    /// Waits, once and for a short time, until a change of `file` cannot go unseen.
    ///
    /// # Errors
    /// The system's.
    pub fn settled(file: &File, of: impl Fn(&File) -> io::Result<Self>) -> io::Result<Self> {
        let stamp = of(file)?;
        if !stamp.is_fresh() {
            return Ok(stamp);
        }
        std::thread::sleep(FRESH);
        of(file)
    }

    /// A time in the future tells nothing either.
    fn is_fresh(&self) -> bool {
        let (s, ns) = self.changed;
        let changed = UNIX_EPOCH + Duration::new(s.max(0) as u64, ns as u32);
        SystemTime::now().duration_since(changed).map_or(true, |age| age < FRESH)
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_just_changed_gets_time_to_show_a_further_change() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "a").unwrap();
        let file = File::open(&path).unwrap();
        assert!(Stamp::of(&file).unwrap().is_fresh());
        let settled = Stamp::settled(&file, Stamp::of).unwrap();
        assert!(!settled.is_fresh(), "a change from now on has another time");
        std::fs::write(&path, "b").unwrap();
        assert_ne!(Stamp::of(&file).unwrap(), settled);
        // A directory's own name is not its content, and a clock that is wrong holds up nobody.
        let at = File::open(dir.path()).unwrap();
        at.set_modified(SystemTime::now() + Duration::from_secs(1000)).unwrap();
        let begun = std::time::Instant::now();
        let settled = Stamp::settled(&at, Stamp::of_names).unwrap();
        assert!(settled.is_fresh() && begun.elapsed() < 100 * FRESH);
    }
}
