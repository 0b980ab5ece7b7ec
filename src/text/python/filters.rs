//! Filters, tests and functions of jinja2.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::value::{Enumerator, Kwargs, Object, Rest, Tuple, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, State};

use super::super::jinja::{CONCAT, GIVEN, ITEMS, KEPT, REMAINDER, SUM};
use super::generator;
use super::kept::kept;
use super::methods;
use super::numbers::{float, int, number};
use super::printf::percent;
use super::repr::{as_float, invalid, push, text, to_json};
use super::texts;
use super::view::{Generator, View};

/// Items of a `range`. jinja2's sandbox has the same limit.
const RANGE_ITEMS_MAX: i64 = 100_000;

/// Makes an environment work as jinja2's does.
pub(in crate::text) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(methods::call);
    environment.set_formatter(|out, state, value| match value.as_str() {
        Some(plain) => Ok(out.write_str(plain)?),
        None => Ok(out.write_str(&text(state, value)?)?),
    });
    functions(environment);
    filters(environment);
    texts::install(environment);
    generator::install(environment);
    tests(environment);
}

fn functions(environment: &mut Environment<'static>) {
    environment.remove_global("debug");
    environment.add_function(REMAINDER, |state: &State<'_, '_>, left: &Value, right: &Value| {
        match left.as_str() {
            Some(_) if left.is_safe() => Err(invalid("% of a safe string is not supported")),
            Some(format) => percent(state, format, right).map(Value::from),
            None => remainder(left, right),
        }
    });
    environment.add_function(CONCAT, |state: &State<'_, '_>, left: &Value, right: &Value| {
        let mut out = text(state, left)?;
        push(&mut out, &text(state, right)?)?;
        Ok::<_, Error>(out)
    });
    environment.add_function(SUM, sum);
    environment.add_function(ITEMS, |over: &Value| match over.as_str() {
        Some(text) => Ok(text.chars().map(|c| Value::from(c.to_string())).collect::<Value>()),
        None if over.is_none() => Err(invalid("a loop cannot go over None")),
        // A loop knows how many items there are.
        None if Generator::is(over) => Ok(over.try_iter()?.collect()),
        None => Ok(over.clone()),
    });
    environment.add_function(KEPT, kept);
    environment.add_function(GIVEN, |value: &Value| match value.is_undefined() {
        true => Err(invalid("an argument that has a default is given what is not defined")),
        false => Ok(value.clone()),
    });
    environment.add_function("range", range);
    environment.add_function("dict", dict);
    environment.add_function("joiner", |separator: Option<&str>| {
        let separator = separator.unwrap_or(", ").to_owned();
        Value::from_object(Joiner { separator, calls: AtomicUsize::new(0) })
    });
    environment.add_function("cycler", |items: Rest<Value>| match items.is_empty() {
        true => Err(invalid("cycler takes at least one item")),
        false => Ok(Value::from_object(Cycler { items: items.0, next: AtomicUsize::new(0) })),
    });
}

/// `+`, where some texts may be marked as safe: what is added to them is escaped.
fn sum(state: &State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(a), Some(b)) = (left.as_str(), right.as_str()) {
        let mut out = String::new();
        let is_safe = left.is_safe() || right.is_safe();
        for (text, value) in [(a, left), (b, right)] {
            match is_safe && !value.is_safe() {
                true => push(&mut out, &escaped(text))?,
                false => push(&mut out, text)?,
            }
        }
        return Ok(if is_safe { Value::from_safe_string(out) } else { out.into() });
    }
    let is_list = |value: &Value| matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable);
    let is_tuple = |value: &Value| value.downcast_object_ref::<Tuple>().is_some();
    if is_list(left) && is_list(right) && is_tuple(left) == is_tuple(right) {
        let items: Vec<Value> = left.try_iter()?.chain(right.try_iter()?).collect();
        state.consume_fuel(items.len() as u64)?;
        return Ok(if is_tuple(left) { Tuple::from(items).into() } else { items.into() });
    }
    let (left, right) = (number(left)?, number(right)?);
    if left.is_integer() && right.is_integer() {
        let sum = i128::try_from(left)?.checked_add(i128::try_from(right)?);
        return sum.map(Value::from).ok_or_else(|| invalid("a number is out of range"));
    }
    Ok((as_float(&left)? + as_float(&right)?).into())
}

fn escaped(plain: &str) -> String {
    let escaped = plain.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    escaped.replace('"', "&#34;").replace('\'', "&#39;")
}

