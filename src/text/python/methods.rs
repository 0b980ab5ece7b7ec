//! Methods of Python's strings, lists and mappings that jinja2's sandbox lets a template call.

use std::ops::RangeInclusive;

use minijinja::value::{Kwargs, Rest, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};

use super::super::jinja::{MAPPING_METHODS, UNCALLED};
use super::repr::{MADE_BYTES_MAX, invalid, pay, push, text};
use super::view::View;

/// A method of a value.
pub(super) fn call(
    state: &mut State<'_, '_>,
    value: &Value,
    method: &str,
    args: &[Value],
) -> Result<Value, Error> {
    pay(state, value)?;
    if method == UNCALLED {
        return uncalled(value, args);
    }
    let ours = match value.kind() {
        ValueKind::String => string(state, value.as_str().unwrap_or_default(), method, args)?,
        ValueKind::Map => mapping(value, method, args)?,
        ValueKind::Seq | ValueKind::Iterable => list(value, method, args)?,
        _ => None,
    };
    match ours {
        Some(result) => Ok(result),
        None => minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// An attribute that mappings have a method for, and that is not called: there the method is
/// meant, whatever the mapping holds under the name.
fn uncalled(value: &Value, args: &[Value]) -> Result<Value, Error> {
    let (name,): (&str,) = from_args(args)?;
    let is_namespace = value.as_object().is_some_and(|o| o.type_name().ends_with("::Namespace"));
    match value.kind() == ValueKind::Map && !is_namespace && MAPPING_METHODS.contains(&name) {
        true => Err(invalid(format!("x.{name} is a method of mappings; write x['{name}']"))),
        false => value.get_attr(name),
    }
}

fn mapping(map: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let keys = || map.try_iter().map(Iterator::collect::<Vec<_>>);
    let item = |key: &Value| map.get_item(key);
    Ok(Some(match (method, args) {
        ("keys", []) => View::named("dict_keys", keys()?),
        ("values", []) => {
            View::named("dict_values", keys()?.iter().map(item).collect::<Result<_, _>>()?)
        }
        ("items", []) => {
            let pair = |key: Value| Ok(Value::from(Tuple::from([key.clone(), item(&key)?])));
            View::named("dict_items", keys()?.into_iter().map(pair).collect::<Result<_, Error>>()?)
        }
        ("copy", []) => map.clone(),
        _ => return Ok(None),
    }))
}

fn list(list: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match (method, args) {
        ("copy", []) if list.downcast_object_ref::<Tuple>().is_none() => list.clone(),
        ("index", [wanted]) => match list.try_iter()?.position(|item| item == *wanted) {
            Some(index) => index.into(),
            None => return Err(invalid("index() found no such item")),
        },
        _ => return Ok(None),
    }))
}

/// Letters of these ranges are letters to Python too; of others there are marks and numbers that
/// are not.
const LETTERS: [RangeInclusive<char>; 8] = [
    '\0'..='\u{2c1}',
    '\u{370}'..='\u{52f}',
    '\u{5d0}'..='\u{5ea}',
    '\u{1e00}'..='\u{1fff}',
    '\u{3041}'..='\u{30ff}',
    '\u{3400}'..='\u{4dbf}',
    '\u{4e00}'..='\u{9fff}',
    '\u{ac00}'..='\u{d7a3}',
];

/// Whether all letters are letters, or digits where those count too.
fn is_written(text: &str, with_digits: bool) -> Result<Value, Error> {
    let is_clear = |c: char| !c.is_alphabetic() || LETTERS.iter().any(|range| range.contains(&c));
    if !text.chars().all(is_clear) {
        return Err(invalid("isalpha and isalnum of these letters are not supported"));
    }
    let counts = |c: char| c.is_alphabetic() || with_digits && c.is_numeric();
    Ok((!text.is_empty() && text.chars().all(counts)).into())
}

