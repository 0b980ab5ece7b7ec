//! Where a server is, in every spelling that people have of it: what `ready:` prints, what a
//! browser shows, or a host and a port.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// The port of a host that is named without one.
const PORT: u16 = 8000;
/// Those of URLs.
const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// Where a server is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Address {
    at: At,
    /// What stands before `/v1` in the paths of a gateway, without a slash at its end.
    prefix: String,
}

/// Where it listens.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum At {
    /// A host and a port.
    Tcp {
        /// As it stands in a `Host` header: `[::1]` for IPv6.
        host: String,
        /// Of the host.
        port: u16,
        /// Whether it speaks TLS, where the spelling says.
        tls: Option<bool>,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

impl Address {
    /// A port of this machine.
    pub fn local(port: u16) -> Self {
        let at = At::Tcp { host: "127.0.0.1".to_owned(), port, tls: None };
        Self { at, prefix: String::new() }
    }

    /// A server of this machine that listens on a host, as its flag has it, and a port.
    ///
    /// # Errors
    /// One line: it is no host.
    pub fn listening(host: &str, port: u16) -> Result<Self, String> {
        let host = host.trim_matches(['[', ']']);
        let host = match host.split('%').next().unwrap_or(host).parse::<IpAddr>() {
            // Every address of the machine: the one that leads nowhere else.
            Ok(IpAddr::V4(ip)) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.to_string(),
            Ok(IpAddr::V6(ip)) if ip.is_unspecified() => format!("[{}]", Ipv6Addr::LOCALHOST),
            Ok(IpAddr::V6(_)) => format!("[{host}]"),
            Ok(IpAddr::V4(_)) | Err(_) => host.to_owned(),
        };
        if !is_host(&host) {
            return Err(format!("--host '{host}': expected an address or a name of this machine"));
        }
        let at = At::Tcp { host, port, tls: None };
        Ok(Self { at, prefix: String::new() })
    }

    /// A Unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { at: At::Unix(path.into()), prefix: String::new() }
    }

    /// Where it listens.
    pub fn at(&self) -> &At {
        &self.at
    }

    /// What stands before each path of the API.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// What stands in the `Host` header of a request.
    pub fn authority(&self) -> String {
        match &self.at {
            At::Tcp { host, port, .. } => format!("{host}:{port}"),
            At::Unix(_) => "localhost".to_owned(),
        }
    }

    /// The host alone, without brackets.
    pub fn host(&self) -> &str {
        match &self.at {
            At::Tcp { host, .. } => host.trim_matches(['[', ']']),
            At::Unix(_) => "localhost",
        }
    }

    /// Whether to speak TLS to it; `by_default` where its spelling does not say.
    pub fn speaks_tls(&self, by_default: bool) -> bool {
        match &self.at {
            At::Tcp { tls, .. } => tls.unwrap_or(by_default),
            At::Unix(_) => by_default,
        }
    }
}

impl FromStr for Address {
    type Err = String;

    /// `http://HOST[:PORT][/PREFIX][/v1]`, the same with `https` or without a scheme, a port of
    /// this machine, or a path of a Unix socket, after `unix:` or with a slash or dot at its begin.
    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || {
            "expected a server's address: http://HOST:PORT/v1, https://HOST:PORT/v1, HOST:PORT or \
             unix:PATH"
                .to_owned()
        };
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(expected()) } else { Ok(Self::unix(path)) };
        }
        if text.starts_with(['/', '.']) {
            return Ok(Self::unix(text));
        }
        let (tls, rest, port) = match text.split_once("://") {
            Some(("http", rest)) => (Some(false), rest, HTTP_PORT),
            Some(("https", rest)) => (Some(true), rest, HTTPS_PORT),
            Some(_) => return Err(expected()),
            None => (None, text, PORT),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if !path.chars().all(|c| c.is_ascii_graphic() && !"?#".contains(c)) {
            return Err(expected());
        }
        let path = path.trim_end_matches('/');
        let prefix = path.strip_suffix("/v1").unwrap_or(path).to_owned();
        let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if tls.is_none() && !authority.is_empty() && is_number(authority) {
            let port: u16 = authority.parse().map_err(|_| expected())?;
            return Ok(Self { prefix, ..Self::local(port) });
        }
        if !authority.starts_with('[') && authority.matches(':').count() > 1 {
            return Err(format!("{}; one of IPv6 has brackets, [::1]:{PORT}", expected()));
        }
        let (host, given) = match authority.rsplit_once(':') {
            Some((host, given)) if !given.contains(']') => (host, Some(given)),
            _ => (authority, None),
        };
        if !is_host(host) {
            return Err(expected());
        }
        let port = given.map_or(Ok(port), |given| given.parse().map_err(|_| expected()))?;
        Ok(Self { at: At::Tcp { host: host.to_owned(), port, tls }, prefix })
    }
}

