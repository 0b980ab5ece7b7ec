//! The adapters that requests may name: names in a registry, contents in a store.

use std::sync::Arc;

use super::error::AdapterError;
use super::registry::{Alias, NameError, NewName, Registry, check_name};
use super::store::{Adapter, Full, HoldError, Store};
use crate::ids::Digest;

/// Why an adapter was not loaded under a name; nothing has changed then.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum LoadError {
    /// The name will not do.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is no room for it.
    #[error(transparent)]
    Full(#[from] Full),
    /// It cannot be served.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
}

impl From<HoldError> for LoadError {
    fn from(error: HoldError) -> Self {
        match error {
            HoldError::Full(full) => Self::Full(full),
            HoldError::Adapter(error) => Self::Adapter(error),
        }
    }
}

/// A name, and the content it pointed at when it was looked up.
#[derive(Clone)]
pub struct NameOf {
    /// The name.
    pub alias: Arc<Alias>,
    /// The content.
    pub adapter: Arc<Adapter>,
}

/// What a load led to.
#[derive(Debug)]
pub struct Loaded {
    /// What the name points at now.
    pub adapter: Arc<Adapter>,
    /// What nothing points at any more.
    pub freed: Option<Digest>,
}

/// Names and contents.
pub struct Catalog {
    registry: Registry,
    store: Store,
}

impl Catalog {
    /// No adapters, and room for so many bytes of them.
    pub fn new(adapter_host_bytes_max: u64) -> Self {
        Self { registry: Registry::default(), store: Store::new(adapter_host_bytes_max) }
    }

    /// What `name` points at now.
    pub fn get(&self, name: &str) -> Option<NameOf> {
        loop {
            let alias = self.registry.get(name)?;
            // A content that is gone means that the name points elsewhere by now.
            if let Some(adapter) = self.store.get(alias.digest) {
                return Some(NameOf { alias, adapter });
            }
        }
    }

    /// Whether there is such a name.
    pub fn has(&self, name: &str) -> bool {
        self.registry.get(name).is_some()
    }

    /// Points a name at the content of `digest`, which `lower` makes where it is not there yet.
    ///
    /// # Errors
    /// [`LoadError`]; everything is then as it was.
    pub fn load(
        &self,
        new: NewName<'_>,
        digest: Digest,
        lower: impl FnOnce() -> Result<Adapter, AdapterError>,
    ) -> Result<Loaded, LoadError> {
        check_name(new.name)?;
        let before = self.registry.get(new.name).map(|alias| alias.digest);
        if before.is_some() && !new.replace {
            return Err(NameError::Taken(new.name.to_owned()).into());
        }
        let adapter = self.store.hold(digest, before, lower)?;
        match self.registry.point(new, digest) {
            Ok(before) => {
                let freed = before.filter(|&digest| self.store.release(digest));
                Ok(Loaded { adapter, freed })
            }
            Err(error) => {
                self.store.release(digest);
                Err(error.into())
            }
        }
    }

    /// Forgets a name; `None` if there is none. The inner digest is what nothing points at any
    /// more.
    pub fn remove(&self, name: &str) -> Option<Option<Digest>> {
        let digest = self.registry.remove(name)?;
        Some(Some(digest).filter(|&digest| self.store.release(digest)))
    }

    /// Every name, in the order of loading.
    pub fn list(&self) -> Vec<NameOf> {
        self.registry.list().iter().filter_map(|alias| self.get(&alias.name)).collect()
    }

    /// Every name without its content, in the order of loading.
    pub fn names(&self) -> Vec<Arc<Alias>> {
        self.registry.list()
    }

    /// Bytes of parameters held, each content and each shared pool once.
    pub fn bytes(&self) -> u64 {
        self.store.bytes()
    }
}
