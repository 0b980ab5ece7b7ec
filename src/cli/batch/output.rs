//! The answers of a batch: lines in the order of the input, so that what is there of them says
//! where to go on.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::answered::{Answered, answer_id};
use super::input::Input;
use super::tally::Tally;
use crate::cli::CliError;
use crate::json;

/// The file of answers, which no other batch writes meanwhile.
pub struct Output {
    path: PathBuf,
    file: File,
    is_synced: bool,
    /// Made by this run, which has written nothing yet.
    is_unused: bool,
}

/// A run that was refused leaves no file behind.
impl Drop for Output {
    fn drop(&mut self) {
        if self.is_unused && self.is_in_place() {
            // It is empty: nothing is lost where it stays.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Output {
    /// Opens or creates it; counts in `tally` what is done, and takes away what is half written.
    ///
    /// # Errors
    /// When it cannot be written, or holds anything else than the first answers of `input`.
    pub fn open(path: &Path, input: &Input, tally: &mut Tally) -> Result<Self, CliError> {
        let shown = path.display();
        let failed = |e: io::Error| CliError::General(format!("{shown} cannot be written: {e}"));
        if path == Path::new("-") {
            return Err(CliError::Usage(
                "--output must be a file: what is in it says where to go on".to_owned(),
            ));
        }
        let is_new = !path.exists();
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(failed)?;
        let found = file.metadata().map_err(failed)?;
        let read = std::fs::metadata(input.path()).map_err(failed)?;
        if !found.is_file() || (found.dev(), found.ino()) == (read.dev(), read.ino()) {
            return Err(CliError::Usage(format!(
                "--output {shown} must be a file, and another than the batch: what is in it says \
                 where to go on"
            )));
        }
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(CliError::Usage(format!("another tessera batch is writing {shown}")));
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        if is_new && let Some(folder) = path.parent() {
            // So that the name is there too after a loss of power.
            let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)?;
        }
        let mut output = Self { path: path.to_owned(), file, is_synced: false, is_unused: is_new };
        let end = output.read_all(input, tally)?;
        output.file.set_len(end).map_err(|e| output.failed(&e))?;
        output.file.seek(SeekFrom::Start(end)).map_err(|e| output.failed(&e))?;
        Ok(output)
    }

    /// Where the last whole line ends.
    fn read_all(&self, input: &Input, tally: &mut Tally) -> Result<u64, CliError> {
        let mut reader = BufReader::new(self.file.try_clone().map_err(|e| self.failed(&e))?);
        let (mut line, mut end) = (Vec::new(), 0);
        for index in 0.. {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(|e| self.failed(&e))?;
            if read == 0 {
                break;
            }
            let foreign = |why: &str| {
                CliError::Usage(format!(
                    "{}, line {}: {why}; it is not what a run of {} left, which a run goes on \
                     from: move it away or choose another --output",
                    self.path.display(),
                    index + 1,
                    input.path().display()
                ))
            };
            if index >= input.len() {
                return Err(foreign("there is no such line in the batch"));
            }
            let request = input.request(index)?;
            if !line.ends_with(b"\n") {
                let head = format!("{{\"id\":\"{}\"", answer_id(&request));
                let common = head.len().min(line.len());
                match head.as_bytes()[..common] == line[..common] {
                    true => break,
                    false => return Err(foreign("it does not end, and is no begun answer")),
                }
            }
            let answered: Answered = json::from_slice(&line)
                .map_err(|_| foreign("it is no line of answers as OpenAI's batch API has them"))?;
            if answered.id() != answer_id(&request) {
                return Err(foreign("it answers something else than this line of the batch"));
            }
            tally.add(input.model_of(index), index, &answered);
            end += read as u64;
        }
        Ok(end)
    }

    /// Adds a line, at once and whole.
    ///
    /// # Errors
    /// When the disk is full, for example; what is half written is taken away by the next run.
    pub fn append(&mut self, line: &[u8]) -> Result<(), CliError> {
        (self.is_synced, self.is_unused) = (false, false);
        self.file.write_all(line).map_err(|e| self.failed(&e))
    }

    /// Waits until what was added survives a loss of power.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn sync(&mut self) -> Result<(), CliError> {
        if !self.is_synced {
            self.file.sync_data().map_err(|e| self.failed(&e))?;
            self.is_synced = true;
        }
        Ok(())
    }

    /// What is written to a file that has no name any more is lost.
    ///
    /// # Errors
    /// When the file was moved away, removed or replaced while the batch ran.
    pub fn check_in_place(&self) -> Result<(), CliError> {
        match self.is_in_place() {
            true => Ok(()),
            false => Err(CliError::General(format!(
                "{} was moved, removed or replaced while the batch ran: what was answered is not \
                 there",
                self.path.display()
            ))),
        }
    }

    fn is_in_place(&self) -> bool {
        let same = |(a, b): (std::fs::Metadata, std::fs::Metadata)| {
            (a.dev(), a.ino()) == (b.dev(), b.ino())
        };
        self.file.metadata().ok().zip(self.path.metadata().ok()).is_some_and(same)
    }

    fn failed(&self, error: &io::Error) -> CliError {
        CliError::General(format!("{} cannot be written: {error}", self.path.display()))
    }
}
