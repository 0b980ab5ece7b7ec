//! The cache of Python's `huggingface_hub`: `blobs/ETAG`, `snapshots/COMMIT/NAME` as links to them,
//! and `refs/REVISION`. What a server says becomes part of a path only through the types here.

use std::fmt;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256};
use tempfile::Builder;

/// Longer than any hash, shorter than what file systems take as a name.
const ETAG_CHARS_MAX: usize = 128;

/// The name of a commit: 40 hexadecimal digits, in lower case as git writes them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Commit(String);

impl Commit {
    /// `None` if `text` is none.
    pub fn parse(text: &str) -> Option<Self> {
        let is_commit = text.len() == 40 && text.bytes().all(|b| b.is_ascii_hexdigit());
        is_commit.then(|| Self(text.to_ascii_lowercase()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a file's content: the SHA-256 of a large file, git's hash of a small one, or what
/// else a mirror calls it by. Letters, digits, `-` and `_`: no path, and no name with an ending.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Etag(String);

impl Etag {
    /// From a header's value, quoted or not, weak or not. `None` if it may not become a file's
    /// name.
    pub fn parse(header: &str) -> Option<Self> {
        let etag = header.trim().trim_start_matches("W/").trim_matches('"');
        let legal = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let is_name = (1..=ETAG_CHARS_MAX).contains(&etag.len()) && etag.bytes().all(legal);
        is_name.then(|| Self(etag.to_owned()))
    }

    fn is_sha256(&self) -> bool {
        is_hex(&self.0, 64)
    }
}

/// What a content is known by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Hash {
    /// SHA-256, in hexadecimal digits.
    Sha256(String),
    /// Git's of a file: SHA-1 of its length and its content.
    Git(String),
}

impl Hash {
    /// 64 hexadecimal digits.
    pub fn sha256(text: &str) -> Option<Self> {
        is_hex(text, 64).then(|| Self::Sha256(text.to_owned()))
    }

    /// 40 hexadecimal digits.
    pub fn git(text: &str) -> Option<Self> {
        is_hex(text, 40).then(|| Self::Git(text.to_owned()))
    }
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn hex(hash: Context) -> String {
    hash.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a file's name is nothing but a name, and not a hidden one.
pub fn is_plain(name: &str) -> bool {
    let bad = |c: char| c == '/' || c == '\\' || c.is_control();
    !name.is_empty() && !name.starts_with('.') && !name.contains(bad)
}

/// One repository's folders.
pub struct Folders {
    root: PathBuf,
    locks: PathBuf,
}

impl Folders {
    pub fn new(cache_dir: &Path, owner: &str, name: &str) -> Self {
        let folder = format!("models--{owner}--{name}");
        let locks = cache_dir.join(".locks").join(&folder);
        Self { root: cache_dir.join(folder), locks }
    }

    pub fn snapshot(&self, commit: &Commit) -> PathBuf {
        self.root.join("snapshots").join(commit.as_str())
    }

    /// What a revision stood for when it was fetched last.
    pub fn commit_of(&self, revision: &str) -> Option<Commit> {
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        Commit::parse(text.trim())
    }

    /// Notes what a revision stands for.
    pub fn set_commit_of(&self, revision: &str, commit: &Commit) -> io::Result<()> {
        if self.commit_of(revision).as_ref() == Some(commit) {
            return Ok(());
        }
        let path = self.root.join("refs").join(revision);
        let parent = path.parent().unwrap_or(&self.root);
        fs::create_dir_all(parent)?;
        let made = Builder::new().make_in(parent, |path| fs::write(path, commit.as_str()))?;
        made.into_temp_path().persist(path)?;
        Ok(())
    }

    /// The place of a content, kept for this process until it is dropped. One that Python or
    /// another of us holds is waited for.
    pub fn blob(&self, etag: Etag) -> io::Result<Blob> {
        let blobs = self.root.join("blobs");
        fs::create_dir_all(&blobs)?;
        fs::create_dir_all(&self.locks)?;
        let lock_path = self.locks.join(format!("{}.lock", etag.0));
        let lock = OpenOptions::new().write(true).create(true).truncate(false).open(&lock_path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let shown = lock_path.display();
                tracing::info!("waiting for another process that fetches the same, by {shown}");
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let whole = blobs.join(&etag.0);
        Ok(Blob { partial: blobs.join(format!("{}.incomplete", etag.0)), whole, etag, _lock: lock })
    }
}

/// The place of one content, which nobody else writes meanwhile.
pub struct Blob {
    pub etag: Etag,
    whole: PathBuf,
    partial: PathBuf,
    _lock: File,
}

impl Blob {
    /// Whether it is there. Only whole ones are, except after a failure of the disk.
    pub fn is_whole(&self, size: u64) -> bool {
        self.whole.metadata().is_ok_and(|found| found.len() == size)
    }

    /// What has come of it so far, in this process or one before.
    pub fn partial(&self) -> io::Result<Partial<'_>> {
        let mut options = OpenOptions::new();
        let file = options.read(true).append(true).create(true).open(&self.partial)?;
        let mut partial = Partial { blob: self, file, len: 0, hash: Context::new(&SHA256) };
        if !partial.is_vouched_for() {
            partial.restart()?;
            return Ok(partial);
        }
        let mut bytes = vec![0; 1 << 20];
        loop {
            let n = partial.file.read(&mut bytes)?;
            if n == 0 {
                return Ok(partial);
            }
            partial.hash.update(&bytes[..n]);
            partial.len += n as u64;
        }
    }

    /// Gives the content a name in a snapshot. A link that stands there is replaced, and what it
    /// led to left alone.
    pub fn link(&self, snapshot: &Path, name: &str) -> io::Result<()> {
        fs::create_dir_all(snapshot)?;
        let target = Path::new("../../blobs").join(&self.etag.0);
        let made = Builder::new().make_in(snapshot, |path| symlink(&target, path))?;
        made.into_temp_path().persist(snapshot.join(name))?;
        Ok(())
    }
}

/// A content while it comes.
pub struct Partial<'a> {
    blob: &'a Blob,
    file: File,
    len: u64,
    hash: Context,
}

impl Partial<'_> {
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Forgets what has come.
    pub fn restart(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        (self.len, self.hash) = (0, Context::new(&SHA256));
        Ok(())
    }

    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Whether a hash will tell if parts that came at different times make the whole.
    pub fn is_vouched_for(&self) -> bool {
        self.blob.etag.is_sha256()
    }

    /// Whether the content is the one that the name says, where the name says it.
    pub fn is_genuine(&self) -> bool {
        !self.is_vouched_for() || hex(self.hash.clone()) == self.blob.etag.0
    }

    /// Whether the content has a hash that was told beside its name.
    pub fn has(&self, hash: &Hash) -> io::Result<bool> {
        Ok(match hash {
            Hash::Sha256(told) => hex(self.hash.clone()) == *told,
            Hash::Git(told) => {
                let mut hash = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
                hash.update(format!("blob {}\0", self.len).as_bytes());
                let (mut file, mut bytes) = (File::open(&self.blob.partial)?, vec![0; 1 << 20]);
                loop {
                    match file.read(&mut bytes)? {
                        0 => break hex(hash) == *told,
                        n => hash.update(&bytes[..n]),
                    }
                }
            }
        })
    }

    /// Bytes that are free where it is written.
    pub fn free_bytes(&self) -> Option<u64> {
        let stat = rustix::fs::fstatvfs(&self.file).ok()?;
        Some(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    /// Makes it a whole one. It is on the disk before it has the name, so that a power cut leaves
    /// no file of the right length with holes in it.
    pub fn finish(self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.blob.partial, &self.blob.whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_a_path_is_a_plain_name() {
        let sha = "a".repeat(64);
        let etag = |text: &str| Etag::parse(text).map(|etag| etag.0);
        assert_eq!(etag(&format!("\"{sha}\"")), Some(sha.clone()));
        assert_eq!(etag(&format!("W/\"{sha}\"")), Some(sha));
        assert_eq!(etag("5f3b-abc_D").as_deref(), Some("5f3b-abc_D"));
        let long = "a".repeat(ETAG_CHARS_MAX + 1);
        for bad in ["", "\"\"", ".", "..", "../x", "\"../../x\"", "a/b", "a\\b", "a.lock", "a b"] {
            assert_eq!(etag(bad), None, "{bad}");
        }
        for bad in [long.as_str(), "a\0b", "é", "/etc/passwd", "W/\"/x\""] {
            assert_eq!(etag(bad), None, "{bad}");
        }
        assert!(Commit::parse(&"0aF".repeat(14)[..40]).is_some());
        for bad in ["", "main", "../../x", &"a".repeat(39), &"g".repeat(40), &"a".repeat(41)] {
            assert_eq!(Commit::parse(bad), None, "{bad}");
        }
        assert!(is_plain("model-00001-of-00002.safetensors") && is_plain("a b"));
        for bad in ["", ".", "..", "../x", "/x", "a/b", "a\\b", ".hidden", "a\nb"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn only_what_a_hash_vouches_for_is_kept_between_tries() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::new(dir.path(), "org", "name");
        // The SHA-256 of "abc" (FIPS 180-2, appendix B.1).
        let sha = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for (etag, kept) in [(sha, 2), ("no-hash", 0)] {
            let blob = folders.blob(Etag::parse(etag).unwrap()).unwrap();
            blob.partial().unwrap().append(b"ab").unwrap();
            let mut partial = blob.partial().unwrap();
            assert_eq!(partial.len(), kept);
            partial.append(&b"abc"[kept as usize..]).unwrap();
            assert!(partial.is_genuine());
            partial.finish().unwrap();
            assert!(blob.is_whole(3) && !blob.is_whole(2));
        }
        let blob = folders.blob(Etag::parse(sha).unwrap()).unwrap();
        let mut partial = blob.partial().unwrap();
        partial.append(b"abd").unwrap();
        assert!(!partial.is_genuine());
    }

    #[test]
    fn a_content_is_known_by_the_hash_of_a_list() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::new(dir.path(), "org", "name");
        let blob = folders.blob(Etag::parse("x").unwrap()).unwrap();
        let mut partial = blob.partial().unwrap();
        partial.append(b"hello\n").unwrap();
        // As `git hash-object` and `sha256sum` say it of the line "hello".
        let git = "ce013625030ba8dba906f756967f9e9ca394464a";
        let sha = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";
        assert!(partial.has(&Hash::git(git).unwrap()).unwrap());
        assert!(partial.has(&Hash::sha256(sha).unwrap()).unwrap());
        partial.append(b"x").unwrap();
        assert!(!partial.has(&Hash::git(git).unwrap()).unwrap());
        assert!(!partial.has(&Hash::sha256(sha).unwrap()).unwrap());
        assert!(Hash::git(sha).is_none() && Hash::sha256(git).is_none());
    }

    #[test]
    fn a_link_replaces_what_stood_there_and_not_what_that_led_to() {
        let dir = tempfile::tempdir().unwrap();
        let folders = Folders::new(dir.path(), "org", "name");
        let other = dir.path().join("precious");
        fs::write(&other, "kept").unwrap();
        let snapshot = folders.snapshot(&Commit::parse(&"a".repeat(40)).unwrap());
        fs::create_dir_all(&snapshot).unwrap();
        symlink(&other, snapshot.join("config.json")).unwrap();
        let blob = folders.blob(Etag::parse("new").unwrap()).unwrap();
        let mut partial = blob.partial().unwrap();
        partial.append(b"{}").unwrap();
        partial.finish().unwrap();
        blob.link(&snapshot, "config.json").unwrap();
        assert_eq!(fs::read_to_string(snapshot.join("config.json")).unwrap(), "{}");
        assert_eq!(fs::read_to_string(other).unwrap(), "kept");
    }
}
