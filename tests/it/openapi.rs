//! `/openapi.json` says what the server takes and answers, neither more nor less.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use jsonschema::Validator;
use serde_json::{Value, json};
use tessera::http::ERROR_CODES;

use crate::client::{Answer, get, message, post, post_stream, raw};
use crate::fake::{Fake, Script};
use crate::root;

/// The document of a server.
fn document(address: SocketAddr) -> Value {
    let answer = raw(address, &message("GET", "/openapi.json", "connection: close\r\n", b""));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

/// One for all tests: what answers hold depends on nothing that a server is started with.
struct Known {
    document: Value,
    validators: Mutex<HashMap<String, Arc<Validator>>>,
}

fn known() -> &'static Known {
    static KNOWN: OnceLock<Known> = OnceLock::new();
    KNOWN.get_or_init(|| {
        let fake = Fake::say("x");
        Known { document: document(fake.address), validators: Mutex::default() }
    })
}

/// Panics where JSON is not of a schema of the document.
fn check_json(schema: &Value, instance: &Value, what: &str) {
    let Known { document, validators } = known();
    let key = schema.to_string();
    let found = validators.lock().unwrap().get(&key).cloned();
    let validator = found.unwrap_or_else(|| {
        let mut whole = schema.clone();
        whole["components"] = document["components"].clone();
        let made = Arc::new(jsonschema::draft202012::new(&whole).unwrap());
        validators.lock().unwrap().insert(key, made.clone());
        made
    });
    let errors: Vec<_> = validator.iter_errors(instance).map(|e| e.to_string()).collect();
    assert!(errors.is_empty(), "{what}: {errors:#?}\n{instance:#}");
}

/// The operation of a request, if the document has it.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let paths = known().document["paths"].as_object().unwrap();
    let path = path.split('?').next().unwrap().trim_end_matches('/');
    let path = if path.is_empty() { "/" } else { path };
    let is_named = |shown: &str| {
        shown.strip_suffix("{name}").is_some_and(|p| path.starts_with(p) && path.len() > p.len())
    };
    let find = |path: &str| {
        let named = || paths.iter().find(|(shown, _)| is_named(shown)).map(|(_, item)| item);
        paths.get(path).or_else(named)
    };
    let item = find(path).or_else(|| find(&format!("/v1{path}")))?;
    item.get(method.to_ascii_lowercase())
}

/// Panics where an error does not say whether to try again as the table of codes has it.
fn check_retry(answer: &Answer) {
    if answer.status < 400 {
        return;
    }
    let json: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let Some(code) = json["error"]["code"].as_str() else { return };
    let known = ERROR_CODES.iter().find(|(known, ..)| *known == code);
    let &(_, _, retry, _) = known.unwrap_or_else(|| panic!("{code} is in no table"));
    let waits_s = answer.header("retry-after").map_or(0, |s| s.parse().unwrap());
    // Nobody waits for as long as that.
    let retry = retry.map(|retry| if retry && waits_s > 60 { "false" } else { word(retry) });
    assert_eq!(answer.header("x-should-retry"), retry, "{code}");
    assert!(retry != Some("false") || waits_s != 1, "{code}: once more, and not");
}

fn word(retry: bool) -> &'static str {
    if retry { "true" } else { "false" }
}

#[test]
fn whether_to_try_again_is_said_of_every_error_that_clients_try_again() {
    let tried_again = |status: u16| [408, 409, 429].contains(&status) || status >= 500;
    for (code, status, retry, _) in ERROR_CODES {
        assert_eq!(retry.is_some(), tried_again(*status), "{code}");
    }
    let never: Vec<&str> =
        ERROR_CODES.iter().filter(|row| row.2 == Some(false)).map(|row| row.0).collect();
    assert_eq!(never, ["engine_stopped", "internal_error", "text_failed"]);
}

/// Panics where an answer is not as the document has it. Every request of [`crate::client`] comes
/// by here.
pub fn check(method: &str, path: &str, answer: &Answer) {
    check_retry(answer);
    // Methods are told apart by case, and only those of the table are known.
    let is_known = method.bytes().all(|byte| byte.is_ascii_uppercase());
    let Some(operation) = operation(method, path).filter(|_| is_known) else { return };
    let what = format!("{method} {path}: {}", answer.status);
    let mut response = &operation["responses"][answer.status.to_string()];
    assert!(!response.is_null(), "{what} is not in the document: {}", answer.text());
    if let Some(at) = response["$ref"].as_str() {
        response = known().document.pointer(at.trim_start_matches('#')).unwrap();
    }
    let content = response["content"].as_object();
    let kind = answer.header("content-type").and_then(|kind| kind.split(';').next());
    let (Some(kind), Some(content)) = (kind, content) else {
        // Without a type there is nothing to read; HEAD has the type of what GET would have.
        let is_head = method == "HEAD";
        assert!(is_head || kind.is_none() == answer.body.is_empty(), "{what}: {}", answer.text());
        assert!(is_head || kind.is_none() || content.is_some(), "{what} has no body");
        return;
    };
    assert!(content.contains_key(kind), "{what} is {kind}");
    if kind == "application/json" {
        check_json(&content[kind]["schema"], &answer.json(), &what);
    }
}

