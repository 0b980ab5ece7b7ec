//! HTTP/2, by prior knowledge or as TLS has agreed on it, with the limits that hyper leaves open:
//! how long a connection may be without a request, and a stream without its reader.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::header::CONTENT_LENGTH;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::listener::Io;
use super::seats::{Seat, Waits};
use crate::http::phase::{Phase, reached};
use crate::http::settings::HttpSettings;
use crate::http::sse::Body;

/// What every connection of HTTP/2 begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Requests of one connection at once. A further one is refused by `REFUSED_STREAM`.
const STREAMS_MAX: u32 = 128;
/// All headers of a request, and all that is decoded of them. Larger ones are answered 431.
const HEAD_BYTES_MAX: u32 = 64 * 1024;
/// Streams that a client has reset before they were taken. Then the connection is closed.
const RESETS_MAX: usize = 32;
/// Streams that were reset here for faults of the client. Then the connection is closed.
const FAULTS_MAX: usize = 128;
/// Of bodies that come, on a connection and on each stream, before somebody has read them.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 20;
const STREAM_WINDOW_BYTES: u32 = 1 << 18;
/// Of an answer, written ahead of its reader.
const SEND_BUFFER_BYTES: usize = 1 << 16;
/// A part of an answer that is handed over at once.
const PART_BYTES: usize = 1 << 14;
/// For a connection that makes room for another.
const EVICTED_MS: u64 = 1_000;
/// A peer that is silent for so long is asked whether it is there; it has as long to answer, or the
/// connection is closed.
const PING_MS: u64 = 20_000;

/// A connection whose first bytes have been looked at.
struct Begun {
    first: Bytes,
    io: Io,
}

impl AsyncRead for Begun {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return self.io.as_mut().poll_read(cx, buffer);
        }
        let bytes = buffer.remaining().min(self.first.len());
        buffer.put_slice(&self.first.split_to(bytes));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Begun {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.io.as_mut().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.as_mut().poll_shutdown(cx)
    }
}

/// The connection, and whether it begins as one of HTTP/2 does.
///
/// # Errors
/// When nothing, or only a part of that begin, comes in the time of a request's head.
pub(in crate::http) async fn begin(
    mut io: Io,
    seat: &Seat,
    limits: &HttpSettings,
) -> io::Result<(Io, bool)> {
    let mut first = Vec::with_capacity(PREFACE.len());
    let read = async {
        while first.len() < PREFACE.len() && PREFACE.starts_with(&first) {
            let mut bytes = [0; PREFACE.len()];
            let mut buffer = ReadBuf::new(&mut bytes[first.len()..]);
            poll_fn(|cx| io.as_mut().poll_read(cx, &mut buffer)).await?;
            if buffer.filled().is_empty() {
                break;
            }
            first.extend_from_slice(buffer.filled());
        }
        io::Result::Ok(())
    };
    match timeout(seat.head_limit(limits), read).await {
        Ok(read) => read?,
        // It will be told that there are too many.
        Err(_) if seat.is_for_probes => {}
        Err(_) => return Err(io::ErrorKind::TimedOut.into()),
    }
    let is_http2 = first == PREFACE;
    Ok((Box::pin(Begun { first: first.into(), io }), is_http2))
}

/// Serves a connection until it is closed, by either side.
///
/// # Errors
/// Those of the connection.
pub(in crate::http) async fn serve<F>(
    io: Io,
    seat: &Arc<Seat>,
    limits: &HttpSettings,
    phase: &mut watch::Receiver<Phase>,
    handle: impl Fn(Request<Incoming>) -> F,
) -> hyper::Result<()>
where
    F: Future<Output = Result<Response<Body>, Infallible>> + Send + 'static,
{
    let ms = Duration::from_millis;
    let streams = Streams {
        seat: seat.clone(),
        running: watch::Sender::new(0),
        next: Arc::default(),
        reader_limit: ms(limits.write_idle_timeout_ms),
    };
    let next = streams.next.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let reader = Arc::new(Reader::default());
        let is_head = request.method() == Method::HEAD;
        *next.lock().unwrap_or_else(PoisonError::into_inner) = Some(reader.clone());
        let answer = handle(request);
        async move {
            let answer = answer.await.map(|answer| if is_head { headless(answer) } else { answer });
            answer.map(|answer| answer.map(|body| Watched::new(body, reader)))
        }
    });
    let mut running = streams.running.subscribe();
    let mut http = http2::Builder::new(streams);
    http.timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEAD_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_MAX)
        .max_local_error_reset_streams(FAULTS_MAX)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(ms(PING_MS))
        .keep_alive_timeout(ms(PING_MS));
    let mut served = pin!(http.serve_connection(TokioIo::new(io), service));
    let leave_ms = tokio::select! {
        result = served.as_mut() => return result,
        () = idle(&mut running, seat.head_limit(limits)) => limits.write_idle_timeout_ms,
        () = seat.told() => EVICTED_MS,
        () = reached(phase, Phase::Draining) => {
            served.as_mut().graceful_shutdown();
            return served.await;
        }
    };
    // Whoever holds a connection open without a request has the time of a reader to let it go.
    served.as_mut().graceful_shutdown();
    timeout(ms(leave_ms), served).await.unwrap_or(Ok(()))
}

