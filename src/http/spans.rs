//! Requests that are over, for whoever keeps traces.

use std::fmt::Debug;
use std::time::{Duration, SystemTime};

pub use super::trace_context::TraceContext;

/// Where requests are told when they are over, but for those that only ask how the server is.
pub trait Spans: Debug + Send + Sync {
    /// Must not wait for anything.
    fn ended(&self, request: &EndedRequest<'_>);
}

/// A request that is over.
#[derive(Debug)]
pub struct EndedRequest<'a> {
    /// The trace that its caller named, and what other systems say of it.
    pub trace: Option<&'a TraceContext>,
    /// When it came.
    pub begun: SystemTime,
    /// Until the end of its answer.
    pub took: Duration,
    /// Its method.
    pub method: &'a str,
    /// The path that leads to what answered it.
    pub route: &'a str,
    /// 499 if the client left before there was one.
    pub status: u16,
    /// `code` of the error that it was answered with, or that ended its stream.
    pub error: Option<&'a str>,
    /// That of `x-request-id`.
    pub request_id: &'a str,
    /// The name that it asked for.
    pub model: Option<&'a str>,
    /// The digest of the content behind the name, if it is an adapter.
    pub adapter: Option<&'a str>,
    /// What its sequences took, if there were any.
    pub ran: Option<RanFor>,
}

/// What the sequences of a request took.
#[derive(Clone, Copy, Debug)]
pub struct RanFor {
    /// Tokens of each prompt once.
    pub prompt_tokens: u64,
    /// Of those, the ones that were found computed.
    pub cached_tokens: u64,
    /// Tokens of all samples.
    pub generation_tokens: u64,
    /// Until the engine's first step with rows of it.
    pub queue: Option<Duration>,
    /// From the arrival to the first token.
    pub first_token: Option<Duration>,
    /// `stop`, `length` or `abort`.
    pub finish: &'static str,
}
