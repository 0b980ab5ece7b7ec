//! Errors in the form that Anthropic's clients read.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Response;
use serde::Serialize;

use super::row::Row;
use crate::http::sse::Body;
use crate::http::wire::to_json as json;

#[derive(Serialize)]
struct Object<'a> {
    r#type: &'static str,
    message: &'a str,
}

#[derive(Serialize)]
struct Envelope<'a> {
    r#type: &'static str,
    error: Object<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

/// Rewrites an answer that is an error, and no other.
pub(in crate::http) fn as_anthropics(response: &mut Response<Body>, request_id: &str) {
    if let Some(row) = response.extensions_mut().remove::<Row>() {
        let body = to_json(&row, Some(request_id));
        *response.body_mut() = Full::new(Bytes::from(body)).boxed_unsync();
    }
}

pub(super) fn to_json(row: &Row, request_id: Option<&str>) -> Vec<u8> {
    // The form has no place for the field at fault but the text.
    let message = match &row.param {
        Some(param) if !row.message.contains(param.as_str()) => {
            format!("{param}: {}", row.message)
        }
        _ => row.message.clone(),
    };
    let error = Object { r#type: kind(row.status), message: &message };
    json(&Envelope { r#type: "error", error, request_id })
}

fn kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        400..=499 => "invalid_request_error",
        _ => "api_error",
    }
}
