//! From what went wrong to what a client reads: one enum for each cause, and in its file a line of
//! the table for each of its variants.

mod access;
mod anthropic;
mod codes;
mod load;
mod protocol;
mod request;
mod row;
mod server;
mod short;
mod unread;

pub(super) use access::AccessError;
pub(super) use anthropic::as_anthropics;
pub use codes::{ERROR_CODES, Retry};
pub(super) use load::LoadError;
pub(super) use protocol::ProtocolError;
pub(super) use request::RequestError;
pub(super) use row::shown;
pub(super) use server::ServerError;
pub use short::shortened;
pub(super) use unread::UnreadError;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use self::row::Row;
use super::sse::Body;
use super::wire::to_json;
use crate::engine::Busy;
use crate::request::Invalid;

/// Everything that is answered with an error.
#[derive(Debug)]
pub(super) enum ApiError {
    /// What the request asks for.
    Request(RequestError),
    /// What the server cannot do now.
    Server(ServerError),
    /// How the request was sent.
    Protocol(ProtocolError),
    /// What is no request.
    Unread(UnreadError),
    /// Loading and unloading adapters.
    Load(LoadError),
    /// Who may ask for it, and how often.
    Access(AccessError),
}

impl ApiError {
    fn row(&self) -> Row {
        let row = match self {
            Self::Request(error) => error.row(),
            Self::Server(error) => error.row(),
            Self::Protocol(error) => error.row(),
            Self::Unread(error) => error.row(),
            Self::Load(error) => error.row(),
            Self::Access(error) => error.row(),
        };
        // A client's own field may be at fault, of any length.
        let param = row.param.as_deref().map(shown);
        Row { message: shortened(&row.message).into_owned(), param, ..row }
    }

    /// OpenAI's error object, all four keys.
    pub fn to_json(&self) -> Vec<u8> {
        self.row().to_json()
    }

    /// Anthropic's error object, for a stream.
    pub fn to_anthropics(&self) -> Vec<u8> {
        anthropic::to_json(&self.row(), None)
    }

    /// A stable word for programs.
    pub fn code(&self) -> &'static str {
        self.row().code
    }

    /// Of HTTP.
    pub fn status(&self) -> u16 {
        self.row().status
    }

    /// What it tells a reader.
    pub fn message(&self) -> String {
        self.row().message
    }

    /// The whole answer.
    pub fn respond(&self) -> Response<Body> {
        let row = self.row();
        let mut response = Response::new(Full::new(Bytes::from(row.to_json())).boxed_unsync());
        // Every status of the table is a valid one.
        *response.status_mut() = StatusCode::from_u16(row.status).unwrap_or_default();
        // For a route whose clients read another form.
        response.extensions_mut().insert(row.clone());
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(retry) = row.retry {
            let value = HeaderValue::from_static(if retry { "true" } else { "false" });
            headers.insert(HeaderName::from_static("x-should-retry"), value);
        }
        if let Some((name, value)) = row.header
            && let Ok(value) = HeaderValue::try_from(value.as_ref())
        {
            headers.insert(HeaderName::from_static(name), value);
        }
        response
    }

    /// The whole answer as bytes of HTTP/1.1, for a connection that ends with it.
    pub fn to_http1(&self) -> Vec<u8> {
        let (head, json) = (self.respond().into_parts().0, self.to_json());
        let mut bytes = format!("HTTP/1.1 {}\r\n", head.status).into_bytes();
        for (name, value) in &head.headers {
            bytes.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
        }
        let length = json.len();
        bytes.extend(format!("connection: close\r\ncontent-length: {length}\r\n\r\n").bytes());
        bytes.extend(json);
        bytes
    }
}

impl Row {
    fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Object<'a> {
            message: &'a str,
            r#type: &'a str,
            param: Option<&'a str>,
            code: &'a str,
        }
        #[derive(Serialize)]
        struct Envelope<'a> {
            error: Object<'a>,
        }
        let Self { kind, code, param, message, .. } = self;
        let error = Object { message, r#type: kind, param: param.as_deref(), code };
        to_json(&Envelope { error })
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        Self::Request(error)
    }
}

impl From<ServerError> for ApiError {
    fn from(error: ServerError) -> Self {
        Self::Server(error)
    }
}

impl From<ProtocolError> for ApiError {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

impl From<UnreadError> for ApiError {
    fn from(error: UnreadError) -> Self {
        Self::Unread(error)
    }
}

impl From<LoadError> for ApiError {
    fn from(error: LoadError) -> Self {
        Self::Load(error)
    }
}

impl From<AccessError> for ApiError {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}

impl From<Invalid> for RequestError {
    fn from(error: Invalid) -> Self {
        Self::Invalid(error)
    }
}

impl From<Invalid> for ApiError {
    fn from(error: Invalid) -> Self {
        Self::Request(RequestError::Invalid(error))
    }
}

impl From<Busy> for ApiError {
    fn from(error: Busy) -> Self {
        Self::Server(ServerError::Busy(error))
    }
}
