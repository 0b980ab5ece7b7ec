//! Files and requests of people who mean no good, made from good ones by mutation.
//!
//! `cargo test` runs what is kept in `tests/fuzz/corpus` and a short, fixed slice of every target.
//! For longer, one target or several, with stable Rust:
//!
//! ```text
//! cargo test --release --test fuzz -- --minutes 10 template
//! cargo test --release --test fuzz -- --input FILE template
//! ```
//!
//! `--seed N` draws others, and `--keep FOLDER` writes there what was new.
//!
//! An input is text of one or more parts between lines of `=====`. What is new to a target is kept
//! and mutated again: a new kind of answer or, where the code was compiled with counters
//! (`coverage.rs` says how), a new path through it. Whatever the target, an input must cost little
//! time and memory, nothing may panic, and an error is no longer than what it is about.
//! Each target says what else must hold.

mod coverage;
mod fuzz;
mod heap;
mod mutate;
mod panics;
mod targets;
mod watch;

// What the other tests have to make servers, adapters and models with.
#[allow(dead_code)]
#[path = "../it/client.rs"]
mod client;
#[allow(dead_code)]
#[path = "../it/fake.rs"]
mod fake;
#[allow(dead_code)]
#[path = "../it/files.rs"]
mod files;
#[allow(dead_code)]
#[path = "../it/harness.rs"]
mod harness;
#[allow(dead_code, unused_imports)]
#[path = "../it/openapi.rs"]
mod openapi;
#[allow(dead_code)]
#[path = "../it/structured/walk.rs"]
mod walk;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use fuzz::{Budget, Fuzz};
use targets::{TARGETS, Target};

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

/// The repository.
pub fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// Deterministic values.
pub struct Rng(pub u64);

impl Rng {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        mixed ^ (mixed >> 29)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Once in `n` times.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

/// What the command line asks for. It may be meant for all test binaries: what is not known here is
/// passed over, and a word is a part of a target's name.
#[derive(Default)]
struct Asked {
    names: Vec<String>,
    minutes: Option<u64>,
    seed: u64,
    input: Option<PathBuf>,
    keep: Option<PathBuf>,
    is_list: bool,
}

impl Asked {
    fn read() -> Self {
        let mut asked = Self { seed: 1, ..Self::default() };
        let mut args = std::env::args().skip(1);
        while let Some(arg) = args.next() {
            let mut number = || args.next().and_then(|text| text.parse().ok());
            match arg.as_str() {
                "--minutes" => asked.minutes = number(),
                "--seed" => asked.seed = number().unwrap_or(1),
                "--input" => asked.input = args.next().map(PathBuf::from),
                "--keep" => asked.keep = args.next().map(PathBuf::from),
                "--list" => asked.is_list = true,
                // Of the standard harness.
                "--skip" | "--test-threads" | "--format" | "-Z" => drop(args.next()),
                flag if flag.starts_with('-') => {}
                name => asked.names.push(name.to_owned()),
            }
        }
        asked
    }

    fn wants(&self, target: &Target) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| target.name.contains(name.as_str()))
    }
}

fn main() -> ExitCode {
    let asked = Asked::read();
    let wanted: Vec<_> = TARGETS.iter().filter(|target| asked.wants(target)).collect();
    if asked.is_list {
        wanted.iter().for_each(|target| println!("{}: test", target.name));
        return ExitCode::SUCCESS;
    }
    panics::hook();
    watch::start();
    let mut faults = 0;
    for target in wanted {
        let budget = match asked.minutes {
            Some(minutes) => Budget::Time(Duration::from_secs(60 * minutes)),
            None => Budget::Inputs(target.slice),
        };
        let mut fuzz = Fuzz::new(target, asked.seed);
        match &asked.input {
            Some(file) => fuzz.once(&std::fs::read(file).expect("--input FILE")),
            None => fuzz.run(&budget),
        }
        asked.keep.iter().for_each(|folder| fuzz.keep(folder));
        println!("{}", fuzz.told());
        faults += fuzz.faults();
    }
    match faults {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
