//! Kernels compiled as C++ and run on the CPU, one fiber a thread.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::ffi::{CStr, c_char, c_void};

use libloading::Library;

use super::device::{Address, Launch, Memory, Program};

pub struct Emulated(Library);

pub fn compile(file: &str, defines: &[String]) -> Emulated {
    let root = crate::root();
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("kernels.so");
    let mut build = cc::Build::new();
    // Contraction would make sums differ from what the text says.
    build.cpp(true).opt_level(2).target(&target).host(&target).cargo_metadata(false);
    let mut command = build.get_compiler().to_command();
    command.args(["-std=c++17", "-shared", "-fPIC", "-fno-strict-aliasing", "-ffp-contract=off"]);
    command.args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]);
    command.arg("-include").arg(root.join("tests/it/kernels/emulate.h")).args(defines);
    command.args(["-x", "c++"]).arg(root.join("kernels").join(file)).arg("-o").arg(&output);
    let result = command.output().expect("a C++ compiler");
    assert!(result.status.success(), "{}", String::from_utf8_lossy(&result.stderr));
    // SAFETY: the library is ours and has no initialisers beyond C++'s own.
    Emulated(unsafe { Library::new(&output) }.unwrap())
}

type Entry = unsafe extern "C" fn(*const u32, usize, *const c_void, bool) -> *const c_char;

impl Program for Emulated {
    fn launch(&self, launch: &Launch<'_>) -> Result<(), String> {
        let Launch { name, grid, threads, shared_bytes, args, reverse } = *launch;
        let size_name = format!("emulate_size_{name}");
        let launch_name = format!("emulate_{name}");
        let mut at = [1; 12];
        at[..3].copy_from_slice(&grid.size);
        at[3] = threads;
        at[6..9].copy_from_slice(&grid.first);
        at[9..].copy_from_slice(&grid.end);
        // SAFETY: both functions have these signatures (emulate.h), and the struct has the size the
        // kernel was compiled with. That its addresses are right is what the tests are about.
        unsafe {
            let size = self.0.get::<unsafe extern "C" fn() -> usize>(size_name.as_bytes());
            assert_eq!(size.unwrap()(), args.len(), "bytes of {name}'s arguments");
            let entry = self.0.get::<Entry>(launch_name.as_bytes()).unwrap();
            let error = entry(at.as_ptr(), shared_bytes, args.as_ptr().cast::<c_void>(), reverse);
            if error.is_null() {
                return Ok(());
            }
            Err(CStr::from_ptr(error).to_string_lossy().into_owned())
        }
    }
}

/// Memory of the host, aligned as much as a canary is long.
pub struct HostMemory {
    start: *mut u8,
    layout: Layout,
}

impl HostMemory {
    pub fn new(bytes: &[u8]) -> Self {
        let layout = Layout::from_size_align(bytes.len(), 128).unwrap();
        assert!(layout.size() > 0);
        // SAFETY: the layout is not empty; the copy fills it.
        let start = unsafe {
            let start = std::alloc::alloc(layout);
            start.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
            start
        };
        Self { start, layout }
    }
}

impl Memory for HostMemory {
    fn address(&self) -> Address {
        self.start as Address
    }

    fn read(&self) -> Vec<u8> {
        // SAFETY: the allocation is that long and initialised.
        unsafe { std::slice::from_raw_parts(self.start, self.layout.size()) }.to_vec()
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { std::alloc::dealloc(self.start, self.layout) };
    }
}
