//! What the server cannot do now.

use super::row::{RATE, REQUEST, Row, SERVER, row};
use crate::engine::Busy;

/// A fault of the server, or a limit that it has reached.
#[derive(Debug)]
pub(in crate::http) enum ServerError {
    /// The queue is full.
    Busy(Busy),
    /// Too many who watch the batch.
    WatchersFull { watchers_max: usize },
    /// Too many bytes of bodies at once.
    BodiesFull { bodies_bytes_max: usize },
    /// Too many connections, and all busy.
    TooManyConnections { connections_max: usize },
    /// Shutting down.
    Draining,
    /// The engine thread has ended.
    EngineGone,
    /// The engine failed on this sequence.
    EngineFailed(String),
    /// The request's own rules forbid all tokens that could come next.
    NoTokenLeft,
    /// The request's adapters make numbers that are not finite.
    NotFinite,
    /// The form that the request asks for could not be followed within its limits.
    Astray(String),
    /// A panic, or a lost thread.
    Internal,
}

impl ServerError {
    pub(super) fn row(&self) -> Row {
        match self {
            Self::Busy(busy) => row(429, RATE, "queue_full", busy.to_string()).retry_after_1_s(),
            Self::WatchersFull { watchers_max } => {
                let message = format!(
                    "{watchers_max} clients watch the batch, which is the limit; retry later"
                );
                row(429, RATE, "watchers_full", message).retry_after_1_s()
            }
            Self::BodiesFull { bodies_bytes_max } => {
                let message = format!(
                    "the server is reading its limit of {bodies_bytes_max} bytes of requests; \
                     retry later"
                );
                row(503, SERVER, "bodies_full", message).retry_after_1_s()
            }
            Self::TooManyConnections { connections_max } => {
                let message = format!(
                    "The server is at its limit of {connections_max} connections; retry later."
                );
                row(503, SERVER, "too_many_connections", message).retry_after_1_s()
            }
            Self::Draining => {
                row(503, SERVER, "draining", "The server is shutting down.").retry_after_1_s()
            }
            Self::EngineGone => row(503, SERVER, "engine_stopped", "The engine has stopped."),
            Self::EngineFailed(message) => row(500, SERVER, "engine_failed", message),
            Self::NoTokenLeft => row(
                400,
                REQUEST,
                "no_token_left",
                "allowed_token_ids, bad_words and min_tokens leave no token that could come next; \
                 forbid fewer.",
            ),
            Self::NotFinite => row(
                400,
                REQUEST,
                "adapter_not_finite",
                "With its adapters the model makes numbers that are not finite for this request: \
                 their weights or lora_alpha are too large.",
            ),
            Self::Astray(message) => row(400, REQUEST, "structured_output_failed", message),
            Self::Internal => row(
                500,
                SERVER,
                "internal_error",
                "The server failed on this request. This is a bug.",
            ),
        }
    }
}
