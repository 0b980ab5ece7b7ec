//! Tessera: one frozen base model in memory, a different adapter for every request, one batch.
//!
//! # Map, in the order data flows
//!
//! A module may import only modules of a lower group (`tests/it/tidy.rs` checks this).
//!
//! * [`cli`]: one file a command. [`config`]: flags, environment and file → settings.
//! * [`http`]: OpenAI's API over hyper; the only module that knows HTTP, JSON replies and SSE.
//! * [`engine`]: owns all mutable state on one thread; plan → batch → forward → sample → commit.
//! * [`text`]: strings ↔ tokens. [`scheduler`]: which tokens run next, pure. [`adapter`]: file →
//!   method → [`delta::Delta`] → store → slot. [`model`]: the forward pass, written once.
//! * [`backend`]: the op vocabulary; one implementation a device.
//! * [`delta`]: the canonical form, the contract between methods and kernels. [`site`]: the places
//!   an adapter may change. [`request`]: a request, valid by construction.
//! * [`dtype`], [`ids`]: plain data.
//!
//! # Invariants, as absences
//!
//! * No adapter is served that was not understood whole: every tensor and every config field that
//!   changes the maths is used, or the load is refused by name.
//! * No adapter method is named outside `adapter`, no model family outside `model`.
//! * No tensor, clock or channel in `scheduler`; no file system on the engine's thread.
//! * No weight of the base is written after load; merged mode writes a copy.
//! * No name is an identity: the digest of an adapter's content is, in the prefix cache too.
//! * No row's result depends on its neighbours in the batch: bit for bit on the CPU.
//! * No slow client stalls a step: an event that cannot be sent at once cancels the sequence.
//! * No mutable statics, no thread-locals; no limit without a name that ends in its unit.
//!
//! # Words
//!
//! *base* the frozen model; *adapter* a fine-tune of it; *method* how one is written down (LoRA,
//! MoS …); *delta* its canonical form; *site* a place in the model; *pool*, *shard* what a gather
//! reads; *slot* an adapter's place on the device; *block* a page of KV; *sequence* one completion;
//! *row* one token in a step; *step* one forward pass; *plan* the rows of a step; *resident* in a
//! slot; *merged* folded into the weights.

pub mod cli;
pub mod config;
pub mod http;

pub mod engine;

pub mod adapter;
pub mod model;
pub mod scheduler;
pub mod text;

pub mod backend;

pub mod delta;
pub mod request;
pub mod site;

pub mod dtype;
pub mod ids;
