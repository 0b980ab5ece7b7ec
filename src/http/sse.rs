//! Bodies of answers, and streams of server-sent events.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use tokio::sync::mpsc;

/// The body of any answer.
pub(super) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Where a stream's writer puts its events.
pub(super) type Events = mpsc::Sender<Bytes>;

/// The last event of a stream that went well.
pub(super) const DONE: &[u8] = b"data: [DONE]\n\n";
/// A comment; clients skip it.
pub(super) const PING: &[u8] = b": ping\n\n";
/// Events written ahead of the connection.
const EVENTS_AHEAD_MAX: usize = 16;

/// A 200 with a whole body.
pub(super) fn whole(content_type: &'static str, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(body.into()).boxed_unsync());
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A 200 whose events `writer` sends. The writer runs only while the client reads, and is dropped
/// with the connection.
pub(super) fn stream<W>(writer: impl FnOnce(Events) -> W) -> Response<Body>
where
    W: Future<Output = ()> + Send + 'static,
{
    let (events, written) = mpsc::channel(EVENTS_AHEAD_MAX);
    let body = EventBody { writer: Some(Box::pin(writer(events))), written };
    let mut response = Response::new(body.boxed_unsync());
    let headers = response.headers_mut();
    let event_stream = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(CONTENT_TYPE, event_stream);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // nginx would otherwise collect the events.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// `data: …` of a JSON text without line breaks, which is every one that serde_json writes.
pub(super) fn event(json: &[u8]) -> Bytes {
    let mut event = Vec::with_capacity(json.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(json);
    event.extend_from_slice(b"\n\n");
    event.into()
}

/// The same, named by the `type` that such a text begins with.
pub(super) fn named_event(json: &[u8]) -> Bytes {
    let name = json.strip_prefix(b"{\"type\":\"").unwrap_or_default();
    let name = name.split(|&byte| byte == b'"').next().unwrap_or_default();
    [b"event: ", name, b"\n", &event(json)[..]].concat().into()
}

struct EventBody {
    writer: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    written: mpsc::Receiver<Bytes>,
}

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if let Poll::Ready(event) = self.written.poll_recv(cx) {
            return Poll::Ready(event.map(|event| Ok(Frame::data(event))));
        }
        if let Some(writer) = &mut self.writer
            && writer.as_mut().poll(cx).is_ready()
        {
            self.writer = None;
        }
        self.written.poll_recv(cx).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