/// The fields that the document has of a route.
fn fields(path: &str) -> BTreeSet<String> {
    let schema = operation("POST", path).unwrap();
    let at = schema["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str();
    let Some(at) = at else { return BTreeSet::new() };
    let schema = known().document.pointer(at.trim_start_matches('#')).unwrap();
    schema["properties"].as_object().unwrap().keys().cloned().collect()
}

fn posts() -> Vec<String> {
    let paths = known().document["paths"].as_object().unwrap();
    let has_body = |item: &Value| item["post"]["requestBody"].is_object();
    paths.iter().filter(|(_, item)| has_body(item)).map(|(path, _)| path.clone()).collect()
}

/// Every name that stands in a `fields!` of the code.
fn names_in_code() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for folder in ["request", "endpoints"] {
        for entry in fs::read_dir(root().join("src/http").join(folder)).unwrap() {
            let text = fs::read_to_string(entry.unwrap().path()).unwrap();
            let code: Vec<&str> =
                text.lines().map(str::trim).filter(|line| !line.starts_with("//")).collect();
            for block in code.join("\n").split("\nfields! {\n").skip(1) {
                let block = block.split_once('{').unwrap().1.split_once('}').unwrap().0;
                let fields = block.split(",\n").flat_map(|line| line.split(", "));
                names.extend(fields.filter_map(|field| {
                    let (name, _) = field.trim().split_once(':')?;
                    Some(name.to_owned())
                }));
            }
        }
    }
    assert!(
        names.len() > 80 && names.contains("logit_bias") && names.contains("echo"),
        "{names:?}"
    );
    names
}

#[test]
fn the_document_has_the_fields_that_parsing_takes_and_no_others() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.strict_fields = true);
    let mut names = names_in_code();
    let posts = posts();
    assert!(posts.len() >= 12, "{posts:?}");
    names.extend(posts.iter().flat_map(|path| fields(path)));
    names.extend(["user", "store", "lora", "adapter_id", "no_such_field"].map(str::to_owned));
    for path in &posts {
        let told = fields(path);
        for name in &names {
            // No field takes this, and a route that does not know the name says so.
            let answer = post(fake.address, path, &json!({name: {"no such key": [1.5]}}));
            let text = answer.text().to_owned();
            let unknown =
                format!("\"message\":\"{name} is not a field of this API, and this server");
            let is_unknown = text.contains(&unknown);
            // Known, and refused with every value that asks for something.
            let is_refused = text.contains("is not supported by this") || text.contains("instead");
            if told.contains(name) {
                assert!(!is_unknown && !is_refused, "{path} is said to take {name}: {text}");
            } else if !(is_unknown || is_refused) {
                // Read, and refused by this route unless it asks for nothing.
                let refused = ["is not a field of this route", "is not supported by this route"];
                let asking = [json!(1), json!(2), json!(true), json!({"type": "text"})];
                let is_refused = asking.iter().any(|value| {
                    let mut body = json!({name: value});
                    if path == "/v1/messages" {
                        body["max_tokens"] = 1.into();
                    }
                    let answer = post(fake.address, path, &body);
                    refused.iter().any(|words| answer.text().contains(words))
                });
                assert!(is_refused, "{path} takes {name}, which the document has not: {text}");
            }
        }
    }
}

/// The fields of each struct of a file that is serialized, and whether one may be absent.
fn serialized(file: &str) -> BTreeMap<String, BTreeMap<String, bool>> {
    let text = fs::read_to_string(root().join(file)).unwrap();
    let mut all = BTreeMap::new();
    for block in text.split("\n#[derive(").skip(1) {
        let Some((derives, rest)) = block.split_once(")]\n") else { continue };
        let Some(rest) = rest.split_once("struct ").map(|(_, rest)| rest) else { continue };
        let Some((name, body)) = rest.split_once(" {\n") else { continue };
        let name = name.split('<').next().unwrap();
        if !derives.contains("Serialize") || name.contains(['(', ';']) {
            continue;
        }
        let mut fields = BTreeMap::new();
        let mut is_optional = false;
        for line in body.split("\n}").next().unwrap().lines().map(str::trim) {
            if line.starts_with("#[serde(skip_serializing_if") {
                is_optional = true;
            } else if let Some((field, _)) =
                line.split_once(": ").filter(|_| !line.starts_with("//"))
            {
                let field = field.trim_start_matches("pub ").trim_start_matches("r#");
                fields.insert(field.to_owned(), is_optional);
                is_optional = false;
            }
        }
        all.insert(name.to_owned(), fields);
    }
    all
}

