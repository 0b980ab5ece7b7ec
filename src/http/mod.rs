//! OpenAI's API over HTTP/1.1: the only module that knows HTTP, a client's JSON, or event streams.
//!
//! A request goes `server` (connection) → `routes` (which endpoint) → `body` (bytes) → `parse` and
//! `fields` → `generate`, where `completions`, `chat` or what spells a chat otherwise (`anthropic`,
//! `responses`) say what differs: `prompt` (text to tokens) → `choices` (what the engine draws, as
//! text) → `stream` or one JSON object (`wire`). What can go wrong on the way is one enum, `error`.

mod access;
mod account;
mod adapter_cards;
mod adapter_root;
mod adapters;
mod anthropic;
mod anthropic_request;
mod body;
mod called;
mod caller;
mod chat;
mod choices;
mod clock;
mod coding;
mod completions;
mod conversation;
mod cors;
mod dialects;
mod embeddings;
mod endpoint;
mod ends;
mod error;
mod fields;
mod forms;
mod generate;
mod guard;
mod keys;
mod ledger;
mod listener;
mod loglikelihood;
mod logprobs;
mod messages;
mod metrics;
mod models;
mod parse;
mod passes;
mod phase;
mod prompt;
mod random;
mod raw;
mod rephrase;
mod responses;
mod responses_request;
mod routes;
mod seen;
mod server;
mod settings;
mod shape;
mod small;
mod spelling;
mod sse;
mod state;
mod stream;
mod tls;
mod token_rules;
mod tokens;
mod told;
mod tools;
mod unsupported;
mod usage;
mod whole;
mod wire;

pub use clock::unix_now_s;
pub use keys::{KeyHash, Keys};
pub use listener::Listener;
pub use server::serve;
pub use settings::{App, HttpSettings, ServedModel, ToolCallParser};
pub use tls::Tls;
