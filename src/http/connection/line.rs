//! A connection of HTTP/1 between its socket and hyper: what hyper does not tell or do is seen and
//! done here. Whoever serves the connection holds it too, to ask whether the client is still there
//! and to say why nothing more is answered.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::framing::{Fault, Framing};
use super::listener::Io;
use super::seats::{Seat, Waits};

/// Says that an answer will come. A client reads it and goes on waiting, also when it did not ask
/// (RFC 9110, section 15.2); the machine of one that has left refuses it.
const STILL_THERE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// How far the request is that is being served.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Stage {
    /// There is none.
    Waiting,
    /// Nothing of its answer is written.
    Serving { is_http11: bool },
    /// Its answer has begun.
    Answering { is_events: bool },
    /// Its answer is with hyper to the last byte.
    Answered,
}

/// Why the client is answered by nobody but the connection itself.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Refused {
    /// hyper would have answered this status, with nothing in it.
    Unread(u16),
    /// What was not given to hyper.
    Fault(Fault),
}

/// A connection.
pub(super) struct Line {
    seat: Arc<Seat>,
    inner: Mutex<Inner>,
}

struct Inner {
    io: Io,
    framing: Framing,
    stage: Stage,
    /// Of this server, to be written before anything else is.
    own: Bytes,
    /// Whether the client has sent all that it will.
    is_at_end: bool,
    is_blocked: bool,
    refused: Option<Refused>,
    /// Whether nothing more is read.
    is_over: bool,
    /// Whether a stream of events should show that it goes on.
    wants_ping: bool,
    /// Of who asks the answer's body for more.
    writer: Option<Waker>,
}

impl Inner {
    fn waits(&self) -> Waits {
        match self.stage {
            _ if self.is_blocked => Waits::ForReader,
            Stage::Waiting => Waits::ForRequest,
            Stage::Serving { .. } if self.framing.is_in_body() => Waits::ForBody,
            _ => Waits::Not,
        }
    }

    fn poll_own(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.own.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.own.has_remaining() {
            let written = ready!(self.io.as_mut().poll_write(cx, &self.own))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.own.advance(written);
        }
        self.io.as_mut().poll_flush(cx)
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.refused.is_some() {
            // Within a body it is the request's to be told.
            if matches!(self.stage, Stage::Serving { .. } | Stage::Answering { .. }) {
                self.refused = None;
                self.is_over = true;
            }
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        if self.is_over {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        let before = buffer.filled().len();
        ready!(self.io.as_mut().poll_read(cx, buffer))?;
        let new = &buffer.filled()[before..];
        self.is_at_end |= new.is_empty() && buffer.remaining() > 0;
        if let Err(refusal) = self.framing.take(new) {
            self.refused = Some(Refused::Fault(refusal.fault));
            if refusal.at == 0 {
                buffer.set_filled(before);
                return self.poll_read(cx, buffer);
            }
            // Requests before it are answered first.
            buffer.set_filled(before + refusal.at);
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_own(cx))?;
        if self.stage == Stage::Waiting {
            // hyper answers what it could not read: with a status alone.
            let first = parts.iter().find(|part| !part.is_empty());
            let status = first.and_then(|part| std::str::from_utf8(part.get(9..12)?).ok());
            let status = status.and_then(|status| status.parse().ok());
            self.refused.get_or_insert(Refused::Unread(status.unwrap_or(400)));
            return Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()));
        }
        self.io.as_mut().poll_write_vectored(cx, parts)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_own(cx))?;
        ready!(self.io.as_mut().poll_flush(cx))?;
        if self.stage == Stage::Answered {
            // hyper has written all that it had.
            self.stage = Stage::Waiting;
        }
        Poll::Ready(Ok(()))
    }
}

