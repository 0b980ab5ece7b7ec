//! What there is to use a card with, piece by piece: for whoever looks for what is missing.

use super::OpenError;
use super::launch::{Card, find_library};

/// A card that can be opened.
#[derive(Clone, Debug)]
pub struct FoundCard {
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes that are free.
    pub free: u64,
    /// Bytes in all.
    pub total: u64,
    /// The driver's version of CUDA: 12040 is 12.4.
    pub driver: i32,
}

/// A card and the libraries beside its driver. Of a library, the name under which it was found, or
/// those that were tried.
#[derive(Debug)]
pub struct Probe {
    /// The card.
    pub card: Result<FoundCard, OpenError>,
    /// CUDA's run-time compiler.
    pub nvrtc: Result<String, Vec<String>>,
    /// Dense products.
    pub cublaslt: Result<String, Vec<String>>,
}

/// Looks for card `ordinal`, as `CUDA_VISIBLE_DEVICES` counts them. Without a driver, libraries of
/// all versions are looked for.
pub fn probe(ordinal: usize) -> Probe {
    let card = found(ordinal);
    let driver = card.as_ref().map_or(i32::MAX, |card| card.driver);
    let library = |stem| find_library(stem, driver).map(|(name, _)| name);
    Probe { nvrtc: library("nvrtc"), cublaslt: library("cublasLt"), card }
}

fn found(ordinal: usize) -> Result<FoundCard, OpenError> {
    let card = Card::open(ordinal)?;
    let (free, total) = card.memory()?;
    let (name, capability) = (card.name().to_owned(), card.capability());
    Ok(FoundCard { name, capability, free, total, driver: card.driver_version() })
}
