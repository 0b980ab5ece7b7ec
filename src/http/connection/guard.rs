//! What is checked of every request before it is looked at.

use hyper::header::{EXPECT, HOST, HeaderValue, ORIGIN};
use hyper::{Request, Version};

use super::cors::Cors;
use crate::http::error::ProtocolError;
use crate::http::random::new_id;

/// Names by which a socket on the loopback address may be called.
pub(in crate::http) const LOOPBACK_HOSTS: &[&str] = &["localhost", "127.0.0.1", "[::1]"];
/// A longer id of a client is not echoed.
const REQUEST_ID_BYTES_MAX: usize = 128;

/// Refuses a request that was not meant for this server, or that proxies read differently.
///
/// # Errors
/// [`ProtocolError::HostHeader`], [`ProtocolError::HostRefused`] and [`ProtocolError::Expect`].
pub(in crate::http) fn check<B>(
    request: &Request<B>,
    hosts: Option<&[String]>,
    cors: &Cors,
) -> Result<(), ProtocolError> {
    let headers = request.headers();
    let mut values = headers.get_all(HOST).iter();
    let host = match (values.next(), values.next()) {
        (Some(value), None) => {
            let value = value.to_str().map_err(|_| ProtocolError::HostHeader)?;
            Some(value)
        }
        (None, _) if request.version() == Version::HTTP_10 => None,
        // There the target names it.
        (None, _)
            if request.version() == Version::HTTP_2 && request.uri().authority().is_some() =>
        {
            None
        }
        _ => return Err(ProtocolError::HostHeader),
    };
    if let Some(host) = host {
        check_host("Host", host, hosts)?;
    }
    if let Some(authority) = request.uri().authority() {
        check_host("Host", authority.as_str(), hosts)?;
    }
    // A web page of another site that this machine's user has open, and that is not allowed.
    let origin = headers.get(ORIGIN).filter(|origin| !cors.allows(origin));
    if let (Some(_), Some(origin)) = (hosts, origin) {
        let origin = origin.to_str().unwrap_or("?");
        let host = origin.split_once("://").map_or(origin, |(_, host)| host);
        let refused = || ProtocolError::HostRefused { header: "Origin", found: origin.to_owned() };
        check_host("Origin", host, hosts).map_err(|_| refused())?;
    }
    match headers.get(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            Err(ProtocolError::Expect)
        }
        _ => Ok(()),
    }
}

fn check_host(
    header: &'static str,
    authority: &str,
    hosts: Option<&[String]>,
) -> Result<(), ProtocolError> {
    let name = match authority.find(']').filter(|_| authority.starts_with('[')) {
        Some(end) => &authority[..=end],
        None => authority.split(':').next().unwrap_or_default(),
    };
    let port = &authority[name.len()..];
    let digits = port.strip_prefix(':').unwrap_or(port);
    let is_port = port.is_empty() || port.starts_with(':');
    if !is_port || name.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(ProtocolError::HostHeader);
    }
    match hosts {
        Some(hosts) if !hosts.iter().any(|host| host.eq_ignore_ascii_case(name)) => {
            Err(ProtocolError::HostRefused { header, found: authority.to_owned() })
        }
        _ => Ok(()),
    }
}

/// The client's `X-Request-Id` if it is short and plain, else a new one.
pub(in crate::http) fn request_id<B>(request: &Request<B>) -> HeaderValue {
    let plain = |value: &&HeaderValue| {
        let bytes = value.as_bytes();
        (1..=REQUEST_ID_BYTES_MAX).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    };
    match request.headers().get("x-request-id").filter(plain) {
        Some(value) => value.clone(),
        // Hexadecimal digits are legal in a header.
        None => HeaderValue::from_str(&new_id()).unwrap_or(HeaderValue::from_static("-")),
    }
}
