//! One line of a batch on its way to an answer.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use hyper::StatusCode;
use hyper::header::RETRY_AFTER;
use serde_json::Value;
use tokio::time::{sleep, timeout};

use super::answered::{Answered, Failure, Response};
use super::input::Request;
use super::pace::Pace;
use super::settled::settle;
use crate::cli::client::{Answer, Client};

/// Before the first further try, where the server names no time. Doubles with each.
const BACKOFF_MIN: Duration = Duration::from_millis(250);
/// Longest wait between two tries, where the server names no time.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// What passes: too many requests, and a server or gateway that starts, ends or is full.
const RETRIED: &[StatusCode] = &[
    StatusCode::TOO_MANY_REQUESTS,
    StatusCode::BAD_GATEWAY,
    StatusCode::SERVICE_UNAVAILABLE,
    StatusCode::GATEWAY_TIMEOUT,
];
/// What would be the same for every line: the key is a fault of the run.
const ENDING: &[StatusCode] = &[StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN];

/// Sends lines, and knows when there is no use in it any more.
pub struct Sender {
    client: Client,
    retry: Duration,
    request: Duration,
    pace: Pace,
    /// When any line was answered last.
    last_answer: Mutex<Instant>,
}

impl Sender {
    /// Gives up when no line was answered for `retry`, and on one line after `request`. At most
    /// `concurrency` lines are on their way at once.
    pub fn new(client: Client, retry: Duration, request: Duration, concurrency: usize) -> Self {
        let (pace, last_answer) = (Pace::new(concurrency), Mutex::new(Instant::now()));
        Self { client, retry, request, pace, last_answer }
    }

    /// The line's answer. What passes is tried again.
    ///
    /// # Errors
    /// What keeps the whole batch from going on.
    pub async fn answer(&self, request: &Request) -> Result<Answered, String> {
        let mut first_failure: Option<Instant> = None;
        let mut backoff = BACKOFF_MIN;
        loop {
            let place = self.pace.place().await;
            let sent = self.client.post(&request.url, &request.id, request.body.clone());
            let Ok(answer) = timeout(self.request, sent).await else {
                let message =
                    format!("no answer within {} s (--request-seconds)", self.request.as_secs());
                let failure = Failure { code: "request_timeout".to_owned(), message };
                return Ok(Answered::new(request, Err(failure)));
            };
            let (why, wait) = match answer {
                Ok(answer) if ENDING.contains(&answer.status) => {
                    return Err(format!("{}: {}", answer.status.as_u16(), answer.message()));
                }
                Ok(answer) if RETRIED.contains(&answer.status) => {
                    place.refused();
                    self.refused(&answer)?;
                    let wait = retry_after(&answer).unwrap_or(backoff);
                    (format!("{}: {}", answer.status.as_u16(), answer.message()), wait)
                }
                Ok(answer) => {
                    place.answered();
                    if let Ok(mut last) = self.last_answer.lock() {
                        *last = Instant::now();
                    }
                    return Ok(answered(request, &answer));
                }
                Err(error) => (error.to_string(), backoff),
            };
            let first = *first_failure.get_or_insert_with(Instant::now);
            let since = self.last_answer.lock().map_or(first, |last| first.max(*last));
            if since.elapsed() + wait > self.retry {
                let seconds = self.retry.as_secs();
                let tried = since.elapsed().as_secs_f64();
                return Err(format!(
                    "{why} (given up after {tried:.1} s: the next try would come later than \
                     --retry-seconds {seconds} lets it)"
                ));
            }
            sleep(wait).await;
            backoff = (backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// A server in this process does not start again.
    fn refused(&self, answer: &Answer) -> Result<(), String> {
        match answer.code() {
            Some(code) if code == "engine_stopped" && self.client.is_in_process() => {
                Err(answer.message())
            }
            _ => Ok(()),
        }
    }
}

fn answered(request: &Request, answer: &Answer) -> Answered {
    let body = match serde_json::from_slice(&answer.body) {
        Ok(body) => body,
        // As of a proxy that wants people to log in: nothing that a model has said.
        Err(error) if answer.status == StatusCode::OK => {
            let message = format!("the answer of status 200 is no JSON: {error}");
            let failure = Failure { code: "invalid_answer".to_owned(), message };
            return Answered::new(request, Err(failure));
        }
        Err(_) => Value::from(String::from_utf8_lossy(&answer.body)),
    };
    Answered::new(
        request,
        Ok(Response {
            status_code: answer.status.as_u16(),
            request_id: request.id.clone(),
            body: settle(body, &request.id),
        }),
    )
}

/// How long the server asks to wait: a number of seconds, or the date of RFC 9110.
fn retry_after(answer: &Answer) -> Option<Duration> {
    let text = answer.headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    text.parse().map(Duration::from_secs).ok().or_else(|| {
        let at = jiff::fmt::rfc2822::parse(text).ok()?;
        let wait = at.timestamp().duration_since(jiff::Timestamp::now());
        // What has passed already is no wait.
        Some(Duration::try_from(wait).unwrap_or_default())
    })
}
