//! The threads of what waits for the network.

use tokio::runtime::{Builder, Runtime};

use super::CliError;

/// As many threads as the machine has cores.
///
/// # Errors
/// When the operating system refuses them.
pub fn runtime() -> Result<Runtime, CliError> {
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
