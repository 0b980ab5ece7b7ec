//! HTTP/1, with what hyper leaves open: clients that leave behind bytes that nobody reads, requests
//! that it cannot read, and the end of a connection whose client still writes.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::framing::Fault;
use super::line::{Line, Ours, Refused};
use super::listener::Opened;
use super::seats::Seat;
use super::socket::Socket;
use crate::http::error::{ApiError, ServerError, UnreadError};
use crate::http::phase::{Phase, reached};
use crate::http::settings::HttpSettings;
use crate::http::sse::{Body, PING};

/// A request's head, and what is read or written ahead. A larger head is answered 431.
const HEAD_BYTES_MAX: usize = 64 * 1024;
/// What the type of a stream of events begins with.
const EVENTS: &[u8] = b"text/event-stream";
/// After these a client that sends no more is asked whether it is still there, and after the last
/// again and again. One of HTTP/1.0 cannot be asked before its answer: then it counts as gone.
const ASK_AFTER_MS: [u64; 5] = [0, 50, 100, 1_000, 5_000];
/// Bytes behind the request that is served after which the client is asked too: the end of one that
/// has left does not come through a full buffer. How often they are counted.
const CROWDED_BYTES: u64 = 64 << 10;
const CROWDED_LOOK_MS: u64 = 1_000;
/// For a client to read the end of an answer before its connection is closed while it still writes:
/// closed at once, the rest of the answer would be lost.
const LINGER_MS: u64 = 1_000;
/// What is read of such a client.
const LINGER_BYTES_MAX: usize = 4 << 20;

/// How the serving of a connection has ended.
enum Ended {
    /// As hyper has it.
    Served(hyper::Result<()>),
    /// Its client has left.
    Left,
    /// It makes room for another.
    Evicted,
}

/// Serves a connection until it is closed, by either side. What no request was made of is told to
/// `refused`.
pub(in crate::http) async fn serve<F>(
    opened: Opened,
    seat: &Arc<Seat>,
    limits: &HttpSettings,
    phase: &mut watch::Receiver<Phase>,
    handle: impl Fn(Request<Incoming>) -> F,
    refused: impl Fn(&ApiError),
) where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let Opened { io, socket } = opened;
    let line = Line::new(io, seat.clone(), HEAD_BYTES_MAX);
    let head_limit = seat.head_limit(limits);
    let connections_max = limits.connections_max;
    let too_many = || ServerError::TooManyConnections { connections_max }.into();
    let answer = match run(&line, &socket, seat, head_limit, phase, handle).await {
        Ended::Left => return,
        Ended::Served(Err(error)) if error.is_timeout() && seat.is_for_probes => Some(too_many()),
        Ended::Served(result) => unread(&line, result.err().as_ref(), head_limit),
        Ended::Evicted => (seat.is_for_probes || line.is_in_request()).then(too_many),
    };
    if let Some(error) = answer.filter(|_| line.may_be_told()) {
        // A request that had begun has been counted by itself.
        if !line.is_served() {
            refused(&error);
        }
        let _ = line.tell(error.to_http1()).await;
        linger(&line).await;
    } else if line.may_send_more() {
        linger(&line).await;
    }
}

async fn run<F>(
    line: &Arc<Line>,
    socket: &Socket,
    seat: &Seat,
    head_limit: Duration,
    phase: &mut watch::Receiver<Phase>,
    handle: impl Fn(Request<Incoming>) -> F,
) -> Ended
where
    F: Future<Output = Result<Response<Body>, Infallible>>,
{
    let service = service_fn(|request: Request<Incoming>| {
        line.begun(request.version() == Version::HTTP_11);
        let answer = handle(request);
        async move {
            let answer = answer.await?;
            let kind = answer.headers().get(CONTENT_TYPE);
            let is_events = kind.is_some_and(|kind| kind.as_bytes().starts_with(EVENTS));
            line.answering(is_events);
            let line = line.clone();
            Ok::<_, Infallible>(answer.map(|body| Followed { body, line }))
        }
    });
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(head_limit)
        .keep_alive(!seat.is_for_probes)
        // Whoever has sent all may still read.
        .half_close(true)
        .max_buf_size(HEAD_BYTES_MAX);
    let mut served = pin!(http.serve_connection(TokioIo::new(Ours(line.clone())), service));
    let mut left = pin!(left(line, socket));
    let mut is_draining = false;
    loop {
        tokio::select! {
            result = served.as_mut() => return Ended::Served(result),
            () = left.as_mut() => return Ended::Left,
            () = seat.told() => return Ended::Evicted,
            () = reached(phase, Phase::Draining), if !is_draining => {
                is_draining = true;
                served.as_mut().graceful_shutdown();
            }
        }
    }
}