/// A name, an IPv4 address, or one of IPv6 in brackets, there with its zone if it has one.
fn is_host(text: &str) -> bool {
    let is_word = |text: &str| {
        let legal = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        !text.is_empty() && text.chars().all(legal)
    };
    let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) else {
        return is_word(text);
    };
    let (ip, zone) = inner.split_once('%').unwrap_or((inner, "0"));
    ip.parse::<Ipv6Addr>().is_ok() && is_word(zone)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Tcp { host, port, tls } => {
                let scheme = tls.map_or("", |tls| if tls { "https://" } else { "http://" });
                write!(f, "{scheme}{host}:{port}{}", self.prefix)
            }
            At::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Address {
        text.parse().unwrap_or_else(|e| panic!("{text}: {e}"))
    }

    fn tcp(host: &str, port: u16, tls: Option<bool>) -> At {
        At::Tcp { host: host.to_owned(), port, tls }
    }

    #[test]
    fn an_address_is_read_in_every_spelling_that_serve_prints_and_in_shorter_ones() {
        for (text, at) in [
            ("http://127.0.0.1:8000/v1", tcp("127.0.0.1", 8000, Some(false))),
            ("http://127.0.0.1:8000/", tcp("127.0.0.1", 8000, Some(false))),
            ("127.0.0.1:8000", tcp("127.0.0.1", 8000, None)),
            ("127.0.0.1:8000/v1", tcp("127.0.0.1", 8000, None)),
            ("https://[::1]:8443/v1", tcp("[::1]", 8443, Some(true))),
            ("http://[::1]", tcp("[::1]", 80, Some(false))),
            ("[::1]", tcp("[::1]", 8000, None)),
            ("[fe80::1%eth0]:80", tcp("[fe80::1%eth0]", 80, None)),
            ("box", tcp("box", 8000, None)),
            ("9000", tcp("127.0.0.1", 9000, None)),
            ("9000/v1", tcp("127.0.0.1", 9000, None)),
            ("https://models.example.org", tcp("models.example.org", 443, Some(true))),
            ("https://models.example.org/v1/", tcp("models.example.org", 443, Some(true))),
            ("unix:/run/t.sock", At::Unix("/run/t.sock".into())),
            ("unix:///run/t.sock", At::Unix("/run/t.sock".into())),
            ("unix:t.sock", At::Unix("t.sock".into())),
            ("/run/t.sock", At::Unix("/run/t.sock".into())),
            ("./t.sock", At::Unix("./t.sock".into())),
        ] {
            assert_eq!(read(text), Address { at, prefix: String::new() }, "{text}");
        }
    }

    #[test]
    fn a_server_is_asked_where_it_listens() {
        let shown = |host: &str| Address::listening(host, 80).map(|address| address.to_string());
        for (host, asked) in [
            ("127.0.0.1", "127.0.0.1:80"),
            ("0.0.0.0", "127.0.0.1:80"),
            ("10.0.0.7", "10.0.0.7:80"),
            ("::", "[::1]:80"),
            ("[::]", "[::1]:80"),
            ("::1", "[::1]:80"),
            ("fe80::1%eth0", "[fe80::1%eth0]:80"),
            ("localhost", "localhost:80"),
        ] {
            assert_eq!(shown(host).as_deref(), Ok(asked), "{host}");
        }
        for host in ["", "a b", "http://a", "::1%"] {
            assert!(shown(host).is_err(), "{host}");
        }
        let error = "::1".parse::<Address>().unwrap_err();
        assert!(error.contains("[::1]:8000"), "{error}");
    }

    #[test]
    fn the_prefix_of_a_gateway_is_kept() {
        for text in ["http://gw/llm/v1", "http://gw/llm/v1/", "http://gw/llm", "http://gw/llm/"] {
            let address = read(text);
            assert_eq!((address.at(), address.prefix()), (&tcp("gw", 80, Some(false)), "/llm"));
        }
        assert_eq!(read("gw:80/a/b/v1").prefix(), "/a/b");
        assert_eq!(read("http://gw/v1/v1").prefix(), "/v1");
    }

    #[test]
    fn a_host_has_brackets_in_headers_and_none_in_certificates() {
        assert_eq!(
            (read("[::1]:80").authority(), read("[::1]").host()),
            ("[::1]:80".into(), "::1")
        );
        assert_eq!((read("box").authority(), read("box:80").host()), ("box:8000".into(), "box"));
        assert_eq!(read("unix:/a").authority(), "localhost");
    }

    #[test]
    fn what_is_shown_is_where_it_is() {
        for (text, shown) in [
            ("https://box/llm/v1", "https://box:443/llm"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("9000", "127.0.0.1:9000"),
            ("/run/t.sock", "unix:/run/t.sock"),
        ] {
            let address = read(text);
            assert_eq!(address.to_string(), shown);
            assert_eq!(read(shown), address, "it is read back");
        }
    }

    #[test]
    fn a_scheme_says_whether_there_is_tls_and_else_a_certificate_does() {
        assert!(read("https://a").speaks_tls(false) && !read("http://a").speaks_tls(true));
        for text in ["a:1", "9000", "unix:/a"] {
            assert!(read(text).speaks_tls(true) && !read(text).speaks_tls(false), "{text}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "",
            "ftp://x",
            "http://",
            "https:///v1",
            "box:port",
            "http://a:x",
            "http://u:p@box",
            "99999",
            "a:99999",
            "a b",
            "http://a b",
            "unix:",
            "unix://",
            "a?b",
            "a/#",
            "::1",
            "[]",
            "[::1",
            "[box]",
            "[::1%]",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
