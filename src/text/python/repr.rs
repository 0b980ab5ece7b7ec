//! Values as Python prints them: `str`, `repr` and `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Kwargs, Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::view::{Generator, View};

/// Text that one function of a template may make. More is an error: a template makes a prompt,
/// which is shorter.
pub(super) const MADE_BYTES_MAX: usize = 16 << 20;
/// Lists and mappings within each other that can be printed. Deeper is an error.
const PRINTED_DEPTH_MAX: usize = 100;
/// What each value within a printed one takes of a template's fuel.
const VALUE_FUEL: u64 = 8;
/// Bytes of text that cost a step of a template's fuel where a function goes through them.
const BYTES_PER_FUEL: u64 = 16;

pub(super) fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.into())
}

/// Adds to a text; one that would be too long is an error.
pub(super) fn push(out: &mut String, more: &str) -> Result<(), Error> {
    if more.len() > MADE_BYTES_MAX.saturating_sub(out.len()) {
        return Err(invalid(format!(
            "a text made by a template has at most {MADE_BYTES_MAX} bytes"
        )));
    }
    out.push_str(more);
    Ok(())
}

/// `str(value)`.
pub(in crate::text) fn text(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None if value.is_undefined() => Ok(String::new()),
        None => repr(state, value),
    }
}

/// `repr(value)`.
pub(super) fn repr(state: &State<'_, '_>, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    write_repr(state, &mut out, value, 0)?;
    Ok(out)
}

/// Pays for going through a value.
pub(super) fn pay(state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    let bytes = value.as_str().map_or(0, str::len) as u64;
    state.consume_fuel(VALUE_FUEL + bytes / BYTES_PER_FUEL)
}

fn deeper(depth: usize) -> Result<usize, Error> {
    let message = || invalid(format!("values are nested more than {PRINTED_DEPTH_MAX} deep"));
    (depth < PRINTED_DEPTH_MAX).then_some(depth + 1).ok_or_else(message)
}

fn write_repr(
    state: &State<'_, '_>,
    out: &mut String,
    value: &Value,
    depth: usize,
) -> Result<(), Error> {
    pay(state, value)?;
    match value.kind() {
        ValueKind::Undefined => push(out, "Undefined"),
        ValueKind::Number if !value.is_integer() => push(out, &float(as_float(value)?)),
        ValueKind::Map => {
            push(out, "{")?;
            for (index, key) in value.try_iter()?.enumerate() {
                push(out, if index > 0 { ", " } else { "" })?;
                write_repr(state, out, &key, deeper(depth)?)?;
                push(out, ": ")?;
                write_repr(state, out, &value.get_item(&key)?, deeper(depth)?)?;
            }
            push(out, "}")
        }
        _ if Generator::is(value) => {
            Err(invalid("what a filter makes one by one prints as no text; put |list behind it"))
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let view = value.downcast_object_ref::<View>();
            if let Some(range) = view.and_then(View::shown) {
                return push(out, range);
            }
            let is_tuple = value.downcast_object_ref::<Tuple>().is_some();
            let (open, close) = if is_tuple { ("(", ")") } else { ("[", "]") };
            if let Some(view) = view {
                push(out, view.name())?;
                push(out, "(")?;
            }
            push(out, open)?;
            let mut count = 0;
            for item in value.try_iter()? {
                push(out, if count > 0 { ", " } else { "" })?;
                write_repr(state, out, &item, deeper(depth)?)?;
                count += 1;
            }
            push(out, if is_tuple && count == 1 { "," } else { "" })?;
            push(out, close)?;
            push(out, if view.is_some() { ")" } else { "" })
        }
        // Of strings the engine's debug format is Python's, but for what cannot be seen.
        ValueKind::String => {
            let mut quoted = String::new();
            format!("{value:?}").chars().for_each(|letter| write_letter(&mut quoted, letter));
            push(out, &quoted)
        }
        _ => push(out, &format!("{value:?}")),
    }
}

/// What Python writes for a letter between quotes: those that cannot be seen by their number.
fn write_letter(out: &mut String, letter: char) {
    let code = u32::from(letter);
    // After another letter, those that belong to it are seen.
    let is_seen =
        letter.is_ascii() || ['a', letter].iter().collect::<String>().escape_debug().count() == 2;
    // Writing to a string cannot fail.
    let _ = match code {
        _ if is_seen => out.write_char(letter),
        0..=0xff => write!(out, "\\x{code:02x}"),
        0x100..=0xffff => write!(out, "\\u{code:04x}"),
        _ => write!(out, "\\U{code:08x}"),
    };
}

pub(super) fn as_float(value: &Value) -> Result<f64, Error> {
    f64::try_from(value.clone())
}

/// `repr` of a float: the shortest digits that give it back.
pub(super) fn float(value: f64) -> String {
    if !value.is_finite() {
        let sign = if value.is_sign_negative() { "-" } else { "" };
        return if value.is_nan() { "nan".to_owned() } else { format!("{sign}inf") };
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value:?}"),
    }
}

