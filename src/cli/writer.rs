//! A thread that writes lines. Whoever has one never waits for whoever reads it: lines that come
//! faster than they are taken are lost and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Lines that wait to be written. At the limit a further one is lost.
const LINES_WAITING_MAX: usize = 4096;
/// At the end, for the lines that wait; and for one line that has time.
const PATIENCE_MS: u64 = 1_000;
/// Between two tries to hand over what has time.
const RETRY_MS: u64 = 5;

/// The lines of one stream. The last one that is dropped waits a moment for those that are not
/// written yet.
pub struct Writer {
    lines: Lines,
}

/// What hands lines over.
#[derive(Clone)]
pub struct Lines {
    messages: SyncSender<Message>,
    lost: Arc<AtomicU64>,
}

enum Message {
    Line(Vec<u8>),
    /// All lines before have been written.
    Flush(SyncSender<()>),
}

impl Writer {
    /// Begins to write to a stream; `after` is called after each line, with the lines that were
    /// lost so far and what the line failed with, and may have a line of its own to say.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn start(
        name: &str,
        to: impl Write + Send + 'static,
        after: impl FnMut(u64, Option<io::Error>) -> Option<Vec<u8>> + Send + 'static,
    ) -> io::Result<Self> {
        let (messages, waiting) = sync_channel(LINES_WAITING_MAX);
        let lost = Arc::new(AtomicU64::new(0));
        let lines = Lines { messages, lost: lost.clone() };
        let thread = thread::Builder::new().name(name.to_owned());
        thread.spawn(move || write(&waiting, to, &lost, after))?;
        Ok(Self { lines })
    }

    /// What hands lines over.
    pub fn lines(&self) -> &Lines {
        &self.lines
    }
}

impl Lines {
    /// Lines that were lost so far.
    pub fn lost(&self) -> &Arc<AtomicU64> {
        &self.lost
    }

    /// A line more.
    pub fn write(&self, line: Vec<u8>) {
        if self.messages.try_send(Message::Line(line)).is_err() {
            self.lose();
        }
    }

    /// A line more, which waits a moment where others do.
    pub fn write_patiently(&self, line: Vec<u8>) {
        let deadline = Instant::now() + Duration::from_millis(PATIENCE_MS);
        if !self.send(Message::Line(line), deadline) {
            self.lose();
        }
    }

    /// Counts a line that cannot be written.
    pub fn lose(&self) {
        self.lost.fetch_add(1, Ordering::Relaxed);
    }

    fn send(&self, message: Message, deadline: Instant) -> bool {
        let mut message = message;
        while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
            if Instant::now() >= deadline {
                return false;
            }
            message = back;
            thread::sleep(Duration::from_millis(RETRY_MS));
        }
        true
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(PATIENCE_MS);
        let (written, done) = sync_channel(1);
        if self.lines.send(Message::Flush(written), deadline) {
            // Nobody reads: the lines are lost with the program.
            let _ = done.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        }
    }
}

/// The thread's work.
fn write(
    waiting: &Receiver<Message>,
    mut to: impl Write,
    lost: &AtomicU64,
    mut after: impl FnMut(u64, Option<io::Error>) -> Option<Vec<u8>>,
) {
    for message in waiting {
        match message {
            Message::Line(line) => {
                // Closed, or on a full disk.
                let failed = to.write_all(&line).and_then(|()| to.flush()).err();
                if failed.is_some() {
                    lost.fetch_add(1, Ordering::Relaxed);
                }
                if let Some(own) = after(lost.load(Ordering::Relaxed), failed)
                    && to.write_all(&own).and_then(|()| to.flush()).is_err()
                {
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
