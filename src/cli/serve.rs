//! `tessera serve`: from settings to a listening server.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::access::{self, Access};
use super::base::{BaseModel, find_adapter};
use super::limits::{check_threads, raise_open_files, refused};
use super::listen::listen;
use super::log::Log;
use super::memory::human;
use super::otlp::Traces;
use super::progress::counting;
use super::runtime::runtime;
use super::terminal::line;
use super::writer::Writer;
use super::{CliError, demo, device, shutdown};
use crate::adapter::{Allowed, Catalog, FileLimits, LoadAdapter, Loader, NewName, Source};
use crate::config::{AdapterTemplate, GenerationConfig, ServeConfig};
use crate::engine::CheckpointBase;
use crate::http::{self, App, HttpSettings, ServedModel, unix_now_s};
use crate::request::Limits;
use crate::text::{
    AdapterTexts, OwnText, SamplingDefaults, ServedText, TextError, TextFiles, TextSettings,
    Tokenizer, not_applied,
};

/// Alternatives a position may report, as OpenAI's chat API allows.
const LOGPROBS_MAX: u32 = 20;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// One line that says what is wrong and how to mend it.
pub fn run(config: &ServeConfig, log: &Log) -> Result<(), CliError> {
    let runtime = runtime()?;
    let few_files = raise_open_files(HttpSettings::standard().connections_max);
    let report = Writer::start("report", std::io::stdout(), unwritten());
    let out = report.map_err(|e| refused(0, 1, &e))?;
    let say = |text: &str| out.lines().write_patiently(format!("{}\n", line(text)).into_bytes());
    // First of all: neither a wrong key nor a port in use should cost the loading of a model.
    let access = access::read(config)?;
    let endpoint = config.log.otlp_traces_endpoint.as_deref();
    let traces = endpoint.map(Traces::start).transpose()?;
    let served = runtime.block_on(async {
        shutdown::outlive();
        let (listener, address) = listen(config).await?;
        let warnings: Vec<String> = access.warning.clone().into_iter().chain(few_files).collect();
        let (mut app, report) = tokio::task::block_in_place(|| start(config, access, &say))?;
        app.http.log_lines_lost = Some(log.lost().clone());
        app.http.spans = traces.as_ref().map(Traces::spans);
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        report.iter().for_each(|text| say(text));
        say(&format!("ready: {address}"));
        let served = http::serve(listener, app, shutdown::signal()).await;
        served.map_err(|e| CliError::General(format!("serving ended: {e}")))?;
        say("stopped");
        Ok(())
    });
    // A thread that reads from a disk which does not answer is not waited for.
    runtime.shutdown_background();
    served
}

/// What is done about the start-up report when it cannot be written. Whoever reads it may go away,
/// or read no further; serving goes on.
fn unwritten() -> impl FnMut(u64, Option<io::Error>) -> Option<Vec<u8>> + Send {
    let mut is_told = false;
    move |_, failed| {
        if let Some(error) = failed.filter(|error| error.kind() != io::ErrorKind::BrokenPipe)
            && !std::mem::replace(&mut is_told, true)
        {
            tracing::warn!("stdout cannot be written: {error}");
        }
        None
    }
}

/// Loads everything and starts the engine; returns the server's state and the start-up report.
/// `say` hears what takes time.
///
/// # Errors
/// One line that says what is wrong and how to mend it.
pub(super) fn start(
    config: &ServeConfig,
    access: Access,
    say: &dyn Fn(&str),
) -> Result<(App, Vec<String>), CliError> {
    check_threads(device::threads_needed(config))?;
    let mut report = vec![format!("tessera {}", env!("CARGO_PKG_VERSION"))];
    let base = BaseModel::open(config.model.as_deref(), config.dtype)?;
    let checkpoint = base.checkpoint.clone();
    let name = config.served_model_name.clone().unwrap_or_else(|| base.name.clone());
    crate::adapter::check_name(&name).map_err(|_| {
        CliError::Config(format!(
            "the base model's name '{name}' cannot be served; give another with \
             --served-model-name"
        ))
    })?;

    let loader = |fits| Loader {
        base: CheckpointBase::new(checkpoint.clone()),
        fits,
        limits: FileLimits::new(config.adapter_file_bytes),
        base_names: base.names().chain(config.model.clone()).collect(),
        allowed: allowed(config),
    };
    let catalog = Arc::new(Catalog::new(config.adapter_host_bytes));
    let texts = Arc::new(texts(config, &base, &mut report)?);
    load_adapters(config, &base, &name, &loader(None), &texts, &catalog, &mut report)?;

    let bytes = human(checkpoint.weight_bytes());
    let (architecture, dtype) = (&checkpoint.config.architecture, checkpoint.dtype.name());
    report.push(format!("model {name}: {architecture}, {dtype}, {bytes} of weights"));
    report.extend(checkpoint.notes.iter().map(|note| format!("warning: model {name}: {note}")));
    let started = device::start(config, &checkpoint, &catalog, say, &mut report)?;
    let merged = config.merge.clone();
    let context = started.context_tokens as u32;
    if let Some(merged) = &merged {
        report.push(format!("merged: '{merged}' is folded into the weights and served alone"));
    }
    report.extend(access.report);
    if texts.base.eos_tokens.is_empty() {
        report.push("warning: no end-of-sequence token is known; set max_tokens".into());
    }
    let adapter_root = config.adapter_root.as_deref().map(directory).transpose()?;
    let limits = Limits {
        context_tokens_max: context,
        vocabulary_tokens: checkpoint.config.vocabulary as u32,
        logprobs_max: LOGPROBS_MAX,
    };
    let model = ServedModel {
        base_name: name,
        created: unix_now_s(),
        merged,
        text: texts.base.clone(),
        limits,
        hidden_size: checkpoint.config.hidden,
    };
    let http = HttpSettings {
        keys: access.keys,
        metrics_key: access.metrics_key,
        ..http_settings(config, adapter_root, context)
    };
    report.push(format!(
        "bodies of requests: {} at most (--body-bytes-max)",
        human(http.body_bytes_max as u64)
    ));
    let loader = Arc::new(loader(started.fits));
    let app = App { engine: started.engine, catalog, loader, texts, model, http };
    Ok((app, report))
}

