//! A whole answer.

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde_json::Value;

use super::error::ClientError;
use crate::cli::terminal::one_line;

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

    /// The answer as it is, or as a refusal.
    ///
    /// # Errors
    /// [`ClientError::Refused`] whenever the status is not 200.
    pub fn checked(self) -> Result<Self, ClientError> {
        match self.status {
            StatusCode::OK => Ok(self),
            _ => Err(self.refusal()),
        }
    }

    /// Why the server did not do what it was asked for.
    pub fn refusal(&self) -> ClientError {
        let Self { status, .. } = *self;
        ClientError::Refused { status, code: self.code(), message: self.message() }
    }

    /// The JSON of an answer that was not refused.
    ///
    /// # Errors
    /// [`ClientError::Refused`], and [`ClientError::Broken`] when it is no JSON.
    pub fn json(self) -> Result<Value, ClientError> {
        let json = serde_json::from_slice(&self.checked()?.body);
        json.map_err(|e| ClientError::Broken(format!("the answer is no JSON: {e}")))
    }
}
