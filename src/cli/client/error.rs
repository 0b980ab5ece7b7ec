//! Why a server gave no answer, or none that is of use.

use hyper::StatusCode;

use crate::cli::CliError;

/// Why a server gave no answer, or none that is of use; one line each.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody can be reached there, or nobody who is believed.
    #[error("no server at {address}: {why}")]
    NoServer {
        /// Where.
        address: String,
        /// What the system says.
        why: String,
    },
    /// An answer of another status than 200.
    #[error("the server answered {}: {message}", status.as_u16())]
    Refused {
        /// Its status.
        status: StatusCode,
        /// The word that an error has for programs.
        code: Option<String>,
        /// What the error says to people.
        message: String,
    },
    /// An answer that broke off, or is none of this API.
    #[error("{0}")]
    Broken(String),
    /// The file that should hold the server's certificate holds none.
    #[error("{0}")]
    Certificate(String),
}

impl ClientError {
    /// Whether it may be otherwise in a while: nobody is there yet, or is too busy.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::NoServer { .. } | Self::Broken(_) => true,
            Self::Refused { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            Self::Certificate(_) => false,
        }
    }
}

impl From<ClientError> for CliError {
    /// What was asked for is the user's.
    fn from(error: ClientError) -> Self {
        let is_users = match &error {
            ClientError::Refused { status, .. } => {
                status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS
            }
            ClientError::Certificate(_) => true,
            ClientError::NoServer { .. } | ClientError::Broken(_) => false,
        };
        match is_users {
            true => CliError::Usage(error.to_string()),
            false => CliError::General(error.to_string()),
        }
    }
}

impl From<hyper::Error> for ClientError {
    /// With its cause, which its own text leaves out, and with what it comes from most often.
    fn from(error: hyper::Error) -> Self {
        let text = match std::error::Error::source(&error) {
            None => error.to_string(),
            Some(cause) => format!("{error}: {cause}"),
        };
        Self::Broken(if error.is_parse() {
            format!(
                "what answers there speaks no HTTP ({text}): it is another program, or a server \
                 that speaks TLS (https://)"
            )
        } else if error.is_incomplete_message() {
            format!("it ended the connection before its answer was whole ({text})")
        } else {
            text
        })
    }
}
