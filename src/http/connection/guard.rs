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
    let authority = request.uri().authority().map(|authority| authority.as_str());
    if let Some(authority) = authority {
        check_host("Host", authority, hosts)?;
    }
    if let Some(origin) = headers.get(ORIGIN).filter(|origin| !cors.allows(origin)) {
        check_origin(origin, authority.or(host), hosts)?;
    }
    match headers.get(EXPECT) {
        Some(value) if !value.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            Err(ProtocolError::Expect)
        }
        _ => Ok(()),
    }
}

/// Refuses a web page of another site, which its reader's browser would let act for him: one whose
/// origin is neither this server by the name that the request has, nor by another of its names.
fn check_origin(
    origin: &HeaderValue,
    asked: Option<&str>,
    hosts: Option<&[String]>,
) -> Result<(), ProtocolError> {
    let origin = origin.to_str().unwrap_or("?");
    let (scheme, own) = origin.split_once("://").unwrap_or(("", origin));
    let port = match scheme {
        "https" => ":443",
        _ => ":80",
    };
    // Browsers leave the scheme's own port out of an origin, others may not of a host.
    let bare = |name: &str| name.strip_suffix(port).unwrap_or(name).to_ascii_lowercase();
    let is_asked = asked.is_some_and(|asked| bare(asked) == bare(own));
    let is_known = || hosts.is_some() && check_host("Origin", own, hosts).is_ok();
    match is_asked || is_known() {
        true => Ok(()),
        false => Err(ProtocolError::HostRefused { header: "Origin", found: origin.to_owned() }),
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
    let is_number = digits.is_empty() || !digits.starts_with('+') && digits.parse::<u16>().is_ok();
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    // RFC 3986, section 3.2.2, and the zone of an address.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:".contains(&byte);
    if !is_port || bare.is_empty() || !bare.bytes().all(is_name) || !is_number {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_site_is_refused_wherever_the_server_listens() {
        let cors = Cors::new(vec!["https://app.example.org".to_owned()]);
        let own = ["models.local".to_owned()];
        let is_taken = |host: &str, origin: &str, hosts: Option<&[String]>| {
            let request = Request::builder().header(HOST, host).header(ORIGIN, origin);
            check(&request.body(()).unwrap(), hosts, &cors).is_ok()
        };
        for (host, origin) in [
            ("box:8000", "http://box:8000"),
            ("BOX:8000", "http://box:8000"),
            ("box", "http://box"),
            ("box:443", "https://box"),
            ("[::1]:8000", "http://[::1]:8000"),
            ("box:8000", "https://app.example.org"),
        ] {
            assert!(is_taken(host, origin, None), "{origin} asks {host}");
        }
        for (host, origin) in [
            ("box:8000", "http://evil.example"),
            ("box:8000", "http://box:9000"),
            ("box:8000", "http://box"),
            ("box:8000", "null"),
            ("box:8000", "http://box:8000.evil.example"),
            ("box:8000", "file://"),
        ] {
            assert!(!is_taken(host, origin, None), "{origin} asks {host}");
        }
        // By the names that were given, on any port, as before.
        assert!(is_taken("models.local:8000", "http://models.local:3000", Some(&own)));
        assert!(!is_taken("models.local:8000", "http://evil.example", Some(&own)));
    }
}
