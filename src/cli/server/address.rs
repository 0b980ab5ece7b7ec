//! Where a server is, in every spelling that people have of it: what `ready:` prints, what a
//! browser shows, or a host and a port.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The port of a host that is named without one.
const PORT: u16 = 8000;

/// Where a server listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Address {
    /// A host and a port, `[::1]:8000` for IPv6.
    Tcp {
        /// As it stands in a `Host` header.
        authority: String,
        /// Whether it speaks TLS, where the spelling says.
        tls: Option<bool>,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// A port of this machine.
    pub fn local(port: u16) -> Self {
        Self::Tcp { authority: format!("127.0.0.1:{port}"), tls: None }
    }

    /// What stands in the `Host` header of a request.
    pub fn authority(&self) -> &str {
        match self {
            Self::Tcp { authority, .. } => authority,
            Self::Unix(_) => "localhost",
        }
    }

    /// The host alone, without brackets.
    pub fn host(&self) -> &str {
        let authority = self.authority();
        let end = authority.rfind(':').filter(|at| authority[*at..].find(']').is_none());
        authority[..end.unwrap_or(authority.len())].trim_matches(['[', ']'])
    }

    /// Whether to speak TLS to it; `by_default` where its spelling does not say.
    pub fn speaks_tls(&self, by_default: bool) -> bool {
        match self {
            Self::Tcp { tls, .. } => tls.unwrap_or(by_default),
            Self::Unix(_) => by_default,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected =
            || "expected http://HOST:PORT, https://HOST:PORT, HOST:PORT or unix:PATH".to_owned();
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(expected()) } else { Ok(Self::Unix(path.into())) };
        }
        if text.starts_with(['/', '.']) {
            return Ok(Self::Unix(text.into()));
        }
        let (tls, rest, port) = match text.split_once("://") {
            Some(("http", rest)) => (Some(false), rest, 80),
            Some(("https", rest)) => (Some(true), rest, 443),
            Some(_) => return Err(expected()),
            None => (None, text, PORT),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if tls.is_none() && !authority.is_empty() && authority.bytes().all(|b| b.is_ascii_digit()) {
            let port: u16 = authority.parse().map_err(|_| expected())?;
            return Ok(Self::local(port));
        }
        let (host, given) = match authority.rsplit_once(':') {
            Some((host, given)) if !given.contains(']') => (host, Some(given)),
            _ => (authority, None),
        };
        let is_ipv6 = host.starts_with('[') && host.ends_with(']');
        let legal = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c) || is_ipv6;
        if host.is_empty() || !host.chars().all(legal) {
            return Err(expected());
        }
        let port = given.map_or(Ok(port), |given| given.parse().map_err(|_| expected()))?;
        Ok(Self::Tcp { authority: format!("{host}:{port}"), tls })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { authority, .. } => f.write_str(authority),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(authority: &str, tls: Option<bool>) -> Result<Address, String> {
        Ok(Address::Tcp { authority: authority.to_owned(), tls })
    }

    #[test]
    fn an_address_is_read_in_every_spelling_that_serve_prints() {
        let read = |text: &str| text.parse::<Address>();
        assert_eq!(read("http://127.0.0.1:8000/v1"), tcp("127.0.0.1:8000", Some(false)));
        assert_eq!(read("https://[::1]:8443/v1"), tcp("[::1]:8443", Some(true)));
        assert_eq!(read("unix:/run/t.sock"), Ok(Address::Unix("/run/t.sock".into())));
        assert_eq!(read("/run/t.sock"), Ok(Address::Unix("/run/t.sock".into())));
        assert_eq!(read("unix:///run/t.sock"), Ok(Address::Unix("/run/t.sock".into())));
        assert_eq!(read("10.0.0.7:9000"), tcp("10.0.0.7:9000", None));
        assert_eq!(read("box"), tcp("box:8000", None));
        assert_eq!(read("9000"), Ok(Address::local(9000)));
        assert_eq!(read("https://models.example.org"), tcp("models.example.org:443", Some(true)));
        assert_eq!(read("[::1]").unwrap().host(), "::1");
        assert_eq!(read("[::1]:80").unwrap().host(), "::1");
        assert_eq!(read("box:80").unwrap().host(), "box");
        for bad in ["", "ftp://x", "http://", "box:port", "http://u:p@box", "99999", "a b", "unix:"]
        {
            assert!(read(bad).is_err(), "{bad}");
        }
    }
}
