//! A client of a server of OpenAI's API: one that runs, or one in this process.

mod place;

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, USER_AGENT};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

pub use place::Place;

use super::CliError;
use super::terminal::one_line;
use crate::config::Secret;
use crate::http::InProcess;

/// A stream that says nothing for so long has failed: a server sends comments in between.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Bytes of one answer, so that no server can fill the memory.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// A client's own name of its request, which a server's log and answer repeat.
const REQUEST_ID: &str = "x-request-id";

/// Sends requests to one server.
pub struct Client {
    server: Server,
    key: Option<Secret>,
    /// Connections whose last answer was read to its end.
    idle: Mutex<Vec<SendRequest<Full<Bytes>>>>,
}

enum Server {
    At(Place),
    InProcess(InProcess),
}

/// An answer whose body is still to be read.
struct Opened {
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    sender: SendRequest<Full<Bytes>>,
}

/// A whole answer.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

impl Answer {
    /// What an error says, or an answer of another form, on one line.
    pub fn message(&self) -> String {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        match json["error"]["message"].as_str() {
            Some(message) => one_line(message),
            None => one_line(&String::from_utf8_lossy(&self.body)),
        }
    }

    /// The word that an error has for programs.
    pub fn code(&self) -> Option<String> {
        let json: Value = serde_json::from_slice(&self.body).ok()?;
        Some(json["error"]["code"].as_str()?.to_owned())
    }

    /// The answer, or its refusal as a command's failure: one of what was asked for is the user's.
    ///
    /// # Errors
    /// Whenever the status is not 200.
    pub fn checked(self) -> Result<Self, CliError> {
        if self.status == StatusCode::OK {
            return Ok(self);
        }
        let said = format!("the server answered {}: {}", self.status.as_u16(), self.message());
        let is_users =
            self.status.is_client_error() && self.status != StatusCode::TOO_MANY_REQUESTS;
        Err(match is_users {
            true => CliError::Usage(said),
            false => CliError::General(said),
        })
    }
}

impl Client {
    /// Of the server at `place`, with a key if it asks for one.
    pub fn of_server(place: Place, key: Option<Secret>) -> Self {
        Self { server: Server::At(place), key, idle: Mutex::default() }
    }

    /// Of a server in this process.
    pub fn of_process(server: InProcess) -> Self {
        Self { server: Server::InProcess(server), key: None, idle: Mutex::default() }
    }

    /// Whether the server is in this process, and ends with it.
    pub fn is_in_process(&self) -> bool {
        matches!(self.server, Server::InProcess(_))
    }

    /// A whole answer, of any status.
    ///
    /// # Errors
    /// When there is no server, or its answer breaks off.
    pub async fn get(&self, path: &str) -> Result<Answer, String> {
        let opened = self.open(Method::GET, path, "", Bytes::new()).await?;
        self.whole(opened).await
    }

    /// A whole answer, of any status, to a JSON body; `id` names the request, if it is not empty.
    ///
    /// # Errors
    /// When there is no server, or its answer breaks off.
    pub async fn post(&self, path: &str, id: &str, body: Bytes) -> Result<Answer, String> {
        let opened = self.open(Method::POST, path, id, body).await?;
        self.whole(opened).await
    }

    /// The events of an answer that is streamed.
    ///
    /// # Errors
    /// When there is no server, or it refuses.
    pub async fn stream(&self, path: &str, body: &Value) -> Result<Events, CliError> {
        let failed = CliError::General;
        let body = Bytes::from(body.to_string());
        let opened = self.open(Method::POST, path, "", body).await.map_err(failed)?;
        if opened.status == StatusCode::OK {
            let Opened { body, sender, .. } = opened;
            return Ok(Events { body, pending: Vec::new(), _sender: sender });
        }
        let refused = self.whole(opened).await.map_err(failed)?.checked();
        Err(refused.err().unwrap_or_else(|| failed("the answer is no stream".to_owned())))
    }

