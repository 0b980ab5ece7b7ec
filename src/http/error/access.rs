//! Keys: whose a request is, and what that one may do.

use std::time::Duration;

use super::row::{AUTHENTICATION, PERMISSION, RATE, Row, row};
use crate::http::keys::Limited;

/// A request of somebody who may not ask this, or not now.
#[derive(Debug)]
pub(in crate::http) enum AccessError {
    /// Nothing that could be a key.
    NoKey,
    /// `Authorization` of another kind.
    OtherScheme,
    /// More than one key.
    SeveralKeys,
    /// A key that nobody has.
    UnknownKey,
    /// A key that may not administer.
    NotAdmin,
    /// A limit of the tenant.
    Limited(Limited),
}

/// How to send one.
const HOW: &str = "send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.";

impl AccessError {
    pub(super) fn row(&self) -> Row {
        let unknown = |message: String| {
            row(401, AUTHENTICATION, "invalid_api_key", message)
                .with_header("www-authenticate", "Bearer")
        };
        match self {
            Self::NoKey => unknown(format!("This needs an API key: {HOW}")),
            Self::OtherScheme => {
                unknown(format!("Authorization must be of the scheme Bearer: {HOW}"))
            }
            Self::SeveralKeys => {
                unknown(format!("A request must have one API key, and not several: {HOW}"))
            }
            Self::UnknownKey => unknown("The API key is not known here.".to_owned()),
            Self::NotAdmin => row(
                403,
                PERMISSION,
                "admin_key_required",
                "This API key may not administer; ask with one that has admin = true.",
            ),
            Self::Limited(Limited::Requests { limit, wait }) => {
                let message = format!("This API key may send {limit} requests a minute.");
                rate(message, *wait)
            }
            Self::Limited(Limited::Tokens { limit, wait }) => {
                let message = format!("This API key may use {limit} tokens a minute.");
                rate(message, *wait)
            }
            Self::Limited(Limited::Concurrency { limit }) => {
                let message = format!(
                    "This API key may have {limit} requests at once; wait for one of them to end."
                );
                row(429, RATE, "concurrency_limit_exceeded", message).retry_after_1_s()
            }
        }
    }
}

/// Clients wait for as long as `Retry-After` says only up to this. For more they do as if it said
/// nothing, and ask again within seconds.
const RETRY_AFTER_S_MAX: u64 = 60;

fn rate(message: String, wait: Duration) -> Row {
    let s = (wait.as_millis() as u64).div_ceil(1000).max(1);
    let message = format!("{message} Try again in {s} s.");
    let row = row(429, RATE, "rate_limit_exceeded", message);
    let retry = Some(s <= RETRY_AFTER_S_MAX);
    Row { retry, ..row.with_header("retry-after", s.to_string()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_try_again_who_would_not_wait_for_it() {
        let row = |s| {
            let wait = Duration::from_secs(s);
            AccessError::Limited(Limited::Tokens { limit: 5, wait }).row()
        };
        let told = |row: &Row| row.header.clone().map(|(_, value)| value.into_owned());
        for (s, retry) in [(0, true), (60, true), (61, false), (86_400, false)] {
            let row = row(s);
            assert_eq!((row.retry, told(&row)), (Some(retry), Some(s.max(1).to_string())));
        }
    }
}