/// The arguments of a method that has names for them.
pub(super) fn named<const N: usize>(args: &[Value], names: [&str; N]) -> Result<[Value; N], Error> {
    let (Rest(given), named): (Rest<Value>, Kwargs) = from_args(args)?;
    if given.len() > N {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    let mut values = [const { Value::UNDEFINED }; N];
    for (index, name) in names.into_iter().enumerate() {
        values[index] = match given.get(index) {
            Some(value) => value.clone(),
            None => named.get::<Option<Value>>(name)?.unwrap_or(Value::UNDEFINED),
        };
    }
    named.assert_all_used()?;
    Ok(values)
}

fn a_text(value: &Value) -> Result<&str, Error> {
    value.as_str().ok_or_else(|| invalid(format!("expected a string, found {}", value.kind())))
}

/// Nothing for `None` and for what was not given.
fn given(value: &Value) -> Option<&Value> {
    Some(value).filter(|value| !value.is_none() && !value.is_undefined())
}

fn whole(value: &Value) -> Result<Option<i64>, Error> {
    let number = |value: &Value| value.as_i64().ok_or_else(|| invalid("expected a whole number"));
    given(value).map(number).transpose()
}

fn string(
    state: &State<'_, '_>,
    text: &str,
    method: &str,
    args: &[Value],
) -> Result<Option<Value>, Error> {
    let all = |is: fn(char) -> bool| Value::from(!text.is_empty() && text.chars().all(is));
    Ok(Some(match method {
        "split" | "rsplit" => {
            let [separator, count] = named(args, ["sep", "maxsplit"])?;
            let separator = given(&separator).map(a_text).transpose()?;
            let count = whole(&count)?.and_then(|count| usize::try_from(count).ok());
            split(text, separator, count.unwrap_or(usize::MAX), method == "rsplit")?
        }
        "strip" | "lstrip" | "rstrip" => {
            let [letters] = named(args, ["chars"])?;
            let letters = given(&letters).map(a_text).transpose()?;
            let cut = |c: char| letters.map_or_else(|| is_space(c), |all| all.contains(c));
            let start = if method == "rstrip" { text } else { text.trim_start_matches(cut) };
            if method == "lstrip" { start } else { start.trim_end_matches(cut) }.into()
        }
        "find" | "rfind" | "index" | "rindex" | "count" | "startswith" | "endswith" => {
            return search(text, method, args).map(Some);
        }
        "swapcase" => swapped(text, args)?,
        "title" => {
            let () = from_args(args)?;
            title(text).into()
        }
        "casefold" => folded(text, args)?,
        "removeprefix" | "removesuffix" => {
            let (affix,): (&str,) = from_args(args)?;
            let cut = if method == "removeprefix" {
                text.strip_prefix(affix)
            } else {
                text.strip_suffix(affix)
            };
            cut.unwrap_or(text).into()
        }
        "zfill" | "ljust" | "rjust" | "center" => pad(text, method, args)?,
        "partition" | "rpartition" => partition(text, method, args)?,
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let mut out = String::new();
            for (index, item) in items.try_iter()?.enumerate() {
                push(&mut out, if index > 0 { text } else { "" })?;
                push(&mut out, a_text(&item)?)?;
            }
            out.into()
        }
        "isdigit" | "isnumeric" if text.is_ascii() => all(|c| c.is_ascii_digit()),
        "isdigit" => return Err(invalid("isdigit of these letters is not supported")),
        "isdecimal" if text.is_ascii() => all(|c| c.is_ascii_digit()),
        "isspace" => all(is_space),
        "isalpha" => is_written(text, false)?,
        "isalnum" => is_written(text, true)?,
        "splitlines" => {
            let [keeps_ends] = named(args, ["keepends"])?;
            split_lines(text, keeps_ends.is_true()).into_iter().map(Value::from).collect()
        }
        "format" => format(state, text, args)?,
        _ => return Ok(None),
    }))
}

/// Digits of a width or a precision in `str.format`. The engine reserves what they ask for.
const WIDTH_DIGITS_MAX: usize = 4;

