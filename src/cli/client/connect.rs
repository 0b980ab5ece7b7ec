//! The way to a server: a socket, and TLS where it speaks that.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, rustls};

use super::address::{Address, At};
use super::error::ClientError;
use super::trust::{client_config, server_name};

/// A connection that takes longer is given up.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// An open connection.
pub type Io = Box<dyn Duplex>;

/// Where a server is, and how to speak to it.
pub struct Connector {
    address: Address,
    tls: Option<TlsConnector>,
}

impl Connector {
    /// `certificate` is the only one that is believed, where given.
    ///
    /// # Errors
    /// [`ClientError::Certificate`] for a file without one, [`ClientError::NoServer`] where the
    /// system vouches for none and one is needed.
    pub fn new(address: Address, certificate: Option<&Path>) -> Result<Self, ClientError> {
        let wants_tls = address.speaks_tls(certificate.is_some());
        let config = wants_tls.then(|| client_config(certificate)).transpose();
        let config = config.map_err(|error| match certificate {
            Some(_) => ClientError::Certificate(error.to_string()),
            None => no_server(&address, &error),
        })?;
        let tls = config.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { address, tls })
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// A connection to it.
    ///
    /// # Errors
    /// [`ClientError::NoServer`] when nobody listens there, or with a certificate that is not
    /// believed.
    pub async fn connect(&self) -> Result<Io, ClientError> {
        let opened = timeout(CONNECT_MAX, self.open()).await;
        let late = |_| no_server(&self.address, &format!("no connection within {CONNECT_MAX:?}"));
        opened.map_err(late)?.map_err(|error| no_server(&self.address, &error))
    }

    async fn open(&self) -> io::Result<Io> {
        let stream: Io = match self.address.at() {
            At::Unix(path) => Box::new(UnixStream::connect(path).await?),
            At::Tcp { port, .. } => {
                let stream = TcpStream::connect((self.address.host(), *port)).await?;
                // A small request must not wait for an answer to the one before.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let Some(tls) = &self.tls else { return Ok(stream) };
        let opened = tls.connect(server_name(self.address.host())?, stream).await;
        Ok(Box::new(opened.map_err(no_tls)?))
    }
}

/// Names what answers with something else than TLS.
fn no_tls(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => {
            io::Error::other(format!("what answers there speaks no TLS ({error}); try http://"))
        }
        _ => error,
    }
}

fn no_server(address: &Address, why: &dyn Display) -> ClientError {
    ClientError::NoServer { address: address.to_string(), why: why.to_string() }
}
