//! Numbers, as Python's `int` and `float` make them.

use minijinja::Error;
use minijinja::value::{Value, ValueKind};

use super::repr::{as_float, invalid};

/// A number, as which Python counts booleans.
pub(super) fn number(value: &Value) -> Result<Value, Error> {
    match value.kind() {
        ValueKind::Bool => Ok(Value::from(u8::from(value.is_true()))),
        ValueKind::Number => Ok(value.clone()),
        kind => Err(invalid(format!("an operator takes no value of type {kind}"))),
    }
}

/// `float(value)`, or `None` where Python's raises.
pub(super) fn float(value: &Value) -> Result<Option<f64>, Error> {
    Ok(match value.as_str() {
        Some(text) => plain(text)?.parse().ok(),
        None => number(value).and_then(|value| as_float(&value)).ok(),
    })
}

/// `int(value)`, of a text with a fraction that of the number before it; `None` where Python's
/// raises.
pub(super) fn int(value: &Value) -> Result<Option<Value>, Error> {
    let Some(text) = value.as_str() else {
        let Ok(number) = number(value) else { return Ok(None) };
        return if number.is_integer() { Ok(Some(number)) } else { truncated(as_float(&number)?) };
    };
    let text = plain(text)?;
    let digits = text.strip_prefix(['+', '-']).unwrap_or(&text);
    match (text.parse::<i128>(), text.parse::<f64>()) {
        (Ok(number), _) => Ok(Some(number.into())),
        (Err(_), _) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
            Err(invalid("a number is too large"))
        }
        (Err(_), Ok(number)) => truncated(number),
        (Err(_), Err(_)) => Ok(None),
    }
}

fn truncated(number: f64) -> Result<Option<Value>, Error> {
    match number.is_finite() {
        false => Ok(None),
        true if number.abs() < 1e38 => Ok(Some(Value::from(number.trunc() as i128))),
        true => Err(invalid("a number is too large")),
    }
}

/// A number's text as Rust reads it: trimmed, without underscores between digits. Digits of other
/// scripts are refused.
fn plain(text: &str) -> Result<String, Error> {
    if text.chars().any(|c| c.is_numeric() && !c.is_ascii()) {
        return Err(invalid("digits other than 0 to 9 are not supported"));
    }
    let text = text.trim();
    let byte = |at: usize| text.as_bytes().get(at);
    let is_digit = |at: Option<usize>| at.and_then(byte).is_some_and(u8::is_ascii_digit);
    let is_between = |at: usize| is_digit(at.checked_sub(1)) && is_digit(Some(at + 1));
    match text.match_indices('_').all(|(at, _)| is_between(at)) {
        true => Ok(text.replace('_', "")),
        false => Ok(String::new()),
    }
}
