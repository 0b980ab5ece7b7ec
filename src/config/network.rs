//! Settings of `tessera serve` that say who is heard, and how.

use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};

use super::values::{parse_bytes, parse_seconds};

/// Who is heard, and how.
#[derive(Args, Clone, Debug)]
pub struct NetworkConfig {
    /// Let web pages of this origin use the server (CORS): a scheme and a host as the browser shows
    /// them, or * for any. Repeatable.
    #[arg(
        long = "allowed-origin",
        env = "TESSERA_ALLOWED_ORIGIN",
        value_name = "ORIGIN",
        value_parser = parse_origin,
        action = ArgAction::Append,
        help_heading = "Server"
    )]
    pub allowed_origin: Vec<String>,

    /// Seconds that SIGTERM leaves to load balancers: /ready says 503, and requests are still
    /// taken.
    #[arg(
        long,
        env = "TESSERA_DRAIN_NOTICE_SECONDS",
        value_name = "SECONDS",
        default_value = "0",
        value_parser = parse_seconds,
        help_heading = "Server"
    )]
    pub drain_notice_seconds: u64,

    /// Largest body of a request. Default: 1 KiB for each token of the context, but no less than
    /// 4MiB and no more than 32MiB.
    #[arg(
        long,
        env = "TESSERA_BODY_BYTES_MAX",
        value_name = "BYTES",
        value_parser = parse_bytes,
        help_heading = "Server"
    )]
    pub body_bytes_max: Option<u64>,

    /// Have no page for browsers at /.
    #[arg(
        long,
        env = "TESSERA_NO_PAGE",
        value_parser = BoolishValueParser::new(),
        help_heading = "Server"
    )]
    pub no_page: bool,

    /// Listen on a Unix socket of this path, and not on --host and --port.
    #[arg(long, env = "TESSERA_UDS", value_name = "PATH", help_heading = "Server")]
    pub uds: Option<PathBuf>,

    /// Serve over TLS with the certificate in this PEM file, and those that vouch for it after it.
    /// It is read again when it changes.
    #[arg(
        long,
        env = "TESSERA_SSL_CERTFILE",
        value_name = "FILE",
        requires = "ssl_keyfile",
        help_heading = "Server"
    )]
    pub ssl_certfile: Option<PathBuf>,

    /// The certificate's private key, a PEM file.
    #[arg(
        long,
        env = "TESSERA_SSL_KEYFILE",
        value_name = "FILE",
        requires = "ssl_certfile",
        help_heading = "Server"
    )]
    pub ssl_keyfile: Option<PathBuf>,
}

/// As browsers send it: a scheme, a host, a port if it is not the scheme's, and nothing more.
fn parse_origin(text: &str) -> Result<String, String> {
    let expected = || "expected * or an origin such as https://app.example.org:8443".to_owned();
    if text == "*" {
        return Ok(text.to_owned());
    }
    let (scheme, authority) = text.split_once("://").ok_or_else(expected)?;
    let is_scheme = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    let is_authority = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
    let is_plain = !scheme.is_empty() && !authority.is_empty();
    match is_plain && scheme.chars().all(is_scheme) && authority.chars().all(is_authority) {
        true => Ok(text.to_owned()),
        false => Err(expected()),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_origin;

    #[test]
    fn an_origin_has_a_scheme_and_no_path() {
        for good in ["*", "https://a.org", "http://localhost:3000", "http://[::1]:80", "app://x"] {
            assert_eq!(parse_origin(good).as_deref(), Ok(good));
        }
        for bad in ["", "a.org", "https://a.org/", "https://a.org/x", "https://", "://a", "a, b"] {
            assert!(parse_origin(bad).is_err(), "{bad}");
        }
    }
}
