//! Every `code` of an error, with its status, when it is answered, and whether a client that tries
//! again by itself should: what the document of the API and docs/errors.md list.

/// `x-should-retry` of an answer, which OpenAI's and Anthropic's clients obey. They try 408, 409,
/// 429 and every 5xx again unless it says no, and nothing else.
pub type Retry = Option<bool>;

/// Nobody tries these again by themselves.
const UNSAID: Retry = None;
/// It passes.
const YES: Retry = Some(true);
/// The same request would be answered the same.
const NO: Retry = Some(false);

/// Code, status, whether to try again, and when, by code.
pub const ERROR_CODES: &[(&str, u16, Retry, &str)] = &[
    (
        "adapter_already_loaded",
        400,
        UNSAID,
        "An adapter of this name is loaded; `load_inplace` replaces it.",
    ),
    (
        "adapter_changing",
        409,
        YES,
        "The adapter's files changed while they were read: try again; with `Retry-After`.",
    ),
    ("adapter_name_conflict", 400, UNSAID, "The adapter's name is that of the base model."),
    (
        "adapter_not_finite",
        400,
        UNSAID,
        "With its adapters the model makes numbers that are not finite: weights are too large.",
    ),
    (
        "adapter_not_found",
        404,
        UNSAID,
        "No adapter of this name is loaded, or none is at the path.",
    ),
    ("adapter_store_full", 400, UNSAID, "Adapters would take more than `--adapter-host-bytes`."),
    ("admin_key_required", 403, UNSAID, "The key may not administer."),
    ("base_model_fixed", 400, UNSAID, "The base model cannot be unloaded."),
    ("bodies_full", 503, YES, "Too many bytes of requests are being read at once."),
    ("body_broken", 400, UNSAID, "The body ended early, or is not what its headers say."),
    ("body_timeout", 408, YES, "The body came too slowly."),
    ("body_too_large", 413, UNSAID, "The body is larger than the limit."),
    (
        "concurrency_limit_exceeded",
        429,
        YES,
        "The key has as many requests at once as it may have.",
    ),
    ("context_length_exceeded", 400, UNSAID, "Prompt and answer do not fit the context."),
    ("draining", 503, YES, "The server is shutting down."),
    ("engine_failed", 500, YES, "The device failed on this request."),
    ("engine_stopped", 503, NO, "The engine has ended, as with a lost GPU: restart the server."),
    ("expectation_failed", 417, UNSAID, "`Expect` is neither absent nor `100-continue`."),
    ("framed_twice", 400, UNSAID, "The request has `Transfer-Encoding` and `Content-Length`."),
    ("head_timeout", 408, YES, "The request's headers came too slowly."),
    ("head_too_large", 431, UNSAID, "The request's line and headers are larger than the limit."),
    ("host_not_allowed", 403, UNSAID, "`Host` or `Origin` is not this server's: `--allowed-host`."),
    ("internal_error", 500, NO, "A bug."),
    (
        "invalid_adapter",
        400,
        UNSAID,
        "The adapter would not be served; the message says what is wrong.",
    ),
    ("invalid_adapter_name", 400, UNSAID, "The name cannot be one of an adapter."),
    ("invalid_api_key", 401, UNSAID, "No key, several, or one that nobody has."),
    ("invalid_host", 400, UNSAID, "There is not exactly one well-formed `Host`."),
    ("invalid_json", 400, UNSAID, "The body is no JSON."),
    ("invalid_text", 400, UNSAID, "A text, a chat or a template's variable cannot become tokens."),
    ("invalid_value", 400, UNSAID, "A field is of another type or out of its range."),
    ("malformed_request", 400, UNSAID, "What came is no request of HTTP/1.1."),
    ("merged_mode", 400, UNSAID, "An adapter is merged into the weights, and served alone."),
    ("method_not_allowed", 405, UNSAID, "The route takes another method: `Allow` says which."),
    ("missing_field", 400, UNSAID, "A field that is required is not there."),
    ("model_not_found", 404, UNSAID, "No model or adapter of this name, or not for this key."),
    ("no_chat_template", 400, UNSAID, "The model has no chat template."),
    ("no_token_left", 400, UNSAID, "The request's own rules leave no token that could come next."),
    ("path_outside_root", 400, UNSAID, "`lora_path` is not beneath `--adapter-root`."),
    ("queue_full", 429, YES, "`--queue-requests` wait already; with `Retry-After`."),
    ("rate_limit_exceeded", 429, YES, "A limit of the key's minute; with `Retry-After`."),
    ("route_not_found", 404, UNSAID, "There is no such route."),
    ("runtime_adapters_off", 404, UNSAID, "It was started without `--allow-runtime-adapters`."),
    (
        "structured_output_failed",
        400,
        UNSAID,
        "The form that was asked for cannot be followed in limits.",
    ),
    (
        "text_failed",
        500,
        NO,
        "The tokenizer or template failed, by the fault of the model's files.",
    ),
    (
        "too_many_connections",
        503,
        YES,
        "As many connections as may be, all busy; with `Retry-After`.",
    ),
    ("unknown_parameter", 400, UNSAID, "A field that nobody knows, with `--strict-fields`."),
    (
        "unsupported_content_encoding",
        415,
        UNSAID,
        "The body is compressed in a way that is not read.",
    ),
    ("unsupported_media_type", 415, UNSAID, "`Content-Type` is not `application/json`."),
    ("unsupported_parameter", 400, UNSAID, "A field or value that is known and not built."),
    (
        "unsupported_transfer_encoding",
        400,
        UNSAID,
        "`Transfer-Encoding` is neither absent nor `chunked`, once.",
    ),
    ("watchers_full", 429, YES, "As many clients watch the batch as may; with `Retry-After`."),
];

/// Whether a client should try again by itself.
pub(super) fn should_retry(code: &str) -> Retry {
    ERROR_CODES.iter().find(|(known, ..)| *known == code).and_then(|(_, _, retry, _)| *retry)
}
