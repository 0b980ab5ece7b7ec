//! The one table from what went wrong to what a client reads.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use serde::Serialize;

use super::sse::Body;
use crate::adapter::{AdapterError, StoreError};
use crate::engine::Busy;
use crate::request::Invalid;
use crate::text::TextError;

/// Longer values of clients are cut in messages.
const SHOWN_CHARS_MAX: usize = 256;

/// Everything that is answered with an error.
#[derive(Debug)]
pub(super) enum ApiError {
    /// A body that is not the JSON expected, at `param` if that is known.
    Json { param: Option<String>, message: String, code: &'static str },
    /// A field that is required.
    Missing(&'static str),
    /// A field, or a value of it, that is known and not built.
    Unsupported { param: String, message: String },
    /// A value out of range.
    Invalid(Invalid),
    /// Text that could not become tokens.
    Text { param: &'static str, error: TextError, context_tokens_max: u32 },
    /// Chat without a template.
    NoTemplate,
    /// `model` names nothing.
    ModelNotFound(String),
    /// `model` names something else than the merged adapter.
    NotMerged { served: String, asked: String },
    /// Adapters cannot change while one is merged.
    MergedIsFixed(String),
    /// The queue is full.
    Busy(Busy),
    /// Too many bytes of bodies at once.
    BodiesFull { bodies_bytes_max: usize },
    /// Shutting down.
    Draining,
    /// The engine thread has ended.
    EngineGone,
    /// The engine failed on this sequence.
    EngineFailed(String),
    /// A panic, or a lost thread.
    Internal,
    /// A body above the limit.
    BodyTooLarge { body_bytes_max: usize },
    /// A body that came too slowly.
    BodyTimeout { timeout_ms: u64 },
    /// A body that ended early or was framed wrongly.
    BodyBroken,
    /// Another content type than JSON.
    ContentType { found: String },
    /// No such route.
    NoRoute { path: String },
    /// The route exists, the method does not.
    Method { method: String, allow: &'static str },
    /// Not exactly one well-formed `Host`.
    HostHeader,
    /// A `Host` or `Origin` that this server is not.
    HostRefused { header: &'static str, found: String },
    /// An `Expect` other than `100-continue`.
    Expect,
    /// Loading or unloading without the flag.
    RuntimeAdaptersOff,
    /// `lora_name` or `lora_path` is missing at a load.
    LoadFields,
    /// `lora_name` is missing at an unload.
    UnloadFields,
    /// An adapter named like the base.
    NameConflict(String),
    /// A path that is not beneath the root, whether or not it exists.
    OutsideRoot,
    /// Nothing at the path.
    AdapterMissing { name: String, path: String },
    /// No adapter of this name is loaded.
    AdapterUnknown(String),
    /// The adapter was refused.
    Adapter { name: String, error: AdapterError },
    /// The store refused it.
    Store(StoreError),
}

/// One line of the table.
struct Row {
    status: u16,
    kind: &'static str,
    code: &'static str,
    param: Option<String>,
    message: String,
}

/// `type` of an error, as OpenAI spells it.
const REQUEST: &str = "invalid_request_error";
const NOT_FOUND: &str = "not_found_error";
const PERMISSION: &str = "permission_error";
const RATE: &str = "rate_limit_error";
const SERVER: &str = "server_error";

fn row(status: u16, kind: &'static str, code: &'static str, message: impl Into<String>) -> Row {
    Row { status, kind, code, param: None, message: message.into() }
}

impl Row {
    fn at(mut self, param: &str) -> Self {
        self.param = Some(param.to_owned());
        self
    }
}

/// At most [`SHOWN_CHARS_MAX`] of what a client sent.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => text.to_owned(),
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}

impl ApiError {
    fn row(&self) -> Row {
        match self {
            Self::Json { .. }
            | Self::Missing(_)
            | Self::Unsupported { .. }
            | Self::Invalid(_)
            | Self::Text { .. }
            | Self::NoTemplate
            | Self::ModelNotFound(_)
            | Self::NotMerged { .. }
            | Self::MergedIsFixed(_) => self.request_row(),
            Self::Busy(_)
            | Self::BodiesFull { .. }
            | Self::Draining
            | Self::EngineGone
            | Self::EngineFailed(_)
            | Self::Internal => self.server_row(),
            Self::BodyTooLarge { .. }
            | Self::BodyTimeout { .. }
            | Self::BodyBroken
            | Self::ContentType { .. }
            | Self::NoRoute { .. }
            | Self::Method { .. }
            | Self::HostHeader
            | Self::HostRefused { .. }
            | Self::Expect => self.protocol_row(),
            _ => self.adapter_row(),
        }
    }

    /// What a generation asks for.
    fn request_row(&self) -> Row {
        match self {
            Self::Json { param, message, code } => {
                Row { param: param.clone(), ..row(400, REQUEST, code, message) }
            }
            Self::Missing(field) => {
                row(400, REQUEST, "missing_field", format!("'{field}' must be provided.")).at(field)
            }
            Self::Unsupported { param, message } => {
                row(400, REQUEST, "unsupported_parameter", message).at(param)
            }
            Self::Invalid(Invalid { param, message, code }) => {
                row(400, REQUEST, code, message).at(param)
            }
            Self::Text {
                param,
                error: TextError::TooLong { text_bytes_max },
                context_tokens_max,
            } => {
                let message = format!(
                    "This model's maximum context length is {context_tokens_max} tokens. However, \
                     a text of more than {text_bytes_max} bytes cannot fit. Shorten the {param}."
                );
                row(400, REQUEST, "context_length_exceeded", message).at(param)
            }
            Self::Text { param, error, .. } if error.is_client_fault() => {
                row(400, REQUEST, "invalid_text", error.to_string()).at(param)
            }
            Self::Text { error, .. } => row(500, SERVER, "text_failed", error.to_string()),
            Self::NoTemplate => row(
                400,
                REQUEST,
                "no_chat_template",
                "This model has no chat template. Use /v1/completions instead.",
            ),
            Self::ModelNotFound(name) => {
                let message = format!("The model `{}` does not exist.", shown(name));
                row(404, NOT_FOUND, "model_not_found", message).at("model")
            }
            Self::NotMerged { served, asked } => {
                let message = format!(
                    "This server has the adapter '{served}' merged into its weights and serves \
                     only that; '{}' cannot be served. Start it without --merge to serve the base \
                     and any number of adapters.",
                    shown(asked)
                );
                row(400, REQUEST, "merged_mode", message).at("model")
            }
            Self::MergedIsFixed(served) => {
                let message = format!(
                    "Adapters cannot be loaded or unloaded while '{served}' is merged into the \
                     weights. Start the server without --merge."
                );
                row(400, REQUEST, "merged_mode", message)
            }
            _ => Self::bug(),
        }
    }

    /// What the server cannot do now.
    fn server_row(&self) -> Row {
        match self {
            Self::Busy(busy) => row(429, RATE, "queue_full", busy.to_string()),
            Self::BodiesFull { bodies_bytes_max } => {
                let message = format!(
                    "the server is reading its limit of {bodies_bytes_max} bytes of requests; \
                     retry later"
                );
                row(503, SERVER, "bodies_full", message)
            }
            Self::Draining => row(503, SERVER, "draining", "The server is shutting down."),
            Self::EngineGone => row(503, SERVER, "engine_stopped", "The engine has stopped."),
            Self::EngineFailed(message) => row(500, SERVER, "engine_failed", message),
            _ => Self::bug(),
        }
    }

    /// How the request was sent.
    fn protocol_row(&self) -> Row {
        match self {
            Self::BodyTooLarge { body_bytes_max } => {
                let message = format!("The request body must be at most {body_bytes_max} bytes.");
                row(413, REQUEST, "body_too_large", message)
            }
            Self::BodyTimeout { timeout_ms } => {
                let message = format!("The request body did not arrive within {timeout_ms} ms.");
                row(408, REQUEST, "body_timeout", message)
            }
            Self::BodyBroken => {
                row(400, REQUEST, "body_broken", "The request body could not be read to its end.")
            }
            Self::ContentType { found } => {
                let message =
                    format!("Content-Type must be application/json, got '{}'.", shown(found));
                row(415, REQUEST, "unsupported_media_type", message)
            }
            Self::NoRoute { path } => {
                let message = format!("There is no route '{}'.", shown(path));
                row(404, NOT_FOUND, "route_not_found", message)
            }
            Self::Method { method, allow } => {
                let message = format!("{} is not allowed here; use {allow}.", shown(method));
                row(405, REQUEST, "method_not_allowed", message)
            }
            Self::HostHeader => row(
                400,
                REQUEST,
                "invalid_host",
                "A request must have exactly one Host header, 'name' or 'name:port'.",
            ),
            Self::HostRefused { header, found } => {
                let message = format!(
                    "The {header} '{}' is not this server; add it to the allowed hosts if it is.",
                    shown(found)
                );
                row(403, PERMISSION, "host_not_allowed", message)
            }
            Self::Expect => {
                row(417, REQUEST, "expectation_failed", "Expect must be 100-continue or absent.")
            }
            _ => Self::bug(),
        }
    }

    /// Loading and unloading; statuses and texts are vLLM's, which control planes compare.
    fn adapter_row(&self) -> Row {
        match self {
            Self::RuntimeAdaptersOff => row(
                404,
                NOT_FOUND,
                "runtime_adapters_off",
                "Not Found: start the server with --allow-runtime-adapters to load and unload \
                 adapters.",
            ),
            Self::LoadFields => row(
                400,
                REQUEST,
                "missing_field",
                "Both 'lora_name' and 'lora_path' must be provided.",
            ),
            Self::UnloadFields => row(
                400,
                REQUEST,
                "missing_field",
                "'lora_name' needs to be provided to unload a LoRA adapter.",
            ),
            Self::NameConflict(name) => {
                let name = shown(name);
                let message =
                    format!("The lora adapter '{name}' conflicts with a served base model.");
                row(400, REQUEST, "adapter_name_conflict", message).at("lora_name")
            }
            Self::OutsideRoot => row(
                400,
                REQUEST,
                "path_outside_root",
                "'lora_path' must be a directory beneath the server's --adapter-root.",
            )
            .at("lora_path"),
            Self::AdapterMissing { name, path } => {
                let path = shown(path);
                let message = format!("Loading lora {name} failed: No adapter found for {path}");
                row(404, NOT_FOUND, "adapter_not_found", message).at("lora_path")
            }
            Self::AdapterUnknown(name) => {
                let message = format!("The lora adapter '{}' cannot be found.", shown(name));
                row(404, NOT_FOUND, "adapter_not_found", message).at("lora_name")
            }
            Self::Adapter { name, error } => {
                let message = format!("Loading lora {name} failed: {error}");
                row(400, REQUEST, "invalid_adapter", message).at("lora_path")
            }
            Self::Store(StoreError::Taken(name)) => {
                let message = format!(
                    "The lora adapter '{name}' has already been loaded. If you want to load the \
                     adapter in place, set 'load_inplace' to True."
                );
                row(400, REQUEST, "adapter_already_loaded", message).at("lora_name")
            }
            Self::Store(error @ StoreError::Name(_)) => {
                row(400, REQUEST, "invalid_adapter_name", error.to_string()).at("lora_name")
            }
            // A 4xx that openai-python does not retry by itself.
            Self::Store(error @ StoreError::Full { .. }) => {
                row(400, REQUEST, "adapter_store_full", error.to_string())
            }
            _ => Self::bug(),
        }
    }

    fn bug() -> Row {
        row(500, SERVER, "internal_error", "The server failed on this request. This is a bug.")
    }

    /// OpenAI's error object, all four keys.
    pub fn to_json(&self) -> Vec<u8> {
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
        let Row { kind, code, param, message, .. } = self.row();
        let error = Object { message: &message, r#type: kind, param: param.as_deref(), code };
        super::wire::to_json(&Envelope { error })
    }

    /// The whole answer.
    pub fn respond(&self) -> Response<Body> {
        let body = Full::new(Bytes::from(self.to_json())).boxed_unsync();
        let mut response = Response::new(body);
        // Every status of the table is a valid one.
        *response.status_mut() = hyper::StatusCode::from_u16(self.row().status).unwrap_or_default();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        match self {
            Self::Busy(_) | Self::Draining | Self::EngineGone | Self::BodiesFull { .. } => {
                headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Self::Method { allow, .. } => {
                headers.insert(ALLOW, HeaderValue::from_static(allow));
            }
            // The same request would fail the same way.
            Self::Text { .. } => {
                let name = HeaderName::from_static("x-should-retry");
                headers.insert(name, HeaderValue::from_static("false"));
            }
            _ => {}
        }
        response
    }
}

impl From<Invalid> for ApiError {
    fn from(error: Invalid) -> Self {
        Self::Invalid(error)
    }
}

impl From<Busy> for ApiError {
    fn from(error: Busy) -> Self {
        Self::Busy(error)
    }
}