/// What clients may do, and within which limits; who they are is said elsewhere.
fn http_settings(
    config: &ServeConfig,
    adapter_root: Option<PathBuf>,
    context_tokens: u32,
) -> HttpSettings {
    let settings = HttpSettings {
        hosts_allowed: hosts_allowed(config),
        strict_fields: config.strict_fields,
        tool_call_parser: config.tool_call_parser,
        reasoning_parser: config.reasoning_parser,
        origins_allowed: config.network.allowed_origin.clone(),
        metrics_hide_names: config.access.metrics_hide_adapter_names,
        page: !config.network.no_page,
        runtime_adapters: config.allow_runtime_adapters,
        adapter_root,
        drain_notice_ms: config.network.drain_notice_seconds.saturating_mul(1000),
        drain_timeout_ms: config.drain_seconds.saturating_mul(1000),
        step_ms_max: config.step_seconds_max.saturating_mul(1000),
        ..HttpSettings::standard()
    };
    settings.with_body_bytes(config.network.body_bytes_max, context_tokens)
}

/// What adapters may have.
fn allowed(config: &ServeConfig) -> Allowed {
    Allowed {
        unknown_config_keys: config.allow_unknown_config_keys,
        rank_max: config.max_adapter_rank,
    }
}

/// How the base's text becomes tokens and ends, and what reads the text files of adapters.
fn texts(
    config: &ServeConfig,
    base: &BaseModel,
    report: &mut Vec<String>,
) -> Result<AdapterTexts, CliError> {
    let model_error = |e: TextError| CliError::Model(format!("model {}: {e}", base.name));
    let mut base_files = base.text.clone();
    if let GenerationConfig::Dir(dir) = &config.generation_config {
        let read = TextFiles::read_generation_config(dir);
        base_files.generation_config = Some(read.map_err(|e| {
            let e = match e {
                TextError::FileMissing { file } => format!("there is no {file}"),
                e => e.to_string(),
            };
            CliError::Config(format!("--generation-config {}: {e}", dir.display()))
        })?);
    }
    let numbers = &base.checkpoint.config;
    // The KV cache may hold fewer; then the tokens are counted all the same.
    let context = config.max_model_len.unwrap_or(usize::MAX).min(numbers.positions_max);
    let settings = TextSettings {
        context_tokens_max: context as u32,
        vocabulary_tokens: numbers.vocabulary as u32,
        takes_defaults: config.generation_config != GenerationConfig::Vllm,
    };
    let served = ServedText::new(&base_files, &settings).map_err(model_error)?;
    if served.defaults != SamplingDefaults::default() {
        let defaults = served.defaults.describe();
        report.push(format!(
            "sampling defaults of generation_config.json: {defaults} (--generation-config vllm \
             ignores them)"
        ));
    }
    report.extend(tokenizer_notes(&served.tokenizer, settings.vocabulary_tokens));
    let not_applied = not_applied(&base_files).map_err(model_error)?;
    if settings.takes_defaults && !not_applied.is_empty() {
        let list = not_applied.join(", ");
        report.push(format!("warning: generation_config.json: not applied: {list}"));
    }
    let uses_own = config.adapter_template == AdapterTemplate::Own;
    Ok(AdapterTexts::new(base_files, served, settings, uses_own))
}

