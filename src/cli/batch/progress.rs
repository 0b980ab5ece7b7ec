//! How far a batch is, while it runs: a bar on a terminal, a line now and then elsewhere.

use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::tally::Tally;
use crate::cli::progress::bar;
use crate::cli::terminal::remark;

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(30);

/// What the user sees.
pub struct Progress {
    total: usize,
    before: Tally,
    start: Instant,
    last_line: Instant,
    /// Hidden where there is no terminal.
    bar: ProgressBar,
}

impl Progress {
    /// Of a batch of `total` lines, some of which were done `before`.
    pub fn new(total: usize, before: &Tally) -> Self {
        let bar = bar(total as u64, "{wide_bar} {pos} of {len} lines, {msg}, {eta} left")
            .with_position(before.done() as u64);
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
        if self.bar.is_hidden() && self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            remark(&format!("{} of {} lines, {said}", tally.done(), self.total));
        }
        self.bar.set_message(said);
        self.bar.set_position(tally.done() as u64);
    }

    /// Takes the bar away.
    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}
