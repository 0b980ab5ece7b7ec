//! How far a batch is, while it runs: a bar on a terminal, a line now and then elsewhere.

use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::tally::Tally;
use crate::cli::terminal::remark;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// What the user sees.
pub struct Progress {
    total: usize,
    before: Tally,
    start: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of a batch of `total` lines, some of which were done `before`.
    pub fn new(total: usize, before: &Tally) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new(total as u64).with_position(before.done() as u64);
            let style = "{wide_bar} {pos} of {len} lines, {msg}, {eta} left";
            bar.with_style(
                ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar()),
            )
        });
        let start = Instant::now();
        Self { total, before: before.clone(), start, last_line: start, bar }
    }

    /// Since the run began.
    pub fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Shows how far it is.
    pub fn show(&mut self, tally: &Tally) {
        let rate = tally.rate(&self.before, self.elapsed());
        let said = format!("{} failed, {rate:.1} tokens/s", tally.failed);
        match &self.bar {
            Some(bar) => {
                bar.set_message(said);
                bar.set_position(tally.done() as u64);
            }
            None if self.last_line.elapsed() >= LINE_EVERY => {
                self.last_line = Instant::now();
                remark(&format!("{} of {} lines, {said}", tally.done(), self.total));
            }
            None => {}
        }
    }

    /// Takes the bar away.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