/// Whether the widths of a format are small, and none of them is itself a value.
fn is_bounded(format: &str) -> bool {
    let (mut depth, mut digits) = (0, 0);
    format.chars().all(|letter| {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        digits = if letter.is_ascii_digit() { digits + 1 } else { 0 };
        digits <= WIDTH_DIGITS_MAX || depth == 0
    }) && !format.split('{').any(|field| field.ends_with(':') || field.ends_with('.'))
}

/// `str.format`, whose fields are as Python prints them.
fn format(state: &State<'_, '_>, text: &str, args: &[Value]) -> Result<Value, Error> {
    if !is_bounded(text) {
        return Err(invalid(
            "widths in a format have at most 4 digits, and are none of its values",
        ));
    }
    // The engine prints floats, and what holds them, in its own way: those go in as text.
    let shown = |value: &Value| match value.kind() {
        ValueKind::Seq | ValueKind::Map | ValueKind::Iterable if !value.is_kwargs() => {
            super::repr::text(state, value).map(Value::from)
        }
        ValueKind::Number if !value.is_integer() && !text.contains(':') => {
            super::repr::text(state, value).map(Value::from)
        }
        _ => Ok(value.clone()),
    };
    let is_plain = !text.contains(['[', '.']) || !text.contains('{');
    let args: Vec<Value> = match is_plain {
        true => args.iter().map(shown).collect::<Result<_, _>>()?,
        false => args.to_vec(),
    };
    minijinja::formatting::format(minijinja::formatting::FormatStyle::StrFormat, text, &args)
        .map(Value::from)
}

/// What `str.strip` and `str.split` take for space.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

fn split(
    text: &str,
    separator: Option<&str>,
    count: usize,
    from_end: bool,
) -> Result<Value, Error> {
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    match separator {
        Some("") => return Err(invalid("empty separator")),
        Some(separator) => {
            while parts.len() < count {
                let halves = match from_end {
                    true => rest.rsplit_once(separator).map(|(before, part)| (part, before)),
                    false => rest.split_once(separator),
                };
                let Some((part, left)) = halves else { break };
                parts.push(part);
                rest = left;
            }
            parts.push(rest);
        }
        None => loop {
            rest = match from_end {
                true => rest.trim_end_matches(is_space),
                false => rest.trim_start_matches(is_space),
            };
            if rest.is_empty() {
                break;
            }
            let at = if from_end { rest.rfind(is_space) } else { rest.find(is_space) };
            let Some(at) = at.filter(|_| parts.len() < count) else {
                parts.push(rest);
                break;
            };
            // A space may take several bytes.
            let after = at + rest[at..].chars().next().map_or(0, char::len_utf8);
            parts.push(if from_end { &rest[after..] } else { &rest[..at] });
            rest = if from_end { &rest[..at] } else { &rest[after..] };
        },
    }
    if from_end {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect::<Vec<_>>().into())
}

/// Methods that look for something between two places, which count in characters.
fn search(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let [wanted, start, end] = named(args, ["", "", ""])?;
    let length = text.chars().count() as i64;
    let place = |value: i64| if value < 0 { (length + value).max(0) } else { value };
    let start = place(whole(&start)?.unwrap_or(0));
    let end = place(whole(&end)?.unwrap_or(length)).min(length);
    let offset = |place: i64| text.char_indices().nth(place as usize).map_or(text.len(), |c| c.0);
    let window = (start <= end).then(|| &text[offset(start)..offset(end)]);
    if let "startswith" | "endswith" = method {
        let has = |affix: &Value| -> Result<bool, Error> {
            let affix = a_text(affix)?;
            Ok(window.is_some_and(|text| match method {
                "startswith" => text.starts_with(affix),
                _ => text.ends_with(affix),
            }))
        };
        return match wanted.downcast_object_ref::<Tuple>() {
            Some(any) => {
                let found = any.iter().map(has).collect::<Result<Vec<_>, _>>()?;
                Ok(found.contains(&true).into())
            }
            None => has(&wanted).map(Value::from),
        };
    }
    let wanted = a_text(&wanted)?;
    let Some(window) = window else { return Ok(if method == "count" { 0 } else { -1 }.into()) };
    if method == "count" {
        return Ok(match wanted.is_empty() {
            true => window.chars().count() + 1,
            false => window.matches(wanted).count(),
        }
        .into());
    }
    let from_end = method.starts_with('r');
    let found = if from_end { window.rfind(wanted) } else { window.find(wanted) };
    match found {
        Some(at) => Ok((start + window[..at].chars().count() as i64).into()),
        None if method.ends_with("index") => Err(invalid("substring not found")),
        None => Ok((-1).into()),
    }
}

