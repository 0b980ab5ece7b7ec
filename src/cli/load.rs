//! `tessera load`: many streaming clients at once against a running server, and how fast it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::bench::write_json;
use super::{CliError, print};
use crate::config::Secret;

/// A server that says nothing for so long has failed.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Every vocabulary has these: bytes and a few more.
const TOKENS: u64 = 250;

/// Flags of `tessera load`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Host and port of the server.
    #[arg(default_value = "127.0.0.1:8000")]
    address: String,
    /// Models that requests name in turn; default: all that the server has.
    #[arg(long = "model", value_name = "NAME", value_delimiter = ',')]
    models: Vec<String>,
    /// Key to send, where the server asks for one.
    #[arg(long, env = "TESSERA_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<Secret>,
    /// Requests in flight.
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    concurrency: u32,
    /// Requests in all.
    #[arg(long, default_value_t = 512)]
    requests: usize,
    /// Tokens of a prompt, chosen at random: no two begin alike.
    #[arg(long, default_value_t = 128)]
    prompt_tokens: usize,
    /// Tokens of a completion.
    #[arg(long, default_value_t = 128)]
    max_tokens: usize,
    /// Also write the results here, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What was seen, over all requests.
#[derive(Debug, Serialize)]
struct Results {
    models: usize,
    concurrency: u32,
    requests: usize,
    failed: usize,
    first_failure: Option<String>,
    seconds: f64,
    prompt_tokens: usize,
    completion_tokens: usize,
    completion_tokens_per_second: f64,
    first_token_ms: Percentiles,
    between_tokens_ms: Percentiles,
    request_ms: Percentiles,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Percentiles {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let last = values.len().saturating_sub(1) as f64;
            values.get((last * share).round() as usize).copied().unwrap_or(f64::NAN)
        };
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99) }
    }
}

