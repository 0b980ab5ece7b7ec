//! Where a server is: as a URL says it, and the connection to it.

use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::ClientConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;

/// A connection that takes longer is given up.
const CONNECT_MAX: Duration = Duration::from_secs(10);
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// What `--url` names.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    at: At,
    /// What stands before `/v1` in the paths of a gateway, without a slash at its end.
    prefix: String,
    shown: String,
}

#[derive(Clone, Debug, PartialEq)]
enum At {
    Tcp { host: String, port: u16, is_tls: bool },
    Unix(PathBuf),
}

/// Both directions of a connection.
pub trait Duplex: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Duplex for T {}

/// An open connection.
pub type Io = Pin<Box<dyn Duplex>>;

impl Place {
    /// An address as `tessera serve` prints it: `http://HOST:PORT/v1`, `https://…` or `unix:PATH`.
    /// Without a scheme it is http; `/v1` may be left out.
    ///
    /// # Errors
    /// What is expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected a server's address such as http://127.0.0.1:8000/v1 or unix:/run/tessera.sock"
                .to_owned()
        };
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            let (at, prefix) = (At::Unix(path.into()), String::new());
            return Ok(Self { at, prefix, shown: text.to_owned() });
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (is_tls, usual) = match scheme {
            "http" => (false, HTTP_PORT),
            "https" => (true, HTTPS_PORT),
            _ => return Err(expected()),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let bracket = authority.rfind(']').unwrap_or(0);
        let (host, port) = match authority[bracket..].rfind(':') {
            None => (authority, usual),
            Some(at) => {
                let (host, port) = authority.split_at(bracket + at);
                (host, port[1..].parse().map_err(|_| expected())?)
            }
        };
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        let is_path = path.chars().all(|c| c.is_ascii_graphic() && !"?#".contains(c));
        if host.is_empty() || !host.chars().all(is_host) || !is_path {
            return Err(expected());
        }
        let path = path.trim_end_matches('/');
        let prefix = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        let at = At::Tcp { host: host.to_owned(), port, is_tls };
        Ok(Self { at, prefix, shown: text.to_owned() })
    }

    /// What stands before each path of the API.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What requests have as `Host`.
    pub fn host(&self) -> String {
        match &self.at {
            At::Tcp { host, port, .. } => format!("{host}:{port}"),
            At::Unix(_) => "localhost".to_owned(),
        }
    }

    /// As the user spelled it.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// A connection to it.
    ///
    /// # Errors
    /// When nobody listens there, or its certificate is none that this machine trusts.
    pub async fn connect(&self) -> io::Result<Io> {
        let late = |_| io::Error::other(format!("no connection within {CONNECT_MAX:?}"));
        timeout(CONNECT_MAX, self.open()).await.map_err(late)?
    }

    async fn open(&self) -> io::Result<Io> {
        let (host, port, is_tls) = match &self.at {
            At::Unix(path) => return Ok(Box::pin(UnixStream::connect(path).await?)),
            At::Tcp { host, port, is_tls } => (host.trim_matches(['[', ']']), *port, *is_tls),
        };
        let stream = TcpStream::connect((host, port)).await?;
        // A small request must not wait for an answer to the one before.
        stream.set_nodelay(true)?;
        if !is_tls {
            return Ok(Box::pin(stream));
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?;
        let config = config.with_platform_verifier().map_err(io::Error::other)?;
        let config = Arc::new(config.with_no_client_auth());
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        Ok(Box::pin(TlsConnector::from(config).connect(name, stream).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16, is_tls: bool) -> At {
        At::Tcp { host: host.to_owned(), port, is_tls }
    }

    #[test]
    fn a_server_is_found_by_what_ready_prints_and_by_shorter_forms() {
        let found = |text: &str| {
            let place = Place::parse(text).unwrap();
            (place.at, place.prefix)
        };
        let local = || tcp("127.0.0.1", 8000, false);
        for text in ["http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/", "127.0.0.1:8000"] {
            assert_eq!(found(text), (local(), String::new()), "{text}");
        }
        assert_eq!(found("https://a.org/v1/"), (tcp("a.org", 443, true), String::new()));
        assert_eq!(found("http://[::1]:80/v1"), (tcp("[::1]", 80, false), String::new()));
        assert_eq!(found("http://[::1]"), (tcp("[::1]", 80, false), String::new()));
        assert_eq!(found("http://gw/llm/v1"), (tcp("gw", 80, false), "/llm".to_owned()));
        assert_eq!(found("unix:/run/t.sock"), (At::Unix("/run/t.sock".into()), String::new()));
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in ["", "http://", "ftp://a", "http://a:x", "http://a b", "unix:", "a?b", "a/#"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
    }
}
