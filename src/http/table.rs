//! Every route: its path, its methods, and who may ask.

use std::borrow::Cow;

use hyper::Method;

use super::access::Access;

/// What a path leads to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    Home,
    PageFile,
    Index,
    Models,
    Model,
    Adapters,
    Adapter,
    Batch,
    Usage,
    TokenizerInfo,
    OpenApi,
    Docs,
    ServerLoad,
    Live,
    Ready,
    Version,
    Metrics,
    Post(Post),
}

/// Those that read a body.
#[derive(Clone, Copy, Debug)]
pub(super) enum Post {
    Completions,
    Chat,
    Messages,
    CountTokens,
    Responses,
    Embeddings,
    Loglikelihood,
    Tokenize,
    Detokenize,
    Load,
    Unload,
    Validate,
}

const POST: &str = "POST, OPTIONS";
const GET: &str = "GET, HEAD, OPTIONS";
const GET_DELETE: &str = "GET, HEAD, DELETE, OPTIONS";
/// SageMaker asks with either.
const GET_POST: &str = "GET, HEAD, POST, OPTIONS";

/// Path, methods, who may ask, and what it leads to.
pub(super) type Row = (&'static str, &'static str, Access, Route);

/// Every path as [`spelled`] gives it, its methods, and who may ask; `DELETE` takes an admin. One
/// [of names](is_of_names) leads to all that begin with it: the rest is a name, which may hold
/// slashes. `docs/api.md` has the same table.
pub(super) const ROUTES: &[Row] = &[
    ("/", GET, Access::Open, Route::Home),
    ("/page/", GET, Access::Open, Route::PageFile),
    ("/v1", GET, Access::Open, Route::Index),
    ("/v1/completions", POST, Access::Key, Route::Post(Post::Completions)),
    ("/v1/chat/completions", POST, Access::Key, Route::Post(Post::Chat)),
    ("/v1/messages", POST, Access::Key, Route::Post(Post::Messages)),
    ("/v1/messages/count_tokens", POST, Access::Key, Route::Post(Post::CountTokens)),
    ("/v1/responses", POST, Access::Key, Route::Post(Post::Responses)),
    ("/v1/embeddings", POST, Access::Key, Route::Post(Post::Embeddings)),
    ("/v1/loglikelihood", POST, Access::Key, Route::Post(Post::Loglikelihood)),
    ("/v1/models", GET, Access::Key, Route::Models),
    ("/v1/models/", GET_DELETE, Access::Key, Route::Model),
    ("/v1/adapters", GET, Access::Key, Route::Adapters),
    ("/v1/adapters/validate", POST, Access::Admin, Route::Post(Post::Validate)),
    ("/v1/adapters/", GET_DELETE, Access::Key, Route::Adapter),
    ("/v1/batch", GET, Access::Key, Route::Batch),
    ("/v1/usage", GET, Access::Key, Route::Usage),
    ("/tokenize", POST, Access::Key, Route::Post(Post::Tokenize)),
    ("/detokenize", POST, Access::Key, Route::Post(Post::Detokenize)),
    ("/tokenizer_info", GET, Access::Key, Route::TokenizerInfo),
    ("/v1/load_lora_adapter", POST, Access::Admin, Route::Post(Post::Load)),
    ("/v1/unload_lora_adapter", POST, Access::Admin, Route::Post(Post::Unload)),
    ("/health", GET, Access::Open, Route::Ready),
    ("/ready", GET, Access::Open, Route::Ready),
    ("/ping", GET_POST, Access::Open, Route::Ready),
    ("/live", GET, Access::Open, Route::Live),
    ("/load", GET, Access::Key, Route::ServerLoad),
    ("/version", GET, Access::Open, Route::Version),
    ("/metrics", GET, Access::Metrics, Route::Metrics),
    ("/openapi.json", GET, Access::Open, Route::OpenApi),
    ("/docs", GET, Access::Open, Route::Docs),
];

/// Paths that answer a POST of whoever may use the server, and change nothing: what a line of a
/// batch may ask.
pub fn batch_paths() -> impl Iterator<Item = &'static str> {
    let is_asked = |row: &&Row| matches!(row, (_, _, Access::Key, Route::Post(_)));
    ROUTES.iter().filter(is_asked).map(|row| row.0)
}

/// Routes that are found without `/v1` too: gateways are given the server's address alone.
pub(super) const WITHOUT_V1: &[&str] =
    &["/models", "/completions", "/chat/completions", "/responses", "/embeddings"];

/// Routes of other servers that are not here, as [`spelled`] gives them, and what is.
pub(super) const ELSEWHERE: &[(&str, &str)] = &[
    ("/v1/score", SCORE),
    ("/score", SCORE),
    ("/v1/rerank", RERANK),
    ("/v2/rerank", RERANK),
    ("/rerank", RERANK),
];
const SCORE: &str = "Scoring pairs of texts takes another kind of model. POST /v1/loglikelihood \
                     tells how likely a continuation is; POST /v1/embeddings gives vectors to \
                     compare.";
const RERANK: &str = "Reranking takes another kind of model. POST /v1/embeddings gives vectors to \
                      compare.";

/// A path as the table has it: with `/v1` where that was left out, and without a slash at its end.
pub(super) fn spelled(path: &str) -> Cow<'_, str> {
    let path = match path.trim_end_matches('/') {
        "" => "/",
        path => path,
    };
    match WITHOUT_V1.contains(&path) || path.starts_with("/models/") {
        true => format!("/v1{path}").into(),
        false => path.into(),
    }
}

/// Whether a path of the table stands for all that begin with it.
pub(super) fn is_of_names(path: &str) -> bool {
    path.len() > 1 && path.ends_with('/')
}

/// A path of the table for readers.
pub(super) fn shown(path: &str) -> String {
    if is_of_names(path) { format!("{path}{{name}}") } else { path.to_owned() }
}

/// The route of a path, the one that takes the method if there are several.
pub(super) fn find(path: &str, method: &Method) -> Option<&'static Row> {
    let is_match = |route: &&Row| match is_of_names(route.0) {
        true => path.len() > route.0.len() && path.starts_with(route.0),
        false => route.0 == path,
    };
    let takes = |route: &&Row| allows(route.1, method);
    let mut all = ROUTES.iter().filter(is_match);
    all.clone().find(takes).or_else(|| all.next())
}

pub(super) fn allows(allow: &str, method: &Method) -> bool {
    allow.split(", ").any(|allowed| allowed == method.as_str())
}
