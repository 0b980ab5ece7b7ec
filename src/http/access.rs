//! Which routes are open, and whose key a request has.

use hyper::HeaderMap;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};

use super::caller::Caller;
use super::error::AccessError;
use super::keys::KeyHash;
use super::state::State;

/// Anthropic's clients send their key in it.
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");

/// Who may ask for a route.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// Everybody, or who has the metrics' key if there is one.
    Metrics,
    /// Who has a key, if there are keys.
    Key,
    /// Who has a key that may administer, if there are keys.
    Admin,
}

/// Whom a request is from. `known` hears the name of its key, also where that may not ask for this.
///
/// # Errors
/// [`AccessError`], when that is nobody who may ask for this.
pub(super) fn check(
    state: &State,
    access: Access,
    headers: &HeaderMap,
    known: &dyn Fn(&str),
) -> Result<Caller, AccessError> {
    let (keys, metrics_key) = (state.http.keys.as_deref(), state.http.metrics_key.as_ref());
    let is_open = match access {
        Access::Open => true,
        Access::Metrics => metrics_key.is_none(),
        Access::Key | Access::Admin => keys.is_none(),
    };
    if is_open {
        return Ok(Caller::default());
    }
    let key = key(headers)?;
    let tenant = keys.and_then(|keys| keys.find(key));
    tenant.iter().for_each(|tenant| known(tenant.name()));
    if access == Access::Metrics {
        let is_metrics = metrics_key.is_some_and(|known| known.is(&KeyHash::of(key)));
        return match tenant {
            _ if is_metrics => Ok(Caller::default()),
            Some(tenant) if tenant.is_admin() => Ok(Caller::default()),
            Some(_) => Err(AccessError::NotAdmin),
            None => Err(AccessError::UnknownKey),
        };
    }
    let tenant = tenant.ok_or(AccessError::UnknownKey)?;
    match access == Access::Admin && !tenant.is_admin() {
        true => Err(AccessError::NotAdmin),
        false => Ok(Caller::of(tenant)),
    }
}

/// The one key of a request. What two servers on the way could read differently is refused.
fn key(headers: &HeaderMap) -> Result<&[u8], AccessError> {
    let one = |name: HeaderName| {
        let mut values = headers.get_all(name).iter();
        match (values.next(), values.next()) {
            (_, Some(_)) => Err(AccessError::SeveralKeys),
            (value, None) => Ok(value.map(HeaderValue::as_bytes)),
        }
    };
    let bearer = one(AUTHORIZATION)?.map(bearer);
    // An empty one is none: some clients always send `Bearer`, with a key or without.
    match (bearer, one(API_KEY)?.filter(|key| !key.is_empty())) {
        (Some(Some(a)), Some(b)) if a != b && !a.is_empty() => Err(AccessError::SeveralKeys),
        (Some(None), Some(_)) => Err(AccessError::SeveralKeys),
        (_, Some(key)) => Ok(key),
        (Some(Some(key)), None) if !key.is_empty() => Ok(key),
        (Some(None), None) => Err(AccessError::OtherScheme),
        _ => Err(AccessError::NoKey),
    }
}

/// What follows `Bearer` and one blank or more; empty if nothing does.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, key) = value.split_at_checked(b"bearer".len())?;
    let is_bearer = scheme.eq_ignore_ascii_case(b"bearer");
    let is_whole = key.first().is_none_or(|&byte| byte == b' ');
    (is_bearer && is_whole).then(|| key.trim_ascii_start())
}
