//! Method and path to handler.

use std::convert::Infallible;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderName, HeaderValue, ORIGIN, VARY};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};
use percent_encoding::percent_decode_str;

use super::accept::accepts;
use super::access::{self, Access};
use super::arrival::Arrival;
use super::caller::Caller;
use super::connection::guard;
use super::connection::seats::Seat;
use super::endpoints::adapter_cards;
use super::endpoints::adapters;
use super::endpoints::anthropic::{self, AnthropicMessages};
use super::endpoints::batch;
use super::endpoints::chat::Chat;
use super::endpoints::completions::Completions;
use super::endpoints::embeddings;
use super::endpoints::index;
use super::endpoints::loglikelihood;
use super::endpoints::responses::Responses;
use super::endpoints::tokens;
use super::endpoints::usage;
use super::error::as_anthropics;
use super::error::{ApiError, LoadError, ProtocolError, RequestError, ServerError, shown};
use super::exchange::Exchange;
use super::generation::generate;
use super::models;
use super::openapi;
use super::page;
use super::phase::Phase;
use super::request::body;
use super::sse::{Body, whole};
use super::state::State;
use super::table::{ELSEWHERE, Post, Route, allows, find, spelled};

/// Answers any request; a panic is answered 500.
pub(super) async fn handle(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let arrived = Arrival::now();
    let id = guard::request_id(&request);
    let exchange = Exchange::begin(&state, &arrived, &request, &id);
    let path = request.uri().path().to_owned();
    let origin = request.headers().get(ORIGIN).cloned();
    let answer = Caught(Box::pin(answer(state.clone(), request, arrived.clone()))).await;
    let mut response = match answer.unwrap_or(Err(ServerError::Internal.into())) {
        Ok(response) => response,
        Err(error) => failed(&arrived, &error),
    };
    if is_anthropics(&path) {
        as_anthropics(&mut response, id.to_str().unwrap_or_default());
        response.headers_mut().insert(HeaderName::from_static("request-id"), id.clone());
    }
    let headers = response.headers_mut();
    headers.insert(HeaderName::from_static("x-request-id"), id);
    state.cors.mark(origin.as_ref(), headers);
    Ok(exchange.answer(response))
}

fn failed(arrived: &Arrival, error: &ApiError) -> Response<Body> {
    arrived.learn(|known| {
        known.error = Some(error.code());
        if let ApiError::Request(RequestError::ModelNotFound(name)) = error {
            known.model = Some(shown(name));
        }
    });
    error.respond()
}

/// Whether the clients of a path read Anthropic's forms.
fn is_anthropics(path: &str) -> bool {
    let rest = path.strip_prefix("/v1/messages");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

async fn answer(
    state: Arc<State>,
    request: Request<Incoming>,
    arrived: Arrival,
) -> Result<Response<Body>, ApiError> {
    guard::check(&request, state.hosts.as_deref(), &state.cors)?;
    let (head, incoming) = request.into_parts();
    let is_for_probes = head.extensions.get().is_some_and(|seat: &Arc<Seat>| seat.is_for_probes);
    let path = spelled(head.uri.path());
    let path = path.as_ref();
    let no_route = || {
        let instead = ELSEWHERE.iter().find(|(other, _)| *other == path).map(|(_, what)| *what);
        ProtocolError::NoRoute { path: head.uri.path().to_owned(), instead }
    };
    let &(prefix, allow, access, route) = find(path, &head.method).ok_or_else(no_route)?;
    arrived.learn(|known| {
        known.route = Some(prefix);
        known.is_probe = matches!(access, Access::Open | Access::Metrics);
    });
    if is_for_probes && !arrived.known().is_probe {
        let connections_max = state.http.connections_max;
        return Err(ServerError::TooManyConnections { connections_max }.into());
    }
    let is_change = matches!(route, Route::Post(Post::Load | Post::Unload | Post::Validate));
    let is_allowed = allows(allow, &head.method);
    let deletes = head.method == Method::DELETE && is_allowed;
    let asks = is_allowed && head.method != Method::OPTIONS;
    let access = if deletes { Access::Admin } else { access };
    // A browser asks for the methods without a key; what it learns stands in the docs.
    let access = if asks { access } else { Access::Open };
    let learn = |name: &str| arrived.learn(|known| known.tenant = Some(name.to_owned()));
    let caller = access::check(&state, access, &head.headers, &learn)?;
    if (is_change || deletes) && !state.http.runtime_adapters {
        return Err(LoadError::Off.into());
    }
    if head.method == Method::OPTIONS {
        let mut response = empty(StatusCode::NO_CONTENT);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static(allow));
        state.cors.preflight(&head.headers, allow, response.headers_mut());
        return Ok(response);
    }
    if !is_allowed {
        return Err(ProtocolError::Method { method: head.method.to_string(), allow }.into());
    }
    let name = percent_decode_str(&path[prefix.len()..]).decode_utf8_lossy();
    let answered = match route {
        Route::Post(route) => {
            let begun =
                if access == Access::Key { caller.clone().begin() } else { Ok(caller.clone()) };
            match begun {
                Ok(caller) => posted(&state, caller, route, &head, incoming, &arrived).await,
                Err(error) => Err(error.into()),
            }
        }
        route if deletes => deleted(&state, route, &name),
        route => got(&state, &caller, route, &name, &head).await,
    };
    let mut response = answered.unwrap_or_else(|error| failed(&arrived, &error));
    caller.mark(response.headers_mut());
    Ok(response)
}

