//! What the user says: lines with an editor and a history on a terminal, plain ones elsewhere.

use std::io::{self, BufRead, IsTerminal};

use rustyline::DefaultEditor;
use rustyline::error::ReadlineError;

use crate::cli::CliError;
use crate::cli::terminal::remark;

/// Longest line; a longer one ends the command.
const LINE_BYTES_MAX: u64 = 32 << 20;

/// Where lines come from.
pub enum Lines {
    /// A person, on a terminal.
    Editor(Box<DefaultEditor>),
    /// A pipe or a file.
    Plain,
}

/// What came.
pub enum Said {
    /// A line, without its end.
    Line(String),
    /// Ctrl-C.
    Interrupt,
    /// Ctrl-D, or the end of the pipe.
    End,
}

impl Lines {
    /// An editor where both ends are a terminal's. What was said is kept until the program ends,
    /// and written to no file.
    ///
    /// # Errors
    /// When the terminal cannot be used.
    pub fn open() -> Result<Self, CliError> {
        if !(io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Ok(Self::Plain);
        }
        let editor = DefaultEditor::new().map_err(failed)?;
        Ok(Self::Editor(Box::new(editor)))
    }

    /// Whether a person is there to be prompted.
    pub fn is_prompted(&self) -> bool {
        matches!(self, Self::Editor(_))
    }

    /// Waits for the next line.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn next(&mut self, prompt: &str) -> Result<Said, CliError> {
        let Self::Editor(editor) = self else { return plain() };
        loop {
            return match editor.readline(prompt) {
                Ok(line) => {
                    // Only a file could refuse it.
                    let _ = editor.add_history_entry(line.as_str());
                    Ok(Said::Line(line))
                }
                Err(ReadlineError::Interrupted) => Ok(Said::Interrupt),
                Err(ReadlineError::Eof) => Ok(Said::End),
                Err(ReadlineError::Io(error)) if error.kind() == io::ErrorKind::InvalidData => {
                    remark("that was no UTF-8, and is not said; write it again");
                    continue;
                }
                Err(error) => Err(failed(error)),
            };
        }
    }
}

fn failed(error: ReadlineError) -> CliError {
    CliError::General(format!("the terminal cannot be read: {error}"))
}

fn plain() -> Result<Said, CliError> {
    let unread = |why: String| CliError::Usage(format!("standard input cannot be read: {why}"));
    let mut line = String::new();
    let mut from = io::Read::take(io::stdin().lock(), LINE_BYTES_MAX + 1);
    match from.read_line(&mut line).map_err(|e| unread(e.to_string()))? as u64 {
        0 => Ok(Said::End),
        bytes if bytes > LINE_BYTES_MAX => {
            Err(unread(format!("a line of more than {LINE_BYTES_MAX} bytes")))
        }
        _ => Ok(Said::Line(line.trim_end_matches(['\n', '\r']).to_owned())),
    }
}
