//! `GET /v1`, and `GET /` of a program: where everything is.

use hyper::Response;
use serde::Serialize;

use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::table::{ROUTES, Route, Row, shown};
use crate::http::wire::to_json;

/// Fields may be added; those that are here keep their names.
#[derive(Serialize)]
struct Index {
    object: &'static str,
    name: &'static str,
    version: &'static str,
    /// The page for people; null without one.
    page: Option<&'static str>,
    docs: &'static str,
    openapi: &'static str,
    models: &'static str,
    adapters: &'static str,
    /// Whether adapters are loaded and unloaded while serving.
    runtime_adapters: bool,
    /// Every path.
    routes: Vec<String>,
}

/// Where everything is.
pub(in crate::http) fn index(state: &State) -> Response<Body> {
    let is_there = |row: &&Row| state.http.page || !matches!(row, (.., Route::PageFile));
    let index = Index {
        object: "index",
        name: "tessera",
        version: env!("CARGO_PKG_VERSION"),
        page: state.http.page.then_some("/"),
        docs: "/docs",
        openapi: "/openapi.json",
        models: "/v1/models",
        adapters: "/v1/adapters",
        runtime_adapters: state.http.runtime_adapters && state.model.merged.is_none(),
        routes: ROUTES.iter().filter(is_there).map(|(path, ..)| shown(path)).collect(),
    };
    whole("application/json", to_json(&index))
}
