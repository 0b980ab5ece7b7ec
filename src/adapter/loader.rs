//! From a directory to an adapter, by the method that its file names.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use super::config::Config;
use super::error::AdapterError;
use super::file::{AdapterFile, FileLimits};
use super::folder::{not_opened, note_on_base};
use super::lowering::Lowering;
use super::method::{Base, Input, Method};
use super::store::Adapter;
use super::tensors::Tensors;
use super::{dora, ia3, lora, mos, saved, ssf};
use crate::delta::{Delta, SiteDelta};
use crate::dtype::Dtype;
use crate::files::{Folder, steadily};

/// Every method this server can read. The first whose [`Method::reads`] says so gets the file.
pub static METHODS: &[&dyn Method] = &[&mos::Mos, &dora::Dora, &lora::Lora, &ssf::Ssf, &ia3::Ia3];

/// Reads adapters for one base. Runs on loader threads, never on the engine's.
pub trait LoadAdapter: Send + Sync {
    /// Reads the files of a directory.
    ///
    /// # Errors
    /// [`AdapterError`] naming the file.
    fn read(&self, folder: &Folder) -> Result<AdapterFile, AdapterError>;

    /// Lowers what was read.
    ///
    /// # Errors
    /// [`AdapterError`] with what was expected, what was found and where.
    fn lower(&self, file: &AdapterFile) -> Result<Adapter, AdapterError>;

    /// Both, of an operator's own directory.
    ///
    /// # Errors
    /// Of either.
    fn load(&self, dir: &Path) -> Result<Arc<Adapter>, AdapterError> {
        let read = steadily(|| Folder::open(dir), |folder| self.read(folder));
        let file = read.map_err(|why| not_opened(dir, why))??;
        self.lower(&file).map(Arc::new)
    }
}

/// Whether the device can hold an adapter; else what it takes and what there is.
pub type Fits = Box<dyn Fn(&Delta) -> Result<(), String> + Send + Sync>;

/// The loader of a running server.
pub struct Loader<B> {
    /// What adapters are checked against and folded with.
    pub base: B,
    /// Where they are to be resident; `None` on the host, which the store's budget bounds.
    pub fits: Option<Fits>,
    /// Caps on the files.
    pub limits: FileLimits,
    /// The names of the base model, for adapters that say which one they are for.
    pub base_names: Vec<String>,
    /// What they may have.
    pub allowed: Allowed,
}

/// What an adapter may have.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    /// Fields of its config that are not known here.
    pub unknown_config_keys: bool,
    /// Rank of a module's change. Every row of a batch waits for the one that costs most, and the
    /// cost of a change grows with its rank.
    pub rank_max: usize,
}

impl Default for Allowed {
    fn default() -> Self {
        Self { unknown_config_keys: false, rank_max: 1024 }
    }
}

impl Allowed {
    fn check(&self, delta: &Delta, base: &dyn Base) -> Result<(), AdapterError> {
        let rank = |change: &SiteDelta| change.low_rank.as_ref().map_or(0, |change| change.rank);
        let beyond = delta.sites.iter().find(|(_, change)| rank(change) > self.rank_max);
        let Some((site, change)) = beyond else { return Ok(()) };
        Err(AdapterError::Invalid(format!(
            "the adapter has rank {} at {}, and {} is allowed (--max-adapter-rank): each step \
             would take longer for all who are served beside it",
            rank(change),
            base.sites().get(*site).name,
            self.rank_max
        )))
    }
}

impl<B: Base> LoadAdapter for Loader<B> {
    fn read(&self, folder: &Folder) -> Result<AdapterFile, AdapterError> {
        let mut file = AdapterFile::read(folder, &self.limits)?;
        file.notes.extend(note_on_base(&file.config, &self.base_names));
        Ok(file)
    }

    fn lower(&self, file: &AdapterFile) -> Result<Adapter, AdapterError> {
        let adapter = lower(file, &self.base, self.allowed)?;
        let fits = self.fits.as_ref().map_or(Ok(()), |fits| fits(&adapter.delta));
        fits.map(|()| adapter).map_err(AdapterError::Invalid)
    }
}

/// Reads a file with the method it names.
///
/// # Errors
/// [`AdapterError::Invalid`] with what was expected, what was found and where.
pub fn lower(
    file: &AdapterFile,
    base: &dyn Base,
    allowed: Allowed,
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
    let mut lowering = Lowering::new(base.modules());
    method.lower(&input, &mut lowering)?;
    saved::lower(&input, &mut lowering)?;
    input.config.finish(allowed.unknown_config_keys)?;
    let mut report = input.tensors.finish(base.modules())?;
    let delta = lowering.finish(base.adapter_dtype());
    allowed.check(&delta, base)?;
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
    let names = delta.sites.iter().map(|(site, _)| base.sites().get(*site).name.as_str());
    let last_parts: BTreeSet<&str> = names.filter_map(|name| name.rsplit('.').next()).collect();
    report.targets = last_parts.into_iter().map(str::to_owned).collect();
    Ok(Adapter { digest: file.digest, delta: Arc::new(delta), method: method.name(), report })
}
