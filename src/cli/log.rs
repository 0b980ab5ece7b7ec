//! The log on stderr, a line for each thing that happened, written by a thread of its own.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::{self, Write};
use std::panic::{self, PanicHookInfo};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::terminal::{has_colors, is_harmful, variable};
use super::writer::{Lines, Writer};
use crate::config::{LogConfig, LogFormat};

/// Longest line, in bytes. A longer one is cut, or lost where its form would be broken.
const LINE_BYTES_MAX: usize = 16 * 1024;
/// What a line that was cut ends with.
const CUT: &str = "…\n";
/// Between two lines that say how many were lost.
const LOST_TOLD_MS: u64 = 10_000;

/// The log. Dropped, it waits a moment for the lines that are not written yet.
pub struct Log(Writer);

impl Log {
    /// Begins to log; `config` is that of a server. The HTTP client's own lines would repeat our
    /// errors.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(config: Option<&LogConfig>) -> io::Result<Self> {
        let is_json = config.is_some_and(|config| config.log_format == LogFormat::Json);
        let mut told = Told { is_json, lines: 0, at: None };
        let after = move |lost, failed: Option<io::Error>| match failed {
            None => told.tell(lost),
            Some(_) => None,
        };
        let writer = Writer::start("log", io::stderr(), after)?;
        let has_colors = !is_json && has_colors(&io::stderr());
        let form = Form { lines: writer.lines().clone(), has_colors, is_json };
        let logs = tracing_subscriber::fmt().with_env_filter(filter(config)).with_writer(form);
        // Fails where a test has set one up already, which is then the one wanted.
        let _ = match is_json {
            true => logs.json().flatten_event(true).try_init(),
            false => logs.with_ansi(has_colors).try_init(),
        };
        // The usual one waits for whoever reads stderr, with a lock that others then wait for.
        panic::set_hook(Box::new(panicked));
        Ok(Self(writer))
    }

    /// Lines that were lost so far.
    pub fn lost(&self) -> &Arc<AtomicU64> {
        self.0.lines().lost()
    }
}

fn panicked(info: &PanicHookInfo<'_>) {
    let why = info.payload_as_str().unwrap_or("no reason given");
    let place = info.location().map_or("an unknown place".to_owned(), ToString::to_string);
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("unnamed");
    let trace = Backtrace::capture();
    match trace.status() {
        BacktraceStatus::Captured => {
            tracing::error!("thread '{name}' panicked at {place}: {why}\n{trace}");
        }
        _ => tracing::error!("thread '{name}' panicked at {place}: {why}"),
    }
}

/// Lines that were lost, as far as the log has said so.
struct Told {
    is_json: bool,
    lines: u64,
    at: Option<Instant>,
}

impl Told {
    /// The line that says how many were lost since, where lines can be written again. It is not of
    /// the library's making: it would have to wait in the line that is too long.
    fn tell(&mut self, lost: u64) -> Option<Vec<u8>> {
        let pause = Duration::from_millis(LOST_TOLD_MS);
        if lost <= self.lines || self.at.is_some_and(|at| at.elapsed() < pause) {
            return None;
        }
        let lines = lost - std::mem::replace(&mut self.lines, lost);
        self.at = Some(Instant::now());
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ");
        let (level, target) = ("WARN", module_path!());
        let message = "lines of the log were lost: they came faster than they were taken";
        let line = match self.is_json {
            true => serde_json::json!({"timestamp": now.to_string(), "level": level,
                "message": message, "lines": lines, "target": target})
            .to_string(),
            false => format!("{now}  {level} {target}: {message} lines={lines}"),
        };
        Some((line + "\n").into_bytes())
    }
}

/// What is logged: a flag beats RUST_LOG, which beats what is usual.
fn filter(config: Option<&LogConfig>) -> EnvFilter {
    let level = config.and_then(|config| config.log_level);
    let usual = |level: &str| {
        let others = if ["off", "error"].contains(&level) { level } else { "warn" };
        EnvFilter::new(format!("{others},tessera={level},ureq=off,rustls=off"))
    };
    let given = variable("RUST_LOG").and_then(|_| EnvFilter::try_from_default_env().ok());
    let filter = match level {
        Some(level) => usual(level.name()),
        None => given.unwrap_or_else(|| usual("info")),
    };
    let access_off = config.filter(|config| config.no_access_log);
    match access_off.and_then(|_| "tessera::access=off".parse().ok()) {
        Some(off) => filter.add_directive(off),
        None => filter,
    }
}

/// What gives each line its writer.
struct Form {
    lines: Lines,
    has_colors: bool,
    is_json: bool,
}

