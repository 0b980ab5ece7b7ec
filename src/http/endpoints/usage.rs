//! `GET /v1/usage`: a day a row, of each key and adapter.

use std::sync::atomic::{AtomicU64, Ordering};

use hyper::Response;
use serde::Serialize;

use crate::http::caller::Caller;
use crate::http::ledger::day_name;
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::wire::to_json;

/// Fields may be added; those that are here keep their names.
#[derive(Serialize)]
struct UsageList {
    object: &'static str,
    data: Vec<UsageRow>,
}

#[derive(Serialize)]
struct UsageRow {
    object: &'static str,
    /// `2026-01-31`, in UTC.
    day: String,
    /// The key's name; null on a server without keys.
    key: Option<String>,
    /// The name of an adapter, or of the base model.
    adapter: String,
    requests: u64,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
}

/// The caller's own rows, or all of them for one who may administer.
pub(in crate::http) fn list(state: &State, caller: &Caller) -> Response<Body> {
    let rows = state.ledger.list().into_iter();
    let shown =
        rows.filter(|((_, key, _), _)| caller.is_admin() || key.as_deref() == caller.name());
    let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
    let data = shown.map(|((day, key, adapter), counts)| UsageRow {
        object: "usage",
        day: day_name(day),
        key,
        adapter,
        requests: of(&counts.requests),
        prompt_tokens: of(&counts.prompt_tokens),
        cached_tokens: of(&counts.cached_tokens),
        completion_tokens: of(&counts.completion_tokens),
    });
    let list = UsageList { object: "list", data: data.collect() };
    whole("application/json", to_json(&list))
}
