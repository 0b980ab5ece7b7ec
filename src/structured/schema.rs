//! JSON schemas, read strictly: the library leaves words unread that it does not know, and a schema
//! that is followed by halves would be answered with JSON that it refuses.

use std::collections::HashSet;

use serde_json::{Map, Value, json};

use super::limits::{BRANCHES_MAX, PATTERN_PROPERTIES_MAX, PROPERTIES_OPTIONAL_MAX};
use super::ranges::{self, HOLD_NAMED_SCHEMAS};

/// Words that constrain, and are followed.
const FOLLOWED: &[&str] = &[
    "$ref",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "enum",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "items",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "required",
    "type",
];
/// Words that constrain nothing.
const REMARKS: &[&str] = &[
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contentEncoding",
    "contentMediaType",
    "default",
    "definitions",
    "deprecated",
    "description",
    "discriminator",
    "example",
    "examples",
    "id",
    "readOnly",
    "title",
    "writeOnly",
];
/// Words that constrain nothing with this value.
const NEUTRAL: &[(&str, bool)] = &[("uniqueItems", false), ("nullable", false)];
const FORMATS: &[&str] =
    &["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid"];
/// The 29th of February comes in leap years only.
const REAL_DAY: &str = concat!(
    "^(?:[0-9]{4}-(?:0[13-9]|1|02-(?:[01]|2[0-8]))|",
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
);
/// An address of at most 64 characters before the @, as the library's own are not.
const EMAIL: &str = concat!(
    r"^(?:[\w!#$%&'*+/=?^`{|}~-]{1,64}",
    r"|[\w!#$%&'*+/=?^`{|}~-]{1,31}\.[\w!#$%&'*+/=?^`{|}~-]{1,32}",
    r"|[\w!#$%&'*+/=?^`{|}~-]{1,16}(?:\.[\w!#$%&'*+/=?^`{|}~-]{1,15}){2,3})",
    r"@[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?",
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?){0,3}$",
);
/// What the library leaves out of a format, as further patterns. A leap second is one at the end of
/// some days only, so none is written.
const NARROWED: &[(&str, &[&str])] = &[
    ("date", &[REAL_DAY]),
    ("date-time", &[REAL_DAY, "^.{17}[0-5]"]),
    ("time", &["^.{6}[0-5]"]),
    // Two hyphens are of names in other scripts, which have a spelling of their own.
    ("email", &[EMAIL]),
    ("hostname", &["^[^-]+(?:-[^-]+)*$"]),
];
const TYPES: &[&str] = &["array", "boolean", "integer", "null", "number", "object", "string"];
/// Words whose value is a schema, or several in a list.
const HOLD_SCHEMAS: &[&str] =
    &["additionalItems", "additionalProperties", "allOf", "anyOf", "items", "oneOf", "prefixItems"];
/// Whole numbers beyond it are not told apart by the library, which counts in 64-bit floats.
const EXACT_MAX: u64 = 1 << 53;
/// How deep two branches are compared.
const COMPARED_LEVELS_MAX: usize = 4;

/// Between two tokens of JSON: a blank or two, or a new line and its indentation. Without a bound a
/// weak model writes blanks until it runs out of tokens.
const JSON_BLANKS: &str = r"[\x20\x09]{1,2}|\r?\n[\x20\x09]{0,64}";

/// A schema's text as the library takes it.
///
/// # Errors
/// What of it is not followed, by name and place.
pub(super) fn prepared(schema: &str, compact: bool) -> Result<Value, String> {
    let mut schema: Value = serde_json::from_str(schema).map_err(|error| error.to_string())?;
    prepare(&mut schema)?;
    // The library's own field, which requests cannot set.
    let blanks = (!compact).then_some(JSON_BLANKS);
    let options = json!({"whitespace_flexible": false, "whitespace_pattern": blanks});
    schema["x-guidance"] = options;
    Ok(schema)
}

/// Checks that all of a schema is followed and puts it into the form that the library takes.
///
/// # Errors
/// What of it is not, by name and place.
fn prepare(schema: &mut Value) -> Result<(), String> {
    match schema {
        Value::Bool(true) => *schema = Value::Object(Map::new()),
        Value::Object(_) => {}
        Value::Bool(false) => return Err("the schema false takes no value".to_owned()),
        other => return Err(format!("a schema must be an object, got {}", kind(other))),
    }
    let root = schema.clone();
    let mut reader =
        Reader { root: &root, patterns: 0, referred: HashSet::new(), open: Vec::new() };
    reader.check(&root, "#")?;
    while let Some(place) = reader.open.pop() {
        let target = root.pointer(&place[1..]);
        let target = target.ok_or_else(|| format!("$ref {place:?} points at nothing"))?;
        reader.check(target, &place)?;
    }
    check_circles(&reader.referred, &root)?;
    ranges::close(schema)?;
    rewrite(schema, &root);
    Ok(())
}