#[test]
fn the_document_has_the_keys_that_answers_are_written_with() {
    let mut all = serialized("src/http/wire.rs");
    all.extend(serialized("src/http/endpoints/adapter_cards.rs"));
    all.extend(serialized("src/http/endpoints/usage.rs"));
    all.extend(serialized("src/http/endpoints/batch.rs"));
    all.extend(serialized("src/http/endpoints/index.rs"));
    // One type for four schemas.
    let answer = all.remove("Answer").unwrap();
    for name in ["Completion", "CompletionChunk", "ChatCompletion", "ChatCompletionChunk"] {
        let mut fields = answer.clone();
        fields.insert("usage".to_owned(), name.ends_with("Chunk"));
        all.insert(name.to_owned(), fields);
    }
    assert!(all.len() > 20 && all["MessageDelta"]["content"], "{all:#?}");
    let schemas = &known().document["components"]["schemas"];
    for (name, fields) in all {
        let schema = &schemas[&name];
        let required: BTreeSet<&str> =
            schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let properties = schema["properties"].as_object();
        let properties = properties.unwrap_or_else(|| panic!("no schema {name}"));
        let told: BTreeMap<String, bool> = properties
            .keys()
            .map(|field| (field.clone(), !required.contains(field.as_str())))
            .collect();
        assert_eq!(told, fields, "{name}");
    }
}

#[test]
fn every_schema_is_one_and_every_reference_leads_to_one() {
    let document = &known().document;
    assert_eq!(document["openapi"], "3.1.0");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(jsonschema::draft202012::meta::is_valid(schema), "{name}: {schema:#}");
    }
    let text = document.to_string();
    let mut found = 0;
    for reference in text.split("\"$ref\":\"").skip(1) {
        let at = reference.split('"').next().unwrap();
        let place = at.strip_prefix('#').unwrap_or_else(|| panic!("{at}"));
        assert!(document.pointer(place).is_some(), "{at}");
        found += 1;
    }
    assert!(found > 100);
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in
            item.as_object().unwrap().iter().filter(|(m, _)| *m != "parameters")
        {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id.to_owned()), "{method} {path}: {id} is there twice");
        }
    }
}

#[test]
fn every_field_is_described_and_every_raw_one_has_a_schema() {
    for path in posts() {
        let name = operation("POST", &path).unwrap();
        let at = name["requestBody"]["content"]["application/json"]["schema"]["$ref"].as_str();
        let at = at.unwrap().trim_start_matches('#');
        let schema = known().document.pointer(at).unwrap();
        for (field, property) in schema["properties"].as_object().unwrap() {
            let description = property["description"].as_str();
            let description = description.unwrap_or_else(|| panic!("{path} {field}: no words"));
            let is_any = property.as_object().unwrap().keys().all(|key| key == "description");
            let changes_nothing = description.starts_with("Taken, and changes nothing");
            // Of a prompt alone, what is asked of the answer is not looked at.
            let is_unread = path == "/tokenize" || path == "/v1/messages/count_tokens";
            assert!(!is_any || changes_nothing || is_unread, "{path} {field} takes any value");
        }
    }
}

#[test]
fn events_of_streams_are_of_their_schemas() {
    let chat = json!([{"role": "user", "content": "x"}]);
    let usage = json!({"include_usage": true, "continuous_usage_stats": true});
    let requests = [
        (
            "/v1/completions",
            json!({"prompt": ["x", "y"], "n": 2, "echo": true, "logprobs": 2,
            "return_token_ids": true, "stream_options": usage, "stop": ["!"]}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": chat, "logprobs": true, "top_logprobs": 2,
            "return_token_ids": true, "stream_options": usage, "stop_token_ids": [1]}),
        ),
        ("/v1/messages", json!({"messages": chat, "max_tokens": 5, "stop_sequences": ["!"]})),
        ("/v1/messages", json!({"messages": chat, "max_tokens": 1})),
        (
            "/v1/responses",
            json!({"input": "x", "include": ["message.output_text.logprobs"],
            "top_logprobs": 2}),
        ),
        ("/v1/responses", json!({"input": "x", "max_output_tokens": 1})),
    ];
    let scripts = [Fake::say("Hi!"), Fake::new(Script::Fail(2), |_| {})];
    for (path, mut body) in requests {
        body["stream"] = true.into();
        let ok = &operation("POST", path).unwrap()["responses"]["200"]["content"];
        let event = ok["text/event-stream"]
            .pointer("/schema/anyOf/0/properties/data/contentSchema")
            .unwrap();
        for fake in &scripts {
            for frame in post_stream(fake.address, path, &body).frames() {
                let data = frame.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                if data == "[DONE]" {
                    continue;
                }
                let data: Value = serde_json::from_str(data).unwrap();
                check_json(event, &data, path);
            }
        }
    }
}

