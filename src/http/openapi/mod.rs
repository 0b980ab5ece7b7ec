//! `GET /openapi.json` and `GET /docs`: what the routes take and answer, made of the tables that
//! they are served by: the routes of `table`, and the fields of each `fields!` with their types.

mod answers;
mod bodies;
mod conversations;
mod docs;
mod forms;
mod operations;

use hyper::Response;
use hyper::header::HeaderValue;
use serde_json::{Map, Value, json};

use self::answers::at;
use self::operations::{ERRORS, Told, with_id};
use super::access::Access;
use super::error::ERROR_CODES;
use super::page;
use super::schema::Bounds;
use super::sse::{Body, whole};
use super::state::State;
use super::table::{ROUTES, Route, Row, WITHOUT_V1, is_of_names, shown};
use super::wire::to_json;

/// The document and its page, which are made when they are first asked for.
fn made(state: &State) -> &[bytes::Bytes; 2] {
    state.openapi.get_or_init(|| {
        let bounds = Bounds { limits: &state.model.limits, hidden_size: state.model.hidden_size };
        let document = describe(&bounds);
        [to_json(&document).into(), docs::page(&document).into()]
    })
}

/// `GET /openapi.json`.
pub(super) fn document(state: &State) -> Response<Body> {
    whole("application/json", made(state)[0].clone())
}

/// `GET /docs`: a page without scripts that fetches nothing.
pub(super) fn page(state: &State) -> Response<Body> {
    let policy = HeaderValue::try_from(docs::policy());
    // Plain words and the digits of a hash are legal in a header.
    let policy = policy.unwrap_or(HeaderValue::from_static("default-src 'none'"));
    page::answer("text/html; charset=utf-8", made(state)[1].clone(), policy)
}

const ABOUT: &str = "OpenAI's and Anthropic's APIs, and a few of vLLM's, for one base model and \
    any number of adapters: `model` names one. A field that is null is as good as absent. A field \
    that is known from another server and not served is answered 400 with its name; one that \
    nobody knows is left unread, or is a 400 with --strict-fields. Bodies may be compressed by \
    gzip or zstd. Every path may end with a slash.";

/// The whole document, of OpenAPI 3.1.
fn describe(bounds: &Bounds<'_>) -> Value {
    let mut paths = Map::new();
    let mut schemas = answers::all();
    schemas.extend(conversations::all().into_iter().map(|(name, is)| (name.to_owned(), is)));
    for row in ROUTES {
        let (path, methods, _, route) = *row;
        let mut item = Map::new();
        for method in methods.split(", ") {
            item.insert(method.to_ascii_lowercase(), operation(row, method));
        }
        if is_of_names(path) {
            item.insert(
                "parameters".to_owned(),
                json!([{
                    "name": "name",
                    "in": "path",
                    "required": true,
                    "description": "A model's, an adapter's or a file's name; slashes may stand as \
                                    they are.",
                    "schema": {"type": "string", "minLength": 1},
                }]),
            );
        }
        paths.insert(shown(path), item.into());
        if let Route::Post(post) = route {
            schemas.insert(body_name(&operations::of(route)), bodies::body(post, bounds));
        }
    }
    let without = WITHOUT_V1.join(", ");
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Tessera",
            "version": env!("CARGO_PKG_VERSION"),
            "description": format!("{ABOUT} Without /v1 there are {without} too."),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": errors(),
            "headers": {"RequestId": {
                "required": true,
                "description": "The client's own, if it sent one, or a new one.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 128},
            }},
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    })
}

/// The name of the schema of a route's body: `tokenize` takes a `TokenizeRequest`.
fn body_name(told: &Told) -> String {
    let capital = |word: &str| {
        let (first, rest) = word.split_at(1);
        first.to_ascii_uppercase() + rest
    };
    told.id.split('_').chain(["request"]).map(capital).collect()
}

fn operation(row: &Row, method: &str) -> Value {
    let (path, _, access, route) = *row;
    let told = if method == "DELETE" { operations::deletes(route) } else { operations::of(route) };
    let access = match method {
        "DELETE" => Access::Admin,
        "OPTIONS" => Access::Open,
        _ => access,
    };
    let is_anthropics = path.starts_with("/v1/messages");
    let prefix = match method {
        "HEAD" => "head_",
        "OPTIONS" => "options_of_",
        "POST" if !matches!(route, Route::Post(_)) => "post_",
        _ => "",
    };
    let place = if prefix.is_empty() && path != "/health" && path != "/ping" { "" } else { path };
    let place = place.trim_matches('/').replace(['/', '.'], "_");
    let joint = if place.is_empty() { "" } else { "_" };
    let mut operation = json!({
        "operationId": format!("{prefix}{}{joint}{place}", told.id),
        "tags": [told.tag],
        "summary": told.summary,
        "x-access": access_word(access),
        "responses":
            operations::responses(&told.success, access, method, route, is_anthropics),
    });
    // Where a server has no keys, none is needed.
    if access != Access::Open {
        operation["security"] = json!([{"bearer": []}, {"key": []}]);
    }
    if let (Route::Post(_), "POST") = (route, method) {
        operation["requestBody"] = json!({
            "required": true,
            "content": {"application/json": {"schema": at(&body_name(&told))}},
        });
    }
    if let (Route::TokenizerInfo, "GET" | "HEAD") = (route, method) {
        operation["parameters"] = json!([{
            "name": "model",
            "in": "query",
            "description": "Whose; the base model's unless given.",
            "schema": {"type": "string"},
        }]);
    }
    operation
}

fn access_word(access: Access) -> &'static str {
    match access {
        Access::Open => "open",
        Access::Metrics => "open, or --metrics-key",
        Access::Key => "any key",
        Access::Admin => "admin",
    }
}

/// The errors of all routes, in both forms.
fn errors() -> Map<String, Value> {
    let mut all = Map::new();
    for (status, when) in ERRORS {
        for (prefix, schema) in [("Error", "Error"), ("Anthropic", "AnthropicError")] {
            let mut response = with_id(json!({
                "description": when,
                "content": {"application/json": {"schema": at(schema)}},
            }));
            let header = match status {
                401 => Some("WWW-Authenticate"),
                409 | 429 | 503 => Some("Retry-After"),
                _ => None,
            };
            if let Some(header) = header {
                response["headers"][header] = json!({"schema": {"type": "string"}});
            }
            if ERROR_CODES.iter().any(|(_, of, retry, _)| of == status && retry.is_some()) {
                response["headers"]["x-should-retry"] = json!({
                    "description": "Whether a client should try again by itself.",
                    "schema": {"type": "string", "enum": ["true", "false"]},
                });
            }
            all.insert(format!("{prefix}{status}"), response);
        }
    }
    all
}