/// One request that went well.
struct Seen {
    completion_tokens: usize,
    first_token_ms: f64,
    between_tokens_ms: Vec<f64>,
    request_ms: f64,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::General`] when there is no server, or no request went well.
pub fn run(args: &LoadArgs) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|e| CliError::General(format!("no threads: {e}")))?;
    let results = runtime.block_on(load(args.clone()))?;
    print(&table(&results))?;
    if let Some(path) = &args.json {
        write_json(path, &results)?;
    }
    match (&results.first_failure, results.failed == results.requests) {
        (Some(failure), true) => Err(CliError::General(format!("every request failed: {failure}"))),
        _ => Ok(()),
    }
}

async fn load(mut args: LoadArgs) -> Result<Results, CliError> {
    if args.models.is_empty() {
        args.models = models(&args).await?;
    }
    let args = Arc::new(args);
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let clients = (0..args.concurrency).map(|_| tokio::spawn(client(args.clone(), next.clone())));
    let (mut seen, mut failures) = (Vec::new(), Vec::new());
    for client in clients.collect::<Vec<_>>() {
        let (good, bad) = client.await.map_err(|e| CliError::General(e.to_string()))?;
        seen.extend(good);
        failures.extend(bad);
    }
    let seconds = start.elapsed().as_secs_f64();
    let completion_tokens = seen.iter().map(|s: &Seen| s.completion_tokens).sum();
    Ok(Results {
        models: args.models.len(),
        concurrency: args.concurrency,
        requests: args.requests,
        failed: failures.len(),
        first_failure: failures.into_iter().next(),
        seconds,
        prompt_tokens: seen.len() * args.prompt_tokens,
        completion_tokens,
        completion_tokens_per_second: completion_tokens as f64 / seconds,
        first_token_ms: Percentiles::of(seen.iter().map(|s| s.first_token_ms).collect()),
        request_ms: Percentiles::of(seen.iter().map(|s| s.request_ms).collect()),
        between_tokens_ms: Percentiles::of(
            seen.into_iter().flat_map(|s| s.between_tokens_ms).collect(),
        ),
    })
}

/// Sends one request after another until all have been sent.
async fn client(args: Arc<LoadArgs>, next: Arc<AtomicUsize>) -> (Vec<Seen>, Vec<String>) {
    let (mut seen, mut failures) = (Vec::new(), Vec::new());
    loop {
        let index = next.fetch_add(1, Ordering::Relaxed);
        if index >= args.requests {
            return (seen, failures);
        }
        match completion(&args, index).await {
            Ok(one) => seen.push(one),
            Err(failure) => failures.push(failure),
        }
    }
}

/// The answer's body, opened; an answer of another status than 200 is an error.
async fn send(
    args: &LoadArgs,
    method: &str,
    path: &str,
    body: String,
) -> Result<hyper::body::Incoming, String> {
    let address = &args.address;
    let stream = TcpStream::connect(address).await;
    let stream = stream.map_err(|e| format!("no server at {address}: {e}"))?;
    // A small request must not wait for an answer to the one before.
    stream.set_nodelay(true).map_err(|e| e.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
    // It ends with the answer; what went wrong shows there too.
    tokio::spawn(connection);
    let mut request = Request::builder();
    if let Some(key) = &args.api_key {
        request = request.header("authorization", format!("Bearer {}", key.reveal()));
    }
    let request = request
        .method(method)
        .uri(path)
        .header("host", address)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body)))
        .map_err(|e| e.to_string())?;
    let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
    let status = answer.status();
    if status.as_u16() == 200 {
        return Ok(answer.into_body());
    }
    let body = answer.into_body().collect().await.map_err(|e| e.to_string())?.to_bytes();
    Err(format!("the server answered {status}: {}", String::from_utf8_lossy(&body)))
}

async fn models(args: &LoadArgs) -> Result<Vec<String>, CliError> {
    let failed = CliError::General;
    let body = send(args, "GET", "/v1/models", String::new()).await.map_err(failed)?;
    let body = body.collect().await.map_err(|e| failed(e.to_string()))?.to_bytes();
    let body: Value = serde_json::from_slice(&body).map_err(|e| failed(e.to_string()))?;
    let data = body["data"].as_array().into_iter().flatten();
    Ok(data.filter_map(|model| Some(model["id"].as_str()?.to_owned())).collect())
}

async fn completion(args: &LoadArgs, index: usize) -> Result<Seen, String> {
    let mut state = index as u64 + 1;
    let prompt: Vec<u64> = (0..args.prompt_tokens.max(1))
        .map(|_| {
            // Knuth's linear congruential generator; its high bits are the random ones.
            state =
                state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
            (state >> 33) % TOKENS
        })
        .collect();
    let body = json!({
        "model": args.models[index % args.models.len().max(1)],
        "prompt": prompt,
        "max_tokens": args.max_tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let start = Instant::now();
    let body = send(args, "POST", "/v1/completions", body.to_string()).await?;
    let mut stream = Stream { body, pending: Vec::new() };
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let (mut first_token_ms, mut last, mut between_tokens_ms) = (None, start, Vec::new());
    let mut completion_tokens = None;
    while let Some(event) = stream.next().await? {
        if event == "[DONE]" {
            break;
        }
        let event: Value = serde_json::from_str(&event).map_err(|e| format!("{e}: {event}"))?;
        if !event["error"].is_null() {
            return Err(event["error"]["message"].to_string());
        }
        if let Some(tokens) = event["usage"]["completion_tokens"].as_u64() {
            completion_tokens = Some(tokens as usize);
        }
        if event["choices"].as_array().is_some_and(|choices| !choices.is_empty()) {
            match first_token_ms {
                None => first_token_ms = Some(ms(start)),
                Some(_) => between_tokens_ms.push(ms(last)),
            }
            last = Instant::now();
        }
    }
    match (completion_tokens, first_token_ms) {
        (Some(completion_tokens), Some(first_token_ms)) => {
            let request_ms = ms(start);
            Ok(Seen { completion_tokens, first_token_ms, between_tokens_ms, request_ms })
        }
        _ => Err("the stream ended early".into()),
    }
}

/// Server-sent events of an answer.
struct Stream {
    body: hyper::body::Incoming,
    pending: Vec<u8>,
}

impl Stream {
    /// The data of the next event; `None` at the end.
    async fn next(&mut self) -> Result<Option<String>, String> {
        loop {
            if let Some(end) = self.pending.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = self.pending.drain(..end + 2).collect();
                let event = String::from_utf8_lossy(&event[..end]).into_owned();
                match event.strip_prefix("data: ") {
                    Some(data) => return Ok(Some(data.to_owned())),
                    // A comment.
                    None => continue,
                }
            }
            let frame = tokio::time::timeout(SILENCE_MAX, self.body.frame()).await;
            match frame.map_err(|_| "the server fell silent".to_owned())? {
                None => return Ok(None),
                Some(frame) => {
                    let frame = frame.map_err(|e| e.to_string())?;
                    self.pending.extend_from_slice(frame.data_ref().map_or(&[], |data| data));
                }
            }
        }
    }
}

fn table(results: &Results) -> String {
    let Results { models, concurrency, requests, failed, seconds, .. } = results;
    let mut text = format!(
        "{requests} requests over {models} models, {concurrency} at once: {seconds:.1} s, {failed} \
         failed\n{:.1} tokens/s drawn, beside {} prompt tokens\n{:<22}{:>9} {:>9} {:>9}\n",
        results.completion_tokens_per_second, results.prompt_tokens, "ms", "p50", "p90", "p99"
    );
    for (name, p) in [
        ("to the first token", &results.first_token_ms),
        ("between two tokens", &results.between_tokens_ms),
        ("whole request", &results.request_ms),
    ] {
        text += &format!("{name:<22}{:>9.2} {:>9.2} {:>9.2}\n", p.p50, p.p90, p.p99);
    }
    if let Some(failure) = &results.first_failure {
        text += &format!("first failure: {failure}\n");
    }
    text
}
