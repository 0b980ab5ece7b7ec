//! Kernels compiled for the card at hand, once: later starts read them from a folder.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use super::kernels;
use super::launch::{Card, Compiler, Function, OpenError};
use crate::backend::Fault;
use crate::dtype::Dtype;

/// What source files may include.
const HEADERS: [(&str, &str); 2] = [
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("deltas.cuh", include_str!("../../../kernels/deltas.cuh")),
];

/// A source file.
#[derive(Debug)]
struct File {
    name: &'static str,
    source: &'static str,
}

macro_rules! files {
    ($($name:literal)*) => {
        &[$(File { name: $name, source: include_str!(concat!("../../../kernels/", $name)) }),*]
    };
}

/// Those of the table in kernels.rs.
const FILES: &[File] = files! {
    "attention.cu" "delta.cu" "fold.cu" "gather.cu" "mlp.cu" "norm.cu" "rope.cu" "sample.cu"
};

/// Widths of activations and base weights, of adapters' parameters, and of keys and values.
pub type Widths = [Dtype; 3];

/// Every kernel, ready to launch.
#[derive(Debug)]
pub(super) struct Kernels {
    by_name: HashMap<&'static str, Function>,
}

impl Kernels {
    /// Kernels for activations, adapters and KV of `dtype`. `cache`: a folder for compiled ones.
    /// `heard` is told what takes time.
    ///
    /// # Errors
    /// NVRTC is missing, or a kernel does not compile: its log.
    pub fn load(
        card: &Card,
        dtype: Dtype,
        cache: Option<&Path>,
        heard: &dyn Fn(&str),
    ) -> Result<Self, OpenError> {
        let compilation = Compilation::of(card, [dtype; 3])?;
        let cached: Vec<Option<Vec<u8>>> =
            FILES.iter().map(|file| read(&compilation.path(cache?, file))).collect();
        let missing = cached.iter().filter(|image| image.is_none()).count();
        if missing > 0 {
            heard(&format!(
                "compiling {missing} kernel files for {} ({})",
                card.name(),
                compilation.target.architecture
            ));
        }
        let images = thread::scope(|scope| {
            let compile = |(file, cached): (&'static File, Option<Vec<u8>>)| {
                let compilation = &compilation;
                scope.spawn(move || match cached {
                    Some(image) => Ok(image),
                    None => compilation.compile(file),
                })
            };
            let threads: Vec<_> = FILES.iter().zip(cached.clone()).map(compile).collect();
            let join = |t: thread::ScopedJoinHandle<'_, _>| {
                t.join().unwrap_or_else(|_| Err(OpenError::Unusable("NVRTC panicked".into())))
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>, _>>()
        })?;
        let mut by_name = HashMap::new();
        for ((file, image), cached) in FILES.iter().zip(images).zip(cached) {
            let loaded = card.load(&image);
            let (module, fresh) = match loaded {
                Ok(module) => (module, cached.is_none()),
                // A damaged file, or one of another driver's time: make it anew.
                Err(_) if cached.is_some() => {
                    let image = compilation.compile(file)?;
                    let module =
                        card.load(&image).map_err(|e| compilation.does_not_load(card, &e))?;
                    keep(cache, &compilation, file, &image);
                    (module, false)
                }
                Err(fault) => return Err(compilation.does_not_load(card, &fault)),
            };
            if fresh {
                keep(cache, &compilation, file, &image);
            }
            for kernel in kernels::ALL.iter().filter(|kernel| kernel.file == file.name) {
                by_name.insert(kernel.name, module.kernel(kernel.name)?);
            }
        }
        Ok(Self { by_name })
    }

    pub fn get(&self, name: &str) -> Result<&Function, Fault> {
        self.by_name.get(name).ok_or_else(|| Fault {
            message: format!("This is a bug: there is no kernel {name}."),
            lost: false,
        })
    }
}

/// One file's kernels for a card, as [`super::Opened::open`] compiles them or finds them in
/// `cache`: for those who load and launch them themselves.
///
/// # Errors
/// As [`super::Opened::open`]; a file that does not compile comes with NVRTC's log.
pub fn compile(
    ordinal: usize,
    file: &str,
    widths: Widths,
    cache: Option<&Path>,
) -> Result<Vec<u8>, OpenError> {
    let compilation = Compilation::of(&Card::open(ordinal)?, widths)?;
    let Some(file) = FILES.iter().find(|known| known.name == file) else {
        return Err(OpenError::Unusable(format!("there is no kernel file {file}")));
    };
    if let Some(image) = cache.and_then(|cache| read(&compilation.path(cache, file))) {
        return Ok(image);
    }
    let image = compilation.compile(file)?;
    keep(cache, &compilation, file, &image);
    Ok(image)
}

/// What to compile for: an architecture of NVRTC's.
#[derive(Debug, PartialEq)]
struct Target {
    /// As NVRTC's option has it.
    architecture: String,
    /// For the driver to finish: NVRTC does not know the card.
    ptx: bool,
}

impl Target {
    /// For a card of compute capability `card` (90 for 9.0), by an NVRTC that compiles for `known`:
    /// the card's own, or the largest below it. `None`: all are above it.
    fn choose(card: i32, known: &[i32]) -> Option<Self> {
        if known.contains(&card) {
            // Some instructions of 9.0 are only there under this name.
            let suffix = if card == 90 { "a" } else { "" };
            return Some(Self { architecture: format!("sm_{card}{suffix}"), ptx: false });
        }
        let below = known.iter().filter(|&&other| other < card).max()?;
        Some(Self { architecture: format!("compute_{below}"), ptx: true })
    }
}

