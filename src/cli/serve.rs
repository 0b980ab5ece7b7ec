//! `tessera serve`: from settings to a listening server.

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;

use indicatif::{ProgressBar, ProgressStyle};
use tokio::net::TcpListener;

use super::base::BaseModel;
use super::hub::{HubSettings, Kind, resolve};
use super::memory::{available_bytes, human};
use super::{CliError, demo, print, shutdown};
use crate::adapter::{Adapter, FileLimits, Load, Loader, Store};
use crate::backend::cpu::Cpu;
use crate::backend::cpu::simd::Level;
use crate::config::ServeConfig;
use crate::engine::{CheckpointBase, Engine, EngineHandle};
use crate::http::{self, App, HttpLimits, unix_now_s};
use crate::model::{Checkpoint, Model};
use crate::request::Limits;
use crate::scheduler::SchedulerConfig;
use crate::text::{ChatTemplate, Tokenizer, stop_token_ids};

/// Positions of one KV page: small enough to waste little, large enough to read fast.
const BLOCK_TOKENS: usize = 16;
/// The share of available memory that the KV cache takes when not told.
const KV_MEMORY_SHARE: u64 = 4;
/// Alternatives a position may report, as OpenAI's chat API allows.
const LOGPROBS_MAX: u32 = 20;

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// One line that says what is wrong and how to mend it.
pub fn run(config: &ServeConfig) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::General(format!("the I/O threads cannot be started: {e}")))?;
    runtime.block_on(async {
        // First of all: a port in use should not cost the loading of a model.
        let listener = listen(config).await?;
        let (app, report) = tokio::task::block_in_place(|| start(config))?;
        report.iter().for_each(|line| say(line));
        let address = listener.local_addr().map_err(|e| CliError::General(e.to_string()))?;
        say(&format!("ready: http://{address}/v1"));
        let served = http::serve(listener, app, shutdown::signal()).await;
        served.map_err(|e| CliError::General(format!("serving ended: {e}")))?;
        say("stopped");
        Ok(())
    })
}

/// A line of the start-up report. Whoever reads it may go away; serving goes on.
fn say(line: &str) {
    if let Err(error) = print(&format!("{line}\n")) {
        tracing::warn!("{error}");
    }
}

async fn listen(config: &ServeConfig) -> Result<TcpListener, CliError> {
    let (host, port) = (config.host.trim_matches(['[', ']']), config.port);
    let listener = TcpListener::bind((host, port)).await;
    listener.map_err(|e| match e.kind() {
        std::io::ErrorKind::AddrInUse => CliError::PortInUse(format!(
            "port {port} on {host} is in use; stop the other program or choose another --port"
        )),
        _ => CliError::Usage(format!("cannot listen on {host}:{port}: {e}; see --host and --port")),
    })
}

/// Loads everything and starts the engine; returns the server's state and the start-up report.
fn start(config: &ServeConfig) -> Result<(App, Vec<String>), CliError> {
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

    let loader = Loader {
        base: CheckpointBase(checkpoint.clone()),
        limits: FileLimits::new(config.adapter_file_bytes),
        allow_unknown_config_keys: config.allow_unknown_config_keys,
    };
    let store = Arc::new(Store::new(config.adapter_host_bytes));
    load_adapters(config, &base, &name, &loader, &store, &mut report)?;

    let sizes = Sizes::choose(config, &checkpoint)?;
    let threads = config.threads.unwrap_or_else(cores);
    let (engine, merged) = engine(config, &checkpoint, &sizes, threads, &store)?;
    let model_error = |e: &dyn std::fmt::Display| CliError::Model(format!("model {name}: {e}"));
    let context = sizes.context_tokens as u32;
    let tokenizer =
        Tokenizer::from_bytes(&base.text.tokenizer, context).map_err(|e| model_error(&e))?;
    let template = ChatTemplate::from_files(&base.text, context).map_err(|e| model_error(&e))?;
    let eos_tokens = stop_token_ids(&base.text, &tokenizer).map_err(|e| model_error(&e))?;
    sizes.describe(config, &checkpoint, &name, threads, &mut report);
    if let Some(merged) = &merged {
        report.push(format!("merged: '{merged}' is folded into the weights and served alone"));
    }
    let loopback = |ip: std::net::IpAddr| ip.is_loopback();
    if config.host != "localhost" && !config.host.parse().is_ok_and(loopback) {
        let warning = "warning: whoever can reach this address can use it: there is no login";
        report.push(warning.into());
    }
    if eos_tokens.is_empty() {
        report.push("warning: no end-of-sequence token is known; set max_tokens".into());
    }
    let adapter_root = config.adapter_root.as_deref().map(canonical).transpose()?;
    let limits = Limits {
        context_tokens_max: context,
        vocabulary_tokens: checkpoint.config.vocabulary as u32,
        logprobs_max: LOGPROBS_MAX,
    };
    let app = App {
        engine,
        store,
        loader: Arc::new(loader),
        tokenizer: Arc::new(tokenizer),
        template,
        limits,
        eos_tokens,
        base_name: name,
        created: unix_now_s(),
        merged,
        runtime_adapters: config.allow_runtime_adapters,
        adapter_root,
        hosts_allowed: hosts_allowed(config),
        http: HttpLimits {
            drain_timeout_ms: config.drain_seconds.saturating_mul(1000),
            ..HttpLimits::standard()
        },
    };
    Ok((app, report))
}