fn folded(text: &str, args: &[Value]) -> Result<Value, Error> {
    let () = from_args(args)?;
    // The rest of folding is rare, and refused rather than done otherwise.
    let is_known = |c: char| c.is_ascii() || "ßẞ".contains(c) || !c.is_alphabetic();
    match text.chars().all(is_known) {
        true => Ok(text.to_lowercase().replace('ß', "ss").into()),
        false => Err(invalid("casefold of these letters is not supported")),
    }
}

fn partition(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (separator,): (&str,) = from_args(args)?;
    if separator.is_empty() {
        return Err(invalid("empty separator"));
    }
    let halves = match method {
        "partition" => text.split_once(separator),
        _ => text.rsplit_once(separator),
    };
    let parts = match halves {
        Some((before, after)) => [before, separator, after],
        None if method == "partition" => [text, "", ""],
        None => ["", "", text],
    };
    Ok(Tuple::from(parts.map(Value::from)).into())
}

fn swapped(text: &str, args: &[Value]) -> Result<Value, Error> {
    let () = from_args(args)?;
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter.is_uppercase() {
            true => out.extend(letter.to_lowercase()),
            false => out.extend(letter.to_uppercase()),
        }
    }
    Ok(out.into())
}

/// `str.title`: a capital after everything that is no letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_within = false;
    for letter in text.chars() {
        match (is_within, letter) {
            (true, letter) => out.extend(letter.to_lowercase()),
            (false, 'ß') => out.push_str("Ss"),
            (false, letter) => out.extend(letter.to_uppercase()),
        }
        is_within = letter.is_lowercase() || letter.is_uppercase();
    }
    out
}

fn pad(text: &str, method: &str, args: &[Value]) -> Result<Value, Error> {
    let (width, fill): (i64, Option<&str>) = from_args(args)?;
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(text.chars().count());
    if missing > MADE_BYTES_MAX / 4 {
        return Err(invalid(format!("a width of {width} is too large")));
    }
    let fill = match fill {
        Some(fill) if fill.chars().count() != 1 || method == "zfill" => {
            return Err(invalid("the fill must be one character"));
        }
        fill => fill.unwrap_or(if method == "zfill" { "0" } else { " " }),
    };
    // Python puts the odd one to the left if the width is odd.
    let left = match method {
        "ljust" => 0,
        "center" => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
        _ => missing,
    };
    let (sign, body) = match text.chars().next() {
        Some('+' | '-') if method == "zfill" => text.split_at(1),
        _ => ("", text),
    };
    Ok(format!("{sign}{}{body}{}", fill.repeat(left), fill.repeat(missing - left)).into())
}

/// The engine's own filter of that name is for letters.
pub(super) fn words(state: &State<'_, '_>, value: &Value) -> Result<usize, Error> {
    Ok(text(state, value)?
        .split(|c: char| !c.is_alphanumeric() && c != '_')
        .filter(|w| !w.is_empty())
        .count())
}

/// `str.splitlines`.
pub(super) fn split_lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let is_end = |c: char| {
        let is_separator = ['\u{85}', '\u{2028}', '\u{2029}'].contains(&c);
        is_separator || matches!(c, '\n'..='\r' | '\u{1c}'..='\u{1e}')
    };
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find(is_end) {
        let end = if rest[at..].starts_with("\r\n") { 2 } else { 0 };
        let end = end.max(rest[at..].chars().next().map_or(1, char::len_utf8));
        lines.push(if keeps_ends { &rest[..at + end] } else { &rest[..at] });
        rest = &rest[at + end..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}
