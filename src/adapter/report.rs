//! What became of a file.

/// What became of each tensor of an adapter file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One line a tensor, by name.
    pub lines: Vec<ReportLine>,
    /// The modules that the adapter changes, by the last part of their names, each once, in order.
    pub targets: Vec<String>,
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