/// The engine's own `%`, of numbers.
fn remainder(left: &Value, right: &Value) -> Result<Value, Error> {
    let (left, right) = (number(left)?, number(right)?);
    let zero = || invalid("a number modulo zero");
    if left.is_integer() && right.is_integer() {
        let (a, b) = (i128::try_from(left)?, i128::try_from(right)?);
        let rest = a.checked_rem(b).ok_or_else(zero)?;
        return Ok(if rest != 0 && (rest < 0) != (b < 0) { rest + b } else { rest }.into());
    }
    let (a, b) = (as_float(&left)?, as_float(&right)?);
    if b == 0.0 {
        return Err(zero());
    }
    let rest = a % b;
    Ok(if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest }.into())
}

fn range(first: i64, stop: Option<i64>, step: Option<i64>) -> Result<Value, Error> {
    let (start, stop) = stop.map_or((0, first), |stop| (first, stop));
    let step_by = step.unwrap_or(1);
    if step_by == 0 {
        return Err(invalid("the step of a range must not be 0"));
    }
    let span = i128::from(stop) - i128::from(start);
    let by = i128::from(step_by);
    let count = if (span > 0) == (by > 0) { (span.abs() + by.abs() - 1) / by.abs() } else { 0 };
    if span != 0 && count > i128::from(RANGE_ITEMS_MAX) {
        return Err(invalid(format!("a range has at most {RANGE_ITEMS_MAX} items")));
    }
    let items = (0..count as i64).map(|i| Value::from(start + i * step_by)).collect();
    let shown = match step_by {
        1 => format!("range({start}, {stop})"),
        _ => format!("range({start}, {stop}, {step_by})"),
    };
    Ok(View::range(items, shown))
}

fn dict(from: Option<&Value>, named: Kwargs) -> Result<Value, Error> {
    let named: Vec<(String, Value)> = named
        .args()
        .map(|name| named.peek::<Value>(name).map(|value| (name.to_owned(), value)))
        .collect::<Result<_, _>>()?;
    let from = match from {
        None => Value::from_pairs::<_, String, Value>([]),
        Some(map) if map.kind() == ValueKind::Map => map.clone(),
        Some(pairs) => {
            let pair = |pair: Value| match pair.len() {
                Some(2) => Ok((pair.get_item_by_index(0)?, pair.get_item_by_index(1)?)),
                _ => Err(invalid("dict takes a mapping or pairs")),
            };
            Value::from_pairs(pairs.try_iter()?.map(pair).collect::<Result<Vec<_>, Error>>()?)
        }
    };
    // Of two values for a name the later wins, where the first one stood.
    let mut merged: Vec<(Value, Value)> = Vec::new();
    for key in from.try_iter()? {
        let later = named.iter().find(|(name, _)| key.as_str() == Some(name));
        let value = later.map_or_else(|| from.get_item(&key), |(_, value)| Ok(value.clone()))?;
        merged.push((key, value));
    }
    let is_new = |name: &str| !merged.iter().any(|(key, _)| key.as_str() == Some(name));
    let new: Vec<_> = named.iter().filter(|(name, _)| is_new(name)).cloned().collect();
    merged.extend(new.into_iter().map(|(name, value)| (Value::from(name), value)));
    Ok(Value::from_pairs(merged))
}

fn filters(environment: &mut Environment<'static>) {
    // jinja2 has none of these.
    for name in ["split", "lines", "bool", "zip", "chain", "pprint"] {
        environment.remove_filter(name);
    }
    environment.add_filter(
        "tojson",
        |state: &State<'_, '_>, value: &Value, ascii: Option<bool>, options: Kwargs| {
            to_json(state, value, ascii, &options)
        },
    );
    environment.add_filter("string", |state: &State<'_, '_>, value: &Value| text(state, value));
    environment.add_filter("list", |value: &Value| match value.kind() {
        ValueKind::None => Err(invalid("None is no list")),
        ValueKind::Undefined => Ok(Vec::new()),
        _ => Ok(value.try_iter()?.collect::<Vec<Value>>()),
    });
    environment.add_filter("join", join);
    environment.add_filter(
        "format",
        |state: &State<'_, '_>, format: &str, values: Rest<Value>, named: Kwargs| {
            let names: Vec<&str> = named.args().collect();
            let by_name = names.iter().map(|name| Ok((*name, named.peek::<Value>(name)?)));
            match (names.is_empty(), values.is_empty()) {
                (true, _) => percent(state, format, &Tuple::from(values.0).into()),
                (false, true) => percent(
                    state,
                    format,
                    &Value::from_pairs(by_name.collect::<Result<Vec<_>, Error>>()?),
                ),
                (false, false) => Err(invalid("format takes values or names, not both")),
            }
        },
    );
    environment.add_filter("int", |value: &Value, default: Option<i64>, options: Kwargs| {
        let base: Option<u32> = options.get("base")?;
        let default = default.or(options.get("default")?);
        options.assert_all_used()?;
        match base.is_none_or(|base| base == 10) || value.as_str().is_none() {
            true => Ok(int(value)?.unwrap_or_else(|| default.unwrap_or(0).into())),
            false => Err(invalid("int takes no base but 10")),
        }
    });
    environment.add_filter("float", |value: &Value, default: Option<f64>| {
        float(value).map(|number| number.or(default).unwrap_or(0.0))
    });
    let default = |value: &Value, other: Option<Value>, boolean: Option<bool>, options: Kwargs| {
        let other = other.or(options.get("default_value")?);
        let by_truth = boolean.or(options.get("boolean")?).unwrap_or(false);
        options.assert_all_used()?;
        let is_missing = value.is_undefined() || by_truth && !value.is_true();
        Ok::<_, Error>(if is_missing { other.unwrap_or("".into()) } else { value.clone() })
    };
    environment.add_filter("default", default);
    environment.add_filter("d", default);
    environment.add_filter("wordcount", methods::words);
    let escape = |state: &State<'_, '_>, value: &Value| -> Result<Value, Error> {
        match value.is_safe() {
            true => Ok(value.clone()),
            false => Ok(Value::from_safe_string(escaped(&text(state, value)?))),
        }
    };
    environment.add_filter("escape", escape);
    environment.add_filter("e", escape);
}

