//! Settings of `tessera serve` that say what is logged, and how.

use clap::builder::BoolishValueParser;
use clap::{Args, ValueEnum};

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
pub struct LogConfig {
    /// How lines of the log are written: text, or json (an object a line).
    #[arg(
        long,
        env = "TESSERA_LOG_FORMAT",
        value_name = "FORM",
        default_value = "text",
        help_heading = "Log"
    )]
    pub log_format: LogFormat,

    /// Least important lines that are logged: off, error, warn, info, debug or trace. Default: what
    /// RUST_LOG says, else info.
    #[arg(long, env = "TESSERA_LOG_LEVEL", value_name = "LEVEL", help_heading = "Log")]
    pub log_level: Option<LogLevel>,

    /// Log no line for each request. With one, those for health and metrics are of level debug.
    #[arg(
        long,
        env = "TESSERA_NO_ACCESS_LOG",
        value_parser = BoolishValueParser::new(),
        help_heading = "Log"
    )]
    pub no_access_log: bool,

    /// Send a span for each request to this address of an OpenTelemetry collector, over OTLP/HTTP:
    /// http://localhost:4318/v1/traces. Needs a build with the feature otlp.
    #[arg(long, env = "TESSERA_OTLP_TRACES_ENDPOINT", value_name = "URL", help_heading = "Log")]
    pub otlp_traces_endpoint: Option<String>,
}

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// An object a line.
    Json,
}

/// How important a line is.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum LogLevel {
    /// No line at all.
    Off,
    /// What failed, by the server's fault.
    Error,
    /// What an operator should look at.
    Warn,
    /// What happens: requests, loads.
    Info,
    /// Why it happens.
    Debug,
    /// All there is.
    Trace,
}

impl LogLevel {
    /// Its name in filters.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}
