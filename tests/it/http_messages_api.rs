//! `/v1/messages`: chats as Anthropic's clients spell them.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera::engine::FinishReason;
use tessera::text::{ChatTemplate, ServedText};

use crate::client::{Answer, get, post, post_stream, send};
use crate::fake::{EOS, Fake, Script, letters};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn asked(more: Value) -> Value {
    let mut body = json!({"model": "org/base", "max_tokens": 16,
        "messages": [{"role": "user", "content": "x"}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// `type` and `message` of an error, after checking that it has Anthropic's form.
fn error(answer: &Answer) -> (String, String) {
    let json = answer.json();
    let keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "error", "request_id"], "{json}");
    assert_eq!(json["type"], "error");
    let id = answer.header("request-id").unwrap();
    assert_eq!((json["request_id"].as_str(), answer.header("x-request-id")), (Some(id), Some(id)));
    let keys: Vec<&String> = json["error"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "message"], "{json}");
    let text = |key: &str| json["error"][key].as_str().unwrap().to_owned();
    (text("type"), text("message"))
}

/// A server with a template that shows all that it is given.
fn telling() -> Fake {
    let source = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}\
        {{ enable_thinking | default('?') }}{{ reasoning_effort | default('?') }}\
        {{ add_generation_prompt }}";
    Fake::new(Script::Echo(1), |app| {
        let ServedText { tokenizer, eos_tokens, defaults, named_tokens, .. } = &*app.model.text;
        let template = ChatTemplate::new(source, std::collections::BTreeMap::new(), 512).unwrap();
        app.model.text = Arc::new(ServedText {
            tokenizer: tokenizer.clone(),
            template: Some(Arc::new(template)),
            eos_tokens: eos_tokens.clone(),
            defaults: defaults.clone(),
            named_tokens: named_tokens.clone(),
        });
    })
}

/// What the model reads of a request, which `count_tokens` counts.
fn prompt(fake: &Fake, more: Value) -> Result<String, Answer> {
    let body = asked(more);
    let answer = post(fake.address, PATH, &body);
    if answer.status != 200 {
        return Err(answer);
    }
    let seen = fake.seen.lock().unwrap().last().unwrap().0.prompt().to_vec();
    let counted = post(fake.address, COUNT, &body).json();
    assert_eq!(counted, json!({"input_tokens": seen.len()}));
    let text = post(fake.address, "/detokenize", &json!({"tokens": seen}));
    Ok(text.json()["prompt"].as_str().unwrap().to_owned())
}

#[test]
fn a_whole_message() {
    let fake = Fake::say("Hi");
    let answer = post(fake.address, PATH, &asked(json!({})));
    let prompt = fake.seen.lock().unwrap()[0].0.prompt().len();
    let mut json = answer.json();
    let id = json["id"].as_str().unwrap();
    assert!(id.strip_prefix("msg_").is_some_and(|hex| hex.len() == 32), "{id}");
    json["id"] = "ID".into();
    let expected = json!({"id": "ID", "type": "message", "role": "assistant", "model": "org/base",
        "content": [{"type": "text", "text": "Hi"}], "stop_reason": "end_turn",
        "stop_sequence": null, "usage": {"input_tokens": prompt - 2,
        "cache_creation_input_tokens": 0, "cache_read_input_tokens": 2, "output_tokens": 3}});
    assert_eq!(json.to_string(), expected.to_string());
    assert_eq!(answer.header("request-id"), answer.header("x-request-id"));
}