impl<'a> MakeWriter<'a> for Form {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { of: self, bytes: Vec::new() }
    }
}

/// One line, on its way when it is dropped.
struct Line<'a> {
    of: &'a Form,
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
        let mut line = on_one_line(std::mem::take(&mut self.bytes), self.of);
        if line.len() > LINE_BYTES_MAX {
            if self.of.is_json {
                return self.of.lines.lose();
            }
            line = cut(line);
        }
        self.of.lines.write(line);
    }
}

/// The beginning of a line that is too long.
fn cut(mut line: Vec<u8>) -> Vec<u8> {
    line.truncate(LINE_BYTES_MAX - CUT.len());
    let is_inside = |byte: &u8| byte & 0b1100_0000 == 0b1000_0000;
    while line.last().is_some_and(is_inside) {
        line.pop();
    }
    // The first byte of a character of several, which has lost the others.
    if line.last().is_some_and(|byte| !byte.is_ascii()) {
        line.pop();
    }
    line.extend_from_slice(CUT.as_bytes());
    line
}

/// What stands in a line may be a client's or a file's text: it ends no line, moves no cursor and
/// looks like no other. The library has escaped it where it puts its own colours.
fn on_one_line(line: Vec<u8>, form: &Form) -> Vec<u8> {
    const ESCAPE: char = '\u{1b}';
    let is_bad =
        |c: char| (c.is_ascii_control() || is_harmful(c)) && !(form.has_colors && c == ESCAPE);
    let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line));
    if !text.contains(is_bad) {
        return line;
    }
    let mut shown = String::with_capacity(line.len());
    for c in text.chars() {
        match c {
            c if !is_bad(c) => shown.push(c),
            c if form.is_json => shown += &format!("\\u{:04x}", c as u32),
            c if c.is_ascii() => shown += &(c as u8).escape_ascii().to_string(),
            c => shown.extend(c.escape_unicode()),
        }
    }
    shown.push('\n');
    shown.into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(has_colors: bool, is_json: bool) -> (Form, Writer) {
        let writer = Writer::start("test", io::sink(), |_, _| None).unwrap();
        (Form { lines: writer.lines().clone(), has_colors, is_json }, writer)
    }

    #[test]
    fn a_line_stays_one_whatever_is_in_it() {
        let line = |text: &str, has_colors, is_json| {
            let (form, _writer) = form(has_colors, is_json);
            String::from_utf8(on_one_line(text.as_bytes().to_vec(), &form)).unwrap()
        };
        let plain = "plain \u{1f980} \"x\"\n";
        assert_eq!(line(plain, false, false), plain);
        let wild = "a\nb\r\u{1b}[0m\u{7}\n";
        assert_eq!(line(wild, false, false), "a\\nb\\r\\x1b[0m\\x07\n");
        let colored = "\u{1b}[32mINFO\u{1b}[0m a\nb\n";
        assert_eq!(line(colored, true, false), "\u{1b}[32mINFO\u{1b}[0m a\\nb\n");
        let wide = "\u{9b}31m\u{202e}a\u{2028}b\n";
        assert_eq!(line(wide, true, false), "\\u{9b}31m\\u{202e}a\\u{2028}b\n");
        assert_eq!(line(wide, false, true), "\\u009b31m\\u202ea\\u2028b\n");
        assert_eq!(line("", false, false), "");
    }

    #[test]
    fn lines_that_were_lost_are_told_once_in_a_while() {
        for is_json in [false, true] {
            let mut told = Told { is_json, lines: 0, at: None };
            assert_eq!(told.tell(0), None);
            let line = String::from_utf8(told.tell(7).unwrap()).unwrap();
            assert!(line.contains("WARN") && line.contains('7') && line.ends_with('\n'), "{line}");
            assert_eq!(is_json, serde_json::from_str::<serde_json::Value>(&line).is_ok());
            assert_eq!(told.tell(9), None, "it was told a moment ago");
            told.at = None;
            let line = String::from_utf8(told.tell(9).unwrap()).unwrap();
            assert!(line.contains('2'), "those since: {line}");
        }
    }

    #[test]
    fn a_line_that_is_too_long_is_cut_between_two_characters() {
        for shift in 0..4 {
            let text = "x".repeat(shift) + &"🦊".repeat(LINE_BYTES_MAX);
            let line = String::from_utf8(cut(text.as_bytes()[..=LINE_BYTES_MAX].to_vec())).unwrap();
            assert!(line.len() <= LINE_BYTES_MAX && line.len() > LINE_BYTES_MAX - 12, "{shift}");
            assert!(line.ends_with("🦊…\n"), "{shift}");
        }
    }
}
