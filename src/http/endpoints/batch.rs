//! `GET /v1/batch`: what runs and waits, as it is now or for as long as somebody watches.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::Response;
use hyper::header::{HeaderMap, HeaderValue, VARY};
use serde::Serialize;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout, timeout_at};

use crate::engine::{View, ViewRow};
use crate::http::accept::accepts;
use crate::http::caller::Caller;
use crate::http::error::{ApiError, ServerError};
use crate::http::phase::{Phase, reached};
use crate::http::sse::{self, Body, Events, PING, whole};
use crate::http::state::State;
use crate::http::watchers::WatcherPlace;
use crate::http::wire::to_json;
use crate::ids::SequenceId;

/// Rows of one view; those that run go first, and the rest is counted in `rows_left_out`.
const ROWS_MAX: usize = 256;
/// Then a stream ends, and whoever still may asks again: a key may have been taken back.
const WATCH_MS_MAX: u64 = 600_000;
/// Without a view of sequences that were there, for a look whether they still are.
const LOOK_AGAIN_MS: u64 = 500;

/// The sequences of a key, or all of them. Fields may be added; those that are here keep their
/// names.
#[derive(Serialize)]
struct Batch {
    object: &'static str,
    running: usize,
    waiting: usize,
    /// Of all keys together: null for one that may not know.
    blocks_used: Option<usize>,
    blocks_total: usize,
    block_tokens: usize,
    rows: Vec<BatchRow>,
    rows_left_out: usize,
}

#[derive(Serialize)]
struct BatchRow {
    /// The same for as long as a stream shows it.
    id: u64,
    /// The adapter's name, or the base model's.
    model: String,
    /// The key's name; null on a server without keys.
    key: Option<String>,
    /// `waiting`, `prefill` or `decode`.
    state: &'static str,
    prompt_tokens: u32,
    cached_tokens: u32,
    /// Tokens whose keys and values are there.
    computed_tokens: u32,
    completion_tokens: u32,
    max_tokens: u32,
    blocks: u32,
}

/// The batch as it is now, or all that becomes of it for who accepts an event stream.
///
/// # Errors
/// [`ServerError::WatchersFull`] and [`ServerError::Draining`].
pub(in crate::http) async fn show(
    state: &Arc<State>,
    caller: Caller,
    headers: &HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let mut watcher = Watcher::new(state, caller)?;
    let mut answer = match accepts(headers, "text/event-stream") {
        true => sse::stream(move |events| async move {
            // A send fails only when the client is gone; there is no one to tell.
            let _ = watcher.write(events).await;
        }),
        false => {
            let view = watcher.now().await.ok_or(ServerError::Draining)?;
            whole("application/json", to_json(&watcher.batch(&view)))
        }
    };
    answer.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    Ok(answer)
}

struct Watcher {
    state: Arc<State>,
    caller: Caller,
    views: watch::Receiver<Arc<View>>,
    phase: watch::Receiver<Phase>,
    /// What its rows are called, so that no key can count the sequences of others.
    numbers: BTreeMap<SequenceId, u64>,
    next_number: u64,
    _place: WatcherPlace,
}

type Sent = Result<(), mpsc::error::SendError<bytes::Bytes>>;

impl Watcher {
    fn new(state: &Arc<State>, caller: Caller) -> Result<Self, ServerError> {
        let place = state.watchers.take(caller.name());
        let place = place.map_err(|watchers_max| ServerError::WatchersFull { watchers_max })?;
        Ok(Self {
            views: state.engine.stats().window.watch(),
            phase: state.phase.subscribe(),
            state: state.clone(),
            caller,
            numbers: BTreeMap::new(),
            next_number: 0,
            _place: place,
        })
    }

