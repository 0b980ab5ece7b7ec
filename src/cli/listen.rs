//! The socket that `tessera serve` listens on, by its settings.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use tokio::net::{TcpListener, UnixListener};

use super::CliError;
use crate::config::{NetworkConfig, ServeConfig};
use crate::http::{Listener, Tls};

/// A socket, and its address as clients spell it.
///
/// # Errors
/// One line that says what is wrong and how to mend it.
pub async fn listen(config: &ServeConfig) -> Result<(Listener, String), CliError> {
    let NetworkConfig { uds, ssl_certfile, ssl_keyfile, .. } = &config.network;
    let tls = match (ssl_certfile, ssl_keyfile) {
        (Some(certificate), Some(key)) => {
            let tls = Tls::open(certificate.clone(), key.clone());
            Some(tls.map_err(|e| CliError::Config(format!("--ssl-certfile, --ssl-keyfile: {e}")))?)
        }
        _ => None,
    };
    let (listener, address) = match uds {
        Some(path) => (unix(path).await?, format!("unix:{}", path.display())),
        None => {
            let listener = tcp(config).await?;
            let address = listener.local_addr().map_err(|e| CliError::General(e.to_string()))?;
            let scheme = if tls.is_some() { "https" } else { "http" };
            (listener.into(), format!("{scheme}://{address}/v1"))
        }
    };
    Ok((tls.into_iter().fold(listener, Listener::with_tls), address))
}

async fn tcp(config: &ServeConfig) -> Result<TcpListener, CliError> {
    let (host, port) = (config.host.trim_matches(['[', ']']), config.port);
    let listener = TcpListener::bind((host, port)).await;
    listener.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => CliError::PortInUse(format!(
            "port {port} on {host} is in use; stop the other program or choose another --port"
        )),
        _ => CliError::Usage(format!("cannot listen on {host}:{port}: {e}; see --host and --port")),
    })
}

/// A socket file that nobody listens on any more, as a killed server leaves it, makes room.
async fn unix(path: &Path) -> Result<Listener, CliError> {
    let shown = path.display();
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            return Err(CliError::Config(format!(
                "--uds {shown}: there is a file that is no socket"
            )));
        }
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(CliError::PortInUse(format!(
                "the socket {shown} is in use; stop the other program or choose another --uds"
            )));
        }
        let removed = std::fs::remove_file(path);
        removed.map_err(|e| CliError::Config(format!("--uds {shown} cannot be replaced: {e}")))?;
    }
    let listener = UnixListener::bind(path);
    let listener = listener.map_err(|e| CliError::Config(format!("--uds {shown}: {e}")))?;
    Ok(Listener::unix(listener, path.to_owned()))
}
