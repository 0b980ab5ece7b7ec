//! Adapter methods: each turns a file into the canonical [`Delta`](crate::delta::Delta).
//!
//! To add a method: write one file with one [`Method`], add its line to [`METHODS`]. No kernel,
//! model or scheduler changes.
//!
//! Fail closed: every tensor of the file and every config field that changes the maths is used,
//! or the load is refused with an error that names it.

mod catalog;
mod config;
mod describe;
mod dora;
mod error;
mod file;
mod folder;
mod ia3;
mod loader;
mod lora;
mod lowering;
mod method;
mod mos;
mod names;
mod pattern;
mod registry;
mod report;
mod residency;
mod saved;
mod ssf;
mod store;
mod target;
mod tensors;
#[cfg(test)]
mod tests;

pub use catalog::{Catalog, LoadError, Loaded, NameOf};
pub use error::AdapterError;
pub use file::{AdapterFile, FileLimits};
pub use folder::{is_a_file, not_opened, note_on_base};
pub use loader::{Allowed, Fits, LoadAdapter, Loader, METHODS, lower};
pub use method::{Base, Input, Method};
pub use registry::{Alias, NameError, NewName, OTHERS, Source, check_name};
pub use report::{Report, ReportLine};
pub use residency::{Pinned, Residency};
pub use store::{Adapter, Full};