    /// The batch of this moment; `None` when the server is shutting down.
    async fn now(&mut self) -> Option<Arc<View>> {
        loop {
            if let Some(empty) = self.nothing() {
                return Some(empty);
            }
            let look_again = Duration::from_millis(LOOK_AGAIN_MS);
            tokio::select! {
                biased;
                () = reached(&mut self.phase, Phase::Draining) => return None,
                looked = timeout(look_again, self.views.changed()) => if looked.is_ok() {
                    return Some(self.views.borrow_and_update().clone());
                }
            }
        }
    }

    /// The view of an engine that has nothing to do, which shows none.
    fn nothing(&self) -> Option<Arc<View>> {
        (self.state.engine.in_flight() == 0).then(Arc::default)
    }

    async fn write(&mut self, events: Events) -> Sent {
        let keep_alive = match self.state.http.keep_alive_ms {
            0 => Duration::MAX,
            ms => Duration::from_millis(ms),
        };
        let end = Instant::now() + Duration::from_millis(WATCH_MS_MAX);
        let mut shown = Vec::new();
        while let Ok(view) = timeout_at(end, timeout(keep_alive, self.change(&shown))).await {
            match view {
                Err(_) => events.send(PING.into()).await?,
                Ok(None) => break,
                Ok(Some(json)) => {
                    events.send(sse::event(&json)).await?;
                    shown = json;
                }
            }
        }
        Ok(())
    }

    /// The next batch that is another than the one shown; `None` when the server is shutting down.
    async fn change(&mut self, shown: &[u8]) -> Option<Vec<u8>> {
        loop {
            let view = self.now().await?;
            let json = to_json(&self.batch(&view));
            if json != shown {
                return Some(json);
            }
            if view.rows.is_empty() {
                tokio::select! {
                    biased;
                    () = reached(&mut self.phase, Phase::Draining) => return None,
                    // To be looked at, unless it is the last of a batch that has come and gone.
                    _ = self.views.changed() => if self.nothing().is_none() {
                        self.views.mark_changed();
                    }
                }
            }
        }
    }

    /// What the caller may see of a view.
    fn batch(&mut self, view: &View) -> Batch {
        let (caller, state) = (&self.caller, &self.state);
        let (own, sees_all) = (caller.share().tenant, caller.is_admin());
        let seen = |row: &&ViewRow| sees_all || row.tenant == own;
        let (running, waiting): (Vec<&ViewRow>, Vec<&ViewRow>) =
            view.rows.iter().filter(seen).partition(|row| row.is_running);
        let all = running.iter().chain(&waiting).copied();
        let sizes = state.engine.stats().sizes.get();
        self.numbers.retain(|id, _| view.rows.binary_search_by_key(id, |row| row.id).is_ok());
        let (numbers, next) = (&mut self.numbers, &mut self.next_number);
        let rows = all.take(ROWS_MAX).map(|row| {
            let number = numbers.entry(row.id).or_insert_with(|| {
                *next += 1;
                *next
            });
            batch_row(row, *number)
        });
        let rows: Vec<BatchRow> = rows.collect();
        Batch {
            object: "batch",
            running: running.len(),
            waiting: waiting.len(),
            blocks_used: sees_all.then_some(view.blocks_used),
            blocks_total: sizes.map_or(0, |sizes| sizes.blocks),
            block_tokens: sizes.map_or(0, |sizes| sizes.block_tokens),
            rows_left_out: running.len() + waiting.len() - rows.len(),
            rows,
        }
    }
}

fn batch_row(row: &ViewRow, id: u64) -> BatchRow {
    let caption = row.caption.as_deref();
    BatchRow {
        id,
        model: caption.map_or_else(String::new, |caption| caption.model.clone()),
        key: caption.and_then(|caption| caption.key.clone()),
        state: match (row.is_running, row.generated_tokens) {
            (false, _) => "waiting",
            (true, 0) => "prefill",
            (true, _) => "decode",
        },
        prompt_tokens: row.prompt_tokens,
        cached_tokens: row.cached_tokens,
        computed_tokens: row.computed_tokens,
        completion_tokens: row.generated_tokens,
        max_tokens: row.tokens_max,
        blocks: row.blocks,
    }
}
