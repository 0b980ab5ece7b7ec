//! How a request was sent: its head, its framing, its body.

use super::row::{NOT_FOUND, PERMISSION, REQUEST, Row, row, shown};

/// A request that does not follow HTTP, or not as this server needs it.
#[derive(Debug)]
pub(in crate::http) enum ProtocolError {
    /// A body above the limit.
    BodyTooLarge { body_bytes_max: usize },
    /// A body that was not whole in time.
    BodyTimeout { timeout_ms: u64 },
    /// A body that stood still, or came more slowly than bodies may.
    BodySlow { bytes_per_s_min: usize, idle_timeout_ms: u64 },
    /// A body that ended early or was framed wrongly.
    BodyBroken,
    /// Another content type than JSON.
    ContentType { found: String },
    /// A body that is compressed in a way that is not read.
    Coding { found: String },
    /// A body that does not hold what it says it does.
    CodingBroken { coding: &'static str, problem: String },
    /// No such route, and what there is for what another server has there.
    NoRoute { path: String, instead: Option<&'static str> },
    /// The route exists, the method does not.
    Method { method: String, allow: &'static str },
    /// Not exactly one well-formed `Host`.
    HostHeader,
    /// A `Host` or `Origin` that this server is not.
    HostRefused { header: &'static str, found: String },
    /// An `Expect` other than `100-continue`.
    Expect,
}

impl ProtocolError {
    pub(super) fn row(&self) -> Row {
        match self {
            Self::BodyTooLarge { body_bytes_max } => {
                let message = format!(
                    "The request body must be at most {body_bytes_max} bytes (--body-bytes-max); \
                     send fewer prompts at once."
                );
                row(413, REQUEST, "body_too_large", message)
            }
            Self::BodyTimeout { timeout_ms } => {
                let message = format!("The request body did not arrive within {timeout_ms} ms.");
                row(408, REQUEST, "body_timeout", message)
            }
            Self::BodySlow { bytes_per_s_min, idle_timeout_ms } => {
                let message = format!(
                    "The request body came too slowly: within {idle_timeout_ms} ms, \
                     {bytes_per_s_min} bytes a second must come on average."
                );
                row(408, REQUEST, "body_timeout", message)
            }
            Self::BodyBroken => {
                row(400, REQUEST, "body_broken", "The request body could not be read to its end.")
            }
            Self::ContentType { found } => {
                let message =
                    format!("Content-Type must be application/json, got '{}'.", shown(found));
                row(415, REQUEST, "unsupported_media_type", message)
            }
            Self::Coding { found } => {
                let found = shown(found);
                let message = format!(
                    "Content-Encoding must be one of gzip, zstd and identity, got '{found}'."
                );
                row(415, REQUEST, "unsupported_content_encoding", message)
                    .with_header("accept-encoding", "gzip, zstd")
            }
            Self::CodingBroken { coding, problem } => {
                let message = format!("The request body is not whole {coding}: {problem}.");
                row(400, REQUEST, "body_broken", message)
            }
            Self::NoRoute { path, instead } => {
                let instead = instead.map_or_else(String::new, |instead| format!(" {instead}"));
                let message = format!("There is no route '{}'.{instead}", shown(path));
                row(404, NOT_FOUND, "route_not_found", message)
            }
            Self::Method { method, allow } => {
                let message = format!("{} is not allowed here; use {allow}.", shown(method));
                row(405, REQUEST, "method_not_allowed", message).with_header("allow", *allow)
            }
            Self::HostHeader => row(
                400,
                REQUEST,
                "invalid_host",
                "A request must have exactly one Host header, 'name' or 'name:port'.",
            ),
            Self::HostRefused { header, found } => {
                // Of an authority, the name without its port; of an origin, all of it.
                let (flag, name) = match *header {
                    "Origin" => ("--allowed-origin", found.as_str()),
                    _ => ("--allowed-host", without_port(found)),
                };
                let message = format!(
                    "The {header} '{}' is not this server; if it is, start it with {flag} {}.",
                    shown(found),
                    shown(name)
                );
                row(403, PERMISSION, "host_not_allowed", message)
            }
            Self::Expect => {
                row(417, REQUEST, "expectation_failed", "Expect must be 100-continue or absent.")
            }
        }
    }
}

/// The name in `name:port`; an address of IPv6 stands in brackets.
fn without_port(authority: &str) -> &str {
    let split = authority.rsplit_once(':').filter(|(_, port)| !port.ends_with(']'));
    split.map_or(authority, |(name, _)| name)
}
