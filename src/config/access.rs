//! Settings of `tessera serve` that say who may use it.

use std::fmt;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{ArgAction, Args};

/// A key in plain, which is shown nowhere.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The key itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Who may use the server.
#[derive(Args, Clone, Debug)]
pub struct AccessConfig {
    /// Answer only requests with this key (Authorization: Bearer KEY, or x-api-key: KEY), which may
    /// do everything; sha256:HEX stands for the key of that hash. Repeatable.
    #[arg(
        long = "api-key",
        env = "TESSERA_API_KEY",
        value_name = "KEY",
        hide_env_values = true,
        hide_default_value = true,
        action = ArgAction::Append,
        help_heading = "Access"
    )]
    pub api_key: Vec<Secret>,

    /// Answer only requests with a key of this TOML file, which says what each may do. It is read
    /// again when it changes and on SIGHUP.
    #[arg(long, env = "TESSERA_KEYS", value_name = "FILE", help_heading = "Access")]
    pub keys: Option<PathBuf>,

    /// Do not start without a key.
    #[arg(
        long,
        env = "TESSERA_REQUIRE_AUTH",
        value_parser = BoolishValueParser::new(),
        help_heading = "Access"
    )]
    pub require_auth: bool,

    /// Show /metrics only to requests with this key, or with one that may administer. Default: to
    /// everybody.
    #[arg(
        long,
        env = "TESSERA_METRICS_KEY",
        value_name = "KEY",
        hide_env_values = true,
        hide_default_value = true,
        help_heading = "Access"
    )]
    pub metrics_key: Option<Secret>,

    /// Number the adapters and keys in /metrics instead of naming them.
    #[arg(
        long,
        env = "TESSERA_METRICS_HIDE_ADAPTER_NAMES",
        value_parser = BoolishValueParser::new(),
        help_heading = "Access"
    )]
    pub metrics_hide_adapter_names: bool,
}
