//! What the system lets a process have: files that are open, and threads.

use std::fmt::Display;
use std::fs;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::CliError;
use super::memory::human;
use crate::text::GUARDED_STACK_BYTES;

/// Files that are open beside connections: those that may ask how the server is above their limit,
/// models, adapters that are loaded, the log, certificates and what the threads wait with.
const FILES_RESERVED: u64 = 256;

/// Raises the limit of open files to what the system allows. Says where that is not enough for so
/// many connections.
pub fn raise_open_files(connections_max: usize) -> Option<String> {
    let found = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: found.maximum, ..found };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => found.maximum,
        // Then it stays as it was.
        Err(_) => found.current,
    };
    few_files(limit?, connections_max)
}

/// What to say where so many files are not enough.
fn few_files(files: u64, connections_max: usize) -> Option<String> {
    let needed = connections_max as u64 + FILES_RESERVED;
    (files < needed).then(|| {
        format!(
            "at most {files} files may be open, and {connections_max} connections take {needed}: \
             further clients wait when they run out; raise the hard limit (ulimit -Hn, \
             LimitNOFILE= of a unit, --ulimit nofile= of a container)"
        )
    })
}

/// The limits of open files, soft and hard; `None` is none.
pub fn open_files() -> [Option<u64>; 2] {
    let limit = getrlimit(Resource::Nofile);
    [limit.current, limit.maximum]
}

/// Whether so many files are enough, as [`raise_open_files`] says it.
pub fn open_files_warning(connections_max: usize) -> Option<String> {
    few_files(open_files()[1]?, connections_max)
}

/// Asks the system for so many threads at once, one of them with the stack of a template, and gives
/// them back: libraries that start some end the process where they get none.
///
/// # Errors
/// How many there were, and which limits there are.
pub fn check_threads(needed: usize) -> Result<(), CliError> {
    let (release, held) = channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let mut probes = Vec::new();
    let mut outcome = Ok(());
    for i in 0..needed {
        let held = held.clone();
        let probe = move || {
            // It ends when the other end is dropped.
            let _ = held.lock().map(|held| held.recv());
        };
        let mut thread = thread::Builder::new().name("probe".into());
        if i == 0 {
            thread = thread.stack_size(GUARDED_STACK_BYTES);
        }
        match thread.spawn(probe) {
            Ok(probe) => probes.push(probe),
            Err(error) => {
                outcome = Err(refused(i, needed, &error));
                break;
            }
        }
    }
    drop(release);
    for probe in probes {
        // It does nothing that could fail.
        let _ = probe.join();
    }
    outcome
}

/// The system refuses threads.
pub fn refused(had: usize, needed: usize, error: &dyn Display) -> CliError {
    CliError::General(format!(
        "the system lets this process start {had} more threads, and it needs {needed} ({error}); \
         {}",
        thread_limits()
    ))
}

/// The limits that keep threads from being started, and what raises them.
pub fn thread_limits() -> String {
    let mut known = Vec::new();
    if let Some(most) = getrlimit(Resource::Nproc).current {
        known.push(format!("threads and processes of this user: {most} (ulimit -u)"));
    }
    if let Some(bytes) = address_space() {
        let bytes = human(bytes);
        known.push(format!("address space, where their stacks are: {bytes} (ulimit -v)"));
    }
    if let Some(most) = pids_max() {
        known.push(format!("threads of the container or unit: {most} (pids.max, TasksMax=)"));
    }
    match known.is_empty() {
        true => "see ulimit -u, ulimit -v and pids.max of the container".to_owned(),
        false => format!("raise the limit that is in the way: {}", known.join("; ")),
    }
}

/// Bytes of address space that the process may have, where that is limited.
pub fn address_space() -> Option<u64> {
    getrlimit(Resource::As).current
}

/// The least that a control group of this process or one above it allows.
pub fn pids_max() -> Option<u64> {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let folders = own.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        let (controllers, path) = (parts.next()?, parts.next()?);
        match controllers {
            "" => Some(format!("/sys/fs/cgroup{path}")),
            _ if controllers.split(',').any(|name| name == "pids") => {
                Some(format!("/sys/fs/cgroup/pids{path}"))
            }
            _ => None,
        }
    });
    // In a container its own is at the top, whatever path is told.
    let tops = ["/sys/fs/cgroup".to_owned(), "/sys/fs/cgroup/pids".to_owned()];
    let limits = folders.chain(tops).filter_map(|folder| {
        fs::read_to_string(format!("{folder}/pids.max")).ok()?.trim().parse().ok()
    });
    limits.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_files_are_told_with_both_numbers() {
        let warning = few_files(1024, 4096).unwrap();
        assert!(warning.contains(" 1024 files") && warning.contains("4096 connections"));
        assert_eq!(few_files(4096 + FILES_RESERVED, 4096), None);
    }

    #[test]
    fn threads_that_can_be_had_are_given_back() {
        check_threads(20).unwrap();
    }
}
