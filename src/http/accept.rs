//! What a client would rather read.

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// Whether a client asks for a type by its name: `*/*`, which every program sends, asks for none.
pub(super) fn accepts(headers: &HeaderMap, content_type: &str) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let is_it = parts.next().is_some_and(|name| name.eq_ignore_ascii_case(content_type));
        is_it && !parts.any(is_refused)
    })
}

/// `q=0`, which says that it is not wanted.
fn is_refused(parameter: &str) -> bool {
    let value = parameter.strip_prefix("q=").or_else(|| parameter.strip_prefix("Q="));
    value.and_then(|value| value.parse::<f32>().ok()) == Some(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_asked_for_by_its_name() {
        let asks = |value: &str| {
            let headers = [(ACCEPT, value.parse().unwrap())].into_iter().collect();
            accepts(&headers, "text/html")
        };
        for yes in ["text/html", "TEXT/HTML;q=0.1", "a/b, text/html ; level=1", "text/html,*/*"] {
            assert!(asks(yes), "{yes}");
        }
        for no in ["", "*/*", "text/*", "text/htmlx", "text/html;q=0", "text/html; q=0.0, */*"] {
            assert!(!asks(no), "{no}");
        }
        assert!(!accepts(&HeaderMap::new(), "text/html"));
    }
}
