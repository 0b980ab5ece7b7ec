//! `tessera doctor`: what this machine has for serving, what is missing, and what to do about it.
//! It asks nobody over the network.

mod check;
mod gpu;
mod hub;
mod limits;
mod machine;
mod port;

use clap::Args;
use serde::Serialize;

use self::check::{Check, Verdict};
use super::terminal::{harmless_json, has_colors, line};
use super::{CliError, print_raw};
use crate::config::{Device, parse_device, parse_port};

/// Flags of `tessera doctor`: of `serve`, those that say what is needed.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Where the model is to run: auto, cpu, cuda or cuda:N. With cuda, a GPU that cannot be used
    /// is a problem.
    #[arg(long, env = "TESSERA_DEVICE", default_value = "auto", value_parser = parse_device)]
    device: Device,
    /// Address to listen on.
    #[arg(long, env = "TESSERA_HOST", value_name = "IP", default_value = "127.0.0.1")]
    host: String,
    /// Port to listen on.
    #[arg(
        long,
        env = "TESSERA_PORT",
        value_name = "PORT",
        default_value = "8000",
        value_parser = parse_port
    )]
    port: u16,
    /// Print JSON instead of lines.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report {
    version: &'static str,
    /// The worst of all.
    verdict: Verdict,
    checks: Vec<Check>,
}

/// Runs the command.
///
/// # Errors
/// [`CliError::General`] when there is a problem, once all has been said.
pub fn run(args: &DoctorArgs) -> Result<(), CliError> {
    let mut checks = vec![machine::cpu(), machine::memory()];
    checks.extend(gpu::checks(args.device));
    checks.push(hub::cache());
    checks.push(hub::token());
    checks.extend([limits::open_files(), limits::threads()]);
    checks.push(port::check(&args.host, args.port));
    let verdict = checks.iter().map(|check| check.verdict).max().unwrap_or(Verdict::Ok);
    let report = Report { version: env!("CARGO_PKG_VERSION"), verdict, checks };
    let count = |of: Verdict| report.checks.iter().filter(|check| check.verdict == of).count();
    match args.json {
        true => {
            let json = serde_json::to_string_pretty(&report);
            let json = json.map_err(|e| CliError::General(e.to_string()))?;
            print_raw(&(harmless_json(&json) + "\n"))?;
        }
        false => {
            print_raw(&lines(&report, has_colors(&std::io::stdout())))?;
        }
    }
    match count(Verdict::Problem) {
        0 => Ok(()),
        1 => Err(CliError::General("there is a problem, see above".into())),
        n => Err(CliError::General(format!("there are {n} problems, see above"))),
    }
}

fn lines(report: &Report, has_colors: bool) -> String {
    let mut text = format!("tessera {}\n", report.version);
    for Check { name, verdict, found, advice } in &report.checks {
        let (word, color) = match verdict {
            Verdict::Ok => ("ok", 32),
            Verdict::Warning => ("warning", 33),
            Verdict::Problem => ("problem", 31),
        };
        let word = match has_colors {
            true => format!("\x1b[{color}m{word:<8}\x1b[0m"),
            false => format!("{word:<8}"),
        };
        text += &format!("{word} {name:<10} {}\n", line(found));
        if let Some(advice) = advice {
            text += &format!("{:20}→ {}\n", "", line(advice));
        }
    }
    text
}
