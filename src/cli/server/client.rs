//! An HTTP client for one server, wherever it listens.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::address::Address;
use super::trust::{client_config, server_name};
use crate::config::Secret;

/// A server and how to speak to it.
pub struct Client {
    address: Address,
    tls: Option<TlsConnector>,
    key: Option<Secret>,
}

/// Why there is no answer with status 200.
pub struct Refused {
    /// Its `error.code`, of an answer that has one.
    pub code: Option<String>,
    /// One line.
    pub message: String,
}

impl From<String> for Refused {
    fn from(message: String) -> Self {
        Self { code: None, message }
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl Client {
    /// `certificate` is the only one that is believed, where given.
    ///
    /// # Errors
    /// A file without a certificate.
    pub fn new(
        address: Address,
        certificate: Option<&Path>,
        key: Option<Secret>,
    ) -> Result<Self, String> {
        let wants_tls = address.speaks_tls(certificate.is_some());
        let config = wants_tls.then(|| client_config(certificate)).transpose();
        let config = config.map_err(|e| e.to_string())?;
        let tls = config.map(|config| TlsConnector::from(Arc::new(config)));
        Ok(Self { address, tls, key })
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Stream>> {
        let stream: Box<dyn Stream> = match &self.address {
            Address::Unix(path) => Box::new(UnixStream::connect(path).await?),
            Address::Tcp { authority, .. } => {
                let stream = TcpStream::connect(authority).await?;
                // A small request must not wait for an answer to the one before.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
        };
        let Some(tls) = &self.tls else { return Ok(stream) };
        Ok(Box::new(tls.connect(server_name(self.address.host())?, stream).await?))
    }

    /// Sends a request on a connection of its own. The answer's body, opened.
    ///
    /// # Errors
    /// No server, or an answer of another status than 200.
    pub async fn send(&self, method: &str, path: &str, body: String) -> Result<Incoming, Refused> {
        let text = |e: &dyn std::fmt::Display| Refused::from(e.to_string());
        let stream = self.connect().await;
        let stream = stream.map_err(|e| format!("no server at {}: {e}", self.address))?;
        let (mut sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
        // It ends with the answer; what went wrong shows there too.
        tokio::spawn(connection);
        let mut request = Request::builder();
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {}", key.reveal()));
        }
        let request = request
            .method(method)
            .uri(path)
            .header("host", self.address.authority())
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| text(&e))?;
        let answer = sender.send_request(request).await.map_err(|e| text(&e))?;
        let status = answer.status();
        if status.as_u16() == 200 {
            return Ok(answer.into_body());
        }
        let body = answer.into_body().collect().await.map_err(|e| text(&e))?.to_bytes();
        let error = serde_json::from_slice::<Value>(&body).unwrap_or_default()["error"].take();
        let said = error["message"].as_str().map(str::to_owned);
        let said = said.unwrap_or_else(|| String::from_utf8_lossy(&body).into_owned());
        Err(Refused {
            code: error["code"].as_str().map(str::to_owned),
            message: format!("the server answered {status}: {said}"),
        })
    }
}
