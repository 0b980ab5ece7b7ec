//! Requests to one server.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;

use super::address::Address;
use super::answer::Answer;
use super::connect::{Connector, Io};
use super::error::ClientError;
use super::events::Events;
use crate::config::Secret;
use crate::http::InProcess;

/// Bytes of one answer, so that no server can fill the memory.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A client's own name of its request, which a server's log and answer repeat.
const REQUEST_ID: &str = "x-request-id";

/// Sends requests to one server.
pub struct Client {
    server: Server,
    key: Option<Secret>,
    /// Connections whose last answer was read to its end.
    idle: Mutex<Vec<Sender>>,
}

enum Server {
    At(Connector),
    InProcess(InProcess),
}

type Sender = SendRequest<Full<Bytes>>;

impl Client {
    /// Of the server at `address`, with a key if it asks for one. `certificate` is the only one
    /// that is believed, where given. Nobody is asked yet.
    ///
    /// # Errors
    /// [`ClientError::Certificate`] for a file without one, [`ClientError::NoServer`] where the
    /// system vouches for none and one is needed.
    pub fn of_server(
        address: Address,
        certificate: Option<&Path>,
        key: Option<Secret>,
    ) -> Result<Self, ClientError> {
        let server = Server::At(Connector::new(address, certificate)?);
        Ok(Self { server, key, idle: Mutex::default() })
    }

    /// Of a server in this process.
    pub fn of_process(server: InProcess) -> Self {
        Self { server: Server::InProcess(server), key: None, idle: Mutex::default() }
    }

    /// Whether the server is in this process, and ends with it.
    pub fn is_in_process(&self) -> bool {
        matches!(self.server, Server::InProcess(_))
    }

    /// Opens a connection, which the next request takes.
    ///
    /// # Errors
    /// When there is no server.
    pub async fn open(&self) -> Result<(), ClientError> {
        let sender = self.connected().await?;
        self.keep(sender);
        Ok(())
    }

    /// A whole answer, of any status.
    ///
    /// # Errors
    /// When there is no server, or its answer breaks off.
    pub async fn get(&self, path: &str) -> Result<Answer, ClientError> {
        self.whole(Method::GET, path, "", Bytes::new()).await
    }

    /// A whole answer, of any status, to a JSON body; `id` names the request, if it is not empty.
    ///
    /// # Errors
    /// When there is no server, or its answer breaks off.
    pub async fn post(&self, path: &str, id: &str, body: Bytes) -> Result<Answer, ClientError> {
        self.whole(Method::POST, path, id, body).await
    }

    /// The events of an answer that is streamed, on a connection of its own, which ends with it.
    ///
    /// # Errors
    /// When there is no server, or it refuses.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<Events, ClientError> {
        let body = Bytes::from(body.to_string());
        let mut sender = self.connected().await?;
        let request = self.request(Method::POST, path, "", body)?;
        let answer = sender.send_request(request).await?;
        if answer.status() == StatusCode::OK {
            return Ok(Events::new(answer.into_body(), sender));
        }
        Err(read(answer).await?.refusal())
    }

    /// Names that the server has, the base's first.
    ///
    /// # Errors
    /// When there is no server, or it refuses.
    pub async fn models(&self) -> Result<Vec<String>, ClientError> {
        let json = self.get("/v1/models").await?.json()?;
        let data = json["data"].as_array().into_iter().flatten();
        Ok(data.filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect())
    }

    async fn whole(
        &self,
        method: Method,
        path: &str,
        id: &str,
        body: Bytes,
    ) -> Result<Answer, ClientError> {
        let request = self.request(method, path, id, body)?;
        let mut sender = match self.idle() {
            Some(sender) => sender,
            None => self.connected().await?,
        };
        let answer = read(sender.send_request(request).await?).await?;
        self.keep(sender);
        Ok(answer)
    }

    fn keep(&self, sender: Sender) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        id: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let (prefix, host) = match &self.server {
            Server::At(at) => (at.address().prefix(), at.address().authority()),
            Server::InProcess(_) => ("", "localhost".to_owned()),
        };
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{prefix}{path}"))
            .header(HOST, host)
            .header(USER_AGENT, concat!("tessera/", env!("CARGO_PKG_VERSION")))
            .header(CONTENT_TYPE, "application/json");
        if !id.is_empty() {
            request = request.header(REQUEST_ID, id);
        }
        if let Some(key) = &self.key {
            request = request.header(AUTHORIZATION, format!("Bearer {}", key.reveal()));
        }
        request.body(Full::new(body)).map_err(|e| ClientError::Broken(e.to_string()))
    }

    /// A connection that was used before and is free.
    fn idle(&self) -> Option<Sender> {
        let next = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        std::iter::from_fn(next).find(Sender::is_ready)
    }

    /// A connection that is new.
    async fn connected(&self) -> Result<Sender, ClientError> {
        let stream = match &self.server {
            Server::At(at) => at.connect().await?,
            Server::InProcess(server) => {
                let stream = server.connect().await;
                Box::new(stream.map_err(|e| ClientError::Broken(e.to_string()))?) as Io
            }
        };
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the answer; what went wrong shows there too.
        tokio::spawn(connection);
        Ok(sender)
    }
}

async fn read(answer: Response<Incoming>) -> Result<Answer, ClientError> {
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    let body = body.map_err(|e| ClientError::Broken(format!("the answer broke off: {e}")))?;
    Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers each request on a connection alike, and counts connections; where it
    /// is.
    async fn serve(answer: &'static str, connections: Arc<AtomicUsize>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(async move {
                    // One read holds a request: they are small.
                    let mut request = [0; 4096];
                    while stream.read(&mut request).await.is_ok_and(|bytes| bytes > 0) {
                        let text = String::from_utf8_lossy(&request).into_owned();
                        assert!(text.contains(" /gw/v1/"), "the gateway's prefix: {text}");
                        stream.write_all(answer.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        format!("http://{address}/gw/v1")
    }

    #[tokio::test]
    async fn whole_answers_share_a_connection_and_a_stream_has_its_own() {
        let count = Arc::new(AtomicUsize::new(0));
        let answer = "HTTP/1.1 200 OK\r\ncontent-length: 24\r\n\r\ndata: {}\n\ndata: [DONE]\n\n";
        let address = serve(answer, count.clone()).await;
        let client = Client::of_server(address.parse().unwrap(), None, None).unwrap();
        let connections = || count.load(Ordering::SeqCst);
        for _ in 0..2 {
            assert_eq!(client.get("/v1/models").await.unwrap().status, StatusCode::OK);
            assert_eq!(connections(), 1);
        }
        for streams in 1..=2 {
            let mut events = client.stream("/v1/completions", &json!({})).await.unwrap();
            assert_eq!(events.next().await.unwrap(), Some(json!({})));
            assert_eq!(events.next().await.unwrap(), None, "it is done");
            assert_eq!(connections(), 1 + streams);
        }
    }
}
