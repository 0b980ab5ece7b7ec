//! A GPU and what its use takes: driver, NVRTC, cuBLASLt, a folder for compiled kernels.

use std::path::Path;

use super::check::{Check, Verdict};
use crate::backend::cuda::{FoundCard, OpenError, Probe, probe};
use crate::cli::device::kernel_cache;
use crate::cli::memory::human;
use crate::config::Device;

/// Made by the driver's kernel module: there is a card, whatever a container was given.
const TRACES: &[&str] = &["/dev/nvidia0", "/dev/nvidiactl", "/proc/driver/nvidia/version"];

/// What stands in the way of a GPU, if one is wanted.
pub fn checks(device: Device) -> Vec<Check> {
    let ordinal = match device {
        Device::Cpu => return vec![Check::ok("gpu", "not looked for: --device cpu")],
        Device::Auto => 0,
        Device::Cuda(ordinal) => ordinal,
    };
    let wanted = matches!(device, Device::Cuda(_));
    let Probe { card, nvrtc, cublaslt } = probe(ordinal);
    let missing = match (&card, wanted) {
        (_, true) => Verdict::Problem,
        (Ok(_), false) => Verdict::Warning,
        (Err(_), false) => Verdict::Ok,
    };
    let mut checks = vec![card_check(&card, wanted)];
    checks.push(library("nvrtc", "nvidia-cuda-nvrtc", &nvrtc, missing));
    checks.push(library("cublaslt", "nvidia-cublas", &cublaslt, missing));
    if card.is_ok() {
        checks.push(kernels());
    }
    checks
}

fn card_check(card: &Result<FoundCard, OpenError>, wanted: bool) -> Check {
    let error = match card {
        Ok(FoundCard { name, capability: (major, minor), free, total, driver }) => {
            let found = format!(
                "{name}, compute capability {major}.{minor}, {} free of {}, driver of CUDA {}.{}",
                human(*free),
                human(*total),
                driver / 1000,
                driver % 1000 / 10
            );
            return Check::ok("gpu", found);
        }
        Err(error) => error.to_string(),
    };
    let has_traces = TRACES.iter().any(|path| Path::new(path).exists());
    let advice = "the line above says what is missing; --device cpu goes without";
    match (wanted, has_traces || !matches!(card, Err(OpenError::NoDevice(_)))) {
        (true, _) => Check::problem("gpu", error, advice),
        (false, true) => Check::warning("gpu", error, format!("{advice}, as auto does")),
        (false, false) => Check::ok("gpu", format!("{error}; the model runs on the CPU")),
    }
}

/// `found` is the library's name, or the names that were tried.
fn library(
    name: &'static str,
    package: &str,
    found: &Result<String, Vec<String>>,
    missing: Verdict,
) -> Check {
    let tried = match found {
        Ok(library) => return Check::ok(name, library.as_str()),
        Err(tried) => tried.join(", "),
    };
    let folders = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let folders = if folders.is_empty() { "not set" } else { &folders };
    let text = format!("not found; tried {tried}; LD_LIBRARY_PATH is {folders}");
    if missing == Verdict::Ok {
        return Check::ok(name, format!("{text}; only a GPU needs it"));
    }
    let advice = format!(
        "install CUDA's run-time libraries, or the PyPI package {package}, and put their folder \
         into LD_LIBRARY_PATH"
    );
    Check { name, verdict: missing, found: text, advice: Some(advice) }
}

/// Where compiled kernels are kept.
fn kernels() -> Check {
    let Some(dir) = kernel_cache() else {
        return Check::warning(
            "kernels",
            "no folder: neither XDG_CACHE_HOME nor HOME is set",
            "give --kernel-cache DIR: without, kernels are compiled at every start",
        );
    };
    match super::hub::writable(&dir) {
        Ok(_) => Check::ok("kernels", format!("kept in {}", dir.display())),
        Err(error) => Check::warning(
            "kernels",
            format!("{} cannot be written: {error}", dir.display()),
            "give --kernel-cache DIR: without, kernels are compiled at every start",
        ),
    }
}
