//! OpenAI's API over HTTP/1.1 and HTTP/2: the only module that knows HTTP, a client's JSON, or
//! event streams.
//!
//! A request goes `server` (a `connection`) → `routes` (which endpoint) → `request` (bytes →
//! fields → prompt) → `generation` (what the engine draws, as text) → its file in `endpoints`,
//! which says what differs between the routes; `wire` and `sse` write the answer. What can go
//! wrong on the way is one enum, `error`.

mod accept;
mod access;
mod account;
mod adapter_root;
mod arrival;
mod caller;
mod clock;
mod connection;
mod endpoints;
mod error;
mod exchange;
mod generation;
mod keys;
mod ledger;
mod metrics;
mod models;
mod openapi;
mod page;
mod phase;
mod random;
mod request;
mod room;
mod routes;
mod schema;
mod seen;
mod server;
mod settings;
mod spans;
mod spelling;
mod sse;
mod state;
mod table;
mod trace_context;
mod watchers;
mod wire;

pub use clock::unix_now_s;
pub use connection::listener::{InProcess, Listener};
pub use connection::tls::Tls;
pub use error::{ERROR_CODES, Retry, shortened};
pub use keys::{KeyHash, Keys};
pub use server::serve;
pub use settings::{App, HttpSettings, ReasoningParser, ServedModel, ToolCallParser};
pub use spans::{EndedRequest, RanFor, Spans, TraceContext};
pub use table::batch_paths;
