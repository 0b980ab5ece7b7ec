//! One file a command; flags to calls, results to text and exit codes.

mod access;
mod answering;
mod base;
mod batch;
mod bench;
mod chat;
mod client;
mod demo;
mod device;
mod doctor;
mod foreign;
mod generate;
mod healthcheck;
mod help;
pub mod hub;
pub mod inspect;
mod listen;
mod load;
mod log;
mod manual;
mod memory;
#[cfg_attr(not(feature = "otlp"), path = "otlp_off.rs")]
mod otlp;
mod progress;
mod runtime;
mod sampling;
mod serve;
mod shutdown;
pub mod synth;
mod terminal;

pub use foreign::{FOREIGN, Foreign};
pub use help::EXIT_CODES;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::adapter::AdapterError;
use crate::config::{FromFile, ServeConfig, describe, with_file};
use crate::dtype::Dtype;
use crate::model::ModelError;

#[derive(Parser)]
#[command(name = "tessera", version, about, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model and its adapters over OpenAI's API.
    Serve(Box<ServeConfig>),
    /// Say what this machine has for serving, what is missing, and what to do about it.
    Doctor(doctor::DoctorArgs),
    /// Talk to a model and its adapters.
    Chat(Box<chat::ChatArgs>),
    /// Go on with a text.
    Generate(Box<generate::GenerateArgs>),
    /// Answer a file of requests, each by its own adapter; a run that was ended goes on.
    Batch(Box<batch::BatchArgs>),
    /// Say what an adapter directory holds, tensor by tensor, and whether it would be served.
    Inspect(inspect::InspectArgs),
    /// Write a model or an adapter of a given shape with random weights, for benchmarks and tests.
    Synth(synth::SynthArgs),
    /// Time prefill and decode steps in this process.
    Bench(bench::BenchArgs),
    /// Send a running server many requests at once, and say how fast it was.
    Load(load::LoadArgs),
    /// Exit 0 if a server is healthy, else 1 (for containers).
    Healthcheck(healthcheck::HealthcheckArgs),
    /// Print what makes a shell complete commands and flags: bash, zsh or fish.
    Completions(manual::CompletionsArgs),
    /// Write manual pages into a directory: tessera.1 and one for each command.
    Man(manual::ManArgs),
}

impl Command {
    /// The settings of a command that loads a model to serve it, and its name.
    fn settings(&self) -> Option<(&'static str, &ServeConfig)> {
        match self {
            Command::Serve(config) => Some(("serve", config)),
            Command::Chat(args) => Some(("chat", &args.answering.config)),
            Command::Generate(args) => Some(("generate", &args.answering.config)),
            Command::Batch(args) => Some(("batch", &args.answering.config)),
            _ => None,
        }
    }
}

/// Why a command failed: one line for the terminal and the exit code that goes with it.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// Anything without a code of its own; exit code 1.
    #[error("{0}")]
    General(String),
    /// Flags that make no sense, or that name something which is not there; exit code 2.
    #[error("{0}")]
    Usage(String),
    /// An adapter that would not be served; exit code 2.
    #[error("{0}")]
    Adapter(String),
    /// A model that cannot be loaded; exit code 3.
    #[error("{0}")]
    Model(String),
    /// Another program listens there already; exit code 4.
    #[error("{0}")]
    PortInUse(String),
    /// A configuration file or variable that cannot be used; exit code 5.
    #[error("{0}")]
    Config(String),
}

impl CliError {
    /// What the process exits with.
    pub fn exit_code(&self) -> u8 {
        match self {
            CliError::General(_) => 1,
            CliError::Usage(_) | CliError::Adapter(_) => 2,
            CliError::Model(_) => 3,
            CliError::PortInUse(_) => 4,
            CliError::Config(_) => 5,
        }
    }
}

impl From<ModelError> for CliError {
    fn from(error: ModelError) -> Self {
        CliError::Model(error.to_string())
    }
}

impl From<AdapterError> for CliError {
    fn from(error: AdapterError) -> Self {
        CliError::Adapter(error.to_string())
    }
}

/// The whole command line: every command, flag and text of `--help`.
pub fn command() -> clap::Command {
    help::dressed(Cli::command())
}

