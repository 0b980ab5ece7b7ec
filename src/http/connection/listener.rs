//! Where connections come from: TCP or a Unix socket, in the clear or over TLS, or this process.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio::time::timeout;
use tokio_io_timeout::TimeoutWriter;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::socket::{Shared, Socket};
use super::tls::Tls;
use crate::http::settings::HttpSettings;

/// Connections within this process that wait to be accepted.
const IN_PROCESS_WAITING_MAX: usize = 64;

/// A socket that is listened on.
pub struct Listener {
    listening: Listening,
    tls: Option<Tls>,
}

enum Listening {
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
        Self { listening: Listening::Tcp(listener), tls: None }
    }
}

impl Listener {
    /// A Unix socket, whose file goes with the listener.
    pub fn unix(listener: UnixListener, path: PathBuf) -> Self {
        Self { listening: Listening::Unix(listener, path), tls: None }
    }

    /// One that only this process can connect to.
    pub fn in_process() -> (Self, InProcess) {
        let (connect, accept) = mpsc::channel(IN_PROCESS_WAITING_MAX);
        let listening = Listening::InProcess(Mutex::new(accept));
        (Self { listening, tls: None }, InProcess(connect))
    }

    /// The same, over TLS.
    pub fn with_tls(mut self, tls: Tls) -> Self {
        self.tls = Some(tls);
        self
    }

    /// Whether web pages of this machine's user can reach it and those of nobody else.
    pub(in crate::http) fn is_loopback(&self) -> io::Result<bool> {
        match &self.listening {
            Listening::Tcp(listener) => Ok(listener.local_addr()?.ip().is_loopback()),
            // No web page can name it.
            Listening::Unix(..) | Listening::InProcess(_) => Ok(false),
        }
    }

    pub(in crate::http) async fn accept(&self) -> io::Result<Accepted> {
        let socket = match &self.listening {
            Listening::Tcp(listener) => Socket::Tcp(listener.accept().await?.0),
            Listening::Unix(listener, _) => Socket::Unix(listener.accept().await?.0),
            Listening::InProcess(accept) => match accept.lock().await.recv().await {
                Some(stream) => Socket::Unix(stream),
                // Whoever could connect is gone: the server goes on until it is told to end.
                None => std::future::pending().await,
            },
        };
        Ok(Accepted { socket, tls: self.tls.as_ref().map(Tls::current) })
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Listening::Unix(_, path) = &self.listening {
            // Somebody else may have taken it away.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// A new connection.
pub(in crate::http) struct Accepted {
    socket: Socket,
    tls: Option<Arc<ServerConfig>>,
}

/// Both directions of a connection.
pub(in crate::http) trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// A connection that may be served.
pub(in crate::http) type Io = Pin<Box<dyn Duplex>>;

/// A connection, and its socket for whoever only looks.
pub(in crate::http) struct Opened {
    pub io: Io,
    pub socket: Arc<Socket>,
}

impl Accepted {
    /// The other side's address, if it is on another machine or could be.
    pub fn peer(&self) -> Option<IpAddr> {
        self.socket.peer()
    }

    /// The connection, whose writes fail when the other side takes nothing for a while.
    ///
    /// # Errors
    /// A TLS handshake that fails, or takes longer than a request's head may.
    pub async fn open(self, limits: &HttpSettings) -> io::Result<Opened> {
        self.socket.prepare();
        let socket = Arc::new(self.socket);
        let mut stream = TimeoutWriter::new(Shared(socket.clone()));
        stream.set_timeout(Some(Duration::from_millis(limits.write_idle_timeout_ms)));
        let io: Io = Box::pin(stream);
        let Some(config) = self.tls else { return Ok(Opened { io, socket }) };
        let limit = Duration::from_millis(limits.header_read_timeout_ms);
        let shaken = timeout(limit, TlsAcceptor::from(config).accept(io)).await;
        let io = Box::pin(shaken.map_err(|_| io::ErrorKind::TimedOut)??);
        Ok(Opened { io, socket })
    }
}
