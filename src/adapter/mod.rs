//! Adapter methods: each turns a file into the canonical [`Delta`](crate::delta::Delta).
//!
//! To add a method: write one file with one [`Method`], add one line to [`METHODS`]. No kernel,
//! model or scheduler changes.

mod store;

pub use store::{Adapter, Named, Store, StoreError, check_name};

use std::path::Path;
use std::sync::Arc;

/// What became of each tensor of an adapter file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One line a tensor, in file order.
    pub lines: Vec<ReportLine>,
}

/// One tensor.
#[derive(Clone, Debug)]
pub struct ReportLine {
    /// Its name in the file.
    pub tensor: String,
    /// The site it changes; empty for a shared pool.
    pub site: String,
    /// Its part in the formula, e.g. `A [8, 64]`.
    pub part: String,
    /// Bytes in the file.
    pub bytes: usize,
}

/// Reads adapters for one base. Runs on loader threads, never on the engine's.
pub trait Load: Send + Sync {
    /// Reads and lowers the adapter in `dir`.
    ///
    /// # Errors
    /// [`AdapterError`] with what was expected, what was found and where.
    fn load(&self, dir: &Path) -> Result<Arc<Adapter>, AdapterError>;
}

/// Why an adapter was refused. The text names the field or tensor and never a path.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AdapterError {
    /// There is no adapter at the path.
    #[error("no adapter found: {0}")]
    NotFound(String),
    /// There is one and it cannot be served exactly.
    #[error("{0}")]
    Invalid(String),
}