    /// Names that the server has, the base's first.
    ///
    /// # Errors
    /// When there is no server, or it refuses.
    pub async fn models(&self) -> Result<Vec<String>, CliError> {
        let answer = self.get("/v1/models").await.map_err(CliError::General)?.checked()?;
        let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
        let data = json["data"].as_array().into_iter().flatten();
        Ok(data.filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect())
    }

    async fn open(
        &self,
        method: Method,
        path: &str,
        id: &str,
        body: Bytes,
    ) -> Result<Opened, String> {
        let (prefix, host) = match &self.server {
            Server::At(place) => (place.prefix(), place.host()),
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
        let request = request.body(Full::new(body)).map_err(|e| e.to_string())?;
        let mut sender = self.sender().await?;
        let answer = sender.send_request(request).await.map_err(|e| chain(&e))?;
        let (head, body) = answer.into_parts();
        Ok(Opened { status: head.status, headers: head.headers, body, sender })
    }

    /// A connection that is free.
    async fn sender(&self) -> Result<SendRequest<Full<Bytes>>, String> {
        let idle = || self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        while let Some(sender) = idle() {
            if sender.is_ready() {
                return Ok(sender);
            }
        }
        let connected = match &self.server {
            Server::At(place) => place.connect().await.map_err(|e| place_failed(place, &e)),
            Server::InProcess(server) => match server.connect().await {
                Ok(stream) => Ok(Box::pin(stream) as place::Io),
                Err(error) => Err(error.to_string()),
            },
        };
        let (sender, connection) =
            http1::handshake(TokioIo::new(connected?)).await.map_err(|e| chain(&e))?;
        // It ends with the answer; what went wrong shows there too.
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn whole(&self, opened: Opened) -> Result<Answer, String> {
        let Opened { status, headers, body, sender } = opened;
        let body = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| format!("the answer broke off: {e}"))?.to_bytes();
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        Ok(Answer { status, headers, body })
    }
}

fn place_failed(place: &Place, error: &io::Error) -> String {
    format!("no server at {}: {error}", place.shown())
}

/// An error of hyper with its cause, which its own text leaves out.
fn chain(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        None => error.to_string(),
        Some(cause) => format!("{error}: {cause}"),
    }
}

/// Server-sent events of an answer. Dropped before its end, the connection ends and the server
/// stops.
pub struct Events {
    body: Incoming,
    pending: Vec<u8>,
    _sender: SendRequest<Full<Bytes>>,
}

impl Events {
    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// When the stream breaks off, or tells of an error.
    pub async fn next(&mut self) -> Result<Option<Value>, CliError> {
        let failed = CliError::General;
        let Some(data) = self.data().await.map_err(failed)? else {
            return Err(failed("the answer broke off".to_owned()));
        };
        if data == "[DONE]" {
            return Ok(None);
        }
        let event: Value = serde_json::from_str(&data)
            .map_err(|e| failed(format!("the server sent an event that is no JSON: {e}")))?;
        match event["error"]["message"].as_str() {
            Some(message) => Err(failed(format!("the server failed: {}", one_line(message)))),
            None => Ok(Some(event)),
        }
    }

    async fn data(&mut self) -> Result<Option<String>, String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.pending.drain(..end + 2).collect();
                let event = String::from_utf8_lossy(&event[..end]).into_owned();
                match event.strip_prefix("data:") {
                    Some(data) => return Ok(Some(data.trim_start().to_owned())),
                    // A comment.
                    None => continue,
                }
            }
            if self.pending.len() > ANSWER_BYTES_MAX {
                return Err(format!("an event of more than {ANSWER_BYTES_MAX} bytes"));
            }
            let frame = timeout(SILENCE_MAX, self.body.frame()).await;
            match frame.map_err(|_| format!("the server said nothing for {SILENCE_MAX:?}"))? {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(|e| chain(&e))?;
                    self.pending.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
            }
        }
    }
}