fn canonical(dir: &Path) -> Result<std::path::PathBuf, CliError> {
    let real = dir.canonicalize().ok().filter(|real| real.is_dir());
    real.ok_or_else(|| {
        CliError::Config(format!("--adapter-root {} is not a directory", dir.display()))
    })
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

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

fn load_adapters(
    config: &ServeConfig,
    base: &BaseModel,
    base_name: &str,
    loader: &Loader<CheckpointBase>,
    store: &Store,
    report: &mut Vec<String>,
) -> Result<(), CliError> {
    let mut given: Vec<(String, Source<'_>)> = Vec::new();
    if base.is_demo {
        given.extend(demo::ADAPTERS.iter().map(|a| (a.name.to_owned(), Source::Demo(a))));
    }
    for entry in &config.adapter {
        let (name, place) = entry.split_once('=').ok_or_else(|| {
            CliError::Config(format!("--adapter must be NAME=DIR_OR_ID, got '{entry}'"))
        })?;
        given.push((name.to_owned(), Source::Place(place)));
    }
    for (name, source) in given {
        let loaded = load_one(&name, &source, base_name, loader, store);
        match loaded {
            Ok(line) => report.push(line),
            Err(e) if config.skip_bad_adapters => report.push(format!("skipped {e}")),
            Err(e) => {
                return Err(CliError::Adapter(format!(
                    "{e} (--skip-bad-adapters starts without it)"
                )));
            }
        }
    }
    Ok(())
}

/// Where an adapter of the command line is.
enum Source<'a> {
    /// Built in.
    Demo(&'static demo::DemoAdapter),
    /// A directory or a Hub id.
    Place(&'a str),
}

fn load_one(
    name: &str,
    source: &Source<'_>,
    base_name: &str,
    loader: &Loader<CheckpointBase>,
    store: &Store,
) -> Result<String, String> {
    let failed = |e: &dyn std::fmt::Display| format!("adapter '{name}': {e}");
    if name == base_name {
        return Err(failed(&"the base model has this name; choose another"));
    }
    let adapter: Arc<Adapter> = match source {
        Source::Demo(files) => files.load(loader).map_err(|e| failed(&e))?,
        Source::Place(place) => {
            let dir = resolve(place, Kind::Adapter, &HubSettings::from_env());
            loader.load(&dir.map_err(|e| failed(&e))?, None).map_err(|e| failed(&e))?
        }
    };
    store.insert(name, adapter.clone(), unix_now_s(), false).map_err(|e| failed(&e))?;
    Ok(format!(
        "adapter {name}: {}, rank {}, {}, digest {}",
        adapter.method,
        adapter.delta.rank_max(),
        human(adapter.delta.bytes() as u64),
        &adapter.digest.to_string()[..12]
    ))
}

/// What the KV cache and a step measure.
struct Sizes {
    context_tokens: usize,
    blocks: usize,
    kv_bytes: u64,
}

impl Sizes {
    fn choose(config: &ServeConfig, checkpoint: &Checkpoint) -> Result<Self, CliError> {
        let block_bytes = Model::<Cpu>::kv_shape(checkpoint, 1, BLOCK_TOKENS).block_bytes() as u64;
        let trained = checkpoint.config.positions_max;
        let wanted = config.max_model_len.unwrap_or(trained);
        if wanted > trained {
            return Err(CliError::Config(format!(
                "--max-model-len {wanted} is more than the {trained} tokens the model was trained \
                 for (max_position_embeddings in config.json)"
            )));
        }
        let full = (wanted.div_ceil(BLOCK_TOKENS) * config.max_num_seqs) as u64 * block_bytes;
        let share = available_bytes().map_or(full, |bytes| bytes / KV_MEMORY_SHARE);
        let budget = config.kv_cache_bytes.unwrap_or_else(|| full.min(share));
        let blocks = (budget / block_bytes) as usize;
        // The last token drawn needs no place in the cache.
        let fits = (blocks * BLOCK_TOKENS).min(wanted);
        if blocks == 0 || (config.max_model_len.is_some() && fits < wanted) {
            let needed = wanted.div_ceil(BLOCK_TOKENS) as u64 * block_bytes;
            return Err(CliError::Config(format!(
                "a KV cache of {budget} bytes holds {fits} tokens and --max-model-len is {wanted}; \
                 give --kv-cache-bytes {needed} or more, or a smaller --max-model-len"
            )));
        }
        Ok(Self { context_tokens: fits, blocks, kv_bytes: blocks as u64 * block_bytes })
    }

    fn describe(
        &self,
        config: &ServeConfig,
        checkpoint: &Checkpoint,
        name: &str,
        threads: usize,
        report: &mut Vec<String>,
    ) {
        let weights = human(checkpoint.weight_bytes());
        let dtype = checkpoint.dtype.name();
        let architecture = &checkpoint.config.architecture;
        report.push(format!("model {name}: {architecture}, {dtype}, {weights} of weights"));
        report.push(format!("device: cpu, {threads} threads, {}", Level::detect().name()));
        report.push(format!(
            "KV cache: {}, {} tokens; context at most {} tokens",
            human(self.kv_bytes),
            self.blocks * BLOCK_TOKENS,
            self.context_tokens
        ));
        report.push(format!(
            "limits: {} sequences at once, {} tokens a step, {} requests waiting, {} adapters a \
             batch, {} of adapters in memory",
            config.max_num_seqs,
            config.max_num_batched_tokens,
            config.queue_requests,
            config.adapter_slots,
            human(config.adapter_host_bytes)
        ));
    }
}

/// Loads the model onto the device, folds the adapter to merge, and starts the engine.
fn engine(
    config: &ServeConfig,
    checkpoint: &Arc<Checkpoint>,
    sizes: &Sizes,
    threads: usize,
    store: &Store,
) -> Result<(EngineHandle, Option<String>), CliError> {
    let merged = match &config.merge {
        None => None,
        Some(name) => Some(store.get(name).ok_or_else(|| {
            CliError::Config(format!(
                "--merge {name}: no adapter of this name is given; add --adapter {name}=DIR"
            ))
        })?),
    };
    let backend = Cpu::new(threads);
    let bar = progress(checkpoint.weight_bytes());
    let loaded = |bytes| bar.inc(bytes);
    let mut model = Model::load(checkpoint, &backend, sizes.context_tokens, &loaded);
    bar.finish_and_clear();
    if let Some(named) = &merged {
        model.fold(&backend, &named.adapter.delta);
    }
    let kv_shape = Model::<Cpu>::kv_shape(checkpoint, sizes.blocks, BLOCK_TOKENS);
    let requests_max = config.max_num_seqs + config.queue_requests;
    let scheduler = SchedulerConfig {
        sequences_max: config.max_num_seqs,
        batch_tokens_max: config.max_num_batched_tokens,
        block_tokens: BLOCK_TOKENS,
        blocks: sizes.blocks,
        queue_requests_max: requests_max,
        prefix_cache: !config.no_prefix_cache,
    };
    let slots = config.adapter_slots;
    let engine = Engine { backend, model, kv_shape, scheduler, adapter_slots_max: slots };
    let handle = engine.start(requests_max).map_err(|e| {
        CliError::Config(format!("{e}; see --max-num-seqs and --max-num-batched-tokens"))
    })?;
    Ok((handle, merged.map(|named| named.name.clone())))
}

/// A bar on a terminal, nothing elsewhere.
fn progress(bytes: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "loading {bar:40} {bytes}/{total_bytes} {bytes_per_sec}";
    let style =
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(bytes).with_style(style)
}
