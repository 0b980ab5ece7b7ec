//! Wrong values at every place of every request: what `/openapi.json` does not allow is a 400 that
//! names the field, and says what is wrong in words of JSON.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpStream};

use jsonschema::Validator;
use serde_json::{Value, json};

use crate::client::{Answer, Reader, connect, get, message};
use crate::fake::{Fake, Script};

/// Stands for the value that is tried.
const HOLE: &str = "the value that is tried";
/// Objects and lists within each other that are walked; schemas nest without end nowhere here.
const DEPTH_MAX: usize = 8;

/// Numbers, and what is taken for one elsewhere.
const NUMBERS: &[&str] = &[
    "-1",
    "-2",
    "-9223372036854775809",
    "-0",
    "0",
    "1",
    "1.0",
    "1.5",
    "513",
    "2147483648",
    "4294967296",
    "9223372036854775808",
    "18446744073709551616",
    "1e400",
    "\"1\"",
    "true",
    "null",
    "[1]",
    "{}",
];
/// Values of every shape. A list of what an object holds is none.
const SHAPES: &[&str] = &[
    "[]",
    "[[]]",
    "[{}]",
    "[\"a\"]",
    "[\"text\",\"a\"]",
    "[\"function\",{\"name\":\"a\"}]",
    "[true,null,null]",
    "{}",
    "{\"text\":null}",
    "{\"float\":null}",
    "{\"last\":null}",
    "{\"auto\":null}",
    "{\"0\":\"a\"}",
    "\"a\"",
    "\"{}\"",
    "1",
    "true",
    "null",
];

/// What fits a route without any of its other fields.
fn bases() -> BTreeMap<&'static str, Value> {
    let chat = json!([{"role": "user", "content": "x"}]);
    BTreeMap::from([
        ("/v1/completions", json!({"prompt": "x"})),
        ("/v1/chat/completions", json!({"messages": chat})),
        ("/v1/messages", json!({"messages": chat, "max_tokens": 1})),
        ("/v1/messages/count_tokens", json!({"messages": chat})),
        ("/v1/responses", json!({"input": "x"})),
        ("/v1/embeddings", json!({"input": "x"})),
        ("/v1/loglikelihood", json!({"requests": [{"prompt": "a", "continuation": "b"}]})),
        ("/tokenize", json!({"messages": chat})),
        ("/detokenize", json!({"tokens": [9]})),
        ("/v1/load_lora_adapter", json!({"lora_name": "a", "lora_path": "b"})),
        ("/v1/unload_lora_adapter", json!({"lora_name": "a"})),
        ("/v1/adapters/validate", json!({"lora_path": "b"})),
    ])
}

/// A place in a field, and what the document says of it.
struct Place {
    path: &'static str,
    field: String,
    /// The whole request, with [`HOLE`] at the place.
    body: Value,
    schema: Value,
}

struct Routes {
    document: Value,
    places: Vec<Place>,
    validators: BTreeMap<&'static str, Validator>,
}

impl Routes {
    fn of(address: SocketAddr) -> Self {
        let document = get(address, "/openapi.json").json();
        let paths = document["paths"].as_object().unwrap();
        let with_body = paths.iter().filter(|(_, item)| item["post"]["requestBody"].is_object());
        let told: Vec<&str> = with_body.map(|(path, _)| path.as_str()).collect();
        assert_eq!(told.len(), bases().len(), "a base for each of {told:?}");
        let mut routes = Self { document, places: Vec::new(), validators: BTreeMap::new() };
        for (path, base) in bases() {
            let operation = &routes.document["paths"][path]["post"];
            let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
            let schema = routes.resolved(schema).clone();
            let mut whole = schema.clone();
            whole["components"] = routes.document["components"].clone();
            routes.validators.insert(path, jsonschema::draft202012::new(&whole).unwrap());
            for (field, schema) in schema["properties"].as_object().unwrap() {
                let wrap = |value: Value| {
                    // Read before what is needed beside it.
                    let mut body = json!({field: value});
                    if path == "/tokenize" && field == "prompt" {
                        return body;
                    }
                    for (name, value) in base.as_object().unwrap() {
                        body.as_object_mut().unwrap().entry(name).or_insert(value.clone());
                    }
                    body
                };
                let mut found = Vec::new();
                routes.walk(schema, &wrap, 0, &mut found);
                let place = |(body, schema)| Place { path, field: field.clone(), body, schema };
                routes.places.extend(found.into_iter().map(place));
            }
        }
        routes
    }

