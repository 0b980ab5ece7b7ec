//! What the engine draws, as server-sent events.

use std::time::Duration;

use bytes::Bytes;
use hyper::Response;
use tokio::sync::mpsc::error::SendError;

use super::choices::{Choices, CompletionOutput};
use super::endpoint::Endpoint;
use crate::http::error::ApiError;
use crate::http::sse::{self, Body, DONE, Events, PING};
use crate::http::wire::{CompletionDetails, Usage, to_json};

/// Answers with a stream that begins at the first event, so that what fails at once still has
/// a status of its own; or after `keep_alive_ms` without one, so that proxies keep the connection.
///
/// # Errors
/// Those of [`Choices::next`] for the first event.
pub(in crate::http) async fn stream<E: Endpoint>(
    keep_alive_ms: u64,
    mut choices: Choices,
    endpoint: E,
) -> Result<Response<Body>, ApiError> {
    let keep_alive = match keep_alive_ms {
        0 => Duration::MAX,
        ms => Duration::from_millis(ms),
    };
    let first = match tokio::time::timeout(keep_alive, choices.next()).await {
        Ok(first) => first?,
        Err(_) => None,
    };
    Ok(sse::stream(move |events| async move {
        let mut writer = Writer { events, choices, endpoint, keep_alive };
        // A send fails only when the client is gone; there is no one to tell.
        let _ = writer.write(first).await;
    }))
}

struct Writer<E> {
    events: Events,
    choices: Choices,
    endpoint: E,
    keep_alive: Duration,
}

type Sent = Result<(), SendError<Bytes>>;

impl<E: Endpoint> Writer<E> {
    async fn write(&mut self, first: Option<CompletionOutput>) -> Sent {
        // Nothing is said yet, though the first token may be there.
        let usage = self.choices.usage();
        let nothing = |_| CompletionDetails { reasoning_tokens: 0 };
        let opening_usage = Usage {
            completion_tokens: 0,
            total_tokens: usage.prompt_tokens,
            completion_tokens_details: usage.completion_tokens_details.map(nothing),
            ..usage
        };
        if first.is_none() {
            self.events.send(PING.into()).await?;
        }
        for index in 0..self.choices.count() {
            let Some(opening) = self.endpoint.opening(index, opening_usage) else { break };
            self.events.send(event::<E>(&opening)).await?;
        }
        if let Some(output) = first {
            self.write_output(&output).await?;
        }
        loop {
            match tokio::time::timeout(self.keep_alive, self.choices.next()).await {
                Err(_) => self.events.send(PING.into()).await?,
                Ok(Ok(Some(output))) => self.write_output(&output).await?,
                Ok(Ok(None)) => break,
                Ok(Err(error)) => {
                    let last = self.endpoint.failed(&error);
                    return self.events.send(event::<E>(&last)).await;
                }
            }
        }
        if E::NAMES_EVENTS {
            return Ok(());
        }
        let reply = self.endpoint.reply();
        if reply.options.include_usage {
            let answer = reply.answer::<()>(&[], Some(Some(self.choices.usage())));
            self.events.send(sse::event(&to_json(&answer))).await?;
        }
        self.events.send(DONE.into()).await
    }

    async fn write_output(&mut self, output: &CompletionOutput) -> Sent {
        for chunk in self.endpoint.chunks(output, self.choices.usage()) {
            self.events.send(event::<E>(&chunk)).await?;
        }
        Ok(())
    }
}

fn event<E: Endpoint>(json: &[u8]) -> Bytes {
    if E::NAMES_EVENTS { sse::named_event(json) } else { sse::event(json) }
}
