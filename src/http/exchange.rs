//! A request and its answer from the first byte to the last: counted, and a line of the log, when
//! they are over, also when the client left before.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body as _, Frame, SizeHint};
use hyper::header::HeaderValue;
use hyper::{Method, Request, Response};

use super::arrival::Arrival;
use super::connection::seats::Seat;
use super::error::shown;
use super::metrics::{Exchanged, NO_ROUTE};
use super::spans::EndedRequest;
use super::sse::Body;
use super::state::State;
use super::trace_context::TraceContext;

/// Of a client that left before there was an answer; nginx's, as HTTP has none.
const CLIENT_LEFT: u16 = 499;

/// Of a client whose body came so slowly that it had to make room for another.
const EVICTED: u16 = 503;

/// Dropped when it is over.
pub(super) struct Exchange {
    state: Arc<State>,
    seat: Option<Arc<Seat>>,
    arrived: Arrival,
    method: Method,
    path: String,
    request_id: HeaderValue,
    trace: Option<TraceContext>,
    /// None until there is an answer.
    status: Option<u16>,
    sent_bytes: u64,
    /// Whether the client took all of the answer.
    is_whole: bool,
}

impl Exchange {
    /// Of a request that has just come.
    pub fn begin<B>(
        state: &Arc<State>,
        arrived: &Arrival,
        request: &Request<B>,
        request_id: &HeaderValue,
    ) -> Self {
        state.metrics.traffic.in_flight.inc();
        Self {
            state: state.clone(),
            seat: request.extensions().get().cloned(),
            arrived: arrived.clone(),
            method: request.method().clone(),
            path: shown(request.uri().path()),
            request_id: request_id.clone(),
            trace: TraceContext::of(request.headers()),
            status: None,
            sent_bytes: 0,
            is_whole: false,
        }
    }

    /// Goes with the answer to its end.
    pub fn answer(mut self, response: Response<Body>) -> Response<Body> {
        self.status = Some(response.status().as_u16());
        self.is_whole = self.method == Method::HEAD;
        response.map(|inner| Followed { inner, exchange: self }.boxed_unsync())
    }
}

/// Milliseconds, to a thousandth.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Self { state, arrived, method, path, request_id, trace, sent_bytes, .. } = self;
        let known = arrived.known();
        let must_leave = self.seat.as_ref().is_some_and(|seat| seat.must_leave());
        let (no_status, no_error) = match must_leave {
            true => (EVICTED, Some("too_many_connections")),
            false => (CLIENT_LEFT, None),
        };
        let error = known.error.or(no_error.filter(|_| self.status.is_none()));
        let (status, sent_bytes) = (self.status.unwrap_or(no_status), *sent_bytes);
        let received_bytes = arrived.received_bytes();
        let route = known.route.unwrap_or(NO_ROUTE);
        let ran = known.ran;
        let traffic = &state.metrics.traffic;
        traffic.in_flight.dec();
        let method_known = Some(&*method);
        let exchanged =
            Exchanged { method: method_known, route, status, error, received_bytes, sent_bytes };
        traffic.exchanged(&exchanged);
        let adapter = known.adapter.map(|digest| digest.to_string());
        // Texts are written escaped, so that no client can forge a line or a field.
        macro_rules! tell {
            ($level:ident) => {
                tracing::$level!(
                    target: "tessera::access",
                    method = method.as_str(),
                    path = path.as_str(),
                    route,
                    status,
                    ms = ms(arrived.at.elapsed()),
                    received_bytes,
                    sent_bytes,
                    client_left = (!self.is_whole).then_some(true),
                    request_id = request_id.to_str().unwrap_or_default(),
                    trace_id = trace.as_ref().map(|trace| trace.trace_id.as_str()),
                    parent_id = trace.as_ref().map(|trace| trace.parent_id.as_str()),
                    tenant = known.tenant.as_deref(),
                    model = known.model.as_deref(),
                    adapter = adapter.as_deref(),
                    error,
                    prompt_tokens = ran.map(|ran| ran.prompt_tokens),
                    cached_tokens = ran.map(|ran| ran.cached_tokens),
                    generation_tokens = ran.map(|ran| ran.generation_tokens),
                    queue_ms = ran.and_then(|ran| ran.queue).map(ms),
                    ttft_ms = ran.and_then(|ran| ran.first_token).map(ms),
                    finish_reason = ran.map(|ran| ran.finish),
                    "answered"
                )
            };
        }
        if let Some(spans) = state.http.spans.as_ref().filter(|_| !known.is_probe) {
            let took = arrived.at.elapsed();
            spans.ended(&EndedRequest {
                trace: trace.as_ref(),
                begun: SystemTime::now() - took,
                took,
                method: method.as_str(),
                route,
                status,
                error,
                request_id: request_id.to_str().unwrap_or_default(),
                model: known.model.as_deref(),
                adapter: adapter.as_deref(),
                ran,
            });
        }
        // Every few seconds somebody asks how the server is.
        match known.is_probe {
            true => tell!(debug),
            false => tell!(info),
        }
    }
}

/// The body of an answer.
struct Followed {
    // Dropped first: what it tells of its request at its end is in the line.
    inner: Body,
    exchange: Exchange,
}

impl hyper::body::Body for Followed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                let bytes = frame.data_ref().map_or(0, Bytes::len);
                self.exchange.sent_bytes += bytes as u64;
            }
            Poll::Ready(None) => self.exchange.is_whole = true,
            _ => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.exchange.is_whole |= self.inner.is_end_stream();
    }
}
