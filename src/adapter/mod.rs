//! Adapter methods: each turns a file into the canonical [`Delta`](crate::delta::Delta).
//!
//! To add a method: write one file with one [`Method`], add one line to [`METHODS`]. No kernel,
//! model or scheduler changes.
//!
//! Fail closed: every tensor of the file and every config field that changes the maths is used,
//! or the load is refused with an error that names it.

mod config;
mod dora;
mod file;
mod ia3;
mod lora;
mod mos;
mod residency;
mod saved;
mod ssf;
mod store;
mod target;
mod tensors;

pub use file::{AdapterFile, FileLimits};
pub use residency::{Pinned, Residency};
pub use store::{Adapter, Named, Store, StoreError, check_name};

use std::path::Path;
use std::sync::Arc;

use crate::delta::{Delta, DeltaBuilder};
use crate::dtype::Dtype;
use crate::ids::SiteId;
use crate::site::SiteMap;
use config::Config;
use tensors::Tensors;

/// Every method this server can read. The first whose [`Method::reads`] says so gets the file.
pub static METHODS: &[&dyn Method] = &[&mos::Mos, &dora::Dora, &lora::Lora, &ssf::Ssf, &ia3::Ia3];

/// One way of writing an adapter to disk.
pub trait Method: Sync {
    /// The name in reports and metrics.
    fn name(&self) -> &'static str;
    /// Whether a file with this `peft_type` is this method's.
    fn reads(&self, peft_type: &str, input: &Input<'_>) -> bool;
    /// Lowers the file into `delta`. The only code that knows this method's tensor names.
    ///
    /// # Errors
    /// [`AdapterError::Invalid`] naming the tensor or field.
    fn lower(&self, input: &Input<'_>, delta: &mut DeltaBuilder) -> Result<(), AdapterError>;
}

/// What a method may look at.
pub struct Input<'a> {
    config: Config<'a>,
    tensors: Tensors<'a>,
    base: &'a dyn Base,
}

/// The frozen base, as far as a method may see it.
pub trait Base: Send + Sync {
    /// The places it may change.
    fn sites(&self) -> &SiteMap;
    /// The width adapters are kept in.
    fn adapter_dtype(&self) -> Dtype;
    /// A site's weight, `[out, in]` row-major (`[vocabulary, hidden]` for an embedding, `[out]`
    /// for a norm). Reads the checkpoint: slow.
    fn weight(&self, site: SiteId) -> Vec<f32>;
    /// A site's bias, `[out]`.
    fn bias(&self, site: SiteId) -> Option<Vec<f32>>;
    /// Whether the device can hold it.
    ///
    /// # Errors
    /// What it takes and what there is.
    fn fits(&self, _delta: &Delta) -> Result<(), String> {
        Ok(())
    }
}

/// What became of each tensor of an adapter file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One line a tensor, by name.
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

/// Reads adapters for one base. Runs on loader threads, never on the engine's.
pub trait Load: Send + Sync {
    /// Reads and lowers the adapter in `dir`; with `within`, files outside of it are refused.
    ///
    /// # Errors
    /// [`AdapterError`] with what was expected, what was found and where.
    fn load(&self, dir: &Path, within: Option<&Path>) -> Result<Arc<Adapter>, AdapterError>;
}

/// The loader of a running server.
pub struct Loader<B> {
    /// What adapters are checked against and folded with.
    pub base: B,
    /// Caps on the files.
    pub limits: FileLimits,
    /// Serve an adapter although its config has fields that are not known here.
    pub allow_unknown_config_keys: bool,
}

impl<B: Base> Load for Loader<B> {
    fn load(&self, dir: &Path, within: Option<&Path>) -> Result<Arc<Adapter>, AdapterError> {
        let file = AdapterFile::read(dir, &self.limits, within)?;
        let adapter = lower(&file, &self.base, self.allow_unknown_config_keys)?;
        self.base.fits(&adapter.delta).map_err(AdapterError::Invalid)?;
        Ok(Arc::new(adapter))
    }
}

/// Reads a file with the method it names.
///
/// # Errors
/// [`AdapterError::Invalid`] with what was expected, what was found and where.
pub fn lower(
    file: &AdapterFile,
    base: &dyn Base,
    allow_unknown_config_keys: bool,
) -> Result<Adapter, AdapterError> {
    let invalid = AdapterError::Invalid;
    let config = Config::new(&file.config);
    let Some(peft_type) = config.text("peft_type")? else {
        let text = "adapter_config.json has no 'peft_type'; it says how to read the tensors";
        return Err(invalid(text.into()));
    };
    let input = Input { config, tensors: Tensors::new(file)?, base };
    let Some(method) = METHODS.iter().find(|method| method.reads(peft_type, &input)) else {
        let known: Vec<_> = METHODS.iter().map(|method| method.name()).collect();
        let known = known.join(", ");
        let found = format!("'peft_type' is '{peft_type}', which is not supported");
        return Err(invalid(format!("adapter_config.json: {found}; known: {known}")));
    };
    let mut delta = DeltaBuilder::default();
    method.lower(&input, &mut delta)?;
    saved::lower(&input, &mut delta)?;
    input.config.finish(allow_unknown_config_keys)?;
    let report = input.tensors.finish(base.sites())?;
    let delta = delta.finish(base.adapter_dtype());
    if let Some((site, part)) = delta.not_finite() {
        let (site, dtype) = (&base.sites().get(site).name, base.adapter_dtype());
        let advice = match dtype {
            Dtype::F16 => "serve with --dtype bf16 or f32",
            Dtype::BF16 | Dtype::F32 => "its numbers or lora_alpha are too large",
        };
        return Err(invalid(format!(
            "the adapter's {part} at {site} holds numbers that do not fit {}, in which this server \
             keeps adapters; {advice}",
            dtype.name()
        )));
    }
    Ok(Adapter { digest: file.digest, delta: Arc::new(delta), method: method.name(), report })
}