/// An answer to HEAD: the length of what GET would have, and nothing of it. HTTP/1 needs no help.
fn headless(answer: Response<Body>) -> Response<Body> {
    let (mut head, body) = answer.into_parts();
    if let Some(bytes) = body.size_hint().exact().filter(|bytes| *bytes > 0) {
        head.headers.insert(CONTENT_LENGTH, bytes.into());
    }
    Response::from_parts(head, Body::default())
}

/// Waits until no request has run for so long.
async fn idle(running: &mut watch::Receiver<usize>, limit: Duration) {
    // The sender lives as long as the connection.
    while running.wait_for(|count| *count == 0).await.is_ok() {
        if timeout(limit, running.wait_for(|count| *count > 0)).await.is_err() {
            return;
        }
    }
}

/// Runs the streams of one connection.
#[derive(Clone)]
struct Streams {
    seat: Arc<Seat>,
    running: watch::Sender<usize>,
    /// Of the request that was taken last: hyper runs each as it takes it.
    next: Arc<Mutex<Option<Arc<Reader>>>>,
    reader_limit: Duration,
}

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let reader = self.next.lock().unwrap_or_else(PoisonError::into_inner).take();
        let reader = reader.unwrap_or_default();
        let limit = self.reader_limit;
        self.running.send_modify(|count| {
            *count += 1;
            self.seat.waits(Waits::Not);
        });
        let running = Running(self.running.clone(), self.seat.clone());
        tokio::spawn(async move {
            // Dropping a stream resets it, and ends its sequences.
            tokio::select! {
                () = stream => {}
                () = reader.gone(limit) => tracing::debug!("a stream was not read"),
            }
            drop(running);
        });
    }
}

/// One request; however it ends.
struct Running(watch::Sender<usize>, Arc<Seat>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| {
            *count -= 1;
            if *count == 0 {
                self.1.waits(Waits::ForRequest);
            }
        });
    }
}

/// Since when a part of an answer waits for its reader, who may have closed the stream's window.
#[derive(Default)]
struct Reader {
    waits_since: Mutex<Option<Instant>>,
}

impl Reader {
    fn set(&self, since: Option<Instant>) {
        *self.waits_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    /// Waits until a part has waited for so long.
    async fn gone(&self, limit: Duration) {
        loop {
            let since = *self.waits_since.lock().unwrap_or_else(PoisonError::into_inner);
            let waited = since.map_or(Duration::ZERO, |since| since.elapsed());
            match limit.checked_sub(waited).filter(|left| !left.is_zero()) {
                Some(left) => sleep(left).await,
                None => return,
            }
        }
    }
}

/// An answer in parts, of which the next is asked for when its reader has room.
struct Watched {
    body: Body,
    rest: Bytes,
    reader: Arc<Reader>,
}

impl Watched {
    fn new(body: Body, reader: Arc<Reader>) -> Self {
        Self { body, rest: Bytes::new(), reader }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.reader.set(None);
        while self.rest.is_empty() {
            let Some(Ok(frame)) = ready!(Pin::new(&mut self.body).poll_frame(cx)) else {
                return Poll::Ready(None);
            };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            }
        }
        let bytes = self.rest.len().min(PART_BYTES);
        let part = self.rest.split_to(bytes);
        self.reader.set(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(part))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match (self.rest.len() as u64, self.body.size_hint().exact()) {
            (rest, Some(bytes)) => SizeHint::with_exact(rest + bytes),
            _ => SizeHint::default(),
        }
    }
}
