//! A request's body, within the limits of size and time.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, EXPECT};
use tokio::time::{Instant, timeout_at};

use super::coding::Coding;
use crate::http::arrival::Arrival;
use crate::http::error::{ApiError, ProtocolError, ServerError};
use crate::http::room::Share;
use crate::http::settings::HttpSettings;
use crate::http::state::State;

/// A body above the limit is still read for so long before the answer: a client that only writes
/// would not see an answer on a connection that is reset.
const DISCARD_MS: u64 = 2_000;

/// A whole body, and its share of all bodies in memory.
#[derive(Default)]
pub(in crate::http) struct Payload {
    pub bytes: Vec<u8>,
    share: Share,
}

/// Reads a body of JSON, decompressed. A request that does not say what its body is passes unless
/// `requires_type`: a web page can send those to any server without asking.
///
/// # Errors
/// [`ProtocolError`] and [`ServerError::BodiesFull`].
pub(in crate::http) async fn read_json(
    state: &Arc<State>,
    arrived: &Arrival,
    headers: &HeaderMap,
    body: Incoming,
    requires_type: bool,
) -> Result<Payload, ApiError> {
    check_json(headers, requires_type)?;
    let coding = Coding::of(headers)?;
    let payload = read(state, arrived, headers, body).await?;
    match coding {
        None => Ok(payload),
        Some(coding) => {
            let bytes = payload.bytes.len();
            let work = move |state: &State| decoded(state, payload, coding);
            state.on_text(bytes, work).await
        }
    }
}

/// A compressed body's content, within the same limits: what would be above is not held. Of the
/// compressed one nothing is held any longer then.
fn decoded(state: &State, payload: Payload, coding: Coding) -> Result<Payload, ApiError> {
    let body_bytes_max = state.http.body_bytes_max;
    let mut content = Payload::default();
    coding.decode(&payload.bytes, |part| {
        if content.bytes.len() + part.len() > body_bytes_max {
            return Err(ProtocolError::BodyTooLarge { body_bytes_max }.into());
        }
        content.grow(state, part.len())?;
        content.bytes.extend_from_slice(part);
        Ok(())
    })?;
    Ok(content)
}

fn check_json(headers: &HeaderMap, requires_type: bool) -> Result<(), ProtocolError> {
    let found = match headers.get(CONTENT_TYPE) {
        None if requires_type => "",
        None => return Ok(()),
        Some(value) => value.to_str().unwrap_or("?"),
    };
    let media = found.split(';').next().unwrap_or_default().trim();
    match media.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err(ProtocolError::ContentType { found: found.to_owned() }),
    }
}

/// A body that is too large is not held.
async fn read(
    state: &State,
    arrived: &Arrival,
    headers: &HeaderMap,
    mut body: Incoming,
) -> Result<Payload, ApiError> {
    let limits = &state.http;
    let body_bytes_max = limits.body_bytes_max;
    let too_large = Err(ProtocolError::BodyTooLarge { body_bytes_max }.into());
    let said_bytes = body.size_hint().lower();
    if said_bytes > body_bytes_max as u64 {
        if !headers.contains_key(EXPECT) {
            discard(body).await;
        }
        return too_large;
    }
    let mut payload = Payload::default();
    let deadline = Instant::now() + Duration::from_millis(limits.body_timeout_ms);
    let mut pace = Pace::begin(limits);
    loop {
        let next_by = deadline.min(pace.next_by);
        let Ok(frame) = timeout_at(next_by, body.frame()).await else {
            return Err(match next_by < deadline {
                true => ProtocolError::BodySlow {
                    bytes_per_s_min: limits.body_bytes_per_s_min,
                    idle_timeout_ms: limits.body_idle_timeout_ms,
                },
                false => ProtocolError::BodyTimeout { timeout_ms: limits.body_timeout_ms },
            }
            .into());
        };
        let Some(frame) = frame else { return Ok(payload) };
        let frame = frame.map_err(|_| ProtocolError::BodyBroken)?;
        let Ok(data) = frame.into_data() else { continue };
        arrived.received(data.len());
        pace.came(limits, data.len());
        if payload.bytes.len() + data.len() > body_bytes_max {
            drop(payload);
            discard(body).await;
            return too_large;
        }
        payload.grow(state, data.len())?;
        payload.bytes.extend_from_slice(&data);
    }
}

impl Payload {
    /// Takes a share for `bytes` more.
    fn grow(&mut self, state: &State, bytes: usize) -> Result<(), ServerError> {
        self.share.cover(&state.bodies, self.bytes.len() + bytes)
    }
}

/// How fast a body comes: what comes pays for time at the lowest rate, and no more time is had in
/// advance than a body may be idle. Once that is used up it is too slow, whether it stands still or
/// drips.
struct Pace {
    next_by: Instant,
}

impl Pace {
    fn begin(limits: &HttpSettings) -> Self {
        Self { next_by: Instant::now() + Duration::from_millis(limits.body_idle_timeout_ms) }
    }

    fn came(&mut self, limits: &HttpSettings, bytes: usize) {
        let rate = limits.body_bytes_per_s_min.max(1);
        let paid = Duration::from_secs_f64(bytes as f64 / rate as f64);
        self.next_by = Self::begin(limits).next_by.min(self.next_by + paid);
    }
}

async fn discard(mut body: Incoming) {
    let until = Instant::now() + Duration::from_millis(DISCARD_MS);
    while let Ok(Some(Ok(_))) = timeout_at(until, body.frame()).await {}
}
