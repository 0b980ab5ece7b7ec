//! The tokenizers library, kept from taking the process down with it.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs the tokenizers library, which panics on some files and on some texts.
pub(super) fn caught<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    // Nothing is left half-changed: a tokenizer's only mutable state is its caches, and their
    // locks are only ever tried, so that a poisoned one costs the cache and no more.
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("the tokenizers library panicked: {}", said.unwrap_or("no reason given")))
        }
    }
}
