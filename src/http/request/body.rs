//! A request's body, within the limits of size and time.

use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::HeaderMap;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_TYPE, EXPECT};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};

use super::coding::Coding;
use crate::http::arrival::Arrival;
use crate::http::error::{ApiError, ProtocolError, ServerError};
use crate::http::state::State;

/// A body above the limit is still read for so long before the answer: a client that only writes
/// would not see an answer on a connection that is reset.
const DISCARD_MS: u64 = 2_000;

/// A whole body, and its share of all bodies in memory.
pub(in crate::http) struct Payload {
    pub bytes: Vec<u8>,
    share: Option<OwnedSemaphorePermit>,
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
            let work = move |state: &State| decoded(state, &payload, coding);
            state.off_thread(&state.text_tasks, work).await
        }
    }
}

/// A compressed body's content, within the same limits: what would be above is not held.
fn decoded(state: &State, payload: &Payload, coding: Coding) -> Result<Payload, ApiError> {
    let body_bytes_max = state.http.body_bytes_max;
    let mut content = Payload { bytes: Vec::new(), share: None };
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
    let mut payload = Payload { bytes: Vec::new(), share: None };
    let deadline = Instant::now() + Duration::from_millis(limits.body_timeout_ms);
    let idle = Duration::from_millis(limits.body_idle_timeout_ms);
    loop {
        let next_by = deadline.min(Instant::now() + idle);
        let Ok(frame) = timeout_at(next_by, body.frame()).await else {
            let is_idle = next_by < deadline;
            let timeout_ms =
                if is_idle { limits.body_idle_timeout_ms } else { limits.body_timeout_ms };
            return Err(ProtocolError::BodyTimeout { timeout_ms }.into());
        };
        let Some(frame) = frame else { return Ok(payload) };
        let frame = frame.map_err(|_| ProtocolError::BodyBroken)?;
        let Ok(data) = frame.into_data() else { continue };
        arrived.received(data.len());
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
        let have = self.share.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let need = (self.bytes.len() + bytes).div_ceil(1024);
        let Some(more) = need.checked_sub(have).filter(|&more| more > 0) else { return Ok(()) };
        let more = u32::try_from(more).map_err(|_| ServerError::Internal)?;
        let more_share = state.bodies_kib.clone().try_acquire_many_owned(more);
        let bodies_bytes_max = state.http.bodies_bytes_max;
        let more_share = more_share.map_err(|_| ServerError::BodiesFull { bodies_bytes_max })?;
        match &mut self.share {
            Some(held) => held.merge(more_share),
            None => self.share = Some(more_share),
        }
        Ok(())
    }
}

async fn discard(mut body: Incoming) {
    let until = Instant::now() + Duration::from_millis(DISCARD_MS);
    while let Ok(Some(Ok(_))) = timeout_at(until, body.frame()).await {}
}
