//! `tessera healthcheck`: asks the server on this machine, so that an image needs no curl.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::CliError;

/// Probes give up after a second or a few: so do we.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Flags of `tessera healthcheck`.
#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// Port the server listens on.
    #[arg(long, env = "TESSERA_PORT", default_value = "8000")]
    port: u16,
    /// Unix socket the server listens on, if it does.
    #[arg(long, env = "TESSERA_UDS")]
    uds: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::General`] when there is no server or it is not healthy.
pub fn run(args: &HealthcheckArgs) -> Result<(), CliError> {
    let place = match &args.uds {
        Some(path) => format!("at {}", path.display()),
        None => format!("on port {}", args.port),
    };
    let checked = match &args.uds {
        Some(path) => UnixStream::connect(path).and_then(|stream| {
            stream.set_read_timeout(Some(TIMEOUT))?;
            check(stream)
        }),
        None => {
            let address = SocketAddr::from(([127, 0, 0, 1], args.port));
            TcpStream::connect_timeout(&address, TIMEOUT).and_then(|stream| {
                stream.set_read_timeout(Some(TIMEOUT))?;
                check(stream)
            })
        }
    };
    checked.map_err(|e| CliError::General(format!("no healthy server {place}: {e}")))
}

fn check(mut stream: impl Read + Write) -> io::Result<()> {
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
