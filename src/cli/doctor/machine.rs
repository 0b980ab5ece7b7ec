//! Processor and memory.

use std::fs;

use super::check::Check;
use crate::backend::cpu::simd::Level;
use crate::cli::memory::{available_bytes, human, limit_bytes, total_bytes};

/// Less than this is enough for the demo and little more.
const MEMORY_BYTES_LOW: u64 = 1 << 30;

/// What the kernels use of the processor, and on how many cores.
pub fn cpu() -> Check {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let all = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    let cores = match all > usable {
        true => format!("{usable} of {all} cores may be used"),
        false => format!("{usable} cores"),
    };
    let features = Level::features();
    let names = |has: bool| {
        let names = features.iter().filter(|(_, found)| *found == has).map(|(name, _)| *name);
        names.collect::<Vec<_>>().join(" ")
    };
    let level = Level::detect().name();
    let found = format!("{level} kernels; {cores}; {}", names(true));
    let found = found.trim_end_matches("; ").to_owned();
    let missing = names(false);
    let is_portable = Level::available().len() == 1;
    match is_portable && !missing.is_empty() {
        // A processor without all of them, or a virtual one that hides them.
        true => Check::warning(
            "cpu",
            format!("{found}; missing: {missing}"),
            "steps take several times as long; in a virtual machine, pass the host's processor \
             through",
        ),
        false if missing.is_empty() => Check::ok("cpu", found),
        false => Check::ok("cpu", format!("{found}; without {missing}")),
    }
}

/// Memory that a process may take now, of the machine and of its container.
pub fn memory() -> Check {
    let Some(available) = available_bytes() else {
        return Check::warning(
            "memory",
            "/proc/meminfo cannot be read",
            "give --kv-cache-bytes: its default goes by the memory that is there",
        );
    };
    let total = total_bytes().map_or(String::new(), |bytes| format!(" of {}", human(bytes)));
    let limit = limit_bytes().map(|bytes| format!("; the container may have {}", human(bytes)));
    let found = format!("{} available{total}{}", human(available), limit.unwrap_or_default());
    match available < MEMORY_BYTES_LOW {
        true => {
            let advice = "a model needs as much as its weights and its KV cache take; end other \
                          programs or give the container more";
            Check::warning("memory", found, advice)
        }
        false => Check::ok("memory", found),
    }
}
