//! `tessera batch`: a file of requests, each with its own model, to a file of answers. Killed at
//! any moment and run again, it goes on where it was.

mod answered;
mod input;
mod output;
mod pace;
mod progress;
mod send;
mod settled;
mod tally;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use self::answered::Answered;
use self::input::Input;
use self::output::Output;
use self::progress::Progress;
use self::send::Sender;
use self::tally::Tally;
use super::answering::Answering;
use super::client::{Client, ClientError};
use super::runtime::runtime;
use super::terminal::one_line;
use super::{CliError, print};
use crate::config::{CONCURRENCY_MAX, parse_seconds, whole};

/// Answers that wait for one before them; further lines wait.
const AHEAD_LINES_MAX: usize = 4096;
/// Bytes of those.
const AHEAD_BYTES_MAX: usize = 256 << 20;
/// Between two times that answers are made to survive a loss of power, and that progress is shown.
const TICK: Duration = Duration::from_secs(1);
/// Between two first questions to a server that is not there yet.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// Flags of `tessera batch`.
#[derive(Args, Clone, Debug)]
#[command(override_usage = "tessera batch [OPTIONS] --output OUT [MODEL] IN")]
pub struct BatchArgs {
    /// The batch: a line of JSON for each request, as OpenAI's batch API has it (custom_id, method,
    /// url, body). Before it, the model, as for serve. Without a model: the built-in demo.
    #[arg(value_names = ["MODEL", "IN"], num_args = 1.., required = true)]
    words: Vec<String>,
    /// Write the answers to this file, in the order of the batch. What an earlier run left in it is
    /// gone on from.
    #[arg(long, short = 'o', value_name = "OUT")]
    output: PathBuf,
    /// Requests in flight. The default fills a GPU's batch; others wait in the server's queue.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 256,
        value_parser = whole(1, CONCURRENCY_MAX),
    )]
    concurrency: u32,
    /// Give up when the server answers nothing for so long. 429, 502, 503, 504 and lost connections
    /// are tried again until then.
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = parse_seconds)]
    retry_seconds: u64,
    /// Give up on one line that has no answer after so long.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = parse_seconds)]
    request_seconds: u64,
    /// Who answers.
    #[command(flatten)]
    pub answering: Answering,
}

/// Runs the command.
///
/// # Errors
/// One line that says what is wrong and how to mend it; also when a line of the batch failed.
pub fn run(args: &BatchArgs) -> Result<(), CliError> {
    let (model, path) = match args.words.as_slice() {
        [path] => (None, path),
        [model, path] => (Some(model.as_str()), path),
        more => {
            let count = more.len();
            let text = format!("expected a model and a batch, got {count} words");
            return Err(CliError::Usage(text));
        }
    };
    let answering = args.answering.with_model(model)?;
    // Neither a wrong line nor a wrong file should cost the loading of a model.
    let input = Input::open(path.as_ref())?;
    let mut tally = Tally::new(input.models().len());
    let output = Output::open(&args.output, &input, &mut tally)?;
    let before = tally.clone();
    let mut progress = Progress::new(input.len(), &before);
    if tally.done() < input.len() {
        let runtime = runtime()?;
        let done = runtime.block_on(async {
            let client = answering.client()?;
            check_models(&client, &input, args).await?;
            // The model is loaded: from here on, time is that of the batch.
            progress = Progress::new(input.len(), &before);
            let seconds = Duration::from_secs;
            let (retry, request) = (seconds(args.retry_seconds), seconds(args.request_seconds));
            let sender = Arc::new(Sender::new(client, retry, request, args.concurrency as usize));
            let (input, concurrency) = (&input, args.concurrency as usize);
            let run = Run { input, output, sender, tally: &mut tally, progress: &mut progress };
            run.all(concurrency).await
        });
        runtime.shutdown_background();
        progress.end();
        done?;
    }
    let summary = tally.summary(&before, progress.elapsed(), input.models());
    print(&format!("{summary}\n"))?;
    match &tally.first_fault {
        None => Ok(()),
        Some((index, fault)) => Err(CliError::General(format!(
            "{} of {} lines failed, the first of them line {}: {fault}",
            tally.failed,
            input.len(),
            index + 1
        ))),
    }
}