/// A route that unloads.
fn deleted(state: &State, route: Route, name: &str) -> Result<Response<Body>, ApiError> {
    let object = if matches!(route, Route::Model) { "model" } else { "adapter" };
    adapters::delete(state, name, object)
}

/// A route that reads no body.
async fn got(
    state: &Arc<State>,
    caller: &Caller,
    route: Route,
    name: &str,
    head: &Parts,
) -> Result<Response<Body>, ApiError> {
    match route {
        Route::Home => Ok(home(state, head)),
        Route::PageFile => {
            let file = page::file(name).filter(|_| state.http.page);
            let path = head.uri.path().to_owned();
            Ok(file.ok_or(ProtocolError::NoRoute { path, instead: None })?)
        }
        Route::Index => Ok(index::index(state)),
        Route::Batch => batch::show(state, caller.clone(), &head.headers).await,
        Route::Models => Ok(models::list(state, caller)),
        Route::Model => Ok(models::one(state, caller, name)?),
        Route::Adapters => Ok(adapter_cards::list(state, caller)),
        Route::Adapter => Ok(adapter_cards::one(state, caller, name)?),
        Route::Usage => Ok(usage::list(state, caller)),
        Route::TokenizerInfo => Ok(tokens::info(state, caller, head.uri.query())?),
        Route::ServerLoad => {
            let load = format!("{{\"server_load\":{}}}", state.engine.in_flight());
            Ok(whole("application/json", load))
        }
        Route::Live => Ok(empty(StatusCode::OK)),
        Route::Ready => Ok(empty(match state.phase() {
            Phase::Serving if state.check_open().is_ok() && !state.is_stuck() => StatusCode::OK,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        })),
        Route::Version => {
            let version = concat!("{\"version\":\"", env!("CARGO_PKG_VERSION"), "\"}");
            Ok(whole("application/json", version))
        }
        Route::OpenApi => Ok(openapi::document(state)),
        Route::Docs => Ok(openapi::page(state)),
        Route::Metrics => {
            let (content_type, page) = state.metrics.page(&head.headers);
            Ok(whole(content_type, page))
        }
        // Those are asked with a body.
        Route::Post(_) => Err(ServerError::Internal.into()),
    }
}

/// A page for people, and for programs where everything is.
fn home(state: &State, head: &Parts) -> Response<Body> {
    let is_page = state.http.page && accepts(&head.headers, "text/html");
    let mut response = if is_page { page::home() } else { index::index(state) };
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

/// A route that reads a body.
async fn posted(
    state: &Arc<State>,
    caller: Caller,
    route: Post,
    head: &Parts,
    incoming: Incoming,
    arrived: &Arrival,
) -> Result<Response<Body>, ApiError> {
    // A web page could change what is served without asking.
    let requires_type = matches!(route, Post::Load | Post::Unload | Post::Validate);
    let payload = body::read_json(state, arrived, &head.headers, incoming, requires_type).await?;
    let arrived = arrived.clone();
    match route {
        Post::Completions => generate::handle::<Completions>(state, caller, payload, arrived).await,
        Post::Chat => generate::handle::<Chat>(state, caller, payload, arrived).await,
        Post::Messages => {
            generate::handle::<AnthropicMessages>(state, caller, payload, arrived).await
        }
        Post::CountTokens => anthropic::count_tokens(state, caller, payload).await,
        Post::Responses => generate::handle::<Responses>(state, caller, payload, arrived).await,
        Post::Embeddings => embeddings::handle(state, caller, payload, arrived).await,
        Post::Loglikelihood => loglikelihood::handle(state, caller, payload, arrived).await,
        Post::Tokenize => tokens::tokenize(state, caller, payload).await,
        Post::Detokenize => tokens::detokenize(state, caller, payload).await,
        Post::Load => adapters::load(state, payload).await,
        Post::Unload => adapters::unload(state, &payload),
        Post::Validate => adapters::validate(state, payload).await,
    }
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::default());
    *response.status_mut() = status;
    response
}

/// A future whose panic is an `Err`. The future is not polled again after one.
struct Caught<F>(Pin<Box<F>>);

impl<F: Future> Future for Caught<F> {
    type Output = Result<F::Output, ()>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(cx))) {
            Ok(poll) => poll.map(Ok),
            Err(_) => Poll::Ready(Err(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Caught, Context, Future, Pin, Poll};

    #[test]
    fn a_panic_of_a_handler_is_an_error() {
        let mut caught = Caught(Box::pin(async { std::panic::panic_any("for a test") }));
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(matches!(Pin::new(&mut caught).poll(&mut cx), Poll::Ready(Err(()))));
    }
}
