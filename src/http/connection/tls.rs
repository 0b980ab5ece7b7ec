//! The certificate of a server, read again when its files change.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::http::seen::{Seen, seen};

/// Between two looks at the files, which are taken when a connection comes.
const LOOK_AFTER: Duration = Duration::from_secs(1);

/// A certificate with its key. Connections keep the one that they began with.
pub struct Tls {
    certificate: PathBuf,
    key: PathBuf,
    held: Mutex<Held>,
}

struct Held {
    config: Arc<ServerConfig>,
    /// What the files were when they were last read, or refused.
    seen: [Option<Seen>; 2],
    looked: Instant,
}

impl Tls {
    /// Of two PEM files: the certificate, followed by those that vouch for it, and its private key.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn open(certificate: PathBuf, key: PathBuf) -> Result<Self, String> {
        let seen = [seen(&certificate), seen(&key)];
        let config = Arc::new(read(&certificate, &key)?);
        let held = Mutex::new(Held { config, seen, looked: Instant::now() });
        Ok(Self { certificate, key, held })
    }

    /// For the next connection. Files that cannot be used leave the last ones in use.
    pub(in crate::http) fn current(&self) -> Arc<ServerConfig> {
        let Self { certificate, key, held } = self;
        // Whatever happened while it was held, each field is whole.
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.looked.elapsed() >= LOOK_AFTER {
            held.looked = Instant::now();
            let now = [seen(certificate), seen(key)];
            if now != held.seen {
                held.seen = now;
                match read(certificate, key) {
                    Ok(config) => {
                        held.config = Arc::new(config);
                        tracing::info!("the certificate has been read again");
                    }
                    Err(error) => {
                        tracing::warn!("the certificate in use stays, the new one is not: {error}");
                    }
                }
            }
        }
        held.config.clone()
    }
}

fn read(certificate: &Path, key: &Path) -> Result<ServerConfig, String> {
    let file = |path: &Path| {
        fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    let of = |path: &Path, what: &str, error: &dyn std::fmt::Display| {
        format!("{} must hold {what} in PEM form: {error}", path.display())
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&file(certificate)?).collect();
    let chain = chain.map_err(|error| of(certificate, "certificates", &error))?;
    if chain.is_empty() {
        return Err(of(certificate, "certificates", &"there is none"));
    }
    let private = PrivateKeyDer::from_pem_slice(&file(key)?);
    let private = private.map_err(|error| of(key, "a private key", &error))?;
    let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    let config = builder.with_no_client_auth().with_single_cert(chain, private);
    let mut config = config.map_err(|error| {
        format!("{} and {} cannot be used: {error}", certificate.display(), key.display())
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