/// `tojson` of transformers: `json.dumps` with `ensure_ascii=False`, optionally with
/// `ensure_ascii`, `indent`, `separators` and `sort_keys`.
pub(super) fn to_json(
    state: &State<'_, '_>,
    value: &Value,
    ensure_ascii: Option<bool>,
    options: &Kwargs,
) -> Result<String, Error> {
    let indent: Option<Value> = options.get("indent")?;
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(match (indent.as_str(), indent.as_i64()) {
            (Some(text), _) => text.to_owned(),
            (None, Some(width)) => " ".repeat(usize::try_from(width).unwrap_or(0).min(1 << 12)),
            (None, None) => return Err(invalid("indent must be a number or a string")),
        }),
    };
    let separators: Option<Vec<String>> = options.get("separators")?;
    let ascii: Option<bool> = options.get("ensure_ascii")?;
    let sort_keys: Option<bool> = options.get("sort_keys")?;
    options.assert_all_used()?;
    let (item, key) = match separators.as_deref() {
        None => (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()),
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => return Err(invalid("separators must be two strings")),
    };
    let ascii = ascii.or(ensure_ascii).unwrap_or(false);
    let sort_keys = sort_keys.unwrap_or(false);
    let mut dumps = Dumps { state, out: String::new(), indent, item, key, ascii, sort_keys };
    dumps.write(value, 0)?;
    Ok(dumps.out)
}

struct Dumps<'a> {
    state: &'a State<'a, 'a>,
    out: String,
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort_keys: bool,
}

impl Dumps<'_> {
    fn line(&mut self, depth: usize) -> Result<(), Error> {
        let Some(indent) = &self.indent else { return Ok(()) };
        push(&mut self.out, "\n")?;
        (0..depth).try_for_each(|_| push(&mut self.out, indent))
    }

    fn write(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        pay(self.state, value)?;
        match value.kind() {
            ValueKind::None => push(&mut self.out, "null"),
            ValueKind::Bool => push(&mut self.out, if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => push(&mut self.out, &number(value)?),
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Map => self.map(value, depth),
            ValueKind::Seq | ValueKind::Iterable
                if value.downcast_object_ref::<View>().is_none() && !Generator::is(value) =>
            {
                self.list(value, depth)
            }
            kind => Err(invalid(format!("tojson takes no value of type {kind}"))),
        }
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let inner = deeper(depth)?;
        push(&mut self.out, "[")?;
        let mut is_empty = true;
        for item in value.try_iter()? {
            self.next(is_empty, inner)?;
            self.write(&item, inner)?;
            is_empty = false;
        }
        self.close(is_empty, depth, "]")
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let inner = deeper(depth)?;
        let mut keys: Vec<Value> = value.try_iter()?.collect();
        if self.sort_keys {
            let is_text = |key: &Value| key.as_str().is_some();
            if !keys.iter().all(is_text) && !keys.iter().all(Value::is_number) {
                return Err(invalid("keys of several types cannot be sorted"));
            }
            keys.sort();
        }
        push(&mut self.out, "{")?;
        let mut is_empty = true;
        for key in keys {
            self.next(is_empty, inner)?;
            match key.kind() {
                ValueKind::String => self.string(key.as_str().unwrap_or_default())?,
                ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                    push(&mut self.out, "\"")?;
                    self.write(&key, inner)?;
                    push(&mut self.out, "\"")?;
                }
                kind => return Err(invalid(format!("tojson takes no key of type {kind}"))),
            }
            let separator = std::mem::take(&mut self.key);
            push(&mut self.out, &separator)?;
            self.key = separator;
            self.write(&value.get_item(&key)?, inner)?;
            is_empty = false;
        }
        self.close(is_empty, depth, "}")
    }

    fn next(&mut self, is_first: bool, depth: usize) -> Result<(), Error> {
        if !is_first {
            push(&mut self.out, &self.item)?;
        }
        self.line(depth)
    }

    fn close(&mut self, is_empty: bool, depth: usize, bracket: &str) -> Result<(), Error> {
        if !is_empty {
            self.line(depth)?;
        }
        push(&mut self.out, bracket)
    }

    fn string(&mut self, text: &str) -> Result<(), Error> {
        let mut quoted = String::with_capacity(text.len() + 2);
        quoted.push('"');
        for letter in text.chars() {
            match letter {
                '"' => quoted.push_str("\\\""),
                '\\' => quoted.push_str("\\\\"),
                '\n' => quoted.push_str("\\n"),
                '\r' => quoted.push_str("\\r"),
                '\t' => quoted.push_str("\\t"),
                '\u{8}' => quoted.push_str("\\b"),
                '\u{c}' => quoted.push_str("\\f"),
                letter if letter < ' ' || self.ascii && letter > '~' => {
                    for unit in letter.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(quoted, "\\u{unit:04x}");
                    }
                }
                letter => quoted.push(letter),
            }
        }
        quoted.push('"');
        push(&mut self.out, &quoted)
    }
}

/// A number as `json.dumps` writes it.
fn number(value: &Value) -> Result<String, Error> {
    if value.is_integer() {
        return Ok(value.to_string());
    }
    let value = as_float(value)?;
    Ok(match value.is_finite() {
        true => float(value),
        false if value.is_nan() => "NaN".to_owned(),
        false => if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
    })
}
