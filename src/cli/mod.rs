//! One file a command; flags to calls, results to text and exit codes.

mod access;
mod base;
mod bench;
mod demo;
mod device;
mod healthcheck;
pub mod hub;
pub mod inspect;
mod listen;
mod load;
mod log;
mod memory;
#[cfg_attr(not(feature = "otlp"), path = "otlp_off.rs")]
mod otlp;
mod serve;
mod shutdown;
pub mod synth;

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::adapter::AdapterError;
use crate::config::{ServeConfig, with_file};
use crate::dtype::Dtype;
use crate::model::ModelError;

#[derive(Parser)]
#[command(name = "tessera", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve a model and its adapters over OpenAI's API.
    Serve(Box<ServeConfig>),
    /// Say what an adapter directory holds, tensor by tensor, and whether it would be served.
    Inspect(inspect::InspectArgs),
    /// Write a model or an adapter of a given shape with random weights, for benchmarks and tests.
    Synth(synth::SynthArgs),
    /// Time prefill and decode steps in this process.
    Bench(bench::BenchArgs),
    /// Send a running server many requests at once, and say how fast it was.
    Load(load::LoadArgs),
    /// Exit 0 if the server on this machine is healthy (for containers).
    Healthcheck(healthcheck::HealthcheckArgs),
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

/// Parses the process's arguments and runs the command they name.
pub fn run() -> ExitCode {
    let outcome = match parse(std::env::args_os().collect()) {
        Ok(Ok(cli)) => dispatch(cli.command),
        Ok(Err(text)) => Err(CliError::Config(text)),
        Err(asked) if !asked.use_stderr() => {
            // --help and --version; a closed stdout is no failure.
            let _ = asked.print();
            return ExitCode::SUCCESS;
        }
        Err(wrong) => Err(CliError::Usage(usage(&wrong))),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Not eprintln!, which panics where stderr is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Parses twice where `serve` is given a settings file: once to find it, once with its values in
/// place of the defaults. The outer error is clap's, the inner one the file's.
fn parse(args: Vec<OsString>) -> Result<Result<Cli, String>, clap::Error> {
    let first = Cli::try_parse_from(&args)?;
    let Command::Serve(config) = &first.command else { return Ok(Ok(first)) };
    let Some(path) = config.config.clone() else { return Ok(Ok(first)) };
    let command = Cli::command();
    let Some(serve) = command.find_subcommand("serve").cloned() else { return Ok(Ok(first)) };
    let serve = match with_file(serve, &path) {
        Ok(serve) => serve,
        Err(text) => return Ok(Err(text)),
    };
    let matches = command.mut_subcommand("serve", |_| serve).try_get_matches_from(args)?;
    Cli::from_arg_matches(&matches).map(Ok)
}

fn dispatch(command: Command) -> Result<(), CliError> {
    let config = match &command {
        Command::Serve(config) => Some(&config.log),
        _ => None,
    };
    let log = log::Log::start(config);
    let log = log.map_err(|e| CliError::General(format!("the log cannot be started: {e}")))?;
    match command {
        Command::Serve(config) => serve::run(&config, &log),
        Command::Inspect(args) => inspect::run(&args),
        Command::Synth(args) => synth::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Load(args) => load::run(&args),
        Command::Healthcheck(args) => healthcheck::run(&args),
    }
}

/// clap's error as one line: what was wrong and its tip, without the usage block.
fn usage(wrong: &clap::Error) -> String {
    let help = "see tessera --help";
    if wrong.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        return format!("a command is missing; {help}");
    }
    let text = wrong.to_string();
    let said = text.split("\n\nUsage:").next().unwrap_or(&text);
    let said = said.split("\n\nFor more information").next().unwrap_or(said);
    let said = said.strip_prefix("error: ").unwrap_or(said);
    format!("{}; {help}", said.split_whitespace().collect::<Vec<_>>().join(" "))
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
        Cli::command().debug_assert();
    }

    #[test]
    fn a_usage_error_is_one_line_that_says_where_help_is() {
        let Err(wrong) = Cli::try_parse_from(["tessera", "inspect"]) else { panic!("accepted") };
        let text = usage(&wrong);
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
    }
}
