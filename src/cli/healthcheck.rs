//! `tessera healthcheck`: asks a server whether it is healthy, so that an image needs no curl.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper::StatusCode;
use tokio::time::timeout;

use super::CliError;
use super::client::{Address, Client, ClientError};
use super::runtime::small_runtime;
use crate::config::parse_port;

/// Probes give up after a second or a few: so do we, for the connection and for the answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// Flags of `tessera healthcheck`.
#[derive(Args, Debug)]
pub struct HealthcheckArgs {
    /// The server, as 'ready:' prints it: http://HOST:PORT/v1, https://…, HOST:PORT or unix:PATH.
    /// Default: --uds, or --host and --port.
    address: Option<Address>,
    /// Address the server listens on; where it is every address, this machine's own is asked.
    #[arg(long, env = "TESSERA_HOST", value_name = "IP", default_value = "127.0.0.1")]
    host: String,
    /// Port the server listens on.
    #[arg(
        long,
        env = "TESSERA_PORT",
        value_name = "PORT",
        default_value = "8000",
        value_parser = parse_port
    )]
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
    let address = match (&args.address, &args.uds) {
        (Some(address), _) => address.clone(),
        (None, Some(path)) => Address::unix(path),
        (None, None) => Address::listening(&args.host, args.port).map_err(CliError::Usage)?,
    };
    let runtime = small_runtime()?;
    let checked = runtime.block_on(check(&address, args.ssl_certfile.as_deref()));
    // A name that is looked up still is not waited for.
    runtime.shutdown_background();
    checked.map_err(|why| CliError::General(format!("no healthy server at {address}: {why}")))
}

async fn check(address: &Address, certificate: Option<&Path>) -> Result<(), String> {
    let why = |error: ClientError| match error {
        ClientError::NoServer { why, .. } => why,
        other => other.to_string(),
    };
    let client = Client::of_server(address.clone(), certificate, None).map_err(why)?;
    let opened = timeout(TIMEOUT, client.open()).await;
    opened.map_err(|_| format!("it takes no connection within {TIMEOUT:?}"))?.map_err(why)?;
    let answer = timeout(TIMEOUT, client.get("/health")).await;
    let hangs = |_| {
        format!("it takes connections, but has not answered in full within {TIMEOUT:?}: it hangs")
    };
    let answer = answer.map_err(hangs)?.map_err(why)?;
    match answer.status {
        StatusCode::OK => Ok(()),
        status => Err(format!("it answered {}: {}", status.as_u16(), answer.message())),
    }
}
