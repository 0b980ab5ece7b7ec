//! Connections: accepting them, their limits, and the shutdown.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep, sleep, timeout};

use super::metrics::Metrics;
use super::{App, Phase, State, guard, reached, routes};

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
/// [`drain_timeout_ms`](super::HttpLimits::drain_timeout_ms)) and returns.
///
/// # Errors
/// When the listener has no address, or `adapter_root` cannot be resolved.
pub async fn serve(
    listener: TcpListener,
    app: App,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    let limits = app.http.clone();
    let state = Arc::new(State::new(app, listener.local_addr()?.ip().is_loopback())?);
    let mut tasks = JoinSet::new();
    accept_until(&listener, &state, &mut tasks, shutdown).await;
    state.phase.send_replace(Phase::Leaving);
    let notice = sleep(Duration::from_millis(limits.drain_notice_ms));
    accept_until(&listener, &state, &mut tasks, notice).await;
    state.phase.send_replace(Phase::Draining);
    drop(listener);
    let drain = Duration::from_millis(limits.drain_timeout_ms);
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

impl State {
    fn new(app: App, is_loopback: bool) -> io::Result<Self> {
        let adapter_root = app.adapter_root.as_ref().map(|root| root.canonicalize()).transpose()?;
        let hosts = match &app.hosts_allowed {
            Some(hosts) => Some(hosts.clone()),
            None => {
                let names = guard::LOOPBACK_HOSTS.iter().map(|host| (*host).to_owned());
                is_loopback.then(|| names.collect())
            }
        };
        Ok(Self {
            metrics: Metrics::new(),
            phase: watch::Sender::new(Phase::Serving),
            hosts,
            adapter_root,
            bodies_kib: Arc::new(Semaphore::new(app.http.bodies_bytes_max.div_ceil(1024))),
            text_tasks: Arc::new(Semaphore::new(app.http.text_tasks_max)),
            loads: Arc::new(Semaphore::new(app.http.loads_max)),
            app,
        })
    }
}

async fn accept_until(
    listener: &TcpListener,
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
                Ok((stream, _)) if tasks.len() >= state.app.http.connections_max => {
                    // A new socket's buffer takes this; if not, the client just sees it closed.
                    let _ = stream.try_write(TOO_MANY);
                }
                Ok((stream, _)) => {
                    tasks.spawn(connection(state.clone(), stream));
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    sleep(Duration::from_millis(ACCEPT_RETRY_MS)).await;
                }
            }
        }
    }
}

async fn connection(state: Arc<State>, stream: TcpStream) {
    // A token must not wait for the next one; if it cannot be set, it does.
    let _ = stream.set_nodelay(true);
    let limits = &state.app.http;
    let idle = Duration::from_millis(limits.write_idle_timeout_ms);
    let io = TokioIo::new(WriteTimeout { stream, idle, waiting: None });
    let mut phase = state.phase.subscribe();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(limits.header_read_timeout_ms))
        .max_buf_size(HEAD_BYTES_MAX);
    let service = service_fn(|request| routes::handle(state.clone(), request));
    let mut served = pin!(http.serve_connection(io, service));
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = reached(&mut phase, Phase::Draining) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
}

/// A stream whose writes fail when the other side takes nothing for a while.
struct WriteTimeout {
    stream: TcpStream,
    idle: Duration,
    /// Runs while a write waits.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    /// Passes on what a write said, unless it has waited for too long.
    fn limited<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.waiting = None;
            return poll;
        }
        let deadline = Instant::now() + self.idle;
        let sleep = || Box::pin(tokio::time::sleep_until(deadline));
        ready!(self.waiting.get_or_insert_with(sleep).as_mut().poll(cx));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.limited(cx, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.limited(cx, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