    fn resolved<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str() {
            Some(at) => self.document.pointer(at.trim_start_matches('#')).unwrap(),
            None => schema,
        }
    }

    /// Every place within a schema, itself first.
    fn walk(
        &self,
        schema: &Value,
        wrap: &dyn Fn(Value) -> Value,
        depth: usize,
        found: &mut Vec<(Value, Value)>,
    ) {
        let schema = self.resolved(schema);
        if depth > DEPTH_MAX {
            return;
        }
        let forms = ["anyOf", "oneOf"].iter().find_map(|key| schema[key].as_array());
        if depth == 0 || forms.is_none() {
            found.push((wrap(HOLE.into()), schema.clone()));
        }
        for form in forms.into_iter().flatten() {
            self.walk(form, wrap, depth + 1, found);
        }
        if schema.get("items").is_some() {
            self.walk(&schema["items"], &|value| wrap(json!([value])), depth + 1, found);
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            let within = |value: Value| {
                let mut object = self.sample(schema);
                object[name] = value;
                wrap(object)
            };
            self.walk(inner, &within, depth + 1, found);
        }
    }

    /// Something that fits a schema.
    fn sample(&self, schema: &Value) -> Value {
        let schema = self.resolved(schema);
        if let Some(all) = schema["enum"].as_array() {
            return all.iter().find(|value| !value.is_null()).cloned().unwrap_or_default();
        }
        let forms = ["anyOf", "oneOf"].iter().find_map(|key| schema[key].as_array());
        if let Some(forms) = forms {
            let is_null = |form: &&Value| form["type"] == "null";
            return self.sample(forms.iter().find(|form| !is_null(form)).unwrap_or(&forms[0]));
        }
        let kind = schema["type"].as_array().map_or(&schema["type"], |kinds| &kinds[0]);
        match kind.as_str() {
            Some("object") => {
                let required = schema["required"].as_array().into_iter().flatten();
                let required = required.map(|name| name.as_str().unwrap());
                let sample = |name| (String::from(name), self.sample(&schema["properties"][name]));
                Value::Object(required.map(sample).collect())
            }
            Some("array") => match schema["minItems"].as_u64() {
                Some(1..) => json!([self.sample(&schema["items"])]),
                _ => json!([]),
            },
            Some("integer" | "number") => schema["minimum"].as_i64().unwrap_or(0).max(0).into(),
            Some("boolean") => true.into(),
            Some("string") => "a".into(),
            _ => Value::Null,
        }
    }
}

/// One connection for as many requests as it takes.
struct Client {
    address: SocketAddr,
    stream: TcpStream,
}

impl Client {
    fn post(&mut self, path: &str, body: &str) -> Answer {
        let bytes = message("POST", path, "", body.as_bytes());
        if self.stream.write_all(&bytes).is_err() {
            self.stream = connect(self.address, &bytes);
        }
        let answer = Reader::new(self.stream.try_clone().unwrap()).whole();
        if answer.header("connection") == Some("close") {
            self.stream = connect(self.address, b"");
        }
        answer
    }
}

fn server() -> (Fake, Client) {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let client = Client { address: fake.address, stream: connect(fake.address, b"") };
    (fake, client)
}

