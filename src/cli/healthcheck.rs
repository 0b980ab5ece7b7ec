//! `tessera healthcheck`: asks the server on this machine, so that an image needs no curl.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
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
}

/// Runs the command.
///
/// # Errors
/// [`CliError::General`] when there is no server or it is not healthy.
pub fn run(args: &HealthcheckArgs) -> Result<(), CliError> {
    let unhealthy = |e: &dyn std::fmt::Display| {
        CliError::General(format!("no healthy server on port {}: {e}", args.port))
    };
    let address = SocketAddr::from(([127, 0, 0, 1], args.port));
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT).map_err(|e| unhealthy(&e))?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(|e| unhealthy(&e))?;
    let request = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).map_err(|e| unhealthy(&e))?;
    let mut reply = [0; 12];
    stream.read_exact(&mut reply).map_err(|e| unhealthy(&e))?;
    match &reply {
        b"HTTP/1.1 200" => Ok(()),
        other => Err(unhealthy(&format!("it answered {}", String::from_utf8_lossy(other)))),
    }
}
