//! `tessera healthcheck`: asks a server whether it is healthy, so that an image needs no curl.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_rustls::rustls::{ClientConnection, StreamOwned};

use super::CliError;
use super::server::{Address, client_config, server_name};

/// Probes give up after a second or a few: so do we.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Flags of `tessera healthcheck`.
#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// The server, as 'ready:' prints it: http://HOST:PORT/v1, https://…, HOST:PORT or unix:PATH.
    /// Default: --uds or --port of this machine.
    address: Option<Address>,
    /// Port the server listens on.
    #[arg(long, env = "TESSERA_PORT", default_value = "8000")]
    port: u16,
    /// Unix socket the server listens on, if it does.
    #[arg(long, env = "TESSERA_UDS", value_name = "PATH")]
    uds: Option<PathBuf>,
    /// The server's certificate, if it has one; it alone is believed then.
    #[arg(long, env = "TESSERA_SSL_CERTFILE", value_name = "FILE")]
    ssl_certfile: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::General`] when there is no server or it is not healthy.
pub fn run(args: &HealthcheckArgs) -> Result<(), CliError> {
    let local = || match &args.uds {
        Some(path) => Address::Unix(path.clone()),
        None => Address::local(args.port),
    };
    let address = args.address.clone().unwrap_or_else(local);
    let certificate = args.ssl_certfile.as_deref();
    let checked = match &address {
        Address::Unix(path) => unix(path).and_then(|stream| check(stream, &address, certificate)),
        Address::Tcp { authority, .. } => {
            tcp(authority).and_then(|stream| check(stream, &address, certificate))
        }
    };
    checked.map_err(|e| CliError::General(format!("no healthy server at {address}: {e}")))
}

fn unix(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn tcp(authority: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::other("the host has no address");
    for address in authority.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, TIMEOUT) {
            Ok(stream) => {
                stream.set_read_timeout(Some(TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn check(stream: impl Read + Write, address: &Address, cert: Option<&Path>) -> io::Result<()> {
    if !address.speaks_tls(cert.is_some()) {
        return ask(stream);
    }
    let config = Arc::new(client_config(cert)?);
    let client = ClientConnection::new(config, server_name(address.host())?);
    ask(StreamOwned::new(client.map_err(io::Error::other)?, stream))
}

fn ask(mut stream: impl Read + Write) -> io::Result<()> {
    let request = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes())?;
    let mut reply = [0; 12];
    stream.read_exact(&mut reply)?;
    match &reply {
        b"HTTP/1.1 200" => Ok(()),
        other => {
            let other = String::from_utf8_lossy(other);
            Err(io::Error::other(format!("it answered {other}")))
        }
    }
}
