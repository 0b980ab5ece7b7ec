//! A span for each request, sent to an OpenTelemetry collector. A thread of the library's sends
//! them; what comes faster than it is taken is dropped, and a collector that is away stops no
//! request.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry::trace::{
    Span, SpanBuilder, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId,
    TraceState, TracerProvider,
};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider,
};

use super::CliError;
use crate::http::{EndedRequest, RanFor, Spans, TraceContext};

/// Spans that wait to be sent. At the limit further ones are dropped.
const SPANS_WAITING_MAX: usize = 2048;
/// Between two times that they are sent.
const SEND_EVERY_MS: u64 = 1_000;
/// For a collector's answer. Then the spans are lost.
const SEND_MS: u64 = 10_000;
/// At the end of the server, for the spans that wait.
const SHUTDOWN_MS: u64 = 2_000;

/// What sends spans. Dropped, it waits a moment for those that wait.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Begins to send to `endpoint`.
    ///
    /// # Errors
    /// [`CliError::Config`] when it is no address.
    pub fn start(endpoint: &str) -> Result<Self, CliError> {
        let wrong = |why: &dyn fmt::Display| {
            CliError::Config(format!(
                "--otlp-traces-endpoint: expected an address such as \
                 http://localhost:4318/v1/traces, got '{endpoint}': {why}"
            ))
        };
        let known = ["http://", "https://"];
        if !known.iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(wrong(&"it begins with neither http:// nor https://"));
        }
        let exporter = SpanExporter::builder().with_http().with_http_client(Client::new());
        let exporter = exporter.with_endpoint(endpoint).build().map_err(|e| wrong(&e))?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(SPANS_WAITING_MAX)
            .with_scheduled_delay(Duration::from_millis(SEND_EVERY_MS));
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches.build());
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_attribute(version);
        let resource = match super::terminal::variable("OTEL_SERVICE_NAME") {
            Some(_) => resource,
            None => resource.with_service_name("tessera"),
        };
        let provider = SdkTracerProvider::builder().with_span_processor(processor.build());
        Ok(Self(provider.with_resource(resource.build()).build()))
    }

    /// What the server tells.
    pub fn spans(&self) -> Arc<dyn Spans> {
        Arc::new(Sender(self.0.tracer("tessera")))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        // A collector that is away.
        let _ = self.0.shutdown_with_timeout(Duration::from_millis(SHUTDOWN_MS));
    }
}

#[derive(Debug)]
struct Sender(SdkTracer);

impl Spans for Sender {
    fn ended(&self, request: &EndedRequest<'_>) {
        let parent = request.trace.and_then(parent);
        let context = parent
            .map_or_else(Context::new, |parent| Context::new().with_remote_span_context(parent));
        let span = SpanBuilder::from_name(format!("{} {}", request.method, request.route))
            .with_kind(SpanKind::Server)
            .with_start_time(request.begun)
            .with_attributes(attributes(request));
        let mut span = span.start_with_context(&self.0, &context);
        if request.status >= 500 || (request.status < 400 && request.error.is_some()) {
            span.set_status(Status::error(request.error.unwrap_or_default().to_owned()));
        }
        span.end_with_timestamp(request.begun + request.took);
    }
}

fn parent(trace: &TraceContext) -> Option<SpanContext> {
    let trace_id = TraceId::from_hex(&trace.trace_id).ok()?;
    let span_id = SpanId::from_hex(&trace.parent_id).ok()?;
    let flags = if trace.is_sampled { TraceFlags::SAMPLED } else { TraceFlags::default() };
    // One that is not as the specification has it counts as none.
    let state = TraceState::from_str(&trace.state).unwrap_or_default();
    Some(SpanContext::new(trace_id, span_id, flags, true, state))
}

/// By OpenTelemetry's conventions for HTTP servers and generative models; those of latencies have
/// vLLM's names, which has the only ones that dashboards know.
fn attributes(request: &EndedRequest<'_>) -> Vec<KeyValue> {
    let mut all = vec![
        KeyValue::new("http.request.method", request.method.to_owned()),
        KeyValue::new("http.route", request.route.to_owned()),
        KeyValue::new("http.response.status_code", i64::from(request.status)),
        KeyValue::new("gen_ai.request.id", request.request_id.to_owned()),
        KeyValue::new("gen_ai.latency.e2e", request.took.as_secs_f64()),
    ];
    let texts = [
        ("error.type", request.error),
        ("gen_ai.request.model", request.model),
        ("tessera.adapter.digest", request.adapter),
    ];
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name, text?)));
    all.extend(texts.map(|(name, text)| KeyValue::new(name, text.to_owned())));
    if let Some(ran) = request.ran {
        all.extend(of_sequences(ran));
    }
    all
}

fn of_sequences(ran: RanFor) -> Vec<KeyValue> {
    let reasons = Value::Array(Array::String(vec![StringValue::from(ran.finish)]));
    let mut all = vec![KeyValue::new("gen_ai.response.finish_reasons", reasons)];
    let counts = [
        ("gen_ai.usage.input_tokens", ran.prompt_tokens),
        ("gen_ai.usage.cache_read.input_tokens", ran.cached_tokens),
        ("gen_ai.usage.output_tokens", ran.generation_tokens),
    ];
    all.extend(counts.map(|(name, count)| KeyValue::new(name, count as i64)));
    let times = [
        ("gen_ai.latency.time_in_queue", ran.queue),
        ("gen_ai.latency.time_to_first_token", ran.first_token),
    ];
    let times = times.into_iter().filter_map(|(name, time)| Some((name, time?)));
    all.extend(times.map(|(name, time)| KeyValue::new(name, time.as_secs_f64())));
    all
}

/// The client that downloads go through too; it waits, in the thread that sends.
#[derive(Debug)]
struct Client(ureq::Agent);

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_millis(SEND_MS)));
        Self(config.build().into())
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let response = self.0.run(request.map(|body| body.to_vec()))?;
        let (head, mut body) = response.into_parts();
        Ok(Response::from_parts(head, body.read_to_vec()?.into()))
    }
}

type Sent<'a> = Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'a>>;

impl HttpClient for Client {
    fn send_bytes<'a, 'b>(&'a self, request: Request<Bytes>) -> Sent<'b>
    where
        'a: 'b,
        Self: 'b,
    {
        Box::pin(async move { self.send(request) })
    }
}
