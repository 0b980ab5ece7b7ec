//! Who may use the server that `tessera serve` starts, by its settings.

use std::sync::Arc;

use super::CliError;
use crate::config::{AccessConfig, Secret, ServeConfig};
use crate::http::{KeyHash, Keys};

/// Who may use it.
pub struct Access {
    /// Who has a key; `None` is whoever reaches it.
    pub keys: Option<Arc<Keys>>,
    /// The metrics' key.
    pub metrics_key: Option<KeyHash>,
    /// Lines of the start-up report.
    pub report: Vec<String>,
    /// What the log must hold too, once the server can be reached.
    pub warning: Option<String>,
}

/// Reads all keys.
///
/// # Errors
/// One line that says what is wrong and how to mend it, without any part of a key.
pub fn read(config: &ServeConfig) -> Result<Access, CliError> {
    let AccessConfig { api_key, keys: file, require_auth, metrics_key, .. } = &config.access;
    let hash = |flag: &'static str| {
        move |secret: &Secret| {
            KeyHash::read(secret.reveal()).map_err(|e| CliError::Config(format!("{flag}: {e}")))
        }
    };
    let own = api_key.iter().map(hash("--api-key")).collect::<Result<Vec<_>, _>>()?;
    let metrics_key = metrics_key.as_ref().map(hash("--metrics-key")).transpose()?;
    let mut report = Vec::new();
    let has_keys = !own.is_empty() || file.is_some();
    let keys = has_keys.then(|| Keys::open(own, file.clone())).transpose();
    let keys = keys.map_err(CliError::Config)?.map(Arc::new);
    report.extend(keys.iter().flat_map(|keys| keys.describe()));
    if keys.is_none() && *require_auth {
        let message = "--require-auth: there is no key; give --api-key KEY or --keys FILE";
        return Err(CliError::Config(message.to_owned()));
    }
    let is_open = keys.is_none() && is_public(config);
    let warning = is_open.then(|| {
        format!(
            "OPEN TO THE NETWORK WITHOUT A KEY: whoever can reach {} can use this server{}; give \
             --api-key KEY or --keys FILE (--require-auth refuses to start without)",
            config.host,
            if config.allow_runtime_adapters { ", and load and delete adapters" } else { "" }
        )
    });
    report.extend(warning.iter().map(|warning| format!("warning: {warning}")));
    Ok(Access { keys, metrics_key, report, warning })
}

/// Whether others than this machine's users can reach it.
fn is_public(config: &ServeConfig) -> bool {
    let loopback = |ip: std::net::IpAddr| ip.is_loopback();
    let host = config.host.trim_matches(['[', ']']);
    let is_local = host == "localhost" || host.parse().is_ok_and(loopback);
    config.network.uds.is_none() && !is_local
}
