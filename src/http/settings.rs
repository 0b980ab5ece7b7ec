//! What a server is made of and within which limits it serves.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::keys::{KeyHash, Keys};
use super::spans::Spans;
use crate::adapter::{Catalog, LoadAdapter};
use crate::engine::EngineHandle;
use crate::request::Limits;
use crate::text::{AdapterTexts, CallSyntax, ServedText, ThoughtSyntax};

/// What a server is made of.
pub struct App {
    /// Where tokens come from.
    pub engine: EngineHandle,
    /// The adapters that requests may name.
    pub catalog: Arc<Catalog>,
    /// Reads adapters at run time.
    pub loader: Arc<dyn LoadAdapter>,
    /// Reads the text files beside them.
    pub texts: Arc<AdapterTexts>,
    /// The base and how text becomes its tokens.
    pub model: ServedModel,
    /// Limits of connections and bodies, and what clients may do.
    pub http: HttpSettings,
}

/// The base as clients see it.
pub struct ServedModel {
    /// The base's name in `model`.
    pub base_name: String,
    /// Seconds since 1970 when the base was loaded.
    pub created: u64,
    /// The one name served when an adapter is merged into the weights.
    pub merged: Option<String>,
    /// How the base's text becomes tokens and ends, and that of adapters without files of their
    /// own.
    pub text: Arc<ServedText>,
    /// What a request is validated against.
    pub limits: Limits,
    /// Numbers of a vector of `/v1/embeddings`.
    pub hidden_size: usize,
}

impl ServedModel {
    /// What tells this server's answers from those of another version or model.
    pub(super) fn fingerprint(&self) -> String {
        let named = format!("{} {}", env!("CARGO_PKG_VERSION"), self.base_name);
        format!("fp_{}", &blake3::hash(named.as_bytes()).to_hex()[..10])
    }
}

/// How calls of tools are found in what a model says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolCallParser {
    /// As the model's chat template writes them.
    Auto,
    /// Not at all.
    None,
    /// Written like this.
    Syntax(CallSyntax),
}

impl ToolCallParser {
    /// `auto`, `none`, or a name of [`CallSyntax::NAMES`].
    ///
    /// # Errors
    /// The names that there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = CallSyntax::NAMES.map(|(name, syntax)| (name, Self::Syntax(syntax)));
        by_name(text, Self::Auto, Self::None, &known)
    }
}

/// What `auto`, `none` or one of the names says, or all names that there are.
fn by_name<T: Copy>(text: &str, auto: T, none: T, known: &[(&str, T)]) -> Result<T, String> {
    let all = [("auto", auto), ("none", none)];
    let found = all.iter().chain(known).find(|(name, _)| *name == text);
    found.map(|(_, parser)| *parser).ok_or_else(|| {
        let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        format!("expected auto, none or one of {}", names.join(", "))
    })
}

/// How thoughts are told apart from answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReasoningParser {
    /// As the model's chat template marks them, or as its vocabulary has tokens for.
    Auto,
    /// Not at all.
    None,
    /// Marked like this.
    Syntax {
        /// The marks.
        syntax: ThoughtSyntax,
        /// Whether answers begin within a thought, unless their prompt has ended it.
        begins: bool,
    },
}

impl ReasoningParser {
    /// `auto`, `none`, or a name of [`ThoughtSyntax::NAMES`].
    ///
    /// # Errors
    /// The names that there are.
    pub fn parse(text: &str) -> Result<Self, String> {
        let known = ThoughtSyntax::NAMES
            .map(|(name, syntax, begins)| (name, Self::Syntax { syntax, begins }));
        by_name(text, Self::Auto, Self::None, &known)
    }
}

