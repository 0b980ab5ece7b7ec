//! A directory, opened once, and its files.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, open, openat, openat2};
use rustix::io::retry_on_intr;

use super::error::NotRead;
use super::stamp::Stamp;
use super::walk::{Bound, Chain, Found, LOOK, READ, Walk, is_left_to_us};

/// Times that files are read which change meanwhile.
const TRIES_MAX: usize = 5;

/// A directory that nothing leaves which is looked up beneath it.
#[derive(Debug)]
pub struct Root {
    path: PathBuf,
    bound: Arc<Bound>,
}

impl Root {
    /// The directory at `path`, which is the operator's; `what` it is, for errors.
    ///
    /// # Errors
    /// Where there is none.
    pub fn new(path: &Path, what: &'static str) -> io::Result<Self> {
        let real = path.canonicalize()?;
        if !real.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        let paths = vec![real.clone(), path.to_owned()];
        Ok(Self { path: real, bound: Arc::new(Bound { paths, what, asks_kernel: true }) })
    }

    /// The same, where the kernel has no `openat2` or a filter of calls knows none.
    ///
    /// # Errors
    /// Where there is none.
    pub fn without_openat2(path: &Path, what: &'static str) -> io::Result<Self> {
        let Self { path, bound } = Self::new(path, what)?;
        let bound = Bound { paths: bound.paths.clone(), what, asks_kernel: false };
        Ok(Self { path, bound: Arc::new(bound) })
    }

    /// The directory at `path`, relative or absolute, beneath this one.
    ///
    /// # Errors
    /// [`NotRead`].
    pub fn folder(&self, path: &Path) -> Result<Folder, NotRead> {
        let chain = Chain { root: open_dir(&self.path)?, below: Vec::new() };
        match Walk::new(&self.bound, chain).open(path, LOOK)? {
            Found::Directory(chain) => Folder::new(chain, Some(self.bound.clone())),
            Found::Other(_) => Err(NotRead::NotDirectory),
        }
    }
}

fn open_dir(path: &Path) -> Result<Rc<File>, NotRead> {
    let flags = LOOK | OFlags::DIRECTORY;
    Ok(Rc::new(retry_on_intr(|| open(path, flags, Mode::empty()))?.into()))
}

/// A directory, opened. What is in the place of its path later changes nothing here.
pub struct Folder {
    chain: Chain,
    /// What links may not leave; `None` lets them lead anywhere.
    bound: Option<Arc<Bound>>,
    begun: Stamp,
    /// What was asked for, and what was found.
    seen: RefCell<Vec<Seen>>,
}

struct Seen {
    name: String,
    /// Kept open, so that no other file gets its number.
    found: Option<(Rc<File>, Stamp)>,
}

impl Folder {
    /// An operator's own directory: it may be a link and hold links to anywhere.
    ///
    /// # Errors
    /// [`NotRead`].
    pub fn open(path: &Path) -> Result<Self, NotRead> {
        Self::new(Chain { root: open_dir(path)?, below: Vec::new() }, None)
    }

    fn new(chain: Chain, bound: Option<Arc<Bound>>) -> Result<Self, NotRead> {
        let begun = Stamp::settled(chain.here(), Stamp::of_names)?;
        Ok(Self { chain, bound, begun, seen: RefCell::default() })
    }

    /// A regular file, open for reading, and its size.
    ///
    /// # Errors
    /// [`NotRead`]; a link to nothing is absent.
    pub fn file(&self, name: &str) -> Result<(Rc<File>, u64), NotRead> {
        let found = self.open_regular(name);
        let seen = match &found {
            Ok((file, stamp)) => Some((file.clone(), *stamp)),
            Err(NotRead::Absent) => None,
            // Had it taken a file's place just now, the directory would have changed.
            Err(error) => return Err(*error),
        };
        self.seen.borrow_mut().push(Seen { name: name.to_owned(), found: seen });
        found.map(|(file, stamp)| (file, stamp.bytes()))
    }

