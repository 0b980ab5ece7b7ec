//! Emulated cards, loaded into this process before anything looks for a driver.

#![allow(unsafe_code)]

use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use tempfile::TempDir;
use tessera::backend::cuda::{Cuda, OpenError, StepLimits};
use tessera::engine::{Engine, EngineHandle, Gpu, GpuSettings, LoadedGpu};
use tessera::model::Model;
use tessera::scheduler::SchedulerConfig;

use crate::harness::{BLOCK_TOKENS, Golden, POSITIONS_MAX, RECIPE_PARTS_MAX};

/// Whether tests run on the machine's own GPU: what only an emulated card does is left out then.
pub fn is_real() -> bool {
    std::env::var_os("TESSERA_CUDA").is_some()
}

struct Driver {
    folder: TempDir,
    /// Keeps the libraries where they are.
    libraries: Vec<Library>,
}

fn run(command: &mut Command) {
    let output = command.output().expect("a C++ compiler");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// The driver, with all that NVRTC and cuBLASLt do; and these two, as CUDA 13 has them.
fn build(folder: &Path) {
    let header = crate::root().join("tests/it/kernels/emulate.h");
    run(Command::new("c++")
        .args(["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"])
        .arg(format!("-DEMULATE_H=\"{}\"", header.display()))
        .args(["driver.cpp", "libraries.cpp"].map(source))
        .args(["-ldl", "-Wl,-soname,libcuda.so", "-o"])
        .arg(folder.join("libcuda.so")));
    build_libraries(folder, 13);
}

fn source(file: &str) -> PathBuf {
    crate::root().join("tests/it/cuda").join(file)
}

/// NVRTC and cuBLASLt of one major version of CUDA, beside a driver.
pub fn build_libraries(folder: &Path, major: u32) {
    for stem in ["nvrtc", "cublasLt"] {
        let name = format!("lib{stem}.so.{major}");
        run(Command::new("c++")
            .args(["-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"])
            .arg(format!("-DMAJOR={major}"))
            .arg(source("versioned.cpp"))
            .arg(format!("-Wl,-soname,{name}"))
            .args(["-Wl,--no-as-needed", "-Wl,-rpath,$ORIGIN", "-l:libcuda.so", "-L"])
            .arg(folder)
            .arg("-o")
            .arg(folder.join(name)));
    }
}

fn driver() -> &'static Driver {
    static DRIVER: OnceLock<Driver> = OnceLock::new();
    DRIVER.get_or_init(|| {
        assert!(!is_real(), "emulated libraries would stand in for the machine's own");
        let folder = tempfile::tempdir().unwrap();
        build(folder.path());
        let open = |name: &str| {
            // SAFETY: the library is ours and has no initialisers beyond C++'s own.
            unsafe { Library::open(Some(folder.path().join(name)), RTLD_NOW | RTLD_GLOBAL) }
        };
        let names = ["libcuda.so", "libnvrtc.so.13", "libcublasLt.so.13"];
        let libraries = names.map(|name| open(name).unwrap()).into();
        Driver { folder, libraries }
    })
}

/// Where the emulated libraries are, for processes of their own.
pub fn libraries() -> PathBuf {
    driver().folder.path().to_owned()
}

/// For compiled kernels, made once, and of this process alone; on a GPU what `XDG_CACHE_HOME`
/// names, where one process finds what another compiled.
pub fn cache() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    match std::env::var_os("XDG_CACHE_HOME") {
        Some(kept) if is_real() => kept.into(),
        _ => FOLDER.get_or_init(|| tempfile::tempdir().unwrap()).path().to_owned(),
    }
}

/// Where the server keeps them, in there.
pub fn kernel_cache() -> PathBuf {
    cache().join("tessera/kernels")
}

/// One emulated card, a test's own.
#[derive(Clone, Copy)]
pub struct Card {
    pub ordinal: usize,
}

impl Card {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        if is_real() {
            return Self { ordinal: 0 };
        }
        let ordinal = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(ordinal < 64, "more tests than card.h has cards");
        let card = Self { ordinal };
        card.set("cards", 64);
        card
    }

    /// Tells the card to misbehave: see `driver.cpp`.
    pub fn set(self, what: &str, value: i64) {
        let what = CString::new(what).unwrap();
        type Set = unsafe extern "C" fn(i32, *const std::ffi::c_char, i64);
        // SAFETY: driver.cpp has this function.
        unsafe {
            let set = driver().libraries[0].get::<Set>(b"emulate_set").unwrap();
            set(self.ordinal as i32, what.as_ptr(), value);
        }
    }

    /// What the card counted.
    pub fn get(self, what: &str) -> i64 {
        let what = CString::new(what).unwrap();
        type Get = unsafe extern "C" fn(i32, *const std::ffi::c_char) -> i64;
        // SAFETY: driver.cpp has this function.
        unsafe {
            let get = driver().libraries[0].get::<Get>(b"emulate_get").unwrap();
            get(self.ordinal as i32, what.as_ptr())
        }
    }

    /// A model on the card, all memory taken.
    pub fn open(self, golden: &Golden, limits: StepLimits, blocks: usize) -> Gpu {
        let opened = self.try_open(golden, limits, &|_| {});
        let gpu = opened.unwrap_or_else(|e| panic!("{e}"));
        gpu.ready(&golden.checkpoint, blocks, BLOCK_TOKENS, 64 << 20).unwrap()
    }

    pub fn try_open(
        self,
        golden: &Golden,
        limits: StepLimits,
        heard: &dyn Fn(&str),
    ) -> Result<LoadedGpu, OpenError> {
        let cache = kernel_cache();
        LoadedGpu::open(
            &golden.checkpoint,
            &GpuSettings {
                ordinal: self.ordinal,
                limits,
                block_tokens: BLOCK_TOKENS,
                kernel_cache: Some(&cache),
                heard,
                loaded: &|_| {},
            },
        )
    }

    pub fn engine(self, golden: &Golden, scheduler: SchedulerConfig, slots: usize) -> EngineHandle {
        let limits = StepLimits {
            rows_max: scheduler.batch_tokens_max,
            sequences_max: scheduler.sequences_max,
            context_tokens_max: POSITIONS_MAX,
            adapter_slots: slots,
            recipe_parts_max: RECIPE_PARTS_MAX,
        };
        let Gpu { backend, model, .. } = self.open(golden, limits, scheduler.blocks);
        let kv_shape = Model::<Cuda>::kv_shape(&golden.checkpoint, scheduler.blocks, BLOCK_TOKENS);
        let (adapter_slots_max, recipe_parts_max) = (slots, RECIPE_PARTS_MAX);
        let engine =
            Engine { backend, model, kv_shape, scheduler, adapter_slots_max, recipe_parts_max };
        engine.start(10_000).unwrap()
    }
}

/// Steps of up to `rows` rows, all drawn from.
pub fn limits(rows: usize, slots: usize) -> StepLimits {
    StepLimits {
        rows_max: rows,
        sequences_max: rows,
        context_tokens_max: POSITIONS_MAX,
        adapter_slots: slots,
        recipe_parts_max: RECIPE_PARTS_MAX,
    }
}
