//! A connection's socket: read and written by whoever serves it, and looked at by whoever wants to
//! know whether the other side is still there.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{Shutdown, shutdown, sockopt};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

/// Silence after which the kernel asks whether the other side's machine is still there, how often
/// it asks, and how many of those questions may be left without an answer.
const KEEP_ALIVE_IDLE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEP_ALIVE_TRIES: u32 = 3;

/// A connected socket.
#[derive(Debug)]
pub(in crate::http) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Does the same with whichever socket it is.
macro_rules! with {
    ($socket:expr, $stream:ident => $what:expr) => {
        match $socket {
            Socket::Tcp($stream) => $what,
            Socket::Unix($stream) => $what,
        }
    };
}

impl Socket {
    /// A token must not wait for the next one, and a machine that has lost its power must be
    /// missed. What cannot be set is not.
    pub fn prepare(&self) {
        if let Self::Tcp(stream) = self {
            let _ = stream.set_nodelay(true);
            let _ = sockopt::set_socket_keepalive(stream, true);
            let _ = sockopt::set_tcp_keepidle(stream, KEEP_ALIVE_IDLE);
            let _ = sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_EVERY);
            let _ = sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_TRIES);
        }
    }

    /// The other side's address; `None` on this machine's own sockets.
    pub fn peer(&self) -> Option<IpAddr> {
        match self {
            Self::Tcp(stream) => stream.peer_addr().ok().map(|address| address.ip()),
            Self::Unix(_) => None,
        }
    }

    /// Bytes that came and that nobody has read.
    pub fn unread_bytes(&self) -> u64 {
        with!(self, stream => rustix::io::ioctl_fionread(stream)).unwrap_or(0)
    }

    /// Waits until the other side will send no more, also while bytes of it are unread.
    pub async fn silent(&self) {
        // Linux has this among the priority events, which nothing else uses here.
        with!(self, stream => wait(stream.ready(Interest::PRIORITY)).await);
    }

    /// Waits until the other side has refused what it was sent.
    pub async fn broken(&self) {
        with!(self, stream => wait(stream.ready(Interest::ERROR)).await);
    }
}

/// An error is that the runtime ends, and takes whoever waits with it.
async fn wait(ready: impl Future<Output = io::Result<tokio::io::Ready>>) {
    if ready.await.is_err() {
        std::future::pending().await
    }
}

/// Both directions of a socket that somebody else looks at too.
pub(super) struct Shared(pub Arc<Socket>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(with!(&*self.0, stream => stream.poll_read_ready(cx)))?;
            match with!(&*self.0, stream => stream.try_read_buf(buffer)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Shared {
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
        loop {
            ready!(with!(&*self.0, stream => stream.poll_write_ready(cx)))?;
            match with!(&*self.0, stream => stream.try_write_vectored(parts)) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return Poll::Ready(other),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = with!(&*self.0, stream => shutdown(stream, Shutdown::Write));
        // Whoever has left needs not be told.
        Poll::Ready(match done {
            Err(rustix::io::Errno::NOTCONN) => Ok(()),
            other => other.map_err(io::Error::from),
        })
    }
}
