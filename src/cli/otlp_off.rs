//! Traces, in a build that sends none.

use std::sync::Arc;

use super::CliError;
use crate::http::Spans;

/// What is not in this build.
pub enum Traces {}

impl Traces {
    /// Says how to have it.
    ///
    /// # Errors
    /// Always.
    pub fn start(_: &str) -> Result<Self, CliError> {
        let message = "--otlp-traces-endpoint: this build sends no traces; build one that does \
                       with cargo build --release --features otlp";
        Err(CliError::Config(message.to_owned()))
    }

    /// Never called.
    pub fn spans(&self) -> Arc<dyn Spans> {
        match *self {}
    }
}
