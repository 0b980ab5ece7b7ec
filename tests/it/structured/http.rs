//! The fields that ask for a form.

use serde_json::{Value, json};

use super::walk::{END, VOCABULARY};
use crate::client::post;
use crate::fake::{Fake, letter};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Both routes with further fields.
fn requests(fields: &Value) -> [(&'static str, Value); 2] {
    let messages = json!([{"role": "user", "content": "x"}]);
    let bodies = [(COMPLETIONS, json!({"prompt": "x"})), (CHAT, json!({"messages": messages}))];
    bodies.map(|(path, mut body)| {
        for (name, value) in fields.as_object().unwrap() {
            body[name] = value.clone();
        }
        (path, body)
    })
}

#[test]
fn every_field_that_asks_for_a_form_gives_the_engine_a_guide() {
    let fake = Fake::say("x");
    let schema = json!({"type": "integer"});
    let cases = [
        (json!({"response_format": {"type": "json_object"}}), "{"),
        (json!({"response_format": {"type": "json_object", "schema": schema}}), "-0123456789"),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a-B_1",
                "schema": schema, "strict": true, "description": "d"}}}),
            "-0123456789",
        ),
        (
            json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a",
                "schema": schema, "strict": null}}}),
            "-0123456789",
        ),
        (json!({"structured_outputs": {"json": schema}}), "-0123456789"),
        (json!({"structured_outputs": {"json": schema.to_string()}}), "-0123456789"),
        (json!({"structured_outputs": {"json_object": true, "regex": null}}), "{"),
        (json!({"structured_outputs": {"json": schema, "json_object": false}}), "-0123456789"),
        (json!({"structured_outputs": {"regex": "[xy]"}}), "xy"),
        (json!({"structured_outputs": {"choice": ["a", "b"]}}), "ab"),
        (json!({"structured_outputs": {"grammar": "start: \"a\" | \"c\""}}), "ac"),
        (json!({"guided_json": schema}), "-0123456789"),
        (json!({"guided_json": schema.to_string()}), "-0123456789"),
        (json!({"guided_regex": "[xy]", "response_format": {"type": "text"}}), "xy"),
        (json!({"guided_choice": ["a", "b"], "response_format": null}), "ab"),
        (json!({"grammar": "root ::= [ac]"}), "ac"),
        (json!({"json_schema": schema, "grammar": ""}), "-0123456789"),
        (json!({"guided_grammar": "start: \"a\" | \"c\""}), "ac"),
    ];
    for (fields, first) in cases {
        for (path, body) in requests(&fields) {
            let answer = post(fake.address, path, &body);
            assert_eq!(answer.status, 200, "{body}: {}", answer.json());
            let request = fake.seen.lock().unwrap().pop().unwrap().0;
            let mut guide = request.terms().guide.clone().unwrap();
            let mask = guide.mask().unwrap();
            let allowed: Vec<u32> = (0..VOCABULARY).filter(|&t| mask.allows(t)).collect();
            for letter in first.chars().map(letter) {
                assert!(allowed.contains(&letter), "{body}");
            }
            assert!(!mask.allows(letter('z')) && !mask.allows(END), "{body}");
        }
    }
    for fields in [
        json!({"response_format": {"type": "text"}}),
        json!({"structured_outputs": null, "grammar": ""}),
    ] {
        for (path, body) in requests(&fields) {
            assert_eq!(post(fake.address, path, &body).status, 200);
            assert!(fake.seen.lock().unwrap().pop().unwrap().0.terms().guide.is_none());
        }
    }
}

#[test]
fn a_form_that_cannot_be_followed_is_answered_400_with_its_field_and_the_reason() {
    let fake = Fake::say("x");
    let format = |json_schema: Value| json!({"type": "json_schema", "json_schema": json_schema});
    let long = "a".repeat(65);
    let cases = [
        ("response_format", json!("json_object"), "expected an object"),
        ("response_format", json!({}), "type"),
        ("response_format", json!([]), "expected an object"),
        ("response_format", json!(["json_object", null, null]), "expected an object"),
        (
            "response_format",
            format(json!(["a", {}, null, null])),
            "json_schema: invalid type: sequence, expected an object",
        ),
        ("response_format", json!({"type": "xml"}), "\"xml\""),
        ("response_format", json!({"type": "json_schema"}), "json_schema must be given"),
        ("response_format", json!({"type": "text", "schema": {}}), "schema"),
        ("response_format", json!({"type": "json_object", "foo": 1}), "foo"),
        ("response_format", format(json!({"name": "a"})), "schema must be given"),
        ("response_format", format(json!({"schema": {}})), "name"),
        ("response_format", format(json!({"name": "a b", "schema": {}})), "\"a b\""),
        ("response_format", format(json!({"name": long, "schema": {}})), "1 to 64"),
        ("response_format", format(json!({"name": "a", "schema": {}, "strict": 1})), "a boolean"),
        ("response_format", format(json!({"name": "a", "schema": {}, "foo": 1})), "foo"),
        ("response_format", format(json!({"name": "a", "schema": {"not": {}}})), "\"not\""),
        ("structured_outputs", json!({}), "one of json, regex"),
        ("structured_outputs", json!({"regex": "a", "choice": ["b"]}), "one of json, regex"),
        ("structured_outputs", json!({"regex": "("}), "unclosed group"),
        ("structured_outputs", json!({"structural_tag": "{}"}), "structural_tag"),
        (
            "structured_outputs",
            json!({"json": {}, "whitespace_pattern": " "}),
            "whitespace_pattern",
        ),
        ("structured_outputs", json!({"json": {}, "backend": "x"}), "backend"),
        (
            "structured_outputs",
            json!({"regex": "a", "disable_any_whitespace": true}),
            "disable_any",
        ),
        ("structured_outputs", json!({"choice": []}), "at least one choice"),
        ("structured_outputs", json!({"choice": [1]}), "string"),
        ("guided_json", json!("{"), "EOF"),
        ("guided_json", json!({"type": "foo"}), "got \"foo\""),
        ("structured_outputs", json!([]), "expected an object"),
        ("guided_regex", json!(5), "string"),
        ("guided_regex", json!("["), "unclosed character class"),
        ("guided_choice", json!("a"), "sequence"),
        ("guided_grammar", json!("start: nothing"), "nothing"),
        ("grammar", json!("root ::= ["), "a class that ends"),
        ("json_schema", json!({"not": {}}), "\"not\""),
        ("guided_regex", json!("a".repeat(600_000)), "at most 524288 bytes"),
    ];
    for (param, value, why) in cases {
        for (path, body) in requests(&json!({param: value})) {
            let answer = post(fake.address, path, &body);
            let error = answer.json()["error"].clone();
            assert_eq!((answer.status, &error["param"]), (400, &json!(param)), "{error}");
            let message = error["message"].as_str().unwrap();
            assert!(message.contains(why) && message.contains(param), "{param}: {message}");
        }
    }
    let two = json!({"guided_regex": "a", "response_format": {"type": "json_object"}});
    for (path, body) in requests(&two) {
        let answer = post(fake.address, path, &body);
        let message = answer.json()["error"]["message"].clone();
        assert_eq!(answer.status, 400);
        assert_eq!(message, "an answer can have one form; send response_format or guided_regex");
    }
    assert!(fake.seen.lock().unwrap().is_empty(), "nothing of it reaches the engine");
    assert_eq!(fake.engine.in_flight(), 0);
}
