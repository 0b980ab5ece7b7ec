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

/// How long it will take, before it does: `what` is what has to be done.
pub fn about(seconds: f64, what: &str) -> String {
    let time = match seconds.ceil() as u64 {
        s @ 0..100 => format!("{s} s"),
        s => format!("{} min", s.div_ceil(60)),
    };
    format!("this takes about {time}: {what}\n")
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

#[cfg(test)]
mod tests {
    use super::about;

    #[test]
    fn how_long_it_takes_is_said_in_seconds_or_minutes() {
        assert_eq!(about(0.2, "x"), "this takes about 1 s: x\n");
        assert_eq!(about(99.0, "x"), "this takes about 99 s: x\n");
        assert_eq!(about(601.0, "x"), "this takes about 11 min: x\n");
    }
}
