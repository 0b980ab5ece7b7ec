//! Values that a model writes as plain text, as JSON of the types that a schema gives them.

use serde_json::{Number, Value};

use super::pythonic::literal;

/// Words for types, as vLLM reads them in schemas.
const TEXTS: [&str; 6] = ["string", "str", "text", "varchar", "char", "enum"];
const INTEGERS: [&str; 5] = ["int", "uint", "long", "short", "unsigned"];
const NUMBERS: [&str; 2] = ["num", "float"];
const BOOLEANS: [&str; 3] = ["boolean", "bool", "binary"];
const NULLS: [&str; 2] = ["null", "none"];

/// JSON of `raw` by the schema of its property, as vLLM's `qwen3_coder` has it: a text where there
/// is none, and where it is not of the type.
pub(super) fn by_schema(raw: &str, property: Option<&Value>) -> String {
    let Some(property) = property else { return text(raw) };
    let (kind, takes_null) = kind(property);
    let lower = raw.trim().to_lowercase();
    let is_null = NULLS.contains(&lower.as_str());
    let is_text = TEXTS.contains(&kind.as_str());
    if is_null && (takes_null || !is_text) {
        return "null".to_owned();
    }
    if is_text {
        return text(raw);
    }
    let begins = |words: &[&str]| words.iter().any(|word| kind.starts_with(word));
    let value = match () {
        () if begins(&INTEGERS) => integer(raw.trim()),
        () if begins(&NUMBERS) => number(raw.trim()),
        () if BOOLEANS.contains(&kind.as_str()) => Some((lower == "true").to_string()),
        () => guess(raw.trim()),
    };
    value.unwrap_or_else(|| text(raw))
}

/// JSON of `raw`: a text if the schema says so or if it is no other value.
pub(super) fn guessed(raw: &str, property: Option<&Value>) -> String {
    let is_text = property.and_then(|p| p.get("type")).is_some_and(|kind| kind == "string");
    if is_text {
        return text(raw);
    }
    let raw = raw.trim();
    let json = serde_json::from_str::<Value>(raw).ok().or_else(|| literal(raw));
    json.map_or_else(|| text(raw), |value| value.to_string())
}

fn text(raw: &str) -> String {
    Value::from(raw).to_string()
}

/// The first type of a schema that is not null, and whether null is one.
fn kind(property: &Value) -> (String, bool) {
    let of = |kinds: Vec<&str>| {
        let kinds: Vec<String> = kinds.iter().map(|kind| kind.trim().to_lowercase()).collect();
        let takes_null = kinds.iter().any(|kind| kind == "null");
        let first = kinds.iter().find(|kind| *kind != "null").cloned();
        let only = if takes_null { "null" } else { "string" };
        (first.unwrap_or_else(|| only.to_owned()), takes_null)
    };
    match property.get("type") {
        Some(Value::String(kind)) => return of(vec![kind]),
        Some(Value::Array(kinds)) => return of(kinds.iter().filter_map(Value::as_str).collect()),
        _ => {}
    }
    let branches = ["anyOf", "oneOf"].iter().find_map(|key| property.get(key)?.as_array());
    let kinds = branches.into_iter().flatten().filter_map(|branch| branch.get("type")?.as_str());
    of(kinds.collect())
}

/// Of any length.
fn integer(raw: &str) -> Option<String> {
    let (sign, digits) = match raw.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", raw.strip_prefix('+').unwrap_or(raw)),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = digits.trim_start_matches('0');
    Some(if digits.is_empty() { "0".to_owned() } else { format!("{sign}{digits}") })
}

/// A whole number is an integer.
fn number(raw: &str) -> Option<String> {
    let value: f64 = raw.parse().ok().filter(|value: &f64| value.is_finite())?;
    match value.fract() == 0.0 {
        // Zero has no sign.
        true => Some(format!("{:.0}", if value == 0.0 { 0.0 } else { value })),
        false => Number::from_f64(value).map(|number| number.to_string()),
    }
}

/// JSON, or a literal of Python, also one within a text of JSON.
fn guess(raw: &str) -> Option<String> {
    let value = match serde_json::from_str::<Value>(raw) {
        Ok(Value::String(inner)) => literal(&inner).unwrap_or(Value::String(inner)),
        Ok(value) => value,
        Err(_) => literal(raw)?,
    };
    Some(value.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_have_the_types_of_their_schemas() {
        let union = json!({"anyOf": [{"type": "null"}, {"type": "integer"}]});
        let cases = [
            (json!({"type": "string"}), "12", "\"12\""),
            (json!({"type": "string"}), "null", "\"null\""),
            (json!({"type": ["string", "null"]}), "None", "null"),
            (json!({"type": "integer"}), " -012 ", "-12"),
            (json!({"type": "integer"}), "00", "0"),
            (json!({"type": "integer"}), "123456789012345678901234", "123456789012345678901234"),
            (json!({"type": "integer"}), "1.5", "\"1.5\""),
            (json!({"type": "number"}), "1.50", "1.5"),
            (json!({"type": "number"}), "2.0", "2"),
            (json!({"type": "number"}), "-0.0", "0"),
            (json!({"type": "number"}), "1e400", "\"1e400\""),
            (json!({"type": "number"}), "null", "null"),
            (json!({"type": "boolean"}), "True", "true"),
            (json!({"type": "boolean"}), "no", "false"),
            (json!({"type": "array"}), "[1, \"a\"]", "[1,\"a\"]"),
            (json!({"type": "array"}), "[1, 'a', None]", "[1,\"a\",null]"),
            (json!({"type": "object"}), "\"{'a': True}\"", "{\"a\":true}"),
            (json!({"type": "object"}), "{", "\"{\""),
            (union.clone(), "5", "5"),
            (union, "null", "null"),
            (json!({"enum": ["a"]}), "5", "\"5\""),
        ];
        for (schema, raw, expected) in cases {
            assert_eq!(by_schema(raw, Some(&schema)), expected, "{schema} {raw}");
        }
        assert_eq!(by_schema("5", None), "\"5\"");
        assert_eq!(guessed("5", None), "5");
        assert_eq!(guessed(" x ", None), "\"x\"");
        assert_eq!(guessed(" 5 ", Some(&json!({"type": "string"}))), "\" 5 \"");
    }
}
