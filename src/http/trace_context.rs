//! W3C's Trace Context: which trace of its caller a request belongs to.

use hyper::HeaderMap;
use hyper::header::HeaderValue;

/// Bytes of a `traceparent` of version 00, which those of later versions begin with.
const PARENT_BYTES: usize = 55;
/// Longest `tracestate`; the specification asks for 512 at least. A longer one is ignored.
const STATE_BYTES_MAX: usize = 4096;

/// A valid `traceparent`.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceContext {
    /// 32 hexadecimal digits, not all 0.
    pub trace_id: String,
    /// The caller's span: 16 such digits.
    pub parent_id: String,
    /// Whether the caller keeps the trace.
    pub is_sampled: bool,
    /// `tracestate` as it came, on one line; empty if there is none.
    pub state: String,
}

impl TraceContext {
    /// That of a request. One that is not as the specification has it counts as none, as it says.
    pub(super) fn of(headers: &HeaderMap) -> Option<Self> {
        let mut values = headers.get_all("traceparent").iter();
        match (values.next(), values.next()) {
            (Some(value), None) => Some(Self { state: state(headers), ..Self::read(value)? }),
            _ => None,
        }
    }

    fn read(value: &HeaderValue) -> Option<Self> {
        let text = value.to_str().ok()?;
        let (known, rest) = text.split_at_checked(PARENT_BYTES)?;
        let mut parts = known.split('-');
        let mut hex = |digits: usize| {
            let is_hex = |c: char| matches!(c, '0'..='9' | 'a'..='f');
            parts.next().filter(|part| part.len() == digits && part.chars().all(is_hex))
        };
        let (version, trace_id, parent_id, flags) = (hex(2)?, hex(32)?, hex(16)?, hex(2)?);
        // Later versions may say more, after a dash.
        let is_whole = rest.is_empty() || (version != "00" && rest.starts_with('-'));
        let is_zero = |id: &str| id.chars().all(|c| c == '0');
        if version == "ff" || !is_whole || is_zero(trace_id) || is_zero(parent_id) {
            return None;
        }
        let is_sampled = u8::from_str_radix(flags, 16).ok()? & 1 == 1;
        Some(Self {
            trace_id: trace_id.to_owned(),
            parent_id: parent_id.to_owned(),
            is_sampled,
            state: String::new(),
        })
    }
}

/// Several headers are one list, as the specification has it.
fn state(headers: &HeaderMap) -> String {
    let values = headers.get_all("tracestate").iter().filter_map(|value| value.to_str().ok());
    let state = values.collect::<Vec<_>>().join(",");
    if state.len() > STATE_BYTES_MAX { String::new() } else { state }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(values: &[&str]) -> Option<TraceContext> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append("traceparent", HeaderValue::from_str(value).unwrap());
        }
        TraceContext::of(&headers)
    }

    #[test]
    fn a_traceparent_is_taken_as_the_specification_has_it_and_otherwise_ignored() {
        const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
        const PARENT: &str = "00f067aa0ba902b7";
        let good = format!("00-{TRACE}-{PARENT}-01");
        let expected = |is_sampled| {
            let (trace_id, parent_id, state) = (TRACE.into(), PARENT.into(), String::new());
            Some(TraceContext { trace_id, parent_id, is_sampled, state })
        };
        assert_eq!(read(&[&good]), expected(true));
        assert_eq!(read(&[&format!("00-{TRACE}-{PARENT}-00")]), expected(false));
        assert_eq!(read(&[&format!("00-{TRACE}-{PARENT}-02")]), expected(false));
        assert_eq!(read(&[&format!("cc-{TRACE}-{PARENT}-03")]), expected(true));
        assert_eq!(read(&[&format!("01-{TRACE}-{PARENT}-01-what-the-future")]), expected(true));
        let zeros = "0".repeat(32);
        let bad = [
            String::new(),
            "00".into(),
            format!("ff-{TRACE}-{PARENT}-01"),
            format!("00-{zeros}-{PARENT}-01"),
            format!("00-{TRACE}-{}-01", &zeros[..16]),
            format!("00-{}-{PARENT}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{PARENT}-0"),
            format!("00-{TRACE}-{PARENT}-0g"),
            format!("00-{TRACE}-{PARENT}-01-extra"),
            format!("00-{TRACE}-{PARENT}-01."),
            format!("01-{TRACE}-{PARENT}-01.what"),
            format!("0-{TRACE}-{PARENT}-011"),
            format!(" {good}"),
            format!("00_{TRACE}_{PARENT}_01"),
        ];
        for text in &bad {
            assert_eq!(read(&[text]), None, "{text}");
        }
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[&good, &good]), None, "two");
    }
}