#[test]
fn a_stream_byte_for_byte() {
    let fake = Fake::say("Hi");
    let mut reader = post_stream(fake.address, PATH, &asked(json!({"stream": true})));
    assert_eq!(reader.status, 200);
    let frames = reader.frames();
    let prompt = fake.seen.lock().unwrap()[0].0.prompt().len() - 2;
    let usage = |output: usize| {
        format!(
            "\"usage\":{{\"input_tokens\":{prompt},\"cache_creation_input_tokens\":0,\
             \"cache_read_input_tokens\":2,\"output_tokens\":{output}}}"
        )
    };
    let event =
        |name: &str, rest: &str| format!("event: {name}\ndata: {{\"type\":\"{name}\"{rest}}}");
    let delta = |text: &str| {
        let delta = format!("{{\"type\":\"text_delta\",\"text\":\"{text}\"}}");
        event("content_block_delta", &format!(",\"index\":0,\"delta\":{delta}"))
    };
    let id = frames[0].split("msg_").nth(1).unwrap().split('"').next().unwrap();
    assert!(id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    let expected = [
        event(
            "message_start",
            &format!(
                ",\"message\":{{\"id\":\"msg_{id}\",\"type\":\"message\",\"role\":\"assistant\",\
                 \"model\":\"org/base\",\"content\":[],\"stop_reason\":null,\
                 \"stop_sequence\":null,{}}}",
                usage(0)
            ),
        ),
        event(
            "content_block_start",
            ",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}",
        ),
        event("ping", ""),
        delta("H"),
        delta("i"),
        event("content_block_stop", ",\"index\":0"),
        event(
            "message_delta",
            &format!(
                ",\"delta\":{{\"stop_reason\":\"end_turn\",\"stop_sequence\":null}},{}",
                usage(3)
            ),
        ),
        event("message_stop", ""),
    ];
    assert_eq!(frames, expected);
}

#[test]
fn a_message_says_why_it_ends() {
    let fake = Fake::say("Hi there".split(' ').next().unwrap());
    let end = |more: Value| {
        let json = post(fake.address, PATH, &asked(more)).json();
        (
            json["content"][0]["text"].clone(),
            json["stop_reason"].clone(),
            json["stop_sequence"].clone(),
        )
    };
    assert_eq!(end(json!({})), (json!("Hi"), json!("end_turn"), Value::Null));
    assert_eq!(end(json!({"max_tokens": 1})), (json!("H"), json!("max_tokens"), Value::Null));
    let stopped = (json!("H"), json!("stop_sequence"), json!("i"));
    assert_eq!(end(json!({"stop_sequences": ["q", "i"]})), stopped);
    let body = asked(json!({"stop_sequences": ["i"], "stream": true}));
    let frames = post_stream(fake.address, PATH, &body).frames();
    let delta = "\"delta\":{\"stop_reason\":\"stop_sequence\",\"stop_sequence\":\"i\"}";
    assert!(frames[frames.len() - 2].contains(delta), "{frames:?}");
}

#[test]
fn what_a_request_says_reaches_the_template() {
    let fake = telling();
    let user = |text: &str| json!({"role": "user", "content": text});
    let cached = json!({"type": "text", "text": "s", "cache_control": {"type": "ephemeral"}});
    let cases = [
        (json!({}), "user:x;??True"),
        (json!({"system": "s"}), "system:s;user:x;??True"),
        (json!({"system": ""}), "user:x;??True"),
        (json!({"system": [cached]}), "system:s;user:x;??True"),
        (json!({"messages": [{"role": "user", "content": [cached]}]}), "user:s;??True"),
        (json!({"messages": [user("a"), user("b")]}), "user:a\nb;??True"),
        (json!({"thinking": {"type": "disabled"}}), "user:x;False?True"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), "user:x;True?True"),
        (
            json!({"thinking": {"type": "adaptive"},
                "chat_template_kwargs": {"enable_thinking": false}}),
            "user:x;False?True",
        ),
        (json!({"output_config": {"effort": "low"}}), "user:x;TruelowTrue"),
        (
            json!({"messages": [user("a"), {"role": "assistant", "content": "b"}]}),
            "user:a;assistant:b",
        ),
        (json!({"messages": [user("a"), {"role": "assistant", "content": ""}]}), "user:a;??True"),
        (
            json!({"metadata": {"user_id": "u"}, "service_tier": "auto", "cache_control":
                {"type": "ephemeral"}, "stop_sequences": null, "tools": []}),
            "user:x;??True",
        ),
    ];
    for (more, expected) in cases {
        let prompt = prompt(&fake, more.clone()).map_err(|answer| answer.text().to_owned());
        assert_eq!(prompt.as_deref(), Ok(expected), "{more}");
    }
    let answer = post(fake.address, PATH, &asked(json!({"model": "sql", "seed": 5, "top_k": 3})));
    assert_eq!((answer.status, answer.json()["model"].as_str()), (200, Some("sql")));
}

