//! `tessera generate`: goes on with a text, by a model in this process or a server that runs.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Value, json};

use super::CliError;
use super::answering::Answering;
use super::client::Client;
use super::runtime::runtime;
use super::sampling::{SamplingArgs, speed};
use super::terminal::{Screen, remark};
use crate::config::whole;

/// Largest prompt that is read; a server takes no larger body.
const PROMPT_BYTES_MAX: u64 = 32 << 20;
const ROUTE: &str = "/v1/completions";

/// Flags of `tessera generate`.
#[derive(Args, Clone, Debug)]
#[command(override_usage = "tessera generate [OPTIONS] [MODEL] PROMPT")]
pub struct GenerateArgs {
    /// The prompt; before it, the model, as for serve. Without a prompt, or with -, it is read from
    /// standard input. Without a model: the built-in demo.
    #[arg(value_names = ["MODEL", "PROMPT"], num_args = 0..)]
    words: Vec<String>,
    /// Read the prompt from this file; an argument is then the model.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Name that answers: an adapter's, or the base's. Default: the base's.
    #[arg(long = "model", value_name = "NAME")]
    name: Option<String>,
    /// Texts to draw; each ends with a line end.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1,
        value_parser = whole(1, u32::MAX),
    )]
    n: u32,
    /// End each text with a zero byte in place of a line end.
    #[arg(long, short = '0')]
    null: bool,
    /// Say at the end, on standard error, how fast it was.
    #[arg(long)]
    stats: bool,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Who answers.
    #[command(flatten)]
    pub answering: Answering,
}

/// Runs the command.
///
/// # Errors
/// One line that says what is wrong and how to mend it.
pub fn run(args: &GenerateArgs) -> Result<(), CliError> {
    // A wrong prompt should not cost the loading of a model.
    let (model, prompt) = prompt(args)?;
    let answering = args.answering.with_model(model)?;
    let runtime = runtime()?;
    let done = runtime.block_on(async {
        let client = answering.client()?;
        let mut body = args.sampling.fields();
        body.insert("prompt".to_owned(), json!(prompt));
        if let Some(name) = &args.name {
            body.insert("model".to_owned(), json!(name));
        }
        match args.n {
            1 => streamed(&client, body.into(), args).await,
            _ => several(&client, body.into(), args).await,
        }
    });
    runtime.shutdown_background();
    done
}

/// The model, if there is one, and the prompt.
fn prompt(args: &GenerateArgs) -> Result<(Option<&str>, String), CliError> {
    let words: Vec<&str> = args.words.iter().map(String::as_str).collect();
    let (model, prompt) = match (&args.file, words.as_slice()) {
        (Some(path), [] | [_]) => (words.first().copied(), of_file(path)?),
        (Some(path), _) => {
            let shown = path.display();
            let text = format!("the prompt is given twice, by --file {shown} and as an argument");
            return Err(CliError::Usage(text));
        }
        (None, [] | ["-"]) => (None, of_stdin()?),
        (None, [model, "-"]) => (Some(*model), of_stdin()?),
        (None, [prompt]) => (None, (*prompt).to_owned()),
        (None, [model, prompt]) => (Some(*model), (*prompt).to_owned()),
        (None, more) => {
            let count = more.len();
            let text =
                format!("expected a model and a prompt, got {count} words; quote the prompt");
            return Err(CliError::Usage(text));
        }
    };
    if args.file.is_none() && model.is_none() && Path::new(&prompt).join("config.json").exists() {
        return Err(CliError::Usage(format!(
            "'{prompt}' is a model's directory and was taken for the prompt; give the prompt after \
             it, or - to read that from standard input"
        )));
    }
    Ok((model, prompt))
}

fn of_file(path: &Path) -> Result<String, CliError> {
    let file = fs::File::open(path).map_err(|e| unreadable(&path.display().to_string(), &e))?;
    read(file, &path.display().to_string())
}

fn of_stdin() -> Result<String, CliError> {
    read(io::stdin().lock(), "standard input")
}

/// The text without the line end that editors and `echo` put after it.
fn read(from: impl Read, shown: &str) -> Result<String, CliError> {
    let mut text = String::new();
    let read = from.take(PROMPT_BYTES_MAX + 1).read_to_string(&mut text);
    if read.map_err(|e| unreadable(shown, &e))? as u64 > PROMPT_BYTES_MAX {
        let text = format!("{shown}: a prompt may have {PROMPT_BYTES_MAX} bytes, this has more");
        return Err(CliError::Usage(text));
    }
    let whole = text.strip_suffix('\n').map(|text| text.strip_suffix('\r').unwrap_or(text));
    Ok(whole.unwrap_or(&text).to_owned())
}

fn unreadable(shown: &str, error: &io::Error) -> CliError {
    CliError::Usage(format!("the prompt cannot be read from {shown}: {error}"))
}

/// One text, as it is drawn.
async fn streamed(client: &Client, mut body: Value, args: &GenerateArgs) -> Result<(), CliError> {
    body["stream"] = json!(true);
    body["stream_options"] = json!({"include_usage": true});
    let start = Instant::now();
    let mut events = client.stream(ROUTE, &body).await?;
    let (mut screen, mut first_s, mut tokens) = (Screen::new(), None, None);
    while let Some(event) = events.next().await? {
        tokens = event["usage"]["completion_tokens"].as_u64().or(tokens);
        let Some(text) = event["choices"][0]["text"].as_str() else { continue };
        first_s.get_or_insert_with(|| start.elapsed().as_secs_f64());
        if !screen.say(text)? {
            return Ok(());
        }
    }
    match args.null {
        true => screen.raw("\0")?,
        false => screen.end_line()?,
    };
    if args.stats {
        remark(&speed(tokens, first_s, start.elapsed().as_secs_f64()));
    }
    Ok(())
}

/// Several texts, each whole.
async fn several(client: &Client, mut body: Value, args: &GenerateArgs) -> Result<(), CliError> {
    body["n"] = json!(args.n);
    let start = Instant::now();
    let answer = client.post(ROUTE, "", body.to_string().into()).await?.json()?;
    let mut screen = Screen::new();
    for choice in answer["choices"].as_array().into_iter().flatten() {
        let text = choice["text"].as_str().unwrap_or_default();
        let end = if args.null { "\0" } else { "\n" };
        if !(screen.say(text)? && screen.raw(end)?) {
            return Ok(());
        }
    }
    if args.stats {
        let (seconds, tokens) =
            (start.elapsed().as_secs_f64(), &answer["usage"]["completion_tokens"]);
        let tokens = tokens.as_u64().unwrap_or(0);
        remark(&format!("{tokens} tokens in {seconds:.2} s"));
    }
    Ok(())
}