/// Parses the process's arguments and runs the command they name.
pub fn run() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let outcome = match parse(&args) {
        Err(asked)
            if asked.kind() == ErrorKind::DisplayHelp
                && let Some(text) = hub_flag(&args) =>
        {
            Err(CliError::Usage(text))
        }
        Ok(Ok(Asked::Run(command))) => dispatch(command),
        Ok(Ok(Asked::Settings(text))) => print(&text),
        Ok(Err(text)) => Err(CliError::Config(text)),
        Err(asked) if !asked.use_stderr() => {
            // --help and --version; a closed stdout is no failure.
            let _ = asked.print();
            return ExitCode::SUCCESS;
        }
        Err(wrong) if wrong.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = wrong.print();
            return ExitCode::from(CliError::Usage(String::new()).exit_code());
        }
        Err(wrong) => Err(CliError::Usage(usage(&wrong, &args))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::remark(&format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// llama-server's `-hf`, which would otherwise be read as `-h` and ask for help.
fn hub_flag(args: &[OsString]) -> Option<String> {
    let typed = args.iter().find(|arg| arg.to_str().is_some_and(|arg| arg.starts_with("-hf")))?;
    foreign::pointer(&[typed.to_string_lossy().into_owned()], "-hf")
}

/// What a command line asks for.
enum Asked {
    /// To run a command.
    Run(Command),
    /// To be shown the settings.
    Settings(String),
}

/// Parses twice where a command is given a settings file: once to find it, once with its values in
/// place of the defaults. The outer error is clap's, the inner one the file's.
fn parse(args: &[OsString]) -> Result<Result<Asked, String>, clap::Error> {
    let command = command();
    let mut matches = command.clone().try_get_matches_from(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let Some((name, config)) = cli.command.settings() else {
        return Ok(Ok(Asked::Run(cli.command)));
    };
    let (path, shows) = (config.config.clone(), config.print_config);
    let mut ids = Vec::new();
    if let Some(path) = &path
        && let Some(own) = command.find_subcommand(name).cloned()
    {
        let own = match with_file(own, path) {
            Ok((own, set)) => {
                ids = set;
                own
            }
            Err(text) => return Ok(Err(text)),
        };
        matches = command.clone().mut_subcommand(name, |_| own).try_get_matches_from(args)?;
        cli = Cli::from_arg_matches(&matches)?;
    }
    let own = command.find_subcommand(name).zip(matches.subcommand_matches(name));
    let (Some((own, given)), true) = (own, shows) else {
        return Ok(Ok(Asked::Run(cli.command)));
    };
    let file = path.as_deref().map(|path| FromFile { path, ids: &ids });
    Ok(Ok(Asked::Settings(describe(own, given, file.as_ref()))))
}

fn dispatch(command: Command) -> Result<(), CliError> {
    let config = command.settings().map(|(_, config)| &config.log);
    let log = log::Log::start(config);
    let log = log.map_err(|e| CliError::General(format!("the log cannot be started: {e}")))?;
    match command {
        Command::Serve(config) => serve::run(&config, &log),
        Command::Doctor(args) => doctor::run(&args),
        Command::Chat(args) => chat::run(&args),
        Command::Generate(args) => generate::run(&args),
        Command::Batch(args) => batch::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Healthcheck(args) => healthcheck::run(&args),
        Command::Completions(args) => manual::completions(&args),
        Command::Man(args) => manual::man(&args),
    }
}

/// clap's error as one line: what was wrong and its tip, without the usage block; of a flag that
/// another server has, what is written here instead.
fn usage(wrong: &clap::Error, args: &[OsString]) -> String {
    let shown = |kind| wrong.get(kind).map(ToString::to_string);
    let args: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    // Other commands have no such flags: there clap's own tip is better.
    let serves = args.get(1).is_none_or(|first| first == "serve" || first.starts_with('-'));
    if let (ErrorKind::UnknownArgument, true) = (wrong.kind(), serves)
        && let Some(flag) = shown(ContextKind::InvalidArg)
        && let Some(pointer) = foreign::pointer(&args, &flag)
    {
        return format!("{pointer}; see tessera serve --help");
    }
    if wrong.kind() == ErrorKind::InvalidSubcommand
        && let Some(word) = shown(ContextKind::InvalidSubcommand).filter(|w| w.contains('/'))
    {
        return format!("'{word}' is no command; to serve it: tessera serve {word}");
    }
    let text = wrong.to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or(&text);
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{said}; see tessera --help")
}

/// A float width in flags.
///
/// # Errors
/// When it is none of the three.
pub fn parse_dtype(text: &str) -> Result<Dtype, String> {
    Dtype::from_name(text).ok_or_else(|| "expected f32, f16 or bf16".into())
}

/// Prints to stdout. A reader that has gone away (`tessera inspect | head`) is no failure.
///
/// # Errors
/// [`CliError::General`] when stdout cannot be written for another reason.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::General(format!("stdout cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// The text of an I/O error at a path.
fn at(path: &Path, error: &std::io::Error) -> CliError {
    CliError::General(format!("{} cannot be written: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn what_is_written_instead_of_another_servers_flag_is_a_flag_of_serve() {
        let command = command();
        let serve = command.find_subcommand("serve").unwrap();
        let flags = serve.get_arguments().filter_map(|arg| arg.get_long());
        let flags: Vec<String> = flags.map(|name| format!("--{name}")).collect();
        for Foreign { names, instead, .. } in FOREIGN {
            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '-';
            let words = instead.split(|c| !is_word(c)).filter(|word| word.starts_with("--"));
            for word in words {
                assert!(flags.iter().any(|flag| flag == word), "{names:?}: {instead}");
            }
            let own = names.iter().find(|name| flags.iter().any(|flag| flag == **name));
            assert_eq!(own, None, "a flag of our own");
        }
    }

    #[test]
    fn another_servers_flag_is_answered_with_what_is_written_here() {
        let said = |args: &[&str]| {
            let args: Vec<OsString> =
                ["tessera"].iter().chain(args).map(|arg| OsString::from(*arg)).collect();
            let Err(wrong) = parse(&args) else { panic!("accepted: {args:?}") };
            usage(&wrong, &args)
        };
        for (args, expected) in [
            (&["serve", "m", "--lora-modules", "a=b"][..], "--adapter NAME=DIR_OR_ID"),
            (&["serve", "--enable-lora"], "leave it out"),
            (&["serve", "--model", "m"], "tessera serve MODEL"),
            (&["--model", "m"], "tessera serve MODEL"),
            (&["serve", "-m", "m.gguf"], "tessera serve MODEL"),
            (&["serve", "m", "-ngl", "99"], "-ngl is a flag of llama-server"),
            (&["serve", "m", "--tensor-parallel-size=2"], "one device"),
            (&["serve", "m", "--max_lora_rank", "64"], "leave it out"),
            (&["serve", "m", "--ctx-size", "4096"], "--max-model-len"),
            (&["org/name"], "tessera serve org/name"),
            (&["load", "--max-loras", "2"], "see tessera --help"),
        ] {
            let text = said(args);
            assert!(text.contains(expected) && !text.contains('\n'), "{args:?}: {text}");
        }
    }

    #[test]
    fn a_usage_error_is_one_line_that_says_where_help_is() {
        let wrong = command().try_get_matches_from(["tessera", "inspect"]).unwrap_err();
        let text = usage(&wrong, &["tessera".into(), "inspect".into()]);
        assert!(!text.contains('\n'), "{text}");
        assert!(text.contains("<ADAPTER>") && text.ends_with("see tessera --help"), "{text}");
    }

    #[test]
    fn each_kind_of_failure_has_its_exit_code() {
        let text = String::new;
        let codes = [
            CliError::General(text()).exit_code(),
            CliError::Usage(text()).exit_code(),
            CliError::Adapter(text()).exit_code(),
            CliError::Model(text()).exit_code(),
            CliError::PortInUse(text()).exit_code(),
            CliError::Config(text()).exit_code(),
        ];
        assert_eq!(codes, [1, 2, 2, 3, 4, 5]);
        assert!(EXIT_CODES.iter().map(|(code, _)| *code).eq(0..=5), "each is explained");
    }
}
