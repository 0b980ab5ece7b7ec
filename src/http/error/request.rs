//! What a generation request asks for and cannot have.

use super::row::{NOT_FOUND, REQUEST, Row, SERVER, row, shown};
use crate::request::Invalid;
use crate::text::TextError;

/// A fault in what a request says.
#[derive(Debug)]
pub(in crate::http) enum RequestError {
    /// A body that is not the JSON expected, at `param` if that is known.
    Json { param: Option<String>, message: String, code: &'static str },
    /// A field that is required.
    Missing(&'static str),
    /// A field, or a value of it, that is known and not built.
    Unsupported { param: String, message: String },
    /// A field that nobody knows, on a server that refuses those.
    Unknown(String),
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
}

impl RequestError {
    pub(super) fn row(&self) -> Row {
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
            Self::Unknown(field) => {
                let message = format!(
                    "{field} is not a field of this API, and this server refuses unknown fields \
                     (--strict-fields); leave it out."
                );
                row(400, REQUEST, "unknown_parameter", message).at(field)
            }
            Self::Invalid(Invalid { param, message, code }) => {
                row(400, REQUEST, code, message).at(param)
            }
            Self::Text { param, error, context_tokens_max } => {
                text(param, error, *context_tokens_max)
            }
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
        }
    }
}

/// Text that could not become tokens: the client's fault, or that of the model's files.
fn text(param: &str, error: &TextError, context_tokens_max: u32) -> Row {
    if let TextError::TooLong { text_bytes_max } = error {
        let message = format!(
            "This model's maximum context length is {context_tokens_max} tokens. However, \
             a text of more than {text_bytes_max} bytes cannot fit. Shorten the {param}."
        );
        return row(400, REQUEST, "context_length_exceeded", message).at(param);
    }
    match error.is_client_fault() {
        true => row(400, REQUEST, "invalid_text", error.to_string()).at(param),
        false => row(500, SERVER, "text_failed", error.to_string()),
    }
}
