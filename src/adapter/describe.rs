//! What is told of an adapter: in an answer, and by `tessera inspect`.

use serde_json::{Value, json};

use super::report::ReportLine;
use super::store::Adapter;

impl Adapter {
    /// Bytes of its tensors in the file.
    pub fn file_bytes(&self) -> usize {
        self.report.lines.iter().map(|line| line.bytes).sum()
    }

    /// Everything, tensor by tensor.
    pub fn describe(&self, notes: &[String]) -> Value {
        let tensor = |line: &ReportLine| {
            json!({
                "name": line.tensor, "site": line.site, "part": line.part, "bytes": line.bytes,
            })
        };
        json!({
            "method": self.method,
            "digest": self.digest.to_string(),
            "rank_max": self.delta.rank_max(),
            "file_bytes": self.file_bytes(),
            "served_bytes": self.delta.bytes(),
            "notes": notes,
            "tensors": self.report.lines.iter().map(tensor).collect::<Vec<_>>(),
        })
    }
}
