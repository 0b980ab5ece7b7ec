//! Results of a bench as a file.

use std::path::Path;

use serde::Serialize;

use crate::cli::CliError;

/// One case at one width of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// `decode` or `prefill`.
    pub phase: &'static str,
    /// The case's name.
    pub case: String,
    /// Rows of a decode step, tokens of a prefill step.
    pub rows: usize,
    /// Milliseconds of a step; none where it could not be measured.
    pub ms: Option<f64>,
    /// Tokens of all rows.
    pub tokens_per_second: Option<f64>,
    /// Throughput as a share of the base's.
    pub of_base: Option<f64>,
    /// Why there is no number.
    pub note: Option<String>,
}

/// Writes any results as JSON.
///
/// # Errors
/// Where the file cannot be written.
pub fn write_json(path: &Path, results: &impl Serialize) -> Result<(), CliError> {
    let failed = |e: &dyn std::fmt::Display| {
        CliError::General(format!("{} cannot be written: {e}", path.display()))
    };
    let text = serde_json::to_string_pretty(results).map_err(|e| failed(&e))?;
    std::fs::write(path, text + "\n").map_err(|e| failed(&e))
}
