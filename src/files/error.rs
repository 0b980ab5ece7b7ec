//! Why something beneath a directory was not read.

use std::io;

use rustix::io::Errno;

/// Why something was not read. The text goes on from the name of what it is about, and holds no
/// path.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum NotRead {
    /// There is nothing of that name, or a file where a directory would have to be.
    #[error("is not there")]
    Absent,
    /// A link, and nothing is where it points.
    #[error("is a link to nothing")]
    Dangling,
    /// A link that leaves what it may not leave, whatever is there.
    #[error("is a link to outside {0}")]
    Outside(&'static str),
    /// A loop of links, or more of them or deeper ones than are followed.
    #[error("leads through more links or directories than are followed")]
    Far,
    /// A directory where a file would have to be.
    #[error("is a directory, not a regular file")]
    Directory,
    /// Something else than a directory where one would have to be.
    #[error("is not a directory")]
    NotDirectory,
    /// Opening or reading it could wait for ever, or do something.
    #[error("is a pipe, socket or device, not a regular file")]
    Special,
    /// It changed each time that it was read.
    #[error("changed while it was read, time and again; try again when it is in place")]
    Changed,
    /// What the system says.
    #[error("cannot be read: {0}")]
    Failed(io::ErrorKind),
}

impl From<Errno> for NotRead {
    fn from(error: Errno) -> Self {
        match error {
            Errno::NOENT | Errno::NAMETOOLONG => Self::Absent,
            Errno::LOOP => Self::Far,
            Errno::NOTDIR => Self::NotDirectory,
            // Of a socket, and of a device that nothing drives.
            Errno::NXIO | Errno::NODEV => Self::Special,
            error => Self::Failed(io::Error::from(error).kind()),
        }
    }
}

impl From<io::Error> for NotRead {
    fn from(error: io::Error) -> Self {
        Self::Failed(error.kind())
    }
}
