//! The page at `/`: files that are part of the binary, and how any page is answered.

use bytes::Bytes;
use hyper::Response;
use hyper::header::{CACHE_CONTROL, HeaderName, HeaderValue};

use super::sse::{Body, whole};

/// Only what this server has, and nothing inline.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
    img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

/// A name beneath `/page/`, its type and its content.
type File = (&'static str, &'static str, &'static str);

const FILES: &[File] = &[
    ("page.css", CSS, include_str!("page.css")),
    ("icon.svg", "image/svg+xml", include_str!("icon.svg")),
    ("app.js", SCRIPT, include_str!("app.js")),
    ("adapters.js", SCRIPT, include_str!("adapters.js")),
    ("answer.js", SCRIPT, include_str!("answer.js")),
    ("api.js", SCRIPT, include_str!("api.js")),
    ("batch.js", SCRIPT, include_str!("batch.js")),
    ("colours.js", SCRIPT, include_str!("colours.js")),
    ("compare.js", SCRIPT, include_str!("compare.js")),
    ("dom.js", SCRIPT, include_str!("dom.js")),
    ("tokens.js", SCRIPT, include_str!("tokens.js")),
];

/// `GET /` of a browser.
pub(super) fn home() -> Response<Body> {
    let policy = HeaderValue::from_static(POLICY);
    answer(HTML, include_str!("index.html"), policy)
}

/// `GET /page/{name}`.
pub(super) fn file(name: &str) -> Option<Response<Body>> {
    let (_, content_type, content) = FILES.iter().find(|(known, ..)| *known == name)?;
    Some(answer(content_type, *content, HeaderValue::from_static(POLICY)))
}

/// A page or a part of one. It is asked for anew each time, so that it is of the server's version.
pub(super) fn answer(
    content_type: &'static str,
    content: impl Into<Bytes>,
    policy: HeaderValue,
) -> Response<Body> {
    let mut response = whole(content_type, content);
    let headers = response.headers_mut();
    let fixed = |text: &'static str| HeaderValue::from_static(text);
    headers.insert(HeaderName::from_static("content-security-policy"), policy);
    headers.insert(HeaderName::from_static("x-content-type-options"), fixed("nosniff"));
    headers.insert(HeaderName::from_static("referrer-policy"), fixed("no-referrer"));
    headers.insert(CACHE_CONTROL, fixed("no-cache"));
    response
}