#[test]
fn what_is_wrong_or_not_built_is_refused_by_name() {
    let fake = telling();
    let of = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
    let end = |text: &str| {
        let last = json!({"role": "assistant", "content": text});
        json!({"messages": [{"role": "user", "content": "a"}, last]})
    };
    let cases = [
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 513}), "max_tokens"),
        (json!({"temperature": 1.5}), "temperature"),
        (json!({"temperature": -1}), "temperature"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "role"),
        (json!({"messages": [{"role": "user", "content": "x", "name": "n"}]}), "name"),
        (json!({"messages": [{"role": "user"}]}), "content"),
        (of(json!("")), "messages"),
        (of(json!([{"type": "image", "source": {}}])), "'image'"),
        (of(json!([{"type": "tool_use", "id": "1", "name": "f", "input": {}}])), "tool_use"),
        (of(json!([{"type": "tool_result", "tool_use_id": "1"}])), "tool_result"),
        (of(json!([{"type": "thinking", "thinking": "t", "signature": "s"}])), "thinking blocks"),
        (of(json!([{"type": "text", "text": "a", "more": 1}])), "more"),
        (of(json!([{"type": "text"}])), "text"),
        (end("b "), "whitespace"),
        (
            json!({"messages": [{"role": "assistant", "content": ""}]}),
            "one message at least must have a text",
        ),
        (json!({"system": [{"type": "image"}]}), "system"),
        (json!({"system": 5}), "system"),
        (json!({"tools": [{"name": "f"}]}), "tools"),
        (json!({"tool_choice": {"type": "auto"}}), "tool_choice"),
        (json!({"thinking": {"type": "much"}}), "thinking"),
        (json!({"thinking": {"type": "enabled", "more": 1}}), "more"),
        (json!({"thinking": {"type": "enabled", "display": "omitted"}}), "thinking"),
        (json!({"output_config": {"effort": "much"}}), "output_config.effort"),
        (json!({"output_config": {"format": {"type": "x", "schema": {}}}}), "output_config"),
        (json!({"stop_sequences": ["a"], "stop": ["b"]}), "stop_sequences"),
        (json!({"stop_sequences": [5]}), "stop_sequences"),
        (json!({"response_format": {"type": "text"}}), "response_format"),
        (json!({"reasoning_effort": "low"}), "reasoning_effort"),
        (json!({"n": 2}), "n "),
        (json!({"return_token_ids": true}), "return_token_ids"),
        (json!({"logprobs": true}), "logprobs"),
        (json!({"continue_final_message": true}), "continue_final_message"),
        (json!({"container": "c"}), "container"),
    ];
    for (more, name) in cases {
        let answer = prompt(&fake, more.clone()).expect_err(&more.to_string());
        let (kind, message) = error(&answer);
        assert_eq!((answer.status, kind.as_str()), (400, "invalid_request_error"), "{more}");
        assert!(message.contains(name), "{more}: {message}");
    }
    assert_eq!(fake.seen.lock().unwrap().len(), 0);
}

#[test]
fn every_error_has_anthropics_form() {
    let fake = Fake::with_queue(Script::Hang(vec![]), 1, |app| app.http.body_bytes_max = 500);
    let kind = |answer: Answer| (answer.status, error(&answer).0);
    let of = |status: u16, kind: &str| (status, kind.to_owned());
    let nobody = asked(json!({"model": "nobody"}));
    assert_eq!(kind(post(fake.address, PATH, &nobody)), of(404, "not_found_error"));
    assert_eq!(kind(post(fake.address, COUNT, &nobody)), of(404, "not_found_error"));
    let answer = post(fake.address, "/v1/messages/batches", &json!({}));
    assert_eq!(kind(answer), of(404, "not_found_error"));
    let answer = get(fake.address, PATH);
    assert_eq!(answer.header("allow"), Some("POST, OPTIONS"));
    assert_eq!(kind(answer), of(405, "invalid_request_error"));
    let long = asked(json!({"system": "x".repeat(600)}));
    assert_eq!(kind(post(fake.address, PATH, &long)), of(413, "request_too_large"));
    let answer = send(fake.address, "POST", PATH, "", b"{");
    assert_eq!(kind(answer), of(400, "invalid_request_error"));
    let held = post_request(&fake);
    fake.wait_seen(1);
    let busy = post(fake.address, PATH, &asked(json!({})));
    assert_eq!(busy.header("retry-after"), Some("1"));
    assert_eq!(kind(busy), of(429, "rate_limit_error"));
    drop(held);
    let failing = Fake::new(Script::Fail(0), |_| {});
    let answer = post(failing.address, PATH, &asked(json!({})));
    assert_eq!(kind(answer), of(500, "api_error"));
    let answer = get(fake.address, "/v1/messagesx");
    assert_eq!((answer.error().1.as_str(), answer.header("request-id")), ("route_not_found", None));
}

fn post_request(fake: &Fake) -> std::net::TcpStream {
    let body = asked(json!({})).to_string();
    crate::client::connect(fake.address, &crate::client::message("POST", PATH, "", body.as_bytes()))
}

#[test]
fn a_stream_that_fails_says_so() {
    let fake = Fake::new(Script::Fail(1), |_| {});
    let frames = post_stream(fake.address, PATH, &asked(json!({"stream": true}))).frames();
    let expected = "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\
        \"message\":\"the step failed for a test\"}}";
    assert_eq!(frames.last().map(String::as_str), Some(expected));
    assert!(!frames.iter().any(|frame| frame.contains("message_stop")));
}

#[test]
fn a_schema_is_followed() {
    let mut tokens = letters("5");
    tokens.push(EOS);
    let fake = Fake::new(Script::Say(tokens, FinishReason::Stop), |_| {});
    let format = json!({"type": "json_schema", "schema": {"type": "integer"}});
    let answer = post(fake.address, PATH, &asked(json!({"output_config": {"format": format}})));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(fake.seen.lock().unwrap()[0].0.terms().guide.is_some());
    let format = json!({"type": "json_schema", "schema": {"type": "integer", "not": {}}});
    let answer = post(fake.address, PATH, &asked(json!({"output_config": {"format": format}})));
    let (_, message) = error(&answer);
    assert!(message.contains("output_config.format") && message.contains("not"), "{message}");
}