/// One compiler, target and choice of widths.
struct Compilation {
    compiler: Compiler,
    target: Target,
    widths: Widths,
}

impl Compilation {
    fn of(card: &Card, widths: Widths) -> Result<Self, OpenError> {
        let compiler = Compiler::open(card.driver_version())?;
        let (major, minor) = card.capability();
        let Some(target) = Target::choose(major * 10 + minor, &compiler.architectures) else {
            let (of_nvrtc, known) = (compiler.version, compiler.architectures.first());
            return Err(OpenError::Unusable(format!(
                "NVRTC {}.{} compiles for compute capability {} and newer, and {} has \
                 {major}.{minor}; install an older one",
                of_nvrtc.0,
                of_nvrtc.1,
                known.map_or("none".to_owned(), |k| format!("{}.{}", k / 10, k % 10)),
                card.name()
            )));
        };
        Ok(Self { compiler, target, widths })
    }

    fn does_not_load(&self, card: &Card, fault: &Fault) -> OpenError {
        let ((major, minor), driver) = (self.compiler.version, card.driver_version());
        OpenError::Unusable(format!(
            "kernels compiled by NVRTC {major}.{minor} do not load on a driver for CUDA {}.{} \
             ({fault}); install an NVRTC that is not newer than the driver",
            driver / 1000,
            driver % 1000 / 10
        ))
    }

    fn options(&self) -> Vec<String> {
        let define = |(kind, width)| {
            let width = match width {
                Dtype::F32 => "float",
                Dtype::F16 => "f16",
                Dtype::BF16 => "bf16",
            };
            format!("-DTESSERA_{kind}={width}")
        };
        let architecture = format!("--gpu-architecture={}", self.target.architecture);
        let widths = ["X", "P", "KV"].into_iter().zip(self.widths);
        [architecture, "--std=c++17".to_owned()].into_iter().chain(widths.map(define)).collect()
    }

    fn compile(&self, file: &File) -> Result<Vec<u8>, OpenError> {
        let image = self.compiler.compile(
            file.name,
            file.source,
            &HEADERS,
            &self.options(),
            self.target.ptx,
        );
        image.map_err(|log| {
            OpenError::Unusable(format!(
                "{} does not compile for {}: {log}",
                file.name, self.target.architecture
            ))
        })
    }

    /// By content: whatever changes the result changes the name.
    fn path(&self, cache: &Path, file: &File) -> PathBuf {
        let mut hash = blake3::Hasher::new();
        let version = format!("{:?}", self.compiler.version);
        let options = self.options();
        let texts = [file.source, &version].into_iter().chain(HEADERS.map(|(_, text)| text));
        for text in texts.chain(options.iter().map(String::as_str)) {
            hash.update(&(text.len() as u64).to_le_bytes()).update(text.as_bytes());
        }
        let stem = file.name.trim_end_matches(".cu");
        cache.join(format!("{stem}-{}.bin", &hash.finalize().to_hex()[..32]))
    }
}

/// A compiled file, its own hash before it: what was cut short is not there.
fn read(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (hash, image) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(image).as_bytes() == hash).then(|| image.to_vec())
}

/// A folder that cannot be written costs the next start some seconds, nothing else.
fn keep(cache: Option<&Path>, compilation: &Compilation, file: &File, image: &[u8]) {
    let Some(cache) = cache else { return };
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(cache)?;
        let mut temporary = tempfile::NamedTempFile::new_in(cache)?;
        temporary.write_all(blake3::hash(image).as_bytes())?;
        temporary.write_all(image)?;
        temporary.persist(compilation.path(cache, file)).map_err(|e| e.error)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::warn!("compiled kernels cannot be kept in {}: {error}", cache.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_gets_the_largest_target_that_is_not_above_it() {
        // What NVRTC 12.4, 12.8 and 13.0 say.
        let old = [50, 52, 53, 60, 61, 62, 70, 72, 75, 80, 86, 87, 89, 90];
        let middle = [50, 60, 70, 75, 80, 86, 87, 89, 90, 100, 101, 120];
        let new = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121];
        for (card, known, expected) in [
            (80, &old[..], Some("sm_80")),
            (89, &old, Some("sm_89")),
            (90, &old, Some("sm_90a")),
            (90, &new, Some("sm_90a")),
            (100, &old, Some("compute_90")),
            (121, &old, Some("compute_90")),
            (88, &middle, Some("compute_87")),
            (103, &middle, Some("compute_101")),
            (121, &middle, Some("compute_120")),
            (103, &new, Some("sm_103")),
            (130, &new, Some("compute_121")),
            (80, &[90, 100], None),
            (80, &[], None),
        ] {
            let target = Target::choose(card, known);
            let ptx = expected.is_some_and(|name| name.starts_with("compute_"));
            let expected = expected.map(|name| Target { architecture: name.to_owned(), ptx });
            assert_eq!(target, expected, "{card} of {known:?}");
        }
    }

    #[test]
    fn every_kernel_is_in_a_file_that_is_compiled() {
        let of_table: std::collections::BTreeSet<_> = kernels::ALL.iter().map(|k| k.file).collect();
        assert!(of_table.iter().copied().eq(FILES.iter().map(|file| file.name)));
    }
}
