//! The log on stderr. Whoever logs never waits for whoever reads it: a thread of its own writes,
//! and lines that come faster than they are taken are lost and counted.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{LogConfig, LogFormat};

/// Lines that wait to be written. At the limit a further one is lost.
const LINES_WAITING_MAX: usize = 4096;
/// Longest line, in bytes. A longer one is lost.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// At the end of the program, for the lines that wait.
const FLUSH_MS: u64 = 1_000;
/// Between two tries to ask for that while too many lines wait.
const FLUSH_RETRY_MS: u64 = 5;

/// The log. Dropped, it waits a moment for the lines that are not written yet.
pub struct Log {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// All lines before have been written.
    Flush(SyncSender<()>),
}

impl Log {
    /// Begins to log; `config` is that of a server. The HTTP client's own lines would repeat our
    /// errors.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(config: Option<&LogConfig>) -> io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let log = Self { lines, lost: lost.clone() };
        thread::Builder::new().name("log".into()).spawn(move || write(&waiting, &lost))?;
        let has_colors = io::stderr().is_terminal();
        let writer = Lines { lines: log.lines.clone(), lost: log.lost.clone(), has_colors };
        let logs = tracing_subscriber::fmt().with_env_filter(filter(config)).with_writer(writer);
        // Fails where a test has set one up already, which is then the one wanted.
        let _ = match config.map(|config| config.log_format) {
            Some(LogFormat::Json) => logs.json().flatten_event(true).try_init(),
            Some(LogFormat::Text) | None => logs.with_ansi(has_colors).try_init(),
        };
        Ok(log)
    }

    /// Lines that were lost so far.
    pub fn lost(&self) -> &Arc<AtomicU64> {
        &self.lost
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(FLUSH_MS);
        let (written, done) = sync_channel(1);
        let mut flush = Message::Flush(written);
        while let Err(TrySendError::Full(back)) = self.lines.try_send(flush) {
            if Instant::now() >= deadline {
                return;
            }
            flush = back;
            thread::sleep(Duration::from_millis(FLUSH_RETRY_MS));
        }
        // Nobody reads stderr: the lines are lost with the program.
        let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

/// What is logged: a flag beats RUST_LOG, which beats what is usual.
fn filter(config: Option<&LogConfig>) -> EnvFilter {
    let level = config.and_then(|config| config.log_level);
    let usual = |level: &str| {
        let others = if ["off", "error"].contains(&level) { level } else { "warn" };
        EnvFilter::new(format!("{others},tessera={level},ureq=off,rustls=off"))
    };
    let filter = match level {
        Some(level) => usual(level.name()),
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| usual("info")),
    };
    let access_off = config.filter(|config| config.no_access_log);
    match access_off.and_then(|_| "tessera::access=off".parse().ok()) {
        Some(off) => filter.add_directive(off),
        None => filter,
    }
}

/// The thread that writes.
fn write(waiting: &Receiver<Message>, lost: &AtomicU64) {
    for message in waiting {
        match message {
            // Closed, or on a full disk.
            Message::Line(line) => {
                if io::stderr().write_all(&line).is_err() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Who asked may have gone.
            Message::Flush(written) => {
                let _ = written.try_send(());
            }
        }
    }
}

/// What gives each line its writer.
struct Lines {
    lines: SyncSender<Message>,
    lost: Arc<AtomicU64>,
    has_colors: bool,
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { of: self, bytes: Vec::new() }
    }
}

/// One line, on its way when it is dropped.
struct Line<'a> {
    of: &'a Lines,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One byte too many tells that it is too long.
        let room = (LINE_BYTES_MAX + 1).saturating_sub(self.bytes.len());
        self.bytes.extend_from_slice(&bytes[..bytes.len().min(room)]);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        let line = on_one_line(std::mem::take(&mut self.bytes), self.of.has_colors);
        let is_long = line.len() > LINE_BYTES_MAX;
        if is_long || self.of.lines.try_send(Message::Line(line)).is_err() {
            self.of.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What stands in a line may be a client's or a file's text: it ends no line and moves no cursor.
/// The library has escaped it where it puts its own colours.
fn on_one_line(line: Vec<u8>, has_colors: bool) -> Vec<u8> {
    const ESCAPE: u8 = 0x1b;
    let is_bad = |byte: &u8| byte.is_ascii_control() && !(has_colors && *byte == ESCAPE);
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    if !text.iter().any(is_bad) {
        return line;
    }
    let escaped = text.iter().flat_map(|byte| match is_bad(byte) {
        true => byte.escape_ascii().collect(),
        false => vec![*byte],
    });
    escaped.chain([b'\n']).collect()
}

#[cfg(test)]
mod tests {
    use super::on_one_line;

    #[test]
    fn a_line_stays_one_whatever_is_in_it() {
        let line = |text: &str, has_colors| {
            String::from_utf8(on_one_line(text.as_bytes().to_vec(), has_colors)).unwrap()
        };
        assert_eq!(line("plain \u{1f980} \"x\"\n", false), "plain \u{1f980} \"x\"\n");
        assert_eq!(line("a\nb\r\u{1b}[0m\u{7}\n", false), "a\\nb\\r\\x1b[0m\\x07\n");
        assert_eq!(line("\u{1b}[32mINFO\u{1b}[0m a\nb\n", true), "\u{1b}[32mINFO\u{1b}[0m a\\nb\n");
        assert_eq!(line("", false), "");
    }
}