#[test]
fn whole_answers_with_everything_in_them_are_of_their_schemas() {
    let fake = Fake::say("Hi!");
    let chat = json!([{"role": "user", "content": "x"}]);
    let requests = [
        (
            "/v1/completions",
            json!({"prompt": "x", "echo": true, "logprobs": 2, "n": 2,
            "prompt_logprobs": 1, "return_token_ids": true, "stop": ["!"]}),
        ),
        (
            "/v1/chat/completions",
            json!({"messages": chat, "logprobs": true, "top_logprobs": 2,
            "prompt_logprobs": 1, "return_token_ids": true}),
        ),
        ("/v1/messages", json!({"messages": chat, "max_tokens": 5, "stop_sequences": ["!"]})),
        ("/v1/messages/count_tokens", json!({"messages": chat})),
        (
            "/v1/responses",
            json!({"input": "x", "user": "u", "temperature": 0.5,
            "metadata": {"a": "b"}, "include": ["message.output_text.logprobs"]}),
        ),
        ("/tokenize", json!({"prompt": "x", "return_token_strs": true})),
        ("/detokenize", json!({"tokens": [9]})),
    ];
    // `post` compares each with the document.
    for (path, body) in requests {
        assert_eq!(post(fake.address, path, &body).status, 200, "{path}");
    }
    let of_the_server = ["/", "/v1/batch", "/v1/usage", "/tokenizer_info", "/load", "/metrics"];
    for path in ["/v1/models", "/v1/adapters"].iter().chain(&of_the_server) {
        assert_eq!(get(fake.address, path).status, 200, "{path}");
    }
}

#[test]
fn the_page_fetches_nothing_and_has_every_operation() {
    let fake = Fake::say("x");
    let page = get(fake.address, "/docs");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"), "{policy}");
    let html = page.text();
    for word in ["<script", "http://", "https://", "src=", "url(", "@import", " style=", "onclick"]
    {
        assert!(!html.contains(word), "{word}");
    }
    let style = html.split("<style>").nth(1).unwrap().split("</style>").next().unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, style.as_bytes());
    use base64::Engine as _;
    let hash = base64::engine::general_purpose::STANDARD.encode(digest);
    assert!(policy.contains(&format!("'sha256-{hash}'")), "{policy}");
    for path in known().document["paths"].as_object().unwrap().keys() {
        assert!(html.contains(path.as_str()), "{path}");
    }
    for name in ["temperature", "top_logprobs", "lora_path", "encoding_format"] {
        assert!(html.contains(&format!("<code>{name}</code>")), "{name}");
    }
}

#[test]
fn ranges_are_those_of_the_model_that_is_served() {
    let fake = Fake::say("x");
    let document = document(fake.address);
    let schema = &document["components"]["schemas"]["CreateCompletionRequest"];
    let of = |name: &str| &schema["properties"][name];
    assert_eq!(of("max_tokens")["maximum"], 512);
    assert_eq!(of("logprobs")["maximum"], 20);
    assert_eq!(
        (&of("temperature")["minimum"], &of("temperature")["maximum"]),
        (&json!(0.0), &json!(2.0))
    );
    assert_eq!(of("stop_token_ids")["items"]["maximum"], 511);
    assert_eq!(schema["required"], json!(["prompt"]));
    // What is just outside of a range is refused, however little that is.
    let outside = [
        ("temperature", "2.0000000000000004"),
        ("temperature", "-5e-324"),
        ("top_p", "1.0000000000000002"),
        ("min_p", "-1e-60"),
        ("repetition_penalty", "0.009999999999999998"),
        ("presence_penalty", "2.0000000000000004"),
        ("logit_bias", "{\"5\": 100.00000000000001}"),
    ];
    // A field that another wins over is checked too.
    let body = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 513,
        "max_completion_tokens": 1});
    let answer = post(fake.address, "/v1/chat/completions", &body);
    assert_eq!(answer.error().0.as_deref(), Some("max_tokens"));
    for (field, value) in outside {
        let body = format!("{{\"prompt\": \"x\", \"{field}\": {value}}}");
        let answer = raw(
            fake.address,
            &message("POST", "/v1/completions", "connection: close\r\n", body.as_bytes()),
        );
        assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some(field)), "{value}");
    }
}
