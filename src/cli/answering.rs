//! Who answers `chat`, `generate` and `batch`: a model in this process, with the flags of `serve`,
//! or a server that runs.

use std::future::pending;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches, value_parser};
use tokio::task::block_in_place;

use super::access::Access;
use super::client::{Address, Client};
use super::terminal::{complain, variable};
use super::{CliError, serve};
use crate::config::{LogConfig, LogLevel, ServeConfig};
use crate::http::{self, Listener};

/// The heading of flags that say where a server is.
const SERVER: &str = "Who answers";
/// Flags of `serve` that make sense where nobody listens, beside those of whole headings.
const KEPT: &[&str] = &[
    "body_bytes_max",
    "config",
    "log_format",
    "log_level",
    "queue_requests",
    "reasoning_parser",
    "served_model_name",
    "strict_fields",
    "tool_call_parser",
];
/// Those that do not, of the headings that are kept.
const LEFT_OUT: &[&str] = &["adapter_root", "allow_runtime_adapters"];
/// `--api-key` is the key of the server here, and not one that it must be asked with.
const KEY: &str = "api_key";
/// `--ssl-certfile` is the certificate of the server here, and needs no private key.
const CERTIFICATE: &str = "ssl_certfile";
/// What each command takes as an argument of its own; the variable and the key of the settings file
/// are read here.
const MODEL: &str = "model";

/// Who answers.
#[derive(Clone, Debug)]
pub struct Answering {
    /// The settings of a model in this process.
    pub config: ServeConfig,
    url: Option<Address>,
}

impl Args for Answering {
    fn augment_args(command: Command) -> Command {
        let url = Arg::new("url")
            .long("url")
            .value_name("URL")
            .value_parser(value_parser!(Address))
            .help_heading(SERVER)
            .help(
                "Ask the server at this address, as `ready:` prints it, instead of loading a model",
            );
        command.arg(url).args(settings().map(fitted))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Answering {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let url = matches.get_one::<Address>("url").cloned();
        let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        for arg in settings().filter(|arg| given(arg.get_id().as_str())) {
            let flag = arg.get_long().map(|long| format!("--{long}")).unwrap_or_default();
            let id = arg.get_id().as_str();
            let why = match &url {
                Some(_) if [KEY, CERTIFICATE].contains(&id) => continue,
                None if id == KEY => "it is sent to a server, and --url names none".into(),
                None if id == CERTIFICATE => "it is a server's, and --url names none".into(),
                _ if !is_fit(&arg) => "nobody listens here; it is a flag of tessera serve".into(),
                Some(url) if arg.get_help_heading() != Some("Log") => {
                    format!("the server at {url} has its own settings")
                }
                _ => continue,
            };
            let text = format!("{flag} does nothing here: {why}; leave it out\n");
            return Err(Error::raw(ErrorKind::ArgumentConflict, text));
        }
        let mut config = ServeConfig::from_arg_matches(matches)?;
        quiet(&mut config.log);
        Ok(Self { config, url })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn settings() -> impl Iterator<Item = Arg> {
    let command = ServeConfig::augment_args(Command::new("serve"));
    command.get_arguments().cloned().collect::<Vec<_>>().into_iter()
}

fn is_fit(arg: &Arg) -> bool {
    let id = arg.get_id().as_str();
    let is_whole = ["Adapters", "Engine"].iter().any(|h| arg.get_help_heading() == Some(h));
    (is_whole && !LEFT_OUT.contains(&id)) || KEPT.contains(&id) || id == MODEL
}

/// A flag of `serve` as it is here. One that has no use stays known, so that it is refused with a
/// reason, and its variable is not read.
fn fitted(arg: Arg) -> Arg {
    match arg.get_id().as_str() {
        KEY => arg
            .visible_alias("key")
            .help("Key to send with --url, where the server asks for one")
            .help_heading(SERVER),
        CERTIFICATE => Arg::new(CERTIFICATE)
            .long("ssl-certfile")
            .env("TESSERA_SSL_CERTFILE")
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help(
                "Certificate of the server at --url, if it has one that the system does not vouch \
                 for; it alone is believed then",
            )
            .help_heading(SERVER),
        MODEL => arg.long("base-model").hide(true),
        _ if is_fit(&arg) => arg,
        _ => arg.hide(true).env(None::<&'static str>),
    }
}

/// Warnings alone, unless the user wants more: the log shares a terminal with the answers.
fn quiet(log: &mut LogConfig) {
    log.no_access_log = true;
    if variable("RUST_LOG").is_none() {
        log.log_level.get_or_insert(LogLevel::Warn);
    }
}

impl Answering {
    /// The same, with the model that the command was given as an argument of its own.
    ///
    /// # Errors
    /// [`CliError::Usage`] where a server was named too.
    pub fn with_model(&self, model: Option<&str>) -> Result<Self, CliError> {
        let mut answering = self.clone();
        match (model, &self.url) {
            (None, _) => {}
            (Some(model), None) => answering.config.model = Some(model.to_owned()),
            (Some(model), Some(url)) => {
                return Err(CliError::Usage(format!(
                    "both the model '{model}' and a server, {url}, are given; leave one out"
                )));
            }
        }
        Ok(answering)
    }

    /// A client of the server, or of the model once it is loaded. Only within a runtime.
    ///
    /// # Errors
    /// As for `serve`; a server is not asked yet.
    pub fn client(&self) -> Result<Client, CliError> {
        if let Some(address) = &self.url {
            let key = self.config.access.api_key.last().cloned();
            let certificate = self.config.network.ssl_certfile.as_deref();
            return Ok(Client::of_server(address.clone(), certificate, key)?);
        }
        let nobody = Access { keys: None, metrics_key: None, report: Vec::new(), warning: None };
        let (app, report) = block_in_place(|| serve::start(&self.config, nobody, &complain))?;
        let is_told = |line: &&String| ["warning:", "skipped "].iter().any(|w| line.starts_with(w));
        report.iter().filter(is_told).for_each(|line| complain(line));
        let (listener, connect) = Listener::in_process();
        tokio::spawn(async move {
            if let Err(error) = http::serve(listener, app, pending()).await {
                tracing::error!(%error, "the server in this process ended");
            }
        });
        Ok(Client::of_process(connect))
    }
}
