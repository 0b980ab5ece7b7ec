//! `tessera healthcheck`: asks the server on this machine, so that an image needs no curl.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, SignatureScheme, StreamOwned,
};

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
    /// The server's certificate, if it has one.
    #[arg(long, env = "TESSERA_SSL_CERTFILE")]
    ssl_certfile: Option<PathBuf>,
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
        Some(path) => unix(path).and_then(|stream| check(stream, args)),
        None => tcp(args.port).and_then(|stream| check(stream, args)),
    };
    checked.map_err(|e| CliError::General(format!("no healthy server {place}: {e}")))
}

fn unix(path: &Path) -> io::Result<UnixStream> {
    let stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn tcp(port: u16) -> io::Result<TcpStream> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    Ok(stream)
}

fn check(stream: impl Read + Write, args: &HealthcheckArgs) -> io::Result<()> {
    match &args.ssl_certfile {
        None => ask(stream),
        Some(file) => ask(StreamOwned::new(client(file)?, stream)),
    }
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

/// A client of the one server that has this certificate, whatever its name and its date.
fn client(file: &Path) -> io::Result<ClientConnection> {
    let certificate = CertificateDer::from_pem_file(file);
    let certificate = certificate
        .map_err(|e| io::Error::other(format!("{} holds no certificate: {e}", file.display())))?;
    let provider = Arc::new(ring::default_provider());
    let only = Arc::new(Only { certificate, provider: provider.clone() });
    let config = ClientConfig::builder_with_provider(provider);
    let config = config.with_safe_default_protocol_versions().map_err(io::Error::other)?;
    let config = config.dangerous().with_custom_certificate_verifier(only).with_no_client_auth();
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    ClientConnection::new(Arc::new(config), name).map_err(io::Error::other)
}

/// Takes one certificate and no other: who vouches for it does not matter.
#[derive(Debug)]
struct Only {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Only {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match *end_entity == self.certificate {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(Error::General("its certificate is another than the file's".to_owned())),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
