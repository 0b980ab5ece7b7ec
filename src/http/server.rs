//! Connections: accepting them, their limits, and the shutdown.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::http2;
use super::connection::listener::{Accepted, Io, Listener};
use super::phase::{Phase, reached};
use super::routes;
use super::settings::{App, HttpSettings};
use super::sse::Body;
use super::state::State;

/// A request's head, and what is read or written ahead. A larger head is answered 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// After an error of accept, which is most often that the process has no file descriptors left.
const ACCEPT_RETRY_MS: u64 = 50;
/// For the last errors to reach their clients when the drain time is over.
const CANCEL_MS: u64 = 2_000;
/// What a connection above the limit reads.
const TOO_MANY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\n\
    connection: close\r\ncontent-type: application/json\r\ncontent-length: 131\r\n\r\n\
    {\"error\":{\"message\":\"The server is at its limit of connections.\",\
    \"type\":\"server_error\",\"param\":null,\"code\":\"too_many_connections\"}}";

/// Serves until `shutdown` resolves, then lets the requests in flight end (at most
/// [`drain_timeout_ms`](super::HttpSettings::drain_timeout_ms)) and returns.
///
/// # Errors
/// When the listener has no address, or `adapter_root` cannot be resolved.
pub async fn serve(
    listener: impl Into<Listener>,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let listener = listener.into();
    let state = Arc::new(State::new(app, listener.is_loopback()?)?);
    let mut tasks = JoinSet::new();
    // Ends with this function.
    let mut watch = JoinSet::new();
    if let Some(keys) = &state.http.keys {
        watch.spawn(keys.clone().watch());
    }
    accept_until(&listener, &state, &mut tasks, shutdown).await;
    state.phase.send_replace(Phase::Leaving);
    let notice = sleep(Duration::from_millis(state.http.drain_notice_ms));
    accept_until(&listener, &state, &mut tasks, notice).await;
    state.phase.send_replace(Phase::Draining);
    drop(listener);
    let drain = Duration::from_millis(state.http.drain_timeout_ms);
    if timeout(drain, all(&mut tasks)).await.is_err() {
        tracing::warn!(connections = tasks.len(), "the time to drain is over; ending requests");
        state.phase.send_replace(Phase::Cancelling);
        let _ = timeout(Duration::from_millis(CANCEL_MS), all(&mut tasks)).await;
        tasks.shutdown().await;
    }
    Ok(())
}

async fn all(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

async fn accept_until(
    listener: &Listener,
    state: &Arc<State>,
    tasks: &mut JoinSet<()>,
    end: impl Future<Output = ()>,
) {
    let mut end = pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok(accepted) if tasks.len() >= state.http.connections_max => {
                    state.metrics.traffic.connections_refused.inc();
                    accepted.refuse(TOO_MANY);
                }
                Ok(accepted) => {
                    tasks.spawn(connection(Open::of(state.clone()), accepted));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                }
            }
        }
    }
}

/// Counted until it is dropped, however that comes.
struct Open(Arc<State>);

impl Open {
    fn of(state: Arc<State>) -> Self {
        state.metrics.traffic.connections.inc();
        Self(state)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.metrics.traffic.connections.dec();
    }
}

async fn connection(open: Open, accepted: Accepted) {
    let state = &open.0;
    let limits = &state.http;
    let mut phase = state.phase.subscribe();
    let opened = tokio::select! {
        opened = begin(accepted, limits) => opened,
        () = reached(&mut phase, Phase::Draining) => return,
    };
    let (io, is_http2) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%error, "a connection was not opened");
            return;
        }
    };
    let handle = |request| routes::handle(state.clone(), request);
    let result = match is_http2 {
        true => http2::serve(io, limits, &mut phase, handle).await,
        false => serve_http1(io, limits, &mut phase, handle).await,
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}

/// The connection, and whether it is one of HTTP/2.
async fn begin(accepted: Accepted, limits: &HttpSettings) -> io::Result<(Io, bool)> {
    http2::begin(accepted.open(limits).await?, limits).await
}

async fn serve_http1<F>(
    io: Io,
    limits: &HttpSettings,
    phase: &mut watch::Receiver<Phase>,
    handle: impl Fn(Request<Incoming>) -> F,
) -> hyper::Result<()>
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_read_timeout_ms))
        .max_buf_size(HEAD_BYTES_MAX);
    let mut served = pin!(http.serve_connection(TokioIo::new(io), service_fn(handle)));
    tokio::select! {
        result = served.as_mut() => result,
        () = reached(phase, Phase::Draining) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    }
}
