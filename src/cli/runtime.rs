//! The threads of what waits for the network.

use tokio::runtime::{Builder, Runtime};

use super::CliError;
use super::limits::check_threads;

/// As many threads as the machine has cores.
///
/// # Errors
/// When the operating system refuses them.
pub fn runtime() -> Result<Runtime, CliError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // They are started by a library that panics where they cannot be.
    check_threads(cores + 1)?;
    built(Builder::new_multi_thread())
}

/// None but the caller's: for a single request.
///
/// # Errors
/// When the operating system refuses what it waits with.
pub fn small_runtime() -> Result<Runtime, CliError> {
    built(Builder::new_current_thread())
}

fn built(mut builder: Builder) -> Result<Runtime, CliError> {
    let runtime = builder.enable_all().build();
    runtime.map_err(|e| CliError::General(format!("the I/O threads cannot be started: {e}")))
}