/// What a client reads where a value is not allowed, or `None` where it may be.
///
/// # Errors
/// What is wrong with that.
fn refused(
    routes: &Routes,
    client: &mut Client,
    place: &Place,
    value: &str,
) -> Result<Option<String>, String> {
    let Place { path, field, body, .. } = place;
    let text = body.to_string().replace(&format!("\"{HOLE}\""), value);
    let parsed: Option<Value> = serde_json::from_str(&text).ok();
    let is_allowed = parsed.is_some_and(|body| routes.validators[path].is_valid(&body));
    let answer = client.post(path, &text);
    let wrong = |what: &str| Err(format!("{what}: {path} {text}: {}", answer.text()));
    if answer.status >= 500 {
        return wrong("the server's fault");
    }
    if is_allowed {
        return Ok(None);
    }
    // Where only tokens are counted nobody reads the form of an answer.
    let is_counted = *path == "/v1/messages/count_tokens" && field == "output_config";
    if answer.status != 400 && is_counted {
        return Ok(None);
    }
    if answer.status != 400 {
        return wrong("not refused");
    }
    let json = answer.json();
    let error = &json["error"];
    let named = match error["param"].as_str() {
        Some(param) => param.split(['.', '[']).next() == Some(field.as_str()),
        // Anthropic's form has no place for it but the text, vLLM's of adapters neither.
        None => error["message"].as_str().is_some_and(|text| text.contains(field.as_str())),
    };
    // Without one of two there is nothing to read.
    if !named && error["code"] != "missing_field" {
        return wrong("not named");
    }
    let message = error["message"].as_str().unwrap_or_default().to_owned();
    let mut words = message.split(|c: char| !c.is_ascii_alphanumeric());
    match words.any(|word| NOT_OF_JSON.contains(&word)) {
        true => wrong("not in words of JSON"),
        false => Ok(Some(message)),
    }
}

/// Names of types of this server's language, and its library's words for JSON.
const NOT_OF_JSON: &[&str] = &[
    "u8", "u16", "u32", "u64", "u128", "usize", "i8", "i16", "i32", "i64", "isize", "f32", "f64",
    "struct", "enum", "tuple", "unit", "newtype", "variant", "Option", "RawValue", "char",
];

#[test]
fn a_value_of_another_shape_is_refused_at_every_depth_of_every_request() {
    let (fake, mut client) = server();
    let routes = Routes::of(fake.address);
    let (mut tried, mut wrong) = (0, Vec::new());
    for place in &routes.places {
        for value in SHAPES {
            match refused(&routes, &mut client, place, value) {
                Ok(told) => tried += usize::from(told.is_some()),
                Err(what) => wrong.push(what),
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}: {wrong:#?}", wrong.len());
    assert!(tried > 5_000, "{tried}");
}

/// The range of a place for numbers.
fn range(schema: &Value) -> Option<(Option<f64>, Option<f64>)> {
    let kinds = schema["type"].as_array().cloned().unwrap_or_else(|| vec![schema["type"].clone()]);
    let is_number = kinds.iter().any(|kind| *kind == "integer" || *kind == "number");
    is_number.then(|| (schema["minimum"].as_f64(), schema["maximum"].as_f64()))
}

#[test]
fn a_number_out_of_its_range_is_told_the_range_in_every_field_of_every_request() {
    let (fake, mut client) = server();
    let routes = Routes::of(fake.address);
    let (mut tried, mut wrong) = (0, Vec::new());
    for place in &routes.places {
        let Some((least, most)) = range(&place.schema) else { continue };
        for value in NUMBERS {
            let text = match refused(&routes, &mut client, place, value) {
                Ok(Some(text)) => text,
                Ok(None) => continue,
                Err(what) => {
                    wrong.push(what);
                    continue;
                }
            };
            tried += 1;
            let Ok(number) = value.parse::<f64>() else { continue };
            let holds = |words: &[&str]| words.iter().any(|words| text.contains(words));
            let is_below = least.is_some_and(|least| number < least);
            let is_above = most.is_some_and(|most| number > most);
            let is_told = match (is_below, is_above) {
                // A text and tokens beside each other are refused whatever they are.
                _ if holds(&["must both be"]) => true,
                (true, _) => {
                    holds(&["0 or more", "at least", "between", "from", "-1"])
                        && (!holds(&["at most"]) || holds(&["between"]))
                }
                (_, true) => {
                    // Beyond all floats there is no number at all.
                    holds(&["at most", "between", " to ", "below", "out of range"])
                        && !holds(&["0 or more", "or above", "at most 4294967295"])
                }
                _ => true,
            };
            if !is_told {
                let Place { path, body, .. } = place;
                wrong.push(format!("{path} {body} with {value}: {text}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {tried}: {wrong:#?}", wrong.len());
    assert!(tried > 1_000, "{tried}");
}
