//! Names of adapters: each is an alias that points at a content by its digest.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use dashmap::mapref::entry::Entry;

use crate::ids::Digest;
use crate::text::ServedText;

/// Where an adapter was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Source {
    /// Built into the program.
    BuiltIn,
    /// The directory or Hub id of the command line.
    Start(String),
    /// The path of a request, beneath `--adapter-root`.
    Request(String),
}

/// A name and what it points at.
#[derive(Clone)]
pub struct Alias {
    /// What requests put into `model`.
    pub name: String,
    /// The content it stands for.
    pub digest: Digest,
    /// Where that was read.
    pub source: Source,
    /// How its text becomes tokens and ends; `None`: as the base's.
    pub text: Option<Arc<ServedText>>,
    /// Order of loading, ascending.
    pub order: u64,
    /// Seconds since 1970 when it was loaded.
    pub created: u64,
}

impl Alias {
    /// Whether it was named when the server started: an operator counts on it.
    pub fn is_pinned(&self) -> bool {
        !matches!(self.source, Source::Request(_))
    }
}

/// A name to load an adapter under.
#[derive(Clone)]
pub struct NewName<'a> {
    /// The name.
    pub name: &'a str,
    /// Where the adapter is read.
    pub source: Source,
    /// How its text becomes tokens and ends; `None`: as the base's.
    pub text: Option<Arc<ServedText>>,
    /// Seconds since 1970.
    pub created: u64,
    /// Whether it may point elsewhere now.
    pub replace: bool,
}

/// Why a name could not be added.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum NameError {
    /// The name points at something already and replacing was not asked for.
    #[error("the adapter name '{0}' is already loaded")]
    Taken(String),
    /// A name with characters or a form that is not served.
    #[error(
        "an adapter name must be 1 to 256 of the characters A-Z a-z 0-9 . _ : / - , hold no '..', \
         have more than '.' between '/' and at its ends, and not be '{OTHERS}', which metrics call \
         all further names; got '{0}'"
    )]
    Illegal(String),
}

/// Names → digests.
#[derive(Default)]
pub struct Registry {
    names: DashMap<String, Arc<Alias>>,
    order: AtomicU64,
}

impl Registry {
    /// What `name` points at now.
    pub fn get(&self, name: &str) -> Option<Arc<Alias>> {
        self.names.get(name).map(|alias| alias.clone())
    }

    /// Points a name at a digest; where it may replace, also when it pointed elsewhere. Returns
    /// what it pointed at before.
    ///
    /// # Errors
    /// [`NameError::Taken`].
    pub fn point(&self, new: NewName<'_>, digest: Digest) -> Result<Option<Digest>, NameError> {
        let NewName { name, source, text, created, replace } = new;
        let order = self.order.fetch_add(1, Ordering::Relaxed);
        let alias = Alias { name: name.to_owned(), digest, source, text, order, created };
        let alias = Arc::new(alias);
        match self.names.entry(name.to_owned()) {
            Entry::Occupied(_) if !replace => Err(NameError::Taken(name.to_owned())),
            Entry::Occupied(mut known) => Ok(Some(known.insert(alias).digest)),
            Entry::Vacant(new) => {
                new.insert(alias);
                Ok(None)
            }
        }
    }

    /// Forgets `name`; returns what it pointed at.
    pub fn remove(&self, name: &str) -> Option<Digest> {
        self.names.remove(name).map(|(_, alias)| alias.digest)
    }

    /// Every name, in the order of loading.
    pub fn list(&self) -> Vec<Arc<Alias>> {
        let mut all: Vec<_> = self.names.iter().map(|n| n.value().clone()).collect();
        all.sort_by_key(|alias| alias.order);
        all
    }
}

/// What metrics and usage call all names beyond those that they list; no name of an adapter.
pub const OTHERS: &str = "other";

/// Names end up in URLs, metrics and logs: a small alphabet keeps all three harmless.
///
/// # Errors
/// [`NameError::Illegal`].
pub fn check_name(name: &str) -> Result<(), NameError> {
    let legal = |c: char| c.is_ascii_alphanumeric() || "._:/-".contains(c);
    let fine = (1..=256).contains(&name.len())
        && name.chars().all(legal)
        // As in a path: clients put names into URLs, and libraries clean those.
        && name.split('/').all(|part| !["", "."].contains(&part))
        && !name.contains("..")
        && name != OTHERS;
    if fine { Ok(()) } else { Err(NameError::Illegal(name.chars().take(64).collect())) }
}
