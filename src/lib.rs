//! Tessera: one frozen base model in memory, a different adapter for every request, one batch.
//!
//! `docs/architecture.md` walks one request and one adapter through it; `docs/recipes.md` says what
//! it takes to add a method, a family, a field, an op or a kernel.
//!
//! # Map, in the order data flows
//!
//! A module may import only modules of a lower group (`tests/it/tidy.rs` checks this).
//!
//! * [`cli`]: one file a command. [`config`]: flags, environment and file → settings.
//! * [`http`]: OpenAI's API over hyper; the only module that answers HTTP, in JSON and SSE.
//! * [`engine`]: owns all mutable state on one thread; plan → batch → forward → sample → commit.
//! * [`text`]: strings ↔ tokens. [`scheduler`]: which tokens run next, pure. [`adapter`]: file →
//!   method → [`delta::Delta`] → store → slot. [`model`]: the forward pass, written once.
//!   [`structured`]: what form an answer must have → which tokens may come next.
//! * [`backend`]: the op vocabulary; one implementation a device.
//! * [`delta`]: the canonical form, the contract between methods and kernels. [`recipe`]: which
//!   adapters with what weights, one type from the request to the row. [`site`]: the places an
//!   adapter may change. [`request`]: a request, valid by construction.
//! * [`dtype`], [`ids`]: plain data. [`files`]: directories that others may change while they are
//!   read. `json`: JSON of others, read into types.
//!
//! # Invariants, as absences
//!
//! * No adapter is served that was not understood whole: every tensor and every config field that
//!   changes the maths is used, or the load is refused by name.
//! * No adapter method is named outside `adapter`, no model family outside `model`, but in `cli`,
//!   which makes and times random ones.
//! * No tensor, clock or channel in `scheduler`; no file system on the engine's thread.
//! * No weight of the base is written after load but by merged mode, before the first request; what
//!   several share it copies first, and taking the adapter back puts the checkpoint's bits in
//!   place.
//! * No name is an identity: the digest of an adapter's content is, in the prefix cache too.
//! * No row's result depends on its neighbours in the batch: bit for bit on the CPU; on a GPU but
//!   for the order in which cuBLASLt sums.
//! * No slow client stalls a step: an event that cannot be sent at once cancels the sequence.
//! * No mutable statics, no thread-locals; no limit whose name does not say of what.
//!
//! # Words
//!
//! *base* the frozen model; *adapter* a fine-tune of it; *method* how one is written down (LoRA,
//! MoS …); *delta* its canonical form; *module* a place as the checkpoint and adapter files name
//! it; *site* a place as the forward pass computes it, some or all rows of a module; *outline* the
//! places of one model, stated once; *pool* parameters that factors gather from; *shard* a stretch
//! of a pool; *recipe* adapters with weights, none for the bare base; *part* one adapter of a
//! recipe with its weight; *content* what an adapter's files say, known by its digest; *alias* a
//! name that points at a content; *held* in the host store; *slot* an adapter's place on the
//! device; *resident* in a slot; *block* a page of KV; *sequence* one completion; *row* one token
//! in a step; *step* one forward pass; *plan* the rows of a step by sequence, *rows* the same as
//! flat arrays; *event* what the engine tells a client; *merged* folded into the weights.

pub mod cli;
pub mod config;
pub mod http;

pub mod engine;

pub mod adapter;
pub mod model;
pub mod scheduler;
pub mod structured;
pub mod text;

pub mod backend;

pub mod delta;
pub mod recipe;
pub mod request;
pub mod site;

pub mod dtype;
pub mod files;
pub mod ids;
mod json;