impl Line {
    /// Heads above `head_bytes_max` are refused.
    pub fn new(io: Io, seat: Arc<Seat>, head_bytes_max: usize) -> Arc<Self> {
        let inner = Inner {
            io,
            framing: Framing::new(head_bytes_max),
            stage: Stage::Waiting,
            own: Bytes::new(),
            is_at_end: false,
            is_blocked: false,
            refused: None,
            is_over: false,
            wants_ping: false,
            writer: None,
        };
        Arc::new(Self { seat, inner: Mutex::new(inner) })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes it, and tells others what it waits for now.
    fn change<T>(&self, change: impl FnOnce(&mut Inner) -> T) -> T {
        let mut inner = self.lock();
        let changed = change(&mut inner);
        self.seat.waits(inner.waits());
        changed
    }

    /// A request has come.
    pub fn begun(&self, is_http11: bool) {
        self.change(|inner| inner.stage = Stage::Serving { is_http11 });
    }

    /// Its answer begins, as a stream of events or not.
    pub fn answering(&self, is_events: bool) {
        self.change(|inner| inner.stage = Stage::Answering { is_events });
    }

    /// All of its answer is with hyper.
    pub fn answered(&self) {
        self.change(|inner| {
            inner.stage = Stage::Answered;
            inner.wants_ping = false;
            inner.writer = None;
        });
    }

    /// Whether a stream of events should show now that it goes on; else who to wake when it should.
    pub fn takes_ping(&self, writer: &Waker) -> bool {
        self.change(|inner| {
            inner.writer = Some(writer.clone());
            std::mem::take(&mut inner.wants_ping)
        })
    }

    /// Sends something to a client that will send no more, so that its machine says whether it has
    /// gone: what may come before any answer, or within this one. Where nothing may, the answer
    /// will show it.
    ///
    /// # Errors
    /// When it is known to have gone, or, with `is_long`, has been silent for long and cannot be
    /// asked.
    pub fn ask(&self, is_long: bool, cx: &mut Context<'_>) -> io::Result<()> {
        self.change(|inner| match inner.stage {
            Stage::Serving { is_http11: false } if is_long => {
                Err(io::ErrorKind::ConnectionAborted.into())
            }
            Stage::Serving { is_http11: true } if inner.own.is_empty() => {
                inner.own = Bytes::from_static(STILL_THERE);
                // What cannot be written now is before the next that is.
                match inner.poll_own(cx) {
                    Poll::Ready(done) => done,
                    Poll::Pending => Ok(()),
                }
            }
            Stage::Answering { is_events: true } => {
                inner.wants_ping = true;
                inner.writer.take().into_iter().for_each(Waker::wake);
                Ok(())
            }
            _ => Ok(()),
        })
    }

    /// Why the client should read an answer that is nobody's.
    pub fn refused(&self) -> Option<Refused> {
        self.lock().refused
    }

    /// Whether an answer may be written that is no request's: none has begun.
    pub fn may_be_told(&self) -> bool {
        matches!(self.lock().stage, Stage::Waiting | Stage::Serving { .. })
    }

    /// Whether a request is being served.
    pub fn is_served(&self) -> bool {
        self.lock().stage != Stage::Waiting
    }

    /// Whether a part of a request has come.
    pub fn is_in_request(&self) -> bool {
        let inner = self.lock();
        inner.framing.is_in_head() || matches!(inner.stage, Stage::Serving { .. })
    }

    /// Whether the client may be within a request still that nobody reads.
    pub fn may_send_more(&self) -> bool {
        let inner = self.lock();
        !inner.is_at_end && !inner.framing.is_between()
    }

    /// Writes an answer that is no request's, after hyper has ended.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn tell(&self, answer: Vec<u8>) -> io::Result<()> {
        self.change(|inner| inner.own = [&inner.own[..], &answer].concat().into());
        std::future::poll_fn(|cx| self.change(|inner| inner.poll_own(cx))).await
    }

    /// Says that nothing more will be written.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn shut(&self) -> io::Result<()> {
        std::future::poll_fn(|cx| self.lock().io.as_mut().poll_shutdown(cx)).await
    }

    /// Reads what nobody wants to know: how many bytes; 0 at the end.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn discard(&self) -> io::Result<usize> {
        let mut bytes = [0; 4096];
        let mut buffer = ReadBuf::new(&mut bytes);
        std::future::poll_fn(|cx| self.lock().io.as_mut().poll_read(cx, &mut buffer)).await?;
        Ok(buffer.filled().len())
    }
}

/// A line as hyper reads and writes it.
pub(super) struct Ours(pub Arc<Line>);

impl AsyncRead for Ours {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.change(|inner| inner.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Ours {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.change(|inner| {
            let polled = inner.poll_write(cx, parts);
            inner.is_blocked = polled.is_pending();
            polled
        })
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.change(|inner| inner.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.change(|inner| match inner.refused {
            // There is something to be said first.
            Some(_) => Poll::Ready(Ok(())),
            None => inner.io.as_mut().poll_shutdown(cx),
        })
    }
}
