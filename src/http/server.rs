//! Connections: accepting them, their limits, and the shutdown.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connection::http1;
use super::connection::http2;
use super::connection::listener::{Accepted, Listener, Opened};
use super::connection::seats::{Seat, Seats, Taken};
use super::error::ApiError;
use super::metrics::{Exchanged, NO_ROUTE};
use super::phase::{Phase, reached};
use super::routes;
use super::settings::{App, HttpSettings};
use super::state::State;

/// After an error of accept, which is most often that the process has no file descriptors left.
const ACCEPT_RETRY_MS: u64 = 50;
/// For the last errors to reach their clients when the drain time is over.
const CANCEL_MS: u64 = 2_000;
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
    let seats = Seats::new(state.http.connections_max);
    // Ends with this function.
    let mut watch = JoinSet::new();
    if let Some(keys) = &state.http.keys {
        watch.spawn(keys.clone().watch());
    }
    accept_until(&listener, &state, &seats, &mut tasks, shutdown).await;
    state.phase.send_replace(Phase::Leaving);
    let notice = sleep(Duration::from_millis(state.http.drain_notice_ms));
    accept_until(&listener, &state, &seats, &mut tasks, notice).await;
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
    seats: &Arc<Seats>,
    tasks: &mut JoinSet<()>,
    end: impl Future<Output = ()>,
) {
    let mut end = pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok(accepted) => {
                    let (taken, has_evicted) = tokio::select! {
                        () = &mut end => return,
                        taken = seats.take(accepted.peer()) => taken,
                    };
                    let traffic = &state.metrics.traffic;
                    traffic.connections_evicted.inc_by(u64::from(has_evicted));
                    traffic.connections_refused.inc_by(u64::from(taken.seat.is_for_probes));
                    tasks.spawn(connection(Open::of(state.clone()), taken, accepted));
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

async fn connection(open: Open, taken: Taken, accepted: Accepted) {
    let state = &open.0;
    let seat = &taken.seat;
    let limits = &state.http;
    let mut phase = state.phase.subscribe();
    seat.begin();
    let opened = tokio::select! {
        opened = begin(accepted, seat, limits) => opened,
        () = reached(&mut phase, Phase::Draining) => return,
        () = seat.told() => return,
    };
    let (opened, is_http2) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            tracing::debug!(%error, "a connection was not opened");
            return;
        }
    };
    let handle = |mut request: Request<Incoming>| {
        request.extensions_mut().insert(seat.clone());
        routes::handle(state.clone(), request)
    };
    if is_http2 {
        if let Err(error) = http2::serve(opened.io, seat, limits, &mut phase, handle).await {
            tracing::debug!(%error, "a connection ended");
        }
        return;
    }
    let refused = |error: &ApiError| refused(state, error);
    http1::serve(opened, seat, limits, &mut phase, handle, refused).await;
}

/// The connection, and whether it is one of HTTP/2.
async fn begin(
    accepted: Accepted,
    seat: &Seat,
    limits: &HttpSettings,
) -> io::Result<(Opened, bool)> {
    let Opened { io, socket } = accepted.open(limits).await?;
    let (io, is_http2) = http2::begin(io, seat, limits).await?;
    Ok((Opened { io, socket }, is_http2))
}

/// Counts and logs an answer to what was no request.
fn refused(state: &State, error: &ApiError) {
    let (status, code) = (error.status(), error.code());
    state.metrics.traffic.exchanged(&Exchanged {
        method: None,
        route: NO_ROUTE,
        status,
        error: Some(code),
        received_bytes: 0,
        sent_bytes: 0,
    });
    tracing::info!(target: "tessera::access", route = NO_ROUTE, status, error = code, "answered");
}
