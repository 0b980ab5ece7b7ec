//! A line of answers, as OpenAI's batch API has it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::input::Request;
use crate::cli::terminal::one_line;

/// A line of the output, as OpenAI's batch API has it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Answered {
    id: String,
    custom_id: String,
    /// What the server answered, of whatever status.
    pub response: Option<Response>,
    /// Why there is no answer.
    pub error: Option<Failure>,
}

/// `response`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Response {
    /// Its status.
    pub status_code: u16,
    /// The name of the request in the server's log.
    pub request_id: String,
    /// The answer, or the error; text where it is no JSON.
    pub body: Value,
}

/// `error`.
#[derive(Debug, Deserialize, Serialize)]
pub struct Failure {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
}

impl Answered {
    /// The line of a request.
    pub fn new(request: &Request, outcome: Result<Response, Failure>) -> Self {
        let (response, error) = match outcome {
            Ok(response) => (Some(response), None),
            Err(failure) => (None, Some(failure)),
        };
        Self { id: answer_id(request), custom_id: request.custom_id.clone(), response, error }
    }

    /// What it is known by.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Why it is no good answer, if it is none.
    pub fn fault(&self) -> Option<String> {
        match (&self.response, &self.error) {
            (_, Some(Failure { code, message })) => Some(one_line(&format!("{code}: {message}"))),
            (Some(Response { status_code: 200, .. }), None) => None,
            (Some(Response { status_code, body, .. }), None) => {
                let message = body["error"]["message"].as_str().unwrap_or_default();
                Some(format!("{status_code} {}", one_line(message)))
            }
            (None, None) => Some("it has neither a response nor an error".to_owned()),
        }
    }

    /// With its line end.
    pub fn to_line(&self) -> Vec<u8> {
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }
}

/// What the answer of a request is known by.
pub fn answer_id(request: &Request) -> String {
    format!("batch_req_{}", request.id)
}
