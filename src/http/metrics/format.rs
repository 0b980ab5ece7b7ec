//! Which form of the page a client wants.

use hyper::HeaderMap;
use hyper::header::ACCEPT;
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;

/// Versions of OpenMetrics that a reader of the page may ask for.
const OPENMETRICS_VERSIONS: &[&str] = &["1.0.0", "0.0.1"];

/// A form of the page.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Format {
    /// Prometheus' own.
    Prometheus,
    OpenMetrics,
}

impl Format {
    /// OpenMetrics where a client names it and likes no plain text better; else Prometheus' own,
    /// whatever is asked for, as Prometheus' libraries do.
    pub fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges = values.flat_map(|value| value.split(',')).map(Range::read);
        let ranges: Vec<Range<'_>> = ranges.collect();
        let best = |is: fn(&Range<'_>) -> bool| {
            ranges.iter().filter(|range| is(range)).map(|range| range.weight).fold(0.0, f64::max)
        };
        let open = best(|range| range.is_openmetrics());
        match open > 0.0 && open >= best(|range| range.is_text()) {
            true => Self::OpenMetrics,
            false => Self::Prometheus,
        }
    }

    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    pub fn page(self, registry: &Registry) -> String {
        let mut page = String::new();
        // Writing to a string does not fail.
        let _ = match self {
            Self::Prometheus => prometheus_text::encode(&mut page, registry),
            Self::OpenMetrics => text::encode(&mut page, registry),
        };
        page
    }
}

/// One of the types that a client takes.
struct Range<'a> {
    media: &'a str,
    version: Option<&'a str>,
    weight: f64,
}

impl<'a> Range<'a> {
    fn read(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let mut range = Self { media, version: None, weight: 1.0 };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            match name.trim().to_ascii_lowercase().as_str() {
                "version" => range.version = Some(value.trim().trim_matches('"')),
                // A weight that is none asks for nothing.
                "q" => {
                    let weight = value.trim().parse().ok();
                    let weight = weight.filter(|weight| (0.0..=1.0).contains(weight));
                    range.weight = weight.unwrap_or(0.0);
                }
                _ => {}
            }
        }
        range
    }

    fn is_openmetrics(&self) -> bool {
        let is_known = self.version.is_none_or(|version| OPENMETRICS_VERSIONS.contains(&version));
        self.media.eq_ignore_ascii_case("application/openmetrics-text") && is_known
    }

    fn is_text(&self) -> bool {
        self.media.eq_ignore_ascii_case("text/plain")
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn openmetrics_is_for_those_who_name_it_and_like_it_best() {
        let format = |accept: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, HeaderValue::from_static(accept));
            Format::of(&headers)
        };
        assert_eq!(Format::of(&HeaderMap::new()), Format::Prometheus);
        // What Prometheus 3 sends, without and with its protobuf.
        let asked = [
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,\
             text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,\
             */*;q=0.2",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;q=0.7,\
             application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4",
            "application/openmetrics-text",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"; Q=0.1, */*",
        ];
        for accept in asked {
            assert_eq!(format(accept), Format::OpenMetrics, "{accept}");
        }
        let others = [
            "",
            "*/*",
            "text/html,*/*;q=0.8",
            "text/plain;version=0.0.4",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;q=x",
            "application/openmetrics-text;q=inf",
            "application/openmetrics-text;version=9.0.0",
            "application/openmetrics-text;q=0.3,text/plain;q=0.5",
            "application/json",
        ];
        for accept in others {
            assert_eq!(format(accept), Format::Prometheus, "{accept}");
        }
    }
}
