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
mod limits;
mod listen;
mod load;
mod log;
mod manual;
mod memory;
#[cfg_attr(not(feature = "otlp"), path = "otlp_off.rs")]
mod otlp;
mod parse;
mod progress;
mod runtime;
mod sampling;
mod serve;
mod shutdown;
pub mod synth;
mod terminal;
mod writer;

pub use foreign::{FOREIGN, Foreign};
pub use help::EXIT_CODES;

use std::ffi::OsString;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use parse::{Asked, Unusable};

use crate::adapter::AdapterError;
use crate::config::ServeConfig;
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
    let outcome = match parse::parse(&args) {
        Ok(Asked::Run(command)) => dispatch(command),
        Ok(Asked::Settings(text)) => print(&text),
        Err(Unusable::Shown(text)) => {
            // A closed stdout is no failure.
            let _ = text.print();
            Ok(())
        }
        Err(Unusable::NoCommand(help)) => {
            let _ = help.print();
            return ExitCode::from(CliError::Usage(String::new()).exit_code());
        }
        Err(Unusable::Wrong(error)) => Err(error),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::complain(&format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: Command) -> Result<(), CliError> {
    if command.settings().is_some() {
        for (name, near) in parse::unknown_variables() {
            terminal::complain(&format!(
                "warning: the variable {name} is read by no command; did you mean {near}?"
            ));
        }
    }
    let config = command.settings().map(|(_, config)| &config.log);
    let log = log::Log::start(config);
    let log = log.map_err(|e| limits::refused(0, 1, &e))?;
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

/// A float width in flags.
///
/// # Errors
/// When it is none of the three.
pub fn parse_dtype(text: &str) -> Result<Dtype, String> {
    Dtype::from_name(text).ok_or_else(|| "expected f32, f16 or bf16".into())
}

/// Prints to stdout, on a terminal without what steers it. A reader that has gone away (`tessera
/// inspect | head`) is no failure.
///
/// # Errors
/// [`CliError::General`] when stdout cannot be written for another reason.
pub fn print(text: &str) -> Result<(), CliError> {
    match std::io::stdout().is_terminal() {
        true => print_raw(&terminal::harmless(text)),
        false => print_raw(text),
    }
}

/// As [`print`], what is harmless already and may have colours.
fn print_raw(text: &str) -> Result<(), CliError> {
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
