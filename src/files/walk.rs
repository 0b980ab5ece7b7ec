//! A path looked up beneath a bound, one component after the other, links as their texts say. It
//! gives the answers of `openat2` where the kernel has none, and others where that refuses what
//! stays beneath the bound: absolute links, and links that leave the directory they are in.

use std::ffi::OsString;
use std::fs::File;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags, openat, readlinkat};
use rustix::io::{Errno, retry_on_intr};

use super::error::NotRead;

/// To see what a name is, which does nothing to it.
pub(super) const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
/// To read it: a pipe that nobody writes to is opened at once.
pub(super) const READ: OFlags =
    OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC).union(OFlags::RDONLY);
/// As many as the kernel follows.
const LINKS_MAX: usize = 40;
/// Directories between the bound and a file. Each is kept open.
const DEPTH_MAX: usize = 128;

/// What links may not leave.
#[derive(Debug)]
pub(super) struct Bound {
    /// Its path, and others that absolute links may name it by.
    pub paths: Vec<PathBuf>,
    /// What it is, for errors.
    pub what: &'static str,
    /// Whether the kernel is asked first.
    pub asks_kernel: bool,
}

/// The directories from a bound down to one beneath it, open.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub root: Rc<File>,
    pub below: Vec<Rc<File>>,
}

impl Chain {
    pub fn here(&self) -> &Rc<File> {
        self.below.last().unwrap_or(&self.root)
    }
}

/// Where a path led.
pub(super) enum Found {
    Directory(Chain),
    Other(File),
}

/// A component that is still to be looked up.
struct Part {
    name: OsString,
    of_link: bool,
}

/// A look-up on its way.
pub(super) struct Walk<'a> {
    bound: &'a Bound,
    at: Chain,
    links: usize,
}

impl<'a> Walk<'a> {
    pub fn new(bound: &'a Bound, from: Chain) -> Self {
        Self { bound, at: from, links: 0 }
    }

    /// Opens what is at `path` by `flags`: [`LOOK`] or [`READ`].
    ///
    /// # Errors
    /// [`NotRead`].
    pub fn open(mut self, path: &Path, flags: OFlags) -> Result<Found, NotRead> {
        let mut left = Vec::new();
        self.go(path, false, &mut left)?;
        while let Some(Part { name, of_link }) = left.pop() {
            if name == ".." {
                self.at.below.pop().ok_or(NotRead::Outside(self.bound.what))?;
                continue;
            }
            let found = self.look(&name, LOOK);
            let found = File::from(found.map_err(|error| lost(error, of_link))?);
            let kind = found.metadata()?.file_type();
            if kind.is_symlink() {
                self.follow(&found, &mut left)?;
            } else if kind.is_dir() {
                self.enter(found)?;
            } else if let Some(next) = left.last() {
                return Err(lost(NotRead::Absent, next.of_link));
            } else if flags.contains(OFlags::PATH) {
                return Ok(Found::Other(found));
            } else {
                match self.look(&name, flags) {
                    // A link has taken its place.
                    Err(NotRead::Far) => {
                        self.count_link()?;
                        left.push(Part { name, of_link });
                    }
                    opened => return Ok(Found::Other(opened?.into())),
                }
            }
        }
        Ok(Found::Directory(self.at))
    }

    fn look(&self, name: &OsString, flags: OFlags) -> Result<std::os::fd::OwnedFd, NotRead> {
        let flags = flags | OFlags::NOFOLLOW;
        Ok(retry_on_intr(|| openat(self.at.here(), name, flags, Mode::empty()))?)
    }

    fn enter(&mut self, dir: File) -> Result<(), NotRead> {
        if self.at.below.len() == DEPTH_MAX {
            return Err(NotRead::Far);
        }
        self.at.below.push(Rc::new(dir));
        Ok(())
    }

    fn count_link(&mut self) -> Result<(), NotRead> {
        self.links += 1;
        if self.links > LINKS_MAX { Err(NotRead::Far) } else { Ok(()) }
    }

    fn follow(&mut self, link: &File, left: &mut Vec<Part>) -> Result<(), NotRead> {
        self.count_link()?;
        let target = readlinkat(link, "", Vec::new())?;
        self.go(Path::new(&OsString::from_vec(target.into_bytes())), true, left)
    }

    /// Puts the components of `path` before those that are left. An absolute one begins anew, if
    /// it names the bound.
    fn go(&mut self, path: &Path, of_link: bool, left: &mut Vec<Part>) -> Result<(), NotRead> {
        let mut relative = path;
        if path.is_absolute() {
            let inside = self.bound.paths.iter().find_map(|bound| path.strip_prefix(bound).ok());
            relative = inside.ok_or(NotRead::Outside(self.bound.what))?;
            self.at.below.clear();
        }
        let parts = relative.components().rev().filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsString::from("..")),
            _ => None,
        });
        left.extend(parts.map(|name| Part { name, of_link }));
        Ok(())
    }
}

/// A component that is not there.
fn lost(error: NotRead, of_link: bool) -> NotRead {
    match error {
        NotRead::Absent | NotRead::NotDirectory if of_link => NotRead::Dangling,
        error => error,
    }
}

/// Whether the kernel left it to [`Walk`]: a link leaves the directory that was asked about, there
/// is no such call or none for this process, or a name changed in its way.
pub(super) fn is_left_to_us(error: Errno) -> bool {
    [Errno::XDEV, Errno::NOSYS, Errno::PERM, Errno::AGAIN].contains(&error)
}