    fn open_regular(&self, name: &str) -> Result<(Rc<File>, Stamp), NotRead> {
        // Looked at before it is opened: opening a device may do something.
        check_regular(&self.look_up(Path::new(name), LOOK)?)?;
        let file = self.look_up(Path::new(name), READ)?;
        check_regular(&file)?;
        let stamp = Stamp::settled(&file, Stamp::of)?;
        Ok((Rc::new(file), stamp))
    }

    /// Whether there is anything of this name; a link to nothing is nothing.
    pub fn holds(&self, name: &str) -> bool {
        self.look_up(Path::new(name), LOOK).is_ok()
    }

    /// At most `names_max` of the names in it, those of directories with a slash; none where it
    /// cannot be listed.
    pub fn names(&self, names_max: usize) -> Vec<String> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = retry_on_intr(|| openat(self.chain.here(), ".", flags, Mode::empty()));
        let entries = opened.and_then(Dir::new).into_iter().flatten().map_while(Result::ok);
        let entries = entries.filter(|e| ![c".", c".."].contains(&e.file_name()));
        let name = |entry: rustix::fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_dir = match entry.file_type() {
                FileType::Directory => true,
                FileType::Symlink | FileType::Unknown => self.is_dir(&name),
                _ => false,
            };
            if is_dir { format!("{name}/") } else { name }
        };
        entries.take(names_max).map(name).collect()
    }

    fn is_dir(&self, name: &str) -> bool {
        let found = self.look_up(Path::new(name), LOOK);
        found.is_ok_and(|found| found.metadata().is_ok_and(|found| found.is_dir()))
    }

    /// Whether all that was asked for is as it was then.
    fn is_unchanged(&self) -> bool {
        let same = |Seen { name, found }: &Seen| match (found, self.look_up(Path::new(name), LOOK))
        {
            (Some((file, stamp)), Ok(now)) => {
                let [read, now] = [file, &now].map(|file| Stamp::of(file).ok());
                read == Some(*stamp) && now == Some(*stamp)
            }
            (None, Err(NotRead::Absent)) => true,
            _ => false,
        };
        // The directory last: had names in it been others meanwhile, it would tell.
        let is_begun = |now| now == self.begun;
        self.seen.borrow().iter().all(same)
            && Stamp::of_names(self.chain.here()).is_ok_and(is_begun)
    }

    fn look_up(&self, name: &Path, flags: OFlags) -> Result<File, NotRead> {
        let here = self.chain.here();
        let Some(bound) = &self.bound else {
            return Ok(retry_on_intr(|| openat(here, name, flags, Mode::empty()))?.into());
        };
        if bound.asks_kernel {
            match beneath(here, name, flags) {
                Err(error) if is_left_to_us(error) => {}
                found => return Ok(found?.into()),
            }
        }
        match Walk::new(bound, self.chain.clone()).open(name, flags) {
            Ok(Found::Other(file)) => Ok(file),
            Ok(Found::Directory(chain)) => Ok(chain.here().try_clone()?),
            Err(NotRead::Dangling) => Err(NotRead::Absent),
            Err(error) => Err(error),
        }
    }
}

fn beneath(here: &File, name: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    retry_on_intr(|| openat2(here, name, flags, Mode::empty(), resolve))
}

fn check_regular(file: &File) -> Result<(), NotRead> {
    let kind = file.metadata()?.file_type();
    match (kind.is_file(), kind.is_dir()) {
        (true, _) => Ok(()),
        (_, true) => Err(NotRead::Directory),
        _ => Err(NotRead::Special),
    }
}

/// Reads from a directory what belongs together; again, where some of it changed meanwhile. What
/// `read` fails with stands only if nothing did.
///
/// # Errors
/// What `opened` fails with; [`NotRead::Changed`] after a few tries.
pub fn steadily<T>(
    opened: impl Fn() -> Result<Folder, NotRead>,
    read: impl Fn(&Folder) -> T,
) -> Result<T, NotRead> {
    for _ in 0..TRIES_MAX {
        let folder = opened()?;
        let found = read(&folder);
        if folder.is_unchanged() {
            return Ok(found);
        }
    }
    Err(NotRead::Changed)
}