/// Walks all schemas within one.
struct Reader<'a> {
    root: &'a Value,
    /// Of patternProperties so far.
    patterns: usize,
    referred: HashSet<String>,
    /// Places that are referred to and not read yet.
    open: Vec<String>,
}

impl Reader<'_> {
    fn check(&mut self, schema: &Value, place: &str) -> Result<(), String> {
        let fields = match schema {
            Value::Bool(_) => return Ok(()),
            Value::Object(fields) => fields,
            other => {
                let kind = kind(other);
                return Err(format!("at {place}: a schema must be an object, got {kind}"));
            }
        };
        for (word, value) in fields {
            let at = || format!("at {place}: ");
            check_word(word, value, fields).map_err(|why| at() + &why)?;
            let inner = format!("{place}/{word}");
            match word.as_str() {
                "$ref" => self.refer(value).map_err(|why| at() + &why)?,
                "const" | "enum" | "minimum" | "maximum" | "exclusiveMinimum"
                | "exclusiveMaximum" | "multipleOf" => {
                    check_numbers(value).map_err(|why| format!("{}{word}: {why}", at()))?;
                }
                "$id" | "id" if place != "#" => {
                    return Err(format!("{}{word} is supported at the root only", at()));
                }
                "$schema" => check_draft(value, self.root).map_err(|why| at() + &why)?,
                word if HOLD_SCHEMAS.contains(&word) => match value {
                    Value::Array(all) => {
                        for (i, schema) in all.iter().enumerate() {
                            self.check(schema, &format!("{inner}/{i}"))?;
                        }
                    }
                    one => self.check(one, &inner)?,
                },
                word if HOLD_NAMED_SCHEMAS.contains(&word) => {
                    let Value::Object(all) = value else {
                        return Err(format!("{}{word} must be an object", at()));
                    };
                    self.count(word, all, fields).map_err(|why| at() + &why)?;
                    for (name, schema) in all {
                        self.check(schema, &format!("{inner}/{name}"))?;
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// What takes the library a time that grows with its square.
    fn count(
        &mut self,
        word: &str,
        all: &Map<String, Value>,
        fields: &Map<String, Value>,
    ) -> Result<(), String> {
        self.patterns += if word == "patternProperties" { all.len() } else { 0 };
        if self.patterns > PATTERN_PROPERTIES_MAX {
            return Err(format!(
                "a schema may have at most {PATTERN_PROPERTIES_MAX} patternProperties"
            ));
        }
        let required = fields.get("required").and_then(Value::as_array).map_or(0, Vec::len);
        let optional = all.len().saturating_sub(required);
        match word == "properties" && optional > PROPERTIES_OPTIONAL_MAX {
            true => Err(format!(
                "at most {PROPERTIES_OPTIONAL_MAX} properties of an object may be optional, got \
                 {optional}; name the others in required"
            )),
            false => Ok(()),
        }
    }

    fn refer(&mut self, value: &Value) -> Result<(), String> {
        let Some(place) = value.as_str() else {
            return Err(format!("$ref must be a string, got {}", kind(value)));
        };
        let is_plain = place == "#" || (place.starts_with("#/") && !place.contains(['~', '%']));
        if !is_plain {
            return Err(format!(
                "$ref must be \"#\" or a place in the schema such as \"#/$defs/name\", without \
                 escapes, got {place:?}"
            ));
        }
        if is_in_a_value(place) {
            return Err(format!("$ref {place:?} points into a const or an enum, not at a schema"));
        }
        if self.referred.insert(place.to_owned()) {
            self.open.push(place.to_owned());
        }
        Ok(())
    }
}

/// Whether a place is in what a const or an enum lists, which is no schema and stays as it is.
fn is_in_a_value(place: &str) -> bool {
    let mut is_name = false;
    place.split('/').any(|part| {
        let is_value = !is_name && matches!(part, "const" | "enum");
        is_name = !is_name && HOLD_NAMED_SCHEMAS.contains(&part);
        is_value
    })
}

/// A reference that leads back to itself and to nothing else takes no value: an answer that came
/// there could not go on.
fn check_circles(referred: &HashSet<String>, root: &Value) -> Result<(), String> {
    let mut done: HashSet<&str> = HashSet::new();
    for first in referred {
        let mut path: HashSet<&str> = HashSet::new();
        let mut place = Some(first.as_str());
        while let Some(at) = place.filter(|at| !done.contains(at)) {
            if !path.insert(at) {
                return Err(format!("$ref {at:?} leads back to itself"));
            }
            let target = root.pointer(&at[1..]);
            place = target.and_then(|target| target.get("$ref")).and_then(Value::as_str);
        }
        done.extend(path);
    }
    Ok(())
}

fn check_word(word: &str, value: &Value, fields: &Map<String, Value>) -> Result<(), String> {
    let is_remark = REMARKS.contains(&word) || (word.starts_with("x-") && word != "x-guidance");
    if !(is_neutral(word, value) || is_remark || FOLLOWED.contains(&word)) {
        return Err(format!("the keyword {word:?} is not supported; leave it out"));
    }
    let old_items = fields.get("items").is_some_and(Value::is_array);
    if word == "prefixItems" && (old_items || fields.contains_key("additionalItems")) {
        return Err("prefixItems cannot stand beside a list of items or additionalItems".into());
    }
    let strings =
        |value: &Value| value.as_array().is_some_and(|all| all.iter().all(Value::is_string));
    let known = match word {
        "format" => FORMATS,
        "type" => TYPES,
        _ => &[],
    };
    let named = if let Value::Array(all) = value { all.iter().collect() } else { vec![value] };
    let is_unknown = |value: &&&Value| !value.as_str().is_some_and(|name| known.contains(&name));
    if let Some(other) = named.iter().find(is_unknown).filter(|_| !known.is_empty()) {
        return Err(format!("{word} must be one of {}, got {other}", known.join(", ")));
    }
    if word == "required" && !strings(value) {
        return Err(format!("required must be a list of strings, got {}", kind(value)));
    }
    if word == "minProperties" { check_least(value, fields) } else { Ok(()) }
}

/// A key that is not named may be written twice, and then counts once.
fn check_least(least: &Value, fields: &Map<String, Value>) -> Result<(), String> {
    let is_object = fields.get("type").is_none_or(|kind| match kind {
        Value::Array(all) => all.iter().any(|kind| kind == "object"),
        one => one == "object",
    });
    let patterns = fields.get("patternProperties").and_then(Value::as_object);
    let is_closed = fields.get("additionalProperties") == Some(&Value::Bool(false))
        && patterns.is_none_or(Map::is_empty);
    let required = fields.get("required").and_then(Value::as_array);
    let names: HashSet<&str> = required.into_iter().flatten().filter_map(Value::as_str).collect();
    let most = names.len() as u64 + 1;
    match least.as_u64().filter(|&least| is_object && !is_closed && least > most) {
        Some(least) => Err(format!(
            "minProperties may be at most {most} here, one more than required names, got {least}: \
             a key of additionalProperties or patternProperties may come twice, and counts once; \
             name more keys in required, or send additionalProperties false and no \
             patternProperties"
        )),
        None => Ok(()),
    }
}

/// In drafts before 2020-12 prefixItems is a word like any other.
fn check_draft(draft: &Value, root: &Value) -> Result<(), String> {
    let Some(draft) = draft.as_str() else {
        return Err(format!("$schema must be a string, got {}", kind(draft)));
    };
    let is_old = ["draft-04", "draft-06", "draft-07", "2019-09"].iter().any(|d| draft.contains(d));
    if is_old && root.to_string().contains("\"prefixItems\":") {
        return Err(format!("prefixItems is no keyword of {draft}; send items"));
    }
    Ok(())
}

fn check_numbers(value: &Value) -> Result<(), String> {
    match value {
        Value::Number(number) => {
            let whole = number.as_i64().map(i64::unsigned_abs).or(number.as_u64());
            match whole.is_some_and(|whole| whole > EXACT_MAX) {
                true => Err(format!("whole numbers must be at most 2^53, got {number}")),
                false => Ok(()),
            }
        }
        Value::Array(all) => all.iter().try_for_each(check_numbers),
        Value::Object(all) => all.values().try_for_each(check_numbers),
        _ => Ok(()),
    }
}

/// Says in the library's words what it would refuse in others.
///
/// It takes a oneOf only where it sees that no value fits two branches, and does not look behind a
/// $ref. Where that is so, anyOf says the same.
fn rewrite(schema: &mut Value, root: &Value) {
    let Value::Object(fields) = schema else { return };
    fields.retain(|word, value| !is_neutral(word, value));
    let branches = fields.get("oneOf").and_then(Value::as_array);
    let branches = branches.filter(|all| all.len() <= BRANCHES_MAX);
    let apart = branches.is_some_and(|all| {
        let pairs = |i: usize| all[i + 1..].iter().map(move |other| (&all[i], other));
        (0..all.len()).flat_map(pairs).all(|(a, b)| excludes(a, b, root, 0))
    });
    if apart && !fields.contains_key("anyOf") {
        // In its place: properties are written in the order in which they are named.
        let renamed = |word: String| if word == "oneOf" { "anyOf".into() } else { word };
        let all = std::mem::take(fields).into_iter();
        *fields = all.map(|(word, value)| (renamed(word), value)).collect();
    }
    let format = fields.get("format").and_then(Value::as_str);
    let narrowed = NARROWED.iter().find(|(known, _)| Some(*known) == format);
    if let Some((format, patterns)) = narrowed {
        if *format == "email" {
            fields.shift_remove("format");
        }
        let all = fields.entry("allOf").or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(all) = all {
            all.extend(patterns.iter().map(|pattern| json!({"pattern": pattern})));
        }
    }
    for (word, value) in fields.iter_mut() {
        match (word.as_str(), value) {
            (word, Value::Array(all)) if HOLD_SCHEMAS.contains(&word) => {
                all.iter_mut().for_each(|schema| rewrite(schema, root));
            }
            (word, one) if HOLD_SCHEMAS.contains(&word) => rewrite(one, root),
            (word, Value::Object(all)) if HOLD_NAMED_SCHEMAS.contains(&word) => {
                all.values_mut().for_each(|schema| rewrite(schema, root));
            }
            _ => {}
        }
    }
}

fn is_neutral(word: &str, value: &Value) -> bool {
    NEUTRAL.iter().any(|(known, neutral)| *known == word && value == neutral)
}

/// Whether it is certain that no value fits both.
fn excludes(a: &Value, b: &Value, root: &Value, level: usize) -> bool {
    let (Some(a), Some(b)) = (resolved(a, root), resolved(b, root)) else { return false };
    if let (Some(a), Some(b)) = (types(a), types(b))
        && a.iter().all(|kind| !b.contains(kind))
    {
        return true;
    }
    if let (Some(a), Some(b)) = (values(a), values(b)) {
        // 1 and 1.0 are one value to a schema and two to this comparison.
        let plain = |v: &&Value| v.is_string() || v.is_boolean() || v.is_null();
        return a.iter().all(plain) && b.iter().all(plain) && a.iter().all(|v| !b.contains(v));
    }
    let is_object = |schema: &Value| schema.get("type").is_some_and(|kind| kind == "object");
    if level == COMPARED_LEVELS_MAX || !is_object(a) || !is_object(b) {
        return false;
    }
    let required = |schema: &Value, name: &str| {
        let all = schema.get("required").and_then(Value::as_array);
        all.is_some_and(|all| all.iter().any(|required| required == name))
    };
    let properties = a.get("properties").and_then(Value::as_object);
    properties.is_some_and(|properties| {
        properties.iter().any(|(name, of_a)| {
            let of_b = b.get("properties").and_then(|all| all.get(name));
            (required(a, name) && required(b, name))
                && of_b.is_some_and(|of_b| excludes(of_a, of_b, root, level + 1))
        })
    })
}

/// What a schema says itself, or by a reference that stands alone; nothing if it is no object.
fn resolved<'a>(mut schema: &'a Value, root: &'a Value) -> Option<&'a Value> {
    for _ in 0..=COMPARED_LEVELS_MAX {
        match schema.get("$ref").and_then(Value::as_str) {
            None => return schema.is_object().then_some(schema),
            Some(place) => schema = root.pointer(place.strip_prefix('#')?)?,
        }
    }
    None
}

/// The types that a schema names; a whole number is a number.
fn types<'a>(schema: &'a Value) -> Option<Vec<&'a str>> {
    let named = |kind: &'a Value| match kind.as_str()? {
        "integer" => Some("number"),
        kind => Some(kind),
    };
    match schema.get("type")? {
        Value::Array(all) => all.iter().map(named).collect(),
        one => Some(vec![named(one)?]),
    }
}

/// The values that a schema lists.
fn values(schema: &Value) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Value::Array(all))) => Some(all.iter().collect()),
        _ => None,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
