//! Server-sent events of an answer.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use serde_json::Value;
use tokio::time::timeout;

use super::error::ClientError;
use crate::cli::terminal::one_line;

/// A stream that says nothing for so long has failed: a server sends comments in between.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Bytes of one event, so that no server can fill the memory.
const EVENT_BYTES_MAX: usize = 256 << 20;

/// Server-sent events of an answer. Dropped before its end, the connection ends and the server
/// stops.
pub struct Events {
    body: Incoming,
    pending: Vec<u8>,
    _sender: SendRequest<Full<Bytes>>,
}

impl Events {
    /// Those of a body, which its connection must outlive.
    pub fn new(body: Incoming, sender: SendRequest<Full<Bytes>>) -> Self {
        Self { body, pending: Vec::new(), _sender: sender }
    }

    /// The next event; `None` at the end.
    ///
    /// # Errors
    /// [`ClientError::Broken`] when the stream breaks off, or tells of an error.
    pub async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        let broken = ClientError::Broken;
        let Some(data) = self.data().await? else {
            return Err(broken("the answer broke off".to_owned()));
        };
        if data == "[DONE]" {
            return Ok(None);
        }
        let event: Value = serde_json::from_str(&data)
            .map_err(|e| broken(format!("the server sent an event that is no JSON: {e}")))?;
        match event["error"]["message"].as_str() {
            Some(message) => Err(broken(format!("the server failed: {}", one_line(message)))),
            None => Ok(Some(event)),
        }
    }

    async fn data(&mut self) -> Result<Option<String>, ClientError> {
        let broken = ClientError::Broken;
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
            if self.pending.len() > EVENT_BYTES_MAX {
                return Err(broken(format!("an event of more than {EVENT_BYTES_MAX} bytes")));
            }
            let frame = timeout(SILENCE_MAX, self.body.frame()).await;
            let silent = |_| broken(format!("the server said nothing for {SILENCE_MAX:?}"));
            match frame.map_err(silent)? {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame?;
                    self.pending.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
            }
        }
    }
}
