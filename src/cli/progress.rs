//! Progress bars: on a terminal alone, on stderr, and gone when the work is done.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Between two frames of what only says that it goes on.
const FRAME: Duration = Duration::from_millis(120);

/// Of `len` somethings, drawn as `template` says.
pub fn bar(len: u64, template: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template);
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style)
}

/// Of bytes that are loaded into memory.
pub fn loading(bytes: u64) -> ProgressBar {
    bar(bytes, "loading {bar:40} {bytes}/{total_bytes} {bytes_per_sec}")
}

/// Of things that take about equally long each, with the time that is left.
pub fn counting(what: &'static str, len: u64) -> ProgressBar {
    let bar = bar(len, "{msg} {bar:40} {pos}/{len}, {eta} left").with_message(what);
    bar.tick();
    bar
}

/// Of something whose end nobody knows.
pub fn waiting(what: &'static str) -> ProgressBar {
    let bar = bar(0, "{spinner} {msg}, {elapsed}").with_message(what);
    if !bar.is_hidden() {
        bar.enable_steady_tick(FRAME);
    }
    bar
}
