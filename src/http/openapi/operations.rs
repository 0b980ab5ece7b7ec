//! What each route is for, and what it answers.

use serde_json::{Map, Value, json};

use super::answers::at;
use crate::http::access::Access;
use crate::http::table::{Post, Route};

/// What a route answers when all goes well.
pub(super) enum Success {
    /// JSON of a schema.
    Json(&'static str),
    /// The same, or a stream of events of another.
    Streamed(&'static str, &'static str),
    /// JSON of a schema to programs, a page to browsers.
    Page(&'static str),
    /// JSON of a schema once, or a stream of it.
    Watched(&'static str),
    /// A text of one of these types.
    Text(&'static [&'static str]),
    /// Nothing but the status.
    Empty,
}

/// A route in words.
pub(super) struct Told {
    /// What the operation is called, and the schema of its body.
    pub id: &'static str,
    pub tag: &'static str,
    pub summary: &'static str,
    pub success: Success,
}

fn told(id: &'static str, tag: &'static str, summary: &'static str, success: Success) -> Told {
    Told { id, tag, summary, success }
}

const GENERATION: &str = "generation";
const TOKENS: &str = "tokens";
const ADAPTERS: &str = "models and adapters";
const SERVER: &str = "server";
const PLAIN: &[&str] = &["text/plain"];
const PAGE_FILES: &[&str] = &["text/css", "text/javascript", "image/svg+xml"];

/// Of every method but `DELETE` and `OPTIONS`.
pub(super) fn of(route: Route) -> Told {
    use Success::{Empty, Json, Page, Text, Watched};
    match route {
        Route::Home => told(
            "home",
            SERVER,
            "A page for browsers, and for programs where everything is",
            Page("Index"),
        ),
        Route::PageFile => told("page_file", SERVER, "A part of the page", Text(PAGE_FILES)),
        Route::Index => told("index", SERVER, "Where everything is", Json("Index")),
        Route::Batch => told(
            "batch",
            SERVER,
            "What runs and waits: now, or with Accept: text/event-stream for as long as it is read",
            Watched("Batch"),
        ),
        Route::Models => told(
            "list_models",
            ADAPTERS,
            "The base model and all adapters that may be used",
            Json("ModelList"),
        ),
        Route::Model => told("get_model", ADAPTERS, "One of them", Json("ModelCard")),
        Route::Adapters => {
            told("list_adapters", ADAPTERS, "The adapters that are loaded", Json("AdapterList"))
        }
        Route::Adapter => told("get_adapter", ADAPTERS, "One of them", Json("AdapterCard")),
        Route::Usage => told("usage", SERVER, "Tokens by day, key and adapter", Json("UsageList")),
        Route::TokenizerInfo => told(
            "tokenizer_info",
            TOKENS,
            "Special tokens and the chat template",
            Json("TokenizerInfo"),
        ),
        Route::OpenApi => told("openapi", SERVER, "This document", Text(&["application/json"])),
        Route::Docs => told("docs", SERVER, "This document as a page", Text(&["text/html"])),
        Route::ServerLoad => told("load", SERVER, "Sequences that run or wait", Json("ServerLoad")),
        Route::Live => told("live", SERVER, "Whether the process is there", Empty),
        Route::Ready => told("ready", SERVER, "Whether requests are taken: 200 or 503", Empty),
        Route::Version => told("version", SERVER, "The server's version", Json("Version")),
        Route::Metrics => told(
            "metrics",
            SERVER,
            "Counters and gauges for Prometheus",
            Text(&["text/plain", "application/openmetrics-text"]),
        ),
        Route::Post(post) => posted(post),
    }
}

fn posted(post: Post) -> Told {
    use Success::{Json, Streamed, Text};
    match post {
        Post::Completions => told(
            "create_completion",
            GENERATION,
            "Goes on with texts",
            Streamed("Completion", "CompletionEvent"),
        ),
        Post::Chat => told(
            "create_chat_completion",
            GENERATION,
            "The next message of a chat",
            Streamed("ChatCompletion", "ChatCompletionEvent"),
        ),
        Post::Messages => told(
            "create_message",
            GENERATION,
            "The next message of a chat, as Anthropic's clients ask for it",
            Streamed("Message", "MessageEvent"),
        ),
        Post::CountTokens => told(
            "count_message_tokens",
            TOKENS,
            "How many tokens a message's prompt has",
            Json("TokenCount"),
        ),
        Post::Responses => told(
            "create_response",
            GENERATION,
            "The next message of a chat, as OpenAI's newer API has it",
            Streamed("Response", "ResponseEvent"),
        ),
        Post::Embeddings => {
            told("create_embeddings", GENERATION, "Vectors of texts", Json("Embeddings"))
        }
        Post::Loglikelihood => told(
            "loglikelihood",
            GENERATION,
            "How likely given continuations are",
            Json("Loglikelihoods"),
        ),
        Post::Tokenize => {
            told("tokenize", TOKENS, "The tokens of a text or of a chat", Json("Tokenized"))
        }
        Post::Detokenize => told("detokenize", TOKENS, "The text of tokens", Json("Detokenized")),
        Post::Load => told("load_adapter", ADAPTERS, "Loads an adapter", Text(PLAIN)),
        Post::Unload => told("unload_adapter", ADAPTERS, "Forgets an adapter's name", Text(PLAIN)),
        Post::Validate => told(
            "validate_adapter",
            ADAPTERS,
            "Whether an adapter could be loaded, and what it holds",
            Json("Validation"),
        ),
    }
}

/// What `DELETE` of a route does.
pub(super) fn deletes(route: Route) -> Told {
    let id = if matches!(route, Route::Model) { "delete_model" } else { "delete_adapter" };
    told(id, ADAPTERS, "Forgets an adapter's name", Success::Json("Deleted"))
}

/// A status of an error, and when it comes.
pub(super) const ERRORS: &[(u16, &str)] = &[
    (400, "The request is not what it must be; `param` says where."),
    (401, "No key, or one that is not known."),
    (403, "The key may not do this, or the Host or Origin is not this server's."),
    (404, "There is no such route, model or adapter, or none that the key may use."),
    (408, "The head or the body did not come in time."),
    (409, "The adapter's files changed while they were read: try again; see Retry-After."),
    (413, "The body is too large."),
    (415, "The body is of another type than JSON, or compressed in an unknown way."),
    (417, "Expect is something else than 100-continue."),
    (429, "A limit of the key or of the server is reached; see Retry-After."),
    (431, "The request's line and headers are too large."),
    (500, "The server failed on this request."),
    (503, "The server is shutting down, reading too much at once, or out of connections."),
];

/// The statuses of [`ERRORS`] that an operation may have.
fn statuses(access: Access, method: &str, route: Route) -> Vec<u16> {
    let mut all = vec![400, 403, 417, 500];
    let named = matches!(route, Route::Model | Route::Adapter | Route::PageFile);
    match access {
        Access::Open => {}
        Access::Metrics => all.push(401),
        Access::Key | Access::Admin => all.extend([401, 503]),
    }
    if method == "OPTIONS" {
        let is_probe = matches!(access, Access::Open | Access::Metrics);
        return [400, 403, 417, 500].into_iter().chain((!is_probe).then_some(503)).collect();
    }
    if named || access == Access::Admin || matches!(route, Route::TokenizerInfo) {
        all.push(404);
    }
    if let Route::Post(_) = route {
        all.extend([404, 413, 415, 429]);
    }
    match route {
        Route::Post(Post::Load | Post::Validate) => all.push(409),
        Route::Ready => all.push(503),
        Route::Batch => all.push(429),
        _ => {}
    }
    all.sort_unstable();
    all.dedup();
    all
}

/// `responses` of an operation.
pub(super) fn responses(
    success: &Success,
    access: Access,
    method: &str,
    route: Route,
    is_anthropics: bool,
) -> Value {
    let mut all = Map::new();
    let has_body = method != "HEAD";
    let (status, ok) = match method {
        "OPTIONS" => (
            "204",
            json!({"description": "The methods are in Allow.",
            "headers": {"Allow": {"required": true, "schema": {"type": "string"}}}}),
        ),
        _ => ("200", succeeded(success, has_body)),
    };
    all.insert(status.to_owned(), with_id(ok));
    for status in statuses(access, method, route) {
        // A server that is not ready says nothing more.
        let is_empty = matches!((route, status), (Route::Ready, 503));
        let response = match (has_body && !is_empty, is_anthropics) {
            (false, _) => {
                let known = ERRORS.iter().find(|(known, _)| *known == status);
                with_id(json!({"description": known.map(|(_, when)| *when)}))
            }
            (true, true) => json!({"$ref": format!("#/components/responses/Anthropic{status}")}),
            (true, false) => json!({"$ref": format!("#/components/responses/Error{status}")}),
        };
        all.insert(status.to_string(), response);
    }
    // Answered before there is a request, to whichever client.
    for status in ["408", "431"] {
        all.insert(
            status.to_owned(),
            json!({"$ref": format!("#/components/responses/Error{status}")}),
        );
    }
    all.into()
}

fn succeeded(success: &Success, has_body: bool) -> Value {
    let json_of = |name: &str| json!({"schema": at(name)});
    let content = match success {
        _ if !has_body => json!({}),
        Success::Empty => json!({}),
        Success::Json(name) => json!({"application/json": json_of(name)}),
        Success::Page(name) => json!({
            "application/json": json_of(name),
            "text/html": {"schema": {"type": "string"}},
        }),
        Success::Watched(name) => json!({
            "application/json": json_of(name),
            "text/event-stream": {"schema": event(at(name))},
        }),
        Success::Streamed(name, of_event) => json!({
            "application/json": json_of(name),
            "text/event-stream": {"schema": event(at(of_event))},
        }),
        Success::Text(types) => {
            let of = |kind: &&str| match *kind {
                "application/json" => ((*kind).to_owned(), json!({"schema": {"type": "object"}})),
                _ => ((*kind).to_owned(), json!({"schema": {"type": "string"}})),
            };
            types.iter().map(of).collect::<Map<_, _>>().into()
        }
    };
    match content == json!({}) {
        true => json!({"description": "It went well."}),
        false => json!({"description": "It went well.", "content": content}),
    }
}

/// With `stream: true`: each event, as it is read from a stream.
fn event(data: Value) -> Value {
    json!({
        "anyOf": [
            {
                "type": "object",
                "required": ["data"],
                "properties": {
                    "event": {"type": "string"},
                    "data": {
                        "type": "string",
                        "contentMediaType": "application/json",
                        "contentSchema": data,
                    },
                },
            },
            {
                "type": "object",
                "required": ["data"],
                "properties": {"data": {"const": "[DONE]"}},
                "description": "The last event of a stream of OpenAI's older routes.",
            },
        ],
    })
}

/// Every answer has the request's id.
pub(super) fn with_id(mut response: Value) -> Value {
    let id = json!({"$ref": "#/components/headers/RequestId"});
    response["headers"]["x-request-id"] = id;
    response
}
