//! What went over the wire.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hyper::Method;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::encode::counter;

/// Methods with lines of their own: a client may make up others.
const METHODS: &[Method] =
    &[Method::GET, Method::HEAD, Method::POST, Method::DELETE, Method::OPTIONS, Method::PUT];
const OTHER_METHOD: &str = "other";
/// In place of a path that leads nowhere: a client may make up any number of those.
pub const NO_ROUTE: &str = "none";

type ByRoute = Family<[(&'static str, &'static str); 1], Counter>;

/// Counts of connections, requests and bytes.
#[derive(Default)]
pub struct Traffic {
    /// Open now.
    pub connections: Gauge,
    /// Above the limit, when no other could make room.
    pub connections_refused: Counter,
    /// Closed to make room for another.
    pub connections_evicted: Counter,
    /// Requests whose answers are not whole yet.
    pub in_flight: Gauge,
    answered: Family<[(&'static str, String); 3], Counter>,
    errors: ByRoute,
    received_bytes: ByRoute,
    sent_bytes: ByRoute,
}

/// What is counted of a request when it is over.
pub struct Exchanged<'a> {
    /// None of what was no request.
    pub method: Option<&'a Method>,
    /// As the table of routes has it, or [`NO_ROUTE`].
    pub route: &'static str,
    pub status: u16,
    /// `code` of the error that was the answer, or that ended it.
    pub error: Option<&'static str>,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

impl Traffic {
    pub fn register(&self, to: &mut Registry) {
        let name = "tessera:http_connections";
        to.register(name, "Connections that are open", self.connections.clone());
        let name = "tessera:http_connections_refused";
        let help = "Connections above the limit, which may only ask how the server is";
        to.register(name, help, self.connections_refused.clone());
        let name = "tessera:http_connections_evicted";
        let help = "Idle and slow connections that made room for others";
        to.register(name, help, self.connections_evicted.clone());
        let name = "tessera:http_requests_in_flight";
        to.register(name, "Requests whose answers are not whole", self.in_flight.clone());
        let name = "tessera:http_requests";
        to.register(name, "Requests by route and status", self.answered.clone());
        let name = "tessera:http_errors";
        to.register(name, "Errors by the code that clients read", self.errors.clone());
        let name = "tessera:http_request_bytes";
        to.register(name, "Bytes of bodies that came", self.received_bytes.clone());
        let name = "tessera:http_response_bytes";
        to.register(name, "Bytes of bodies that were sent", self.sent_bytes.clone());
    }

    pub fn exchanged(&self, what: &Exchanged<'_>) {
        let Exchanged { method, route, status, error, received_bytes, sent_bytes } = *what;
        let known = method.filter(|method| METHODS.contains(method));
        let method = known.map_or(OTHER_METHOD, Method::as_str);
        let labels = [
            ("method", method.to_owned()),
            ("route", route.to_owned()),
            ("status", status.to_string()),
        ];
        self.answered.get_or_create(&labels).inc();
        let route = [("route", route)];
        self.received_bytes.get_or_create(&route).inc_by(received_bytes);
        self.sent_bytes.get_or_create(&route).inc_by(sent_bytes);
        if let Some(code) = error {
            self.errors.get_or_create(&[("code", code)]).inc();
        }
    }
}

/// Lines that the log has lost.
pub struct LostLines(pub Arc<AtomicU64>);

impl fmt::Debug for LostLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LostLines").field(&self.0).finish()
    }
}

impl Collector for LostLines {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let help = "Lines of the log that nobody took in time, or that could not be written.";
        counter(&mut encoder, "tessera:log_lines_lost", help, self.0.load(Ordering::Relaxed))
    }
}
