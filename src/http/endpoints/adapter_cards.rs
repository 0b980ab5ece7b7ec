//! `GET /v1/adapters` and `GET /v1/adapters/{name}`: what is loaded.

use hyper::Response;
use serde::Serialize;

use crate::adapter::NameOf;
use crate::http::caller::Caller;
use crate::http::error::LoadError;
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::wire::to_json;

/// All of them. Fields may be added; those that are here keep their names.
#[derive(Serialize)]
struct AdapterList {
    object: &'static str,
    data: Vec<AdapterCard>,
}

/// One name.
#[derive(Serialize)]
struct AdapterCard {
    id: String,
    object: &'static str,
    name: String,
    /// BLAKE3 of its content.
    digest: String,
    method: &'static str,
    /// The largest of its matrices.
    rank: usize,
    /// Of its parameters in memory.
    bytes: usize,
    /// The modules that it changes.
    targets: Vec<String>,
    /// `loaded`, or `merged` into the weights.
    state: &'static str,
    /// Seconds since 1970 when it was loaded.
    created: u64,
    /// The base model's name.
    parent: String,
}

/// `GET /v1/adapters`, in the order of loading.
pub(in crate::http) fn list(state: &State, caller: &Caller) -> Response<Body> {
    let all = state.catalog.list();
    let data = all.iter().filter_map(|named| card(state, caller, named)).collect();
    whole("application/json", to_json(&AdapterList { object: "list", data }))
}

/// `GET /v1/adapters/{name}`.
///
/// # Errors
/// [`LoadError::NoAdapter`].
pub(in crate::http) fn one(
    state: &State,
    caller: &Caller,
    name: &str,
) -> Result<Response<Body>, LoadError> {
    let named = state.catalog.get(name).and_then(|named| card(state, caller, &named));
    let card = named.ok_or_else(|| LoadError::NoAdapter(name.to_owned()))?;
    Ok(whole("application/json", to_json(&card)))
}

/// `None` for an adapter that is not served, beside one that is merged, and for one that the caller
/// may not use.
fn card(state: &State, caller: &Caller, named: &NameOf) -> Option<AdapterCard> {
    let NameOf { alias, adapter } = named;
    if !caller.may_use(&alias.name) {
        return None;
    }
    let served = match &state.model.merged {
        None => "loaded",
        Some(merged) if *merged == alias.name => "merged",
        Some(_) => return None,
    };
    Some(AdapterCard {
        id: alias.name.clone(),
        object: "adapter",
        name: alias.name.clone(),
        digest: adapter.digest.to_string(),
        method: adapter.method,
        rank: adapter.delta.rank_max(),
        bytes: adapter.delta.bytes(),
        targets: adapter.report.targets.clone(),
        state: served,
        created: alias.created,
        parent: state.model.base_name.clone(),
    })
}
