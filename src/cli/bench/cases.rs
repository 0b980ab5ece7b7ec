//! What a bench compares: ways of giving rows their adapters.

use std::path::Path;
use std::sync::Arc;

use crate::adapter::{Adapter, Allowed, FileLimits, LoadAdapter, Loader};
use crate::cli::CliError;
use crate::cli::synth::{AdapterKind, AdapterShape, synth_adapter};
use crate::dtype::Dtype;
use crate::engine::CheckpointBase;
use crate::model::Checkpoint;

/// One way of giving rows their adapters.
pub struct Case {
    /// As it was asked for.
    pub name: String,
    /// Its adapters' methods, in turn.
    pub kinds: &'static [AdapterKind],
    /// Distinct adapters; `None`: one for each row.
    pub adapters: Option<usize>,
    /// Of its adapters.
    pub rank: usize,
    /// The adapters are there and no row uses one.
    pub idle: bool,
    /// The adapter is folded into the weights.
    pub merged: bool,
}

impl Case {
    /// `NAME`, or `NAME@RANK` to have another rank than the others.
    ///
    /// # Errors
    /// The names that are known.
    pub fn parse(text: &str, rank: usize) -> Result<Self, CliError> {
        use AdapterKind::{Dora, Ia3, Lora, Mos, Ssf};
        const MIX: &[AdapterKind] = &[Lora, Mos, Ssf, Ia3];
        let unknown = || {
            let known = "base, idle, one, eight, distinct, mos, ssf, ia3, dora, mix, merged";
            CliError::Usage(format!("no case '{text}'; known: {known}, each also as NAME@RANK"))
        };
        let (name, rank) = match text.split_once('@') {
            None => (text, rank),
            Some((name, rank)) => (name, rank.parse().map_err(|_| unknown())?),
        };
        let (kinds, adapters): (&'static [AdapterKind], Option<usize>) = match name {
            "base" => (&[], Some(0)),
            "idle" => (MIX, Some(4)),
            "one" | "merged" => (&[Lora], Some(1)),
            "eight" => (&[Lora], Some(8)),
            "distinct" => (&[Lora], None),
            "mos" => (&[Mos], None),
            "ssf" => (&[Ssf], None),
            "ia3" => (&[Ia3], None),
            "dora" => (&[Dora], None),
            "mix" => (MIX, None),
            _ => return Err(unknown()),
        };
        let (idle, merged) = (name == "idle", name == "merged");
        Ok(Self { name: text.to_owned(), kinds, adapters, rank, idle, merged })
    }

    /// Adapters that a step of `rows` uses.
    pub fn count(&self, rows: usize) -> usize {
        self.adapters.unwrap_or(rows)
    }

    /// Which of its adapters a row uses.
    pub fn adapter_of(&self, row: usize, rows: usize) -> Option<usize> {
        let count = self.count(rows);
        (count > 0 && !self.idle && !self.merged).then(|| row % count)
    }
}

/// An adapter with random weights on every linear.
///
/// # Errors
/// Where it cannot be written or read.
pub fn random_adapter(
    kind: AdapterKind,
    rank: usize,
    seed: u64,
    checkpoint: &Arc<Checkpoint>,
    scratch: &Path,
) -> Result<Arc<Adapter>, CliError> {
    let base = CheckpointBase::new(checkpoint.clone());
    let limits = FileLimits::new(1 << 32);
    let loader = Loader {
        base,
        fits: None,
        limits,
        base_names: Vec::new(),
        allowed: Allowed { rank_max: usize::MAX, ..Allowed::default() },
    };
    let dir = scratch.join(format!("adapter-{seed}"));
    let shape = AdapterShape { kind, rank, targets: None, shards: 4, dtype: Dtype::F32, seed };
    synth_adapter(&dir, &shape, &loader.base)?;
    let adapter = loader.load(&dir)?;
    let _ = std::fs::remove_dir_all(&dir);
    Ok(adapter)
}
