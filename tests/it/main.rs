//! One integration-test binary; one module a boundary.
//!
//! Tests of kernels and cards run on emulated ones; with `TESSERA_CUDA=1`, on the machine's GPU.
//! That machine needs neither cargo nor a compiler: copy the repository, the server's binary and
//! this one there (`target/release/tessera`, `target/release/deps/it-*`), put the folders of NVRTC
//! and cuBLASLt into `LD_LIBRARY_PATH` unless they are installed, and run
//!
//! ```text
//! export CARGO_MANIFEST_DIR=/the/repository CARGO_BIN_EXE_tessera=/the/server TESSERA_CUDA=1
//! ./it-* kernels::
//! ./it-* cuda:: --test-threads=1
//! ```
//!
//! One at a time, because a server takes most of the card's memory; and apart, because a kernel
//! that reaches memory that is not its own leaves the process without a card.
// Oracles are written with the indices of their formulas.
#![allow(clippy::needless_range_loop)]

mod accepted;
mod answer_ends;
mod attention;
mod backend;
mod batch;
mod broken;
mod catalog;
mod changing_files;
mod changing_model;
mod client;
mod command_line;
mod commands;
mod config_files;
mod configs;
mod conversation;
mod cuda;
mod definitions;
mod fair_tenants;
mod fairness;
mod fake;
mod families;
mod files;
mod flags;
mod generated;
mod golden;
mod harness;
mod health;
mod healthchecks;
mod hostile_adapters;
mod http;
mod http2;
mod http_adapter_cards;
mod http_adapters;
mod http_answers;
mod http_batch;
mod http_bodies;
mod http_coding;
mod http_connections;
mod http_cors;
mod http_embeddings;
mod http_errors;
mod http_keys;
mod http_lines;
mod http_loglikelihood;
mod http_messages_api;
mod http_page;
mod http_prompts;
mod http_responses;
mod http_routes;
mod http_streams;
mod http_token_rules;
mod http_wrong_values;
mod hub;
mod hub_lies;
mod hub_server;
mod kernels;
mod keys_at_work;
mod listening;
mod logs;
mod merged;
mod messages;
mod metrics;
mod metrics_names;
mod model_folders;
mod openapi;
#[cfg(feature = "otlp")]
mod otlp;
mod packages;
mod process;
mod process_limits;
mod programs;
mod recipes;
mod rules;
mod sampling;
mod scheduler;
mod schedules;
mod serve;
mod serve_answers;
mod served_text;
mod settings;
mod spoken;
mod structured;
mod synth;
mod terminal;
mod text;
mod text_jinja;
mod text_template;
mod thoughts;
mod tidy;
mod tidy_circles;
mod tokenizer_files;
mod tools;

use std::path::PathBuf;

/// The repository. A copied test binary is told where it is by the variable that cargo sets.
pub fn root() -> PathBuf {
    let moved = std::env::var_os("CARGO_MANIFEST_DIR");
    moved.map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The server's binary, likewise.
pub fn binary() -> PathBuf {
    let moved = std::env::var_os("CARGO_BIN_EXE_tessera");
    moved.map_or_else(|| env!("CARGO_BIN_EXE_tessera").into(), PathBuf::from)
}

/// Deterministic values in (-1, 1).
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

    /// In (-1, 1).
    pub fn f32(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    /// The next `n` values.
    pub fn vec(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.f32()).collect()
    }
}
