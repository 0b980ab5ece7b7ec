//! Where connections come from: TCP or a Unix socket, in the clear or over TLS, or this process.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::tls::Tls;
use crate::http::settings::HttpSettings;

/// Connections within this process that wait to be accepted.
const IN_PROCESS_WAITING_MAX: usize = 64;

/// A socket that is listened on.
pub struct Listener {
    socket: Socket,
    tls: Option<Tls>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
    InProcess(Mutex<mpsc::Receiver<UnixStream>>),
}

/// Connects to a listener within this process.
pub struct InProcess(mpsc::Sender<UnixStream>);

impl InProcess {
    /// A connection that nobody else can reach: it has no name in any file system or network.
    ///
    /// # Errors
    /// When the server has ended, or the process has no file descriptors left.
    pub async fn connect(&self) -> io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        let ended = |_| io::Error::other("the server in this process has ended");
        self.0.send(theirs).await.map_err(ended)?;
        Ok(ours)
    }
}

impl From<TcpListener> for Listener {
    fn from(listener: TcpListener) -> Self {
        Self { socket: Socket::Tcp(listener), tls: None }
    }
}

impl Listener {
    /// A Unix socket, whose file goes with the listener.
    pub fn unix(listener: UnixListener, path: PathBuf) -> Self {
        Self { socket: Socket::Unix(listener, path), tls: None }
    }

    /// One that only this process can connect to.
    pub fn in_process() -> (Self, InProcess) {
        let (connect, accept) = mpsc::channel(IN_PROCESS_WAITING_MAX);
        let socket = Socket::InProcess(Mutex::new(accept));
        (Self { socket, tls: None }, InProcess(connect))
    }

    /// The same, over TLS.
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether web pages of this machine's user can reach it and those of nobody else.
    pub(in crate::http) fn is_loopback(&self) -> io::Result<bool> {
        match &self.socket {
            Socket::Tcp(listener) => Ok(listener.local_addr()?.ip().is_loopback()),
            // No web page can name it.
            Socket::Unix(..) | Socket::InProcess(_) => Ok(false),
        }
    }

    pub(in crate::http) async fn accept(&self) -> io::Result<Accepted> {
        let stream = match &self.socket {
            Socket::Tcp(listener) => Stream::Tcp(listener.accept().await?.0),
            Socket::Unix(listener, _) => Stream::Unix(listener.accept().await?.0),
            Socket::InProcess(accept) => match accept.lock().await.recv().await {
                Some(stream) => Stream::Unix(stream),
                // Whoever could connect is gone: the server goes on until it is told to end.
                None => std::future::pending().await,
            },
        };
        Ok(Accepted { stream, tls: self.tls.as_ref().map(Tls::current) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = &self.socket {
            // Somebody else may have taken it away.
            let _ = std::fs::remove_file(path);
        }
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A new connection.
pub(in crate::http) struct Accepted {
    stream: Stream,
    tls: Option<Arc<ServerConfig>>,
}

/// Both directions of a connection.
pub(in crate::http) trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connection that may be served.
pub(in crate::http) type Io = Pin<Box<dyn Duplex>>;

impl Accepted {
    /// Closes it with an answer, if that can be written at once: a new socket's buffer takes it.
    /// Over TLS it is just closed.
    pub fn refuse(&self, answer: &[u8]) {
        if self.tls.is_none() {
            let _ = match &self.stream {
                Stream::Tcp(stream) => stream.try_write(answer),
                Stream::Unix(stream) => stream.try_write(answer),
            };
        }
    }

    /// The connection, whose writes fail when the other side takes nothing for a while.
    ///
    /// # Errors
    /// A TLS handshake that fails, or takes longer than a request's head may.
    pub async fn open(self, limits: &HttpSettings) -> io::Result<Io> {
        let io = match self.stream {
            Stream::Tcp(stream) => {
                // A token must not wait for the next one; if it cannot be set, it does.
                let _ = stream.set_nodelay(true);
                guarded(stream, limits)
            }
            Stream::Unix(stream) => guarded(stream, limits),
        };
        let Some(config) = self.tls else { return Ok(io) };
        let limit = Duration::from_millis(limits.header_read_timeout_ms);
        let shaken = timeout(limit, TlsAcceptor::from(config).accept(io)).await;
        Ok(Box::pin(shaken.map_err(|_| io::ErrorKind::TimedOut)??))
    }
}

fn guarded<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S, limits: &HttpSettings) -> Io {
    let mut stream = TimeoutWriter::new(stream);
    stream.set_timeout(Some(Duration::from_millis(limits.write_idle_timeout_ms)));
    Box::pin(stream)
}