/// Limits of connections and bodies, and what clients may do.
#[derive(Clone, Debug)]
pub struct HttpSettings {
    /// Names a request's `Host` may have, without port. `None` takes any, but only the names of
    /// the loopback address on a socket bound to it, so that a web page cannot reach the server
    /// through a domain that points there (DNS rebinding).
    pub hosts_allowed: Option<Vec<String>>,
    /// Whether a field that nobody knows is answered 400; else it is counted and left unread.
    pub strict_fields: bool,
    /// How calls of tools are found in what a model says.
    pub tool_call_parser: ToolCallParser,
    /// How thoughts are told apart from answers.
    pub reasoning_parser: ReasoningParser,
    /// Origins of web pages that may use the server, `scheme://host[:port]` or `*` for any.
    pub origins_allowed: Vec<String>,
    /// Who may use the server; without, whoever reaches it.
    pub keys: Option<Arc<Keys>>,
    /// The key of `/metrics`; without, they are open.
    pub metrics_key: Option<KeyHash>,
    /// Whether the metrics number adapters and tenants instead of naming them.
    pub metrics_hide_names: bool,
    /// Lines that the log has lost, if they are counted.
    pub log_lines_lost: Option<Arc<AtomicU64>>,
    /// Where requests are told when they are over.
    pub spans: Option<Arc<dyn Spans>>,
    /// Whether there is a page for browsers at `/`.
    pub page: bool,
    /// Whether clients may load and unload adapters.
    pub runtime_adapters: bool,
    /// The directory that adapters may be loaded from at run time; without one, none can.
    pub adapter_root: Option<PathBuf>,
    /// Connections at once. A further one is answered 503 and closed.
    pub connections_max: usize,
    /// For a request's whole head, and between two requests of a connection. Then it is closed.
    pub header_read_timeout_ms: u64,
    /// One request's body. A larger one is answered 413.
    pub body_bytes_max: usize,
    /// All bodies being read or parsed at once. Above it, requests are answered 503.
    pub bodies_bytes_max: usize,
    /// How long a body may stand still, or come more slowly than `body_bytes_per_s_min`. Then it is
    /// answered 408.
    pub body_idle_timeout_ms: u64,
    /// Bytes of a body that must come in a second, on average over `body_idle_timeout_ms`.
    pub body_bytes_per_s_min: usize,
    /// For a whole body. Then it is answered 408.
    pub body_timeout_ms: u64,
    /// For a client that reads nothing. Then its connection is closed and its sequences end.
    pub write_idle_timeout_ms: u64,
    /// Silence on an event stream after which a comment is sent, so that proxies keep it open; 0
    /// for never.
    pub keep_alive_ms: u64,
    /// How long requests are still taken after the shutdown signal while `/ready` says 503.
    pub drain_notice_ms: u64,
    /// How long requests in flight may go on after that. Then they end with an error.
    pub drain_timeout_ms: u64,
    /// A step of the engine that takes longer makes `/ready` say that nothing can be asked for.
    pub step_ms_max: u64,
    /// Requests being parsed and tokenized at once. Further ones wait.
    pub text_tasks_max: usize,
    /// Adapters being loaded at once. Further ones wait.
    pub loads_max: usize,
    /// Clients that watch the batch at once; of one key, a quarter of them. A further one is
    /// answered 429.
    pub watchers_max: usize,
}

/// Prompts of one request; each is a sequence. More are answered 400.
pub(super) const PROMPTS_MAX: usize = 128;
/// A token in JSON: an id with its comma, or text in a script that is written in escapes.
const TOKEN_BYTES: usize = 8;
/// What the context says of bodies is taken within these: messages, tools and schemas are no
/// shorter for a short context, and nobody should have to send more.
const BODY_BYTES: RangeInclusive<usize> = 4 << 20..=32 << 20;
/// Bodies of the largest size that there is room for at least.
const LARGEST_BODIES_MIN: usize = 8;

impl HttpSettings {
    /// The same with this limit on a body, or, without one, with that which a context has use for:
    /// as many prompts as a request may have, each as long as can be.
    pub fn with_body_bytes(self, given: Option<u64>, context_tokens_max: u32) -> Self {
        let derived = (context_tokens_max as usize).saturating_mul(PROMPTS_MAX * TOKEN_BYTES);
        let derived = derived.clamp(*BODY_BYTES.start(), *BODY_BYTES.end());
        let body_bytes_max = given.map_or(derived, |given| given as usize);
        let least = body_bytes_max.saturating_mul(LARGEST_BODIES_MIN);
        Self { body_bytes_max, bodies_bytes_max: self.bodies_bytes_max.max(least), ..self }
    }

    /// Limits that suit a server on two cores as well as on a hundred; adapters stay as they are.
    pub fn standard() -> Self {
        Self {
            hosts_allowed: None,
            strict_fields: false,
            tool_call_parser: ToolCallParser::Auto,
            reasoning_parser: ReasoningParser::Auto,
            origins_allowed: Vec::new(),
            keys: None,
            metrics_key: None,
            metrics_hide_names: false,
            log_lines_lost: None,
            spans: None,
            page: true,
            runtime_adapters: false,
            adapter_root: None,
            connections_max: 4096,
            // Above the 15 s that common clients keep an idle connection.
            header_read_timeout_ms: 20_000,
            body_bytes_max: *BODY_BYTES.end(),
            bodies_bytes_max: 256 << 20,
            body_idle_timeout_ms: 20_000,
            // A modem's; what is smaller than an idle time's worth of it is never too slow.
            body_bytes_per_s_min: 8 << 10,
            body_timeout_ms: 120_000,
            write_idle_timeout_ms: 30_000,
            keep_alive_ms: 15_000,
            drain_notice_ms: 0,
            drain_timeout_ms: 30_000,
            step_ms_max: 300_000,
            text_tasks_max: 8,
            loads_max: 2,
            watchers_max: 32,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_as_large_as_the_context_has_use_for_or_as_it_is_said() {
        let limits = |given, context| {
            let settings = HttpSettings::standard().with_body_bytes(given, context);
            (settings.body_bytes_max, settings.bodies_bytes_max)
        };
        let mib = |mib: usize| mib << 20;
        assert_eq!(limits(None, 512), (mib(4), mib(256)));
        assert_eq!(limits(None, 8192), (mib(8), mib(256)));
        assert_eq!(limits(None, 1 << 20), (mib(32), mib(256)));
        assert_eq!(limits(Some(1000), 8192), (1000, mib(256)));
        // There is always room for a few of the largest.
        assert_eq!(limits(Some(1 << 30), 512), (mib(1024), mib(8192)));
    }
}
