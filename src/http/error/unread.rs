//! What a connection could not read as a request.

use super::row::{REQUEST, Row, row};

/// Bytes that are no request, or that no two programs read alike.
#[derive(Debug)]
pub(in crate::http) enum UnreadError {
    /// Bytes that are no request.
    Malformed { problem: String },
    /// A head above the limit.
    HeadTooLarge { bytes_max: usize },
    /// A head that came too slowly.
    HeadTimeout { timeout_ms: u128 },
    /// A body whose length is given in two ways.
    FramedTwice,
    /// Another transfer coding than `chunked` alone.
    Coding,
}

impl UnreadError {
    pub(super) fn row(&self) -> Row {
        match self {
            Self::Malformed { problem } => {
                let message =
                    format!("This could not be read as a request of HTTP/1.1: {problem}.");
                row(400, REQUEST, "malformed_request", message)
            }
            Self::HeadTooLarge { bytes_max } => {
                let message = format!(
                    "The request's line and headers must be at most {bytes_max} bytes and 100 \
                     headers."
                );
                row(431, REQUEST, "head_too_large", message)
            }
            Self::HeadTimeout { timeout_ms } => {
                let message =
                    format!("The request's headers did not arrive within {timeout_ms} ms.");
                row(408, REQUEST, "head_timeout", message)
            }
            Self::FramedTwice => row(
                400,
                REQUEST,
                "framed_twice",
                "A request must not have both Transfer-Encoding and Content-Length: programs \
                 differ in which they follow.",
            ),
            Self::Coding => row(
                400,
                REQUEST,
                "unsupported_transfer_encoding",
                "Transfer-Encoding must be chunked, once, or absent; compress with \
                 Content-Encoding.",
            ),
        }
    }
}
