//! The processor's threads, and work handed out to them.

use rayon::prelude::*;

use super::simd::Level;

/// Work on fewer elements than this stays on the calling thread: waking others costs more.
pub(super) const SERIAL_ELEMENTS_MAX: usize = 1 << 15;

/// This machine's processor: vector kernels on threads of its own.
#[derive(Debug)]
pub struct Cpu {
    /// `None` with one thread, which is then the caller's.
    workers: Option<rayon::ThreadPool>,
    pub(super) threads: usize,
    pub(super) level: Level,
}

impl Cpu {
    /// Computes on `threads` threads (0 counts as 1) with the best instructions there are.
    ///
    /// # Panics
    /// If the system refuses to start the threads.
    pub fn new(threads: usize) -> Self {
        Self::with_level(threads, Level::detect())
    }

    /// As [`Cpu::new`], with a chosen instruction set.
    ///
    /// # Panics
    /// If the system refuses to start the threads.
    pub fn with_level(threads: usize, level: Level) -> Self {
        let threads = threads.max(1);
        let workers = (threads > 1).then(|| {
            let builder = rayon::ThreadPoolBuilder::new().num_threads(threads);
            let pool = builder.thread_name(|i| format!("cpu-{i}")).build();
            pool.expect("the system refused to start the compute threads; lower --threads")
        });
        Self { workers, threads, level }
    }

    /// Runs `f` on a worker, so that the parallel steps within it need not wake them again.
    pub(super) fn scope<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        match &self.workers {
            Some(workers) => workers.install(f),
            None => f(),
        }
    }

    /// Every task once, on all threads; tasks are handed out one by one as threads come free.
    pub(super) fn each<T: Send>(&self, tasks: Vec<T>, f: impl Fn(T) + Send + Sync) {
        match &self.workers {
            Some(workers) if tasks.len() > 1 => {
                workers.install(|| tasks.into_par_iter().with_max_len(1).for_each(f));
            }
            _ => tasks.into_iter().for_each(f),
        }
    }

    /// `f(first row, rows)` over stretches of rows of `data`, in parallel where it pays.
    pub(super) fn each_rows(
        &self,
        data: &mut [f32],
        cols: usize,
        f: impl Fn(usize, &mut [f32]) + Send + Sync,
    ) {
        if data.len() <= SERIAL_ELEMENTS_MAX || self.threads == 1 {
            return f(0, data);
        }
        let rows = (data.len() / cols).div_ceil(self.threads * 4);
        let tasks: Vec<_> = data.chunks_mut(rows * cols).enumerate().collect();
        self.each(tasks, |(i, chunk)| f(i * rows, chunk));
    }
}