fn join(
    state: &State<'_, '_>,
    items: &Value,
    separator: Option<&Value>,
    attribute: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let by_name: Option<Value> = options.get("d")?;
    let separator = separator
        .or(by_name.as_ref())
        .map(|separator| text(state, separator))
        .transpose()?
        .unwrap_or_default();
    let attribute = attribute.or(options.get("attribute")?);
    options.assert_all_used()?;
    let mut out = String::new();
    if items.is_none() {
        return Err(invalid("None cannot be joined"));
    }
    for (index, item) in items.try_iter()?.enumerate() {
        push(&mut out, if index > 0 { &separator } else { "" })?;
        let mut item = item;
        for key in attribute.as_ref().and_then(Value::as_str).into_iter().flat_map(|a| a.split('.'))
        {
            item = item.get_item(&key.into())?;
        }
        push(&mut out, &text(state, &item)?)?;
    }
    Ok(out)
}

fn tests(environment: &mut Environment<'static>) {
    for name in ["startingwith", "endingwith", "safe"] {
        environment.remove_test(name);
    }
    // Python counts more kinds as these than the template engine does, and none as iterable.
    environment.add_test("sequence", |value: &Value| {
        let kinds = [ValueKind::Seq, ValueKind::String, ValueKind::Map, ValueKind::Undefined];
        kinds.contains(&value.kind())
    });
    environment.add_test("iterable", |value: &Value| {
        value.kind() == ValueKind::String || !value.is_none() && value.try_iter().is_ok()
    });
    environment.add_test("number", |value: &Value| {
        matches!(value.kind(), ValueKind::Number | ValueKind::Bool)
    });
    for (name, rest) in [("odd", 1), ("even", 0)] {
        environment.add_test(name, move |value: &Value| {
            remainder(value, &2.into()).map(|found| found == Value::from(rest))
        });
    }
    environment.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain && value.downcast_object_ref::<Cycler>().is_none()
    });
}

/// jinja2's `joiner`: nothing at its first call, then a separator.
#[derive(Debug)]
struct Joiner {
    separator: String,
    calls: AtomicUsize,
}

impl Object for Joiner {
    fn repr(self: &Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, _: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        let () = minijinja::value::from_args(args)?;
        let is_first = self.calls.fetch_add(1, Ordering::Relaxed) == 0;
        Ok(if is_first { "" } else { &self.separator }.into())
    }
}

/// jinja2's `cycler`.
#[derive(Debug)]
struct Cycler {
    items: Vec<Value>,
    next: AtomicUsize,
}

impl Cycler {
    fn current(&self, next: usize) -> Value {
        self.items[next % self.items.len()].clone()
    }
}

impl Object for Cycler {
    fn repr(self: &Arc<Self>) -> minijinja::value::ObjectRepr {
        minijinja::value::ObjectRepr::Plain
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        (key.as_str() == Some("current")).then(|| self.current(self.next.load(Ordering::Relaxed)))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::NonEnumerable
    }

    fn call_method(
        self: &Arc<Self>,
        _: &mut State<'_, '_>,
        method: &str,
        args: &[Value],
    ) -> Result<Value, Error> {
        let () = minijinja::value::from_args(args)?;
        match method {
            "next" => Ok(self.current(self.next.fetch_add(1, Ordering::Relaxed))),
            "reset" => {
                self.next.store(0, Ordering::Relaxed);
                Ok(().into())
            }
            _ => Err(Error::from(ErrorKind::UnknownMethod)),
        }
    }
}