/// What a user should know of the model's tokenizer: what its files say in vain, and tokens that
/// the model has no embedding for. A prompt that holds one of those is refused.
fn tokenizer_notes(tokenizer: &Tokenizer, model_tokens: u32) -> Vec<String> {
    let mut notes: Vec<String> =
        tokenizer.notes().iter().map(|note| format!("note: {note}")).collect();
    let beyond = tokenizer.added_tokens().into_iter().filter(|token| token.id >= model_tokens);
    let beyond: Vec<String> =
        beyond.map(|token| format!("{:?} ({})", token.content, token.id)).collect();
    if !beyond.is_empty() {
        let listed = beyond.join(", ");
        notes.push(format!(
            "note: the model has {model_tokens} embeddings and none for the tokens {listed}; a \
             prompt that holds one is refused"
        ));
    }
    notes
}

fn directory(dir: &Path) -> Result<PathBuf, CliError> {
    match dir.is_dir() {
        true => Ok(dir.to_owned()),
        false => {
            Err(CliError::Config(format!("--adapter-root {} is not a directory", dir.display())))
        }
    }
}

/// Names that requests may use for this server beside those of the loopback address; `None` leaves
/// the choice to the socket.
fn hosts_allowed(config: &ServeConfig) -> Option<Vec<String>> {
    if config.allowed_host.is_empty() {
        return None;
    }
    let own = [config.host.as_str(), "localhost", "127.0.0.1", "[::1]"];
    Some(own.into_iter().map(str::to_owned).chain(config.allowed_host.iter().cloned()).collect())
}

fn load_adapters(
    config: &ServeConfig,
    base: &BaseModel,
    base_name: &str,
    loader: &Loader<CheckpointBase>,
    texts: &AdapterTexts,
    catalog: &Catalog,
    report: &mut Vec<String>,
) -> Result<(), CliError> {
    let mut given: Vec<(String, Given<'_>)> = Vec::new();
    if base.is_demo {
        given.extend(demo::ADAPTERS.iter().map(|a| (a.name.to_owned(), Given::Demo(a))));
    }
    given.extend(config.adapter.iter().map(|a| (a.name.clone(), Given::Place(&a.place))));
    let bar = counting("loading adapters", given.len() as u64);
    for (name, source) in given {
        let loaded = load_one(&name, &source, base_name, loader, texts, catalog);
        match loaded {
            Ok(lines) => report.extend(lines),
            Err(e) if config.skip_bad_adapters => report.push(format!("skipped {e}")),
            Err(e) => {
                bar.finish_and_clear();
                return Err(CliError::Adapter(format!(
                    "{e} (--skip-bad-adapters starts without it)"
                )));
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Where an adapter of the command line is.
enum Given<'a> {
    /// Built in.
    Demo(&'static demo::DemoAdapter),
    /// A directory or a Hub id.
    Place(&'a str),
}

fn load_one(
    name: &str,
    given: &Given<'_>,
    base_name: &str,
    loader: &Loader<CheckpointBase>,
    texts: &AdapterTexts,
    catalog: &Catalog,
) -> Result<Vec<String>, String> {
    let failed = |e: &dyn std::fmt::Display| format!("adapter '{name}': {e}");
    if name == base_name {
        return Err(failed(&"the base model has this name; choose another"));
    }
    let nothing = OwnText { text: None, notes: Vec::new() };
    let (file, own, source) = match given {
        Given::Demo(files) => (files.read(loader), nothing, Source::BuiltIn),
        Given::Place(place) => {
            let found = find_adapter(place).map_err(|e| match place.contains(',') {
                true => failed(&format_args!(
                    "{e} (to serve several, give --adapter once for each: commas separate in \
                     TESSERA_ADAPTER alone)"
                )),
                false => failed(&e),
            })?;
            let read =
                found.read(|folder| Ok((loader.read(folder)?, TextFiles::of_adapter(folder))));
            let (file, own) = read.map_err(|e| failed(&e))?;
            let own = own.and_then(|own| texts.of_adapter(own)).map_err(|e| failed(&e))?;
            (Ok(file), own, Source::Start((*place).to_owned()))
        }
    };
    let file = file.map_err(|e| failed(&e))?;
    let OwnText { text, notes } = own;
    let new = NewName { name, source, text, created: unix_now_s(), replace: false };
    let loaded = catalog.load(new, file.digest, || loader.lower(&file)).map_err(|e| failed(&e))?;
    let adapter = loaded.adapter;
    let notes = file.notes.iter().chain(&notes);
    let mut lines = vec![format!(
        "adapter {name}: {}, rank {}, {}, digest {}",
        adapter.method,
        adapter.delta.rank_max(),
        human(adapter.delta.bytes() as u64),
        &adapter.digest.to_string()[..12]
    )];
    lines.extend(notes.map(|note| format!("adapter {name}: note: {note}")));
    Ok(lines)
}
