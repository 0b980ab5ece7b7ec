//! Ends the process when an input takes too long; the file of the current input stays.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// Far more than any input takes on a busy machine, in a build for debugging.
pub const SECONDS_MAX: u64 = 30;
const LOOK_MS: u64 = 200;

static CURRENT: Mutex<Option<(Instant, PathBuf)>> = Mutex::new(None);

/// Begins to watch.
pub fn start() {
    thread::spawn(|| {
        loop {
            thread::sleep(Duration::from_millis(LOOK_MS));
            let current = CURRENT.lock().unwrap().clone();
            if let Some((since, file)) = current
                && since.elapsed() > Duration::from_secs(SECONDS_MAX)
            {
                println!("still running after {SECONDS_MAX} s: {}", file.display());
                std::process::exit(1);
            }
        }
    });
}

/// Keeps an input where it can be found if the process ends.
pub fn begin(file: &Path, input: &[u8]) {
    fs::write(file, input).expect("a file for the current input");
    *CURRENT.lock().unwrap() = Some((Instant::now(), file.to_owned()));
}

/// It is done.
pub fn end() {
    *CURRENT.lock().unwrap() = None;
}