/// A name that is wrong in every tenth line should be told before the others are run.
async fn check_models(client: &Client, input: &Input, args: &BatchArgs) -> Result<(), CliError> {
    let names = first_answer(client, args).await?;
    let base = names.first().map_or("", String::as_str);
    let is_served = |asked: &str| {
        let short = asked.strip_prefix(base).and_then(|tail| tail.strip_prefix(':'));
        asked.is_empty() || names.iter().any(|name| name == asked || Some(name.as_str()) == short)
    };
    let unknown = input.models().iter().filter(|(name, _)| !is_served(name));
    let unknown: Vec<String> =
        unknown.map(|(name, line)| format!("{name:?} (from line {line})")).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(CliError::Usage(format!(
        "{} names models that are not served: {}; there are {}",
        input.path().display(),
        unknown.join(", "),
        one_line(&names.join(", "))
    )))
}

/// The models that are served. A server that starts, or ends and starts again, is waited for.
async fn first_answer(client: &Client, args: &BatchArgs) -> Result<Vec<String>, CliError> {
    let begun = Instant::now();
    let limit = Duration::from_secs(args.retry_seconds);
    loop {
        let asked = timeout(Duration::from_secs(args.request_seconds), client.models()).await;
        let error = match asked {
            Ok(Ok(names)) => return Ok(names),
            Ok(Err(error)) => error,
            Err(_) => ClientError::Broken(format!(
                "no answer within {} s (--request-seconds)",
                args.request_seconds
            )),
        };
        let is_over = begun.elapsed() + FIRST_RETRY > limit;
        if is_over || client.is_in_process() || !error.may_pass() {
            return Err(error.into());
        }
        sleep(FIRST_RETRY).await;
    }
}

/// A batch that runs.
struct Run<'a> {
    input: &'a Input,
    output: Output,
    sender: Arc<Sender>,
    tally: &'a mut Tally,
    progress: &'a mut Progress,
}

/// The line of a task, and its answer.
type Ended = (usize, Result<Answered, String>);

impl Run<'_> {
    async fn all(mut self, concurrency: usize) -> Result<(), CliError> {
        let outcome = self.lines(concurrency).await;
        // What is there is kept, however it ended.
        let kept = block_in_place(|| self.output.sync());
        kept.and(self.output.check_in_place()).and(outcome)
    }

    async fn lines(&mut self, concurrency: usize) -> Result<(), CliError> {
        let failed = |e: std::io::Error| CliError::General(e.to_string());
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        let mut tick = interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut tasks: JoinSet<Ended> = JoinSet::new();
        let mut next = self.tally.done();
        let (mut ahead, mut ahead_bytes) = (BTreeMap::new(), 0);
        while self.tally.done() < self.input.len() {
            while tasks.len() < concurrency
                && next < self.input.len()
                && next < self.tally.done() + AHEAD_LINES_MAX
                && ahead_bytes < AHEAD_BYTES_MAX
            {
                let (request, sender) = (self.input.request(next)?, self.sender.clone());
                let index = next;
                tasks.spawn(async move { (index, sender.answer(&request).await) });
                next += 1;
            }
            tokio::select! {
                Some(ended) = tasks.join_next() => {
                    let (index, answered) = ended.map_err(|e| CliError::General(e.to_string()))?;
                    let answered = answered.map_err(|why| self.given_up(index, &why))?;
                    let line = answered.to_line();
                    ahead_bytes += line.len();
                    ahead.insert(index, (answered, line));
                }
                _ = tick.tick() => {
                    block_in_place(|| self.output.sync())?;
                    self.progress.show(self.tally);
                }
                _ = interrupt.recv() => return Err(self.stopped()),
                _ = terminate.recv() => return Err(self.stopped()),
            }
            while let Some((answered, line)) = ahead.remove(&self.tally.done()) {
                let index = self.tally.done();
                self.output.append(&line)?;
                self.tally.add(self.input.model_of(index), index, &answered);
                ahead_bytes -= line.len();
            }
        }
        Ok(())
    }

    fn given_up(&self, index: usize, why: &str) -> CliError {
        CliError::General(format!("line {}: {why}; {}", index + 1, self.go_on()))
    }

    fn stopped(&self) -> CliError {
        CliError::General(format!("stopped; {}", self.go_on()))
    }

    fn go_on(&self) -> String {
        let (done, all) = (self.tally.done(), self.input.len());
        format!("{done} of {all} lines are answered, and the same command goes on from there")
    }
}