/// What a client is told whose bytes are no request.
fn unread(line: &Line, error: Option<&hyper::Error>, limit: Duration) -> Option<ApiError> {
    let malformed = |error: &hyper::Error| UnreadError::Malformed { problem: error.to_string() };
    let error = match (line.refused(), error) {
        // To hyper this looks like the client's end.
        (Some(Refused::Fault(fault)), _) => match fault {
            Fault::FramedTwice => UnreadError::FramedTwice,
            Fault::Coding => UnreadError::Coding,
            Fault::TooLong => UnreadError::HeadTooLarge { bytes_max: HEAD_BYTES_MAX },
            Fault::BareLineFeed => {
                let problem = "a line between chunks ends with a line feed alone".to_owned();
                UnreadError::Malformed { problem }
            }
        },
        (_, None) => return None,
        // A target alone cannot be too long before its head is.
        (Some(Refused::Unread(431 | 414)), _) => {
            UnreadError::HeadTooLarge { bytes_max: HEAD_BYTES_MAX }
        }
        (Some(Refused::Unread(_)), Some(error)) => malformed(error),
        (None, Some(_)) if !line.is_in_request() => return None,
        (None, Some(error)) if error.is_timeout() => {
            UnreadError::HeadTimeout { timeout_ms: limit.as_millis() }
        }
        (None, Some(error)) if error.is_parse() || error.is_incomplete_message() => {
            malformed(error)
        }
        (None, Some(error)) => {
            tracing::debug!(%error, "a connection ended");
            return None;
        }
    };
    Some(error.into())
}

/// Waits until the client has left while a request of it is served.
async fn left(line: &Line, socket: &Socket) {
    tokio::select! {
        () = socket.silent() => {}
        () = crowded(line, socket) => {}
    }
    let last = ASK_AFTER_MS[ASK_AFTER_MS.len() - 1];
    for ms in ASK_AFTER_MS.into_iter().chain(std::iter::repeat(last)) {
        tokio::select! {
            () = socket.broken() => return,
            () = sleep(Duration::from_millis(ms)) => {}
        }
        let is_long = ms == last;
        if poll_fn(|cx| Poll::Ready(line.ask(is_long, cx))).await.is_err() {
            return;
        }
    }
}

/// Waits until so much has come that nobody reads that the client's end could not come behind it.
async fn crowded(line: &Line, socket: &Socket) {
    loop {
        sleep(Duration::from_millis(CROWDED_LOOK_MS)).await;
        if line.is_served() && socket.unread_bytes() >= CROWDED_BYTES {
            return;
        }
    }
}

/// Closes one direction, and reads until the client has closed the other, within limits.
async fn linger(line: &Line) {
    let discarding = async {
        let mut bytes = 0;
        line.shut().await.ok()?;
        while bytes < LINGER_BYTES_MAX {
            bytes += Some(line.discard().await.ok()?).filter(|bytes| *bytes > 0)?;
        }
        Some(())
    };
    let _ = timeout(Duration::from_millis(LINGER_MS), discarding).await;
}

/// An answer that tells the line of its end.
struct Followed {
    body: Body,
    line: Arc<Line>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.line.answered();
    }
}

impl HttpBody for Followed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        // Between two events, each of which is a frame.
        if self.line.takes_ping(cx.waker()) {
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(PING)))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
