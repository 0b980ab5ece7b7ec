//! Which web pages may read answers (CORS). Off unless origins are allowed.

use hyper::HeaderMap;
use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};

/// Headers of answers that a page may read beside the few that it always may.
const EXPOSED: &str = "x-request-id, request-id, retry-after, x-should-retry, \
                       x-ratelimit-limit-requests, x-ratelimit-limit-tokens, \
                       x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, \
                       x-ratelimit-reset-requests, x-ratelimit-reset-tokens";
/// For how long a browser need not ask again, in seconds.
const MAX_AGE_S: &str = "600";

/// The pages that are allowed.
pub(in crate::http) struct Cors {
    origins: Vec<String>,
    allows_any: bool,
}

impl Cors {
    /// `scheme://host[:port]` of each, or `*` for any.
    pub fn new(origins: Vec<String>) -> Self {
        let allows_any = origins.iter().any(|origin| origin == "*");
        Self { origins, allows_any }
    }

    /// Whether pages of this origin may use the server.
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        let is_it = |known: &String| origin.as_bytes().eq_ignore_ascii_case(known.as_bytes());
        self.allows_any || self.origins.iter().any(is_it)
    }

    /// Lets the page that asked read the answer, an error too.
    pub fn mark(&self, origin: Option<&HeaderValue>, answer: &mut HeaderMap) {
        if !self.allows_any && !self.origins.is_empty() {
            // A cache must not give one page the answer to another.
            answer.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = origin.filter(|origin| self.allows(origin)) else { return };
        let named = if self.allows_any { HeaderValue::from_static("*") } else { origin.clone() };
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, named);
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
    }

    /// What a browser that asks before a request may send: the route's methods, any header.
    pub fn preflight(&self, asked: &HeaderMap, methods: &'static str, answer: &mut HeaderMap) {
        let is_allowed = asked.get(ORIGIN).is_some_and(|origin| self.allows(origin));
        if !is_allowed || !asked.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
            return;
        }
        answer.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(methods));
        // A star would leave out Authorization.
        if let Some(headers) = asked.get(ACCESS_CONTROL_REQUEST_HEADERS) {
            answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, headers.clone());
        }
        answer.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(MAX_AGE_S));
    }
}
