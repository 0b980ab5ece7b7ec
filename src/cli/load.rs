//! `tessera load`: many streaming clients at once against a running server, and how fast it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use serde::Serialize;
use serde_json::json;

use super::bench::write_json;
use super::client::{Address, Client, ClientError};
use super::progress::counting;
use super::runtime::runtime;
use super::{CliError, print};
use crate::config::{CONCURRENCY_MAX, Secret, TOKENS_MAX, count_to, whole};

/// Every vocabulary has these: bytes and a few more.
const TOKENS: u64 = 250;
/// Of a run: more is a slip of the keyboard.
const REQUESTS_MAX: usize = 1_000_000_000;

/// Flags of `tessera load`.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// The server, as 'ready:' prints it: http://HOST:PORT/v1, https://…, HOST:PORT or unix:PATH.
    #[arg(default_value = "127.0.0.1:8000")]
    address: Address,
    /// Models that requests name in turn; default: all that the server has.
    #[arg(long = "model", value_name = "NAME", value_delimiter = ',', help_heading = "Requests")]
    models: Vec<String>,
    /// Key to send, where the server asks for one.
    #[arg(
        long,
        visible_alias = "key",
        env = "TESSERA_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        help_heading = "Server"
    )]
    api_key: Option<Secret>,
    /// The server's certificate, if it has one that the system does not vouch for.
    #[arg(long, env = "TESSERA_SSL_CERTFILE", value_name = "FILE", help_heading = "Server")]
    ssl_certfile: Option<PathBuf>,
    /// Requests in flight.
    #[arg(
        long,
        default_value_t = 64,
        value_parser = whole(1, CONCURRENCY_MAX),
        help_heading = "Requests"
    )]
    concurrency: u32,
    /// Requests in all.
    #[arg(
        long,
        default_value_t = 512,
        value_parser = count_to(REQUESTS_MAX),
        help_heading = "Requests"
    )]
    requests: usize,
    /// Tokens of a prompt, chosen at random: no two begin alike.
    #[arg(
        long,
        default_value_t = 128,
        value_parser = count_to(TOKENS_MAX),
        help_heading = "Requests"
    )]
    prompt_tokens: usize,
    /// Tokens of a completion.
    #[arg(
        long,
        default_value_t = 128,
        value_parser = count_to(TOKENS_MAX),
        help_heading = "Requests"
    )]
    max_tokens: usize,
    /// Also write the results here, as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
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
    first_token_ms: Option<Percentiles>,
    between_tokens_ms: Option<Percentiles>,
    request_ms: Option<Percentiles>,
}

#[derive(Debug, Serialize)]
struct Percentiles {
    p50: f64,
    p90: f64,
    p99: f64,
}

impl Percentiles {
    /// `None` where there are no values, as between the tokens of answers of one token.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)? as f64;
        let at = |share: f64| values[(last * share).round() as usize];
        Some(Self { p50: at(0.5), p90: at(0.9), p99: at(0.99) })
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
    let results = runtime()?.block_on(load(args.clone()))?;
    if let Some(path) = &args.json {
        write_json(path, &results)?;
    }
    match (&results.first_failure, results.failed == results.requests) {
        // There is nothing to show of how fast it was.
        (Some(failure), true) => Err(CliError::General(format!("every request failed: {failure}"))),
        _ => print(&table(&results)),
    }
}

/// What all clients share.
struct Shared {
    args: LoadArgs,
    client: Client,
    /// Requests that were begun.
    begun: AtomicUsize,
    bar: ProgressBar,
}

async fn load(mut args: LoadArgs) -> Result<Results, CliError> {
    let (certificate, key) = (args.ssl_certfile.as_deref(), args.api_key.clone());
    let client = Client::of_server(args.address.clone(), certificate, key)?;
    if args.models.is_empty() {
        let models = client.models().await;
        args.models = models.map_err(|e| CliError::General(e.to_string()))?;
        if args.models.is_empty() {
            return Err(CliError::General("the server has no model".to_owned()));
        }
    }
    let bar = counting("requests", args.requests as u64);
    let shared = Arc::new(Shared { args, client, begun: AtomicUsize::new(0), bar });
    let args = &shared.args;
    let start = Instant::now();
    let clients = (0..args.concurrency).map(|_| tokio::spawn(requests(shared.clone())));
    let (mut seen, mut failures) = (Vec::new(), Vec::new());
    for client in clients.collect::<Vec<_>>() {
        let (good, bad) = client.await.map_err(|e| CliError::General(e.to_string()))?;
        seen.extend(good);
        failures.extend(bad);
    }
    let seconds = start.elapsed().as_secs_f64();
    shared.bar.finish_and_clear();
    let first_failure = match failures.first() {
        Some(failure) => Some(explained(failure, &shared.client).await),
        None => None,
    };
    let completion_tokens = seen.iter().map(|s: &Seen| s.completion_tokens).sum();
    Ok(Results {
        models: args.models.len(),
        concurrency: args.concurrency,
        requests: args.requests,
        failed: failures.len(),
        first_failure,
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

/// What went wrong; of a model that is not there, which are.
async fn explained(failure: &ClientError, client: &Client) -> String {
    let is_model = matches!(failure, ClientError::Refused { code: Some(code), .. }
        if code == "model_not_found");
    let there = if is_model { client.models().await.unwrap_or_default() } else { Vec::new() };
    match there.is_empty() {
        true => failure.to_string(),
        false => format!("{failure} There are: {}", there.join(", ")),
    }
}

/// Sends one request after another until all have been sent.
async fn requests(shared: Arc<Shared>) -> (Vec<Seen>, Vec<ClientError>) {
    let (mut seen, mut failures) = (Vec::new(), Vec::new());
    loop {
        let index = shared.begun.fetch_add(1, Ordering::Relaxed);
        if index >= shared.args.requests {
            return (seen, failures);
        }
        match completion(&shared.args, &shared.client, index).await {
            Ok(one) => seen.push(one),
            Err(failure) => failures.push(failure),
        }
        shared.bar.inc(1);
    }
}

async fn completion(args: &LoadArgs, client: &Client, index: usize) -> Result<Seen, ClientError> {
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
        "model": args.models[index % args.models.len()],
        "prompt": prompt,
        "max_tokens": args.max_tokens,
        "temperature": 0,
        "ignore_eos": true,
        "stream": true,
        "stream_options": {"include_usage": true},
    });
    let start = Instant::now();
    let mut events = client.stream("/v1/completions", &body).await?;
    let ms = |since: Instant| since.elapsed().as_secs_f64() * 1e3;
    let (mut first_token_ms, mut last, mut between_tokens_ms) = (None, start, Vec::new());
    let mut completion_tokens = None;
    while let Some(event) = events.next().await? {
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
        _ => Err(ClientError::Broken("the stream ended early".to_owned())),
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
        text += &match p {
            Some(p) => format!("{name:<22}{:>9.2} {:>9.2} {:>9.2}\n", p.p50, p.p90, p.p99),
            None => format!("{name:<22}{0:>9} {0:>9} {0:>9}\n", "-"),
        };
    }
    if let Some(failure) = &results.first_failure {
        text += &format!("first failure: {failure}\n");
    }
    text
}
