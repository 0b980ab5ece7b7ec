//! Kernels compiled for the card at hand, once: later starts read them from a folder.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::thread;

use super::launch::{Card, Compiler, Function, OpenError};
use crate::backend::Fault;
use crate::dtype::Dtype;

/// What source files may include.
const HEADERS: [(&str, &str); 2] = [
    ("common.cuh", include_str!("../../../kernels/common.cuh")),
    ("deltas.cuh", include_str!("../../../kernels/deltas.cuh")),
];

/// A source file and the kernels it holds.
struct File {
    name: &'static str,
    source: &'static str,
    kernels: &'static [&'static str],
}

macro_rules! files {
    ($($name:literal: [$($kernel:literal),*],)*) => {
        &[$(File {
            name: $name,
            source: include_str!(concat!("../../../kernels/", $name)),
            kernels: &[$($kernel),*],
        }),*]
    };
}

const FILES: &[File] = files! {
    "attention.cu": [
        "attention_decode_64", "attention_decode_128", "attention_decode_256",
        "attention_prefill_64", "attention_prefill_128", "attention_prefill_256",
        "attention_any", "attention_combine"
    ],
    "delta.cu": [
        "delta_shrink", "delta_expand", "delta_expand_float", "delta_replace",
        "delta_replace_float"
    ],
    "fold.cu": ["fold"],
    "gather.cu": ["embed", "gather_rows"],
    "mlp.cu": ["silu_mul", "silu_mul_tiles", "add"],
    "norm.cu": ["rms_norm", "add_rms_norm", "add_rms_norm_tiles"],
    "rope.cu": ["rope_store", "rope_store_tiles"],
    "sample.cu": ["sample"],
};

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
        let compiler = Compiler::open(card.driver_version())?;
        let target = Target::choose(card, &compiler, dtype);
        let cached: Vec<Option<Vec<u8>>> =
            FILES.iter().map(|file| read(&target.path(cache?, file))).collect();
        let missing = cached.iter().filter(|image| image.is_none()).count();
        if missing > 0 {
            heard(&format!(
                "compiling {missing} kernel files for {} ({})",
                card.name(),
                target.architecture
            ));
        }
        let images = thread::scope(|scope| {
            let compile = |(file, cached): (&'static File, Option<Vec<u8>>)| {
                let target = &target;
                scope.spawn(move || match cached {
                    Some(image) => Ok(image),
                    None => target.compile(file),
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
                    let image = target.compile(file)?;
                    let module = card.load(&image).map_err(|e| target.does_not_load(card, &e))?;
                    keep(cache, &target, file, &image);
                    (module, false)
                }
                Err(fault) => return Err(target.does_not_load(card, &fault)),
            };
            if fresh {
                keep(cache, &target, file, &image);
            }
            for name in file.kernels {
                by_name.insert(*name, module.kernel(name)?);
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

/// What to compile for.
struct Target {
    compiler: Compiler,
    /// As NVRTC's option has it.
    architecture: String,
    /// For the driver to finish: the card is newer than NVRTC.
    ptx: bool,
    dtype: Dtype,
}

impl Target {
    fn choose(card: &Card, compiler: &Compiler, dtype: Dtype) -> Self {
        let (major, minor) = card.capability();
        let own = major * 10 + minor;
        let known = compiler.architectures.contains(&own);
        let newest = compiler.architectures.last().copied().unwrap_or(own);
        let architecture = match own {
            // Some instructions of 9.0 are only there under this name.
            90 if known => "sm_90a".to_owned(),
            _ if known => format!("sm_{own}"),
            _ => format!("compute_{}", newest.min(own)),
        };
        Self { compiler: compiler.clone(), architecture, ptx: !known, dtype }
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
        let width = match self.dtype {
            Dtype::F32 => "float",
            Dtype::F16 => "f16",
            Dtype::BF16 => "bf16",
        };
        let widths = ["X", "P", "KV"].map(|kind| format!("-DTESSERA_{kind}={width}"));
        let mut options =
            vec![format!("--gpu-architecture={}", self.architecture), "--std=c++17".to_owned()];
        options.extend(widths);
        options
    }

    fn compile(&self, file: &File) -> Result<Vec<u8>, OpenError> {
        let image =
            self.compiler.compile(file.name, file.source, &HEADERS, &self.options(), self.ptx);
        image.map_err(|log| {
            OpenError::Unusable(format!(
                "{} does not compile for {}: {log}",
                file.name, self.architecture
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
fn keep(cache: Option<&Path>, target: &Target, file: &File, image: &[u8]) {
    let Some(cache) = cache else { return };
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(cache)?;
        let mut temporary = tempfile::NamedTempFile::new_in(cache)?;
        temporary.write_all(blake3::hash(image).as_bytes())?;
        temporary.write_all(image)?;
        temporary.persist(target.path(cache, file)).map_err(|e| e.error)?;
        Ok(())
    };
    if let Err(error) = write() {
        tracing::warn!("compiled kernels cannot be kept in {}: {error}", cache.display());
    }
}
