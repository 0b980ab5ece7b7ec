//! Work that a chat template or a schema decides on, away from the thread that asked for it: they
//! come with models, adapters and requests, and may nest without end, never end, or trip over the
//! library that reads them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use super::error::TextError;

/// Address space for what nests. A template has at most `TEMPLATE_BYTES_MAX` to nest expressions
/// in, and its budget of steps to nest values in; a schema or a grammar is bounded in bytes. Only
/// what is used takes memory.
pub(crate) const STACK_BYTES: usize = 512 << 20;
/// Seconds after which work is left behind. The budget of steps ends almost everything in one.
pub(crate) const GUARDED_SECONDS_MAX: u64 = 10;
/// Work of one guard that may be left behind and still run; with more, it is not begun.
const LEFT_BEHIND_MAX: usize = 2;

/// Why there is no result.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Stopped {
    /// It did not end, or such work still runs.
    Late,
    /// It panicked, or no thread could be had.
    Failed,
}

impl Stopped {
    /// What to tell: `failed` where the work panicked.
    pub fn error(self, failed: TextError) -> TextError {
        match self {
            Self::Late => TextError::TemplateLate { template_seconds_max: GUARDED_SECONDS_MAX },
            Self::Failed => failed,
        }
    }
}

/// Runs the work of one template, or of all schemas.
#[derive(Clone, Debug, Default)]
pub(crate) struct Guard {
    left_behind: Arc<AtomicUsize>,
}

impl Guard {
    /// The result of `work`, run on a thread with a large stack.
    ///
    /// # Errors
    /// [`Stopped`]; work that is late goes on, and counts until it ends.
    pub fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Stopped> {
        if self.left_behind.load(Ordering::Acquire) >= LEFT_BEHIND_MAX {
            return Err(Stopped::Late);
        }
        let (sender, receiver) = sync_channel(1);
        let left_behind = self.left_behind.clone();
        let body = move || {
            let result = catch_unwind(AssertUnwindSafe(work)).map_err(|_| Stopped::Failed);
            // Nobody is there to take it once it is late.
            if sender.send(result).is_err() {
                left_behind.fetch_sub(1, Ordering::AcqRel);
            }
        };
        let name = "guarded".to_owned();
        let spawned = thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(body);
        if spawned.is_err() {
            return Err(Stopped::Failed);
        }
        match receiver.recv_timeout(Duration::from_secs(GUARDED_SECONDS_MAX)) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(Stopped::Failed),
            Err(RecvTimeoutError::Timeout) => {
                self.left_behind.fetch_add(1, Ordering::AcqRel);
                // It may have ended between the two lines above.
                match receiver.try_recv() {
                    Ok(result) => {
                        self.left_behind.fetch_sub(1, Ordering::AcqRel);
                        result
                    }
                    Err(_) => Err(Stopped::Late),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_nests_or_panics_is_over_for_the_caller() {
        fn deep(levels: u32) -> u64 {
            let here = std::hint::black_box([u64::from(levels); 32]);
            if levels == 0 { 0 } else { here[3] + deep(levels - 1) - here[4] + 1 }
        }
        let guard = Guard::default();
        assert_eq!(guard.run(|| deep(100_000)), Ok(100_000));
        assert_eq!(guard.run(|| -> u32 { panic!("on purpose") }), Err(Stopped::Failed));
        assert_eq!(guard.run(|| 1), Ok(1));
        guard.left_behind.store(LEFT_BEHIND_MAX, Ordering::Release);
        assert_eq!(guard.run(|| 1), Err(Stopped::Late));
    }
}
