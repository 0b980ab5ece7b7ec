//! A weight file, of which each tensor is read when it is asked for. It is not mapped: where a
//! mapped file is cut short, the next look at it ends the process, and one that is written to
//! changes under its readers.

use std::borrow::Cow;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::ModelError;
use crate::files::Stamp;

/// Where the bytes of a weight file are.
pub enum Source {
    /// Built into the program.
    Static(&'static [u8]),
    /// On disk.
    File(WeightFile),
}

impl Source {
    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Static(bytes) => bytes.len() as u64,
            Self::File(file) => file.stamp.bytes(),
        }
    }

    /// A part of the file, which must be within it.
    ///
    /// # Errors
    /// [`ModelError::File`] when the file cannot be read, or is not what it was when it was opened.
    pub fn read(&self, range: Range<u64>) -> Result<Cow<'_, [u8]>, ModelError> {
        match self {
            Self::Static(bytes) => {
                Ok(Cow::Borrowed(&bytes[range.start as usize..range.end as usize]))
            }
            Self::File(file) => file.read(range).map(Cow::Owned),
        }
    }
}

/// An opened file. Another that takes its name does not change it.
pub struct WeightFile {
    file: File,
    name: String,
    stamp: Stamp,
}

impl WeightFile {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// [`ModelError::File`].
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let name = path.display().to_string();
        let opened = File::open(path).and_then(|file| Ok((Stamp::of_content(&file)?, file)));
        match opened {
            Ok((stamp, file)) => Ok(Self { file, name, stamp }),
            Err(error) => Err(ModelError::File(format!("{name} cannot be read: {error}"))),
        }
    }

    fn read(&self, range: Range<u64>) -> Result<Vec<u8>, ModelError> {
        let failed = |e: io::Error| ModelError::File(format!("{} cannot be read: {e}", self.name));
        let mut bytes = vec![0; (range.end - range.start) as usize];
        let read = self.file.read_exact_at(&mut bytes, range.start);
        // After the read: what was written before it is seen.
        let found = Stamp::of_content(&self.file).map_err(failed)?;
        if found != self.stamp {
            return Err(ModelError::File(format!(
                "{} has changed since the model was loaded; put the old file back, or restart with \
                 the new one",
                self.name
            )));
        }
        read.map_err(failed).map(|()| bytes)
    }
}
