//! What clients get wrong, and what they read then.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera::text::ServedText;

use crate::client::{get, post, post_stream, raw, send};
use crate::fake::{Fake, Script};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn bytes(fake: &Fake, path: &str, body: &[u8]) -> (u16, Option<String>, String) {
    let answer = send(fake.address, "POST", path, "", body);
    let (param, code) = answer.error();
    (answer.status, param, code)
}

#[test]
fn every_field_that_is_not_built_is_refused_by_name() {
    let fake = Fake::say("x");
    let both = [
        ("length_penalty", json!(2), json!(1)),
        ("use_beam_search", json!(true), json!(false)),
        ("n_predict", json!(5), Value::Null),
        ("stop_sequences", json!(["a"]), json!([])),
        ("regex", json!("[0-9]+"), json!("")),
        ("ebnf", json!("root ::= 'a'"), Value::Null),
        ("repeat_penalty", json!(1.3), json!(1.0)),
        ("num_beams", json!(4), json!(1)),
        ("no_repeat_ngram_size", json!(2), json!(0)),
        ("top_n_sigma", json!(1.5), json!(-1)),
        ("extra_body", json!({"top_k": 1}), json!({})),
        ("lora_path", json!("sql"), Value::Null),
        ("adapter_id", json!("sql"), Value::Null),
    ];
    let chat = [
        ("echo", json!(true), json!(false)),
        ("suffix", json!("end"), json!("")),
        ("tools", json!([{"type": "custom"}]), json!([])),
        ("modalities", json!(["text", "audio"]), json!(["text"])),
        ("audio", json!({"voice": "x"}), Value::Null),
        ("web_search_options", json!({}), Value::Null),
        ("chat_template", json!("x"), Value::Null),
    ];
    let messages = json!([{"role": "user", "content": "x"}]);
    let cases = both.iter().map(|case| (COMPLETIONS, json!({"prompt": "x"}), case));
    let cases = cases
        .chain(both.iter().chain(&chat).map(|case| (CHAT, json!({"messages": messages}), case)));
    for (path, body, (field, asked, neutral)) in cases {
        let mut refused = body.clone();
        refused[field] = asked.clone();
        let answer = post(fake.address, path, &refused);
        let expected = (Some((*field).to_owned()), "unsupported_parameter".to_owned());
        assert_eq!((answer.status, answer.error()), (400, expected), "{refused}");
        assert!(answer.message().contains(field));
        let mut served = body;
        served[field] = neutral.clone();
        assert_eq!(post(fake.address, path, &served).status, 200, "{served}");
    }
}

#[test]
fn a_value_of_the_wrong_form_is_answered_with_its_field() {
    let fake = Fake::say("x");
    let cases = [
        ("temperature", "NaN"),
        ("temperature", "1e400"),
        ("temperature", "1e39"),
        ("temperature", "-0.1"),
        ("temperature", "2.1"),
        ("temperature", "\"1\""),
        ("temperature", "[1]"),
        ("top_p", "-0.1"),
        ("top_p", "1.1"),
        ("min_p", "-1"),
        ("top_k", "-2"),
        ("top_k", "1.5"),
        ("max_tokens", "0"),
        ("max_tokens", "-1"),
        ("max_tokens", "1.5"),
        ("max_tokens", "4294967296"),
        ("max_tokens", "true"),
        ("seed", "1.5"),
        ("seed", "9223372036854775808"),
        ("logprobs", "21"),
        ("logprobs", "-1"),
        ("logprobs", "true"),
        ("stream", "1"),
        ("stream", "\"true\""),
        ("stream_options", "{\"include_usage\":true}"),
        ("model", "5"),
        ("stop", "5"),
        ("stop", "\"\""),
        ("stop", "[\"a\",\"\"]"),
        ("stop", "[\"a\",5]"),
        ("stop", "[[\"a\"]]"),
        ("ignore_eos", "0"),
        ("return_token_ids", "\"yes\""),
        ("unheard_of", "1e400"),
        ("unheard_of", "\"\\ud800\""),
    ];
    for (field, value) in cases {
        let body = format!("{{\"prompt\":\"x\",\"{field}\":{value}}}");
        let (status, param, _) = bytes(&fake, COMPLETIONS, body.as_bytes());
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{body}");
    }
    let prompts = [
        "5",
        "null",
        "true",
        "{}",
        "\"\"",
        "[]",
        "[[]]",
        "[\"\"]",
        "[\"a\",5]",
        "[5,\"a\"]",
        "[[5],5]",
        "[[\"a\"]]",
        "[-1]",
        "[512]",
        "[4294967296]",
        "[1.5]",
        "[null]",
        "[[1],[]]",
    ];
    for prompt in prompts {
        let body = format!("{{\"prompt\":{prompt}}}");
        let (status, param, _) = bytes(&fake, COMPLETIONS, body.as_bytes());
        assert_eq!((status, param.as_deref()), (400, Some("prompt")), "{body}");
    }
    assert_eq!(fake.seen.lock().unwrap().len(), 0, "none of these is run");
}

#[test]
fn a_body_that_is_not_one_json_object_is_answered_400() {
    let fake = Fake::say("x");
    let deep = |open: &str, close: &str| {
        format!("{{\"prompt\":\"x\",\"z\":{}1{}}}", open.repeat(200), close.repeat(200))
    };
    let wide: Vec<String> = (0..300).map(|i| format!("\"f{i}\":1")).collect();
    let cases: Vec<Vec<u8>> = vec![
        b"".to_vec(),
        b"{".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"\"x\"".to_vec(),
        b"{\"prompt\":\"x\"} {}".to_vec(),
        b"{\"prompt\":\"x\",}".to_vec(),
        b"{'prompt':'x'}".to_vec(),
        b"\xEF\xBB\xBF{\"prompt\":\"x\"}".to_vec(),
        b"{\"prompt\":\"\xFF\"}".to_vec(),
        b"{\"prompt\":\"\\ud800\"}".to_vec(),
        b"{\"prompt\":\"a\nb\"}".to_vec(),
        b"{\"prompt\":\"x\",\"prompt\":\"y\"}".to_vec(),
        b"{\"prompt\":\"x\",\"zzz\":1,\"zzz\":1}".to_vec(),
        deep("[", "]").into_bytes(),
        deep("{\"a\":", "}").into_bytes(),
        format!("{{\"prompt\":\"x\",{}}}", wide.join(",")).into_bytes(),
    ];
    for body in cases {
        let (status, _, code) = bytes(&fake, COMPLETIONS, &body);
        let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
        assert_eq!(status, 400, "{shown}");
        assert!(["invalid_json", "invalid_value"].contains(&code.as_str()), "{shown}: {code}");
    }
    let long = format!("{{\"max_tokens\":\"{}\"}}", "x".repeat(100_000));
    let answer = send(fake.address, "POST", COMPLETIONS, "", long.as_bytes());
    assert!(answer.status == 400 && answer.body.len() < 1000, "an error repeats little");
    assert_eq!(fake.seen.lock().unwrap().len(), 0);
}

#[test]
fn messages_that_are_no_chat_are_answered_400() {
    let fake = Fake::say("x");
    let cases = [
        (json!([]), "invalid_value"),
        (json!("x"), "invalid_value"),
        (json!([5]), "invalid_value"),
        (json!([{"role": "user"}]), "invalid_value"),
        (json!([{"content": "x"}]), "invalid_value"),
        (json!([{"role": "user", "content": null}]), "invalid_value"),
        (json!([{"role": "user", "content": 5}]), "invalid_value"),
        (json!([{"role": "wizard", "content": "x"}]), "invalid_value"),
        (json!([{"role": "user", "content": [{"type": "text"}]}]), "invalid_value"),
        (
            json!([{"role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
            "unsupported_parameter",
        ),
    ];
    for (messages, expected) in cases {
        let answer = post(fake.address, CHAT, &json!({"messages": messages}));
        assert_eq!(answer.status, 400, "{messages}");
        let (param, code) = answer.error();
        assert_eq!((param.as_deref(), code.as_str()), (Some("messages"), expected), "{messages}");
    }
    let answer = post(fake.address, CHAT, &json!({}));
    assert_eq!(answer.error(), (Some("messages".to_owned()), "missing_field".to_owned()));
    let hello = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (json!({"messages": hello, "top_logprobs": 2}), "top_logprobs"),
        (json!({"messages": hello, "top_logprobs": 21, "logprobs": true}), "top_logprobs"),
        (json!({"messages": hello, "logprobs": 1}), "logprobs"),
        (json!({"messages": hello, "max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"messages": hello, "max_tokens": 0}), "max_tokens"),
    ];
    for (body, field) in cases {
        let answer = post(fake.address, CHAT, &body);
        assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some(field)), "{body}");
    }
    let fake = Fake::new(Script::Echo(1), |app| {
        let ServedText { tokenizer, eos_tokens, defaults, named_tokens, .. } = &*app.model.text;
        let (tokenizer, eos_tokens) = (tokenizer.clone(), eos_tokens.clone());
        let (defaults, named_tokens) = (defaults.clone(), named_tokens.clone());
        let text = ServedText { tokenizer, template: None, eos_tokens, defaults, named_tokens };
        app.model.text = Arc::new(text);
    });
    let answer = post(fake.address, CHAT, &json!({"messages": hello}));
    assert_eq!((answer.status, answer.error().1.as_str()), (400, "no_chat_template"));
}

#[test]
fn limits_are_named_in_the_answer() {
    let fake = Fake::say("x");
    let stops: Vec<String> = (0..17).map(|i| i.to_string()).collect();
    let cases = [
        (json!({"prompt": vec!["x"; 129]}), "prompt", "128"),
        (json!({"prompt": vec![[5]; 129]}), "prompt", "128"),
        (json!({"prompt": "x", "stop": stops}), "stop", "16"),
        (json!({"prompt": "x", "stop": "x".repeat(1025)}), "stop", "1024"),
    ];
    for (body, field, limit) in cases {
        let answer = post(fake.address, COMPLETIONS, &body);
        assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some(field)));
        assert!(answer.message().contains(limit), "{}", answer.message());
    }
    assert_eq!(
        post(fake.address, COMPLETIONS, &json!({"prompt": "x", "stop": stops[..16]})).status,
        200
    );
    let long = json!({"prompt": vec![5; 512], "max_tokens": 13});
    let too_long = [
        (COMPLETIONS, long, "prompt"),
        (COMPLETIONS, json!({"prompt": "word ".repeat(20_000)}), "prompt"),
        (CHAT, json!({"messages": [{"role": "user", "content": "x".repeat(2000)}]}), "messages"),
        (CHAT, json!({"messages": [{"role": "user", "content": "x".repeat(99_999)}]}), "messages"),
    ];
    for (path, body, field) in too_long {
        let answer = post(fake.address, path, &body);
        let expected = (Some(field.to_owned()), "context_length_exceeded".to_owned());
        assert_eq!((answer.status, answer.error()), (400, expected));
        let text = "This model's maximum context length is 512 tokens. However, ";
        assert!(answer.message().starts_with(text), "{}", answer.message());
    }
}

#[test]
fn a_model_that_is_not_there_is_404_with_openais_text() {
    let fake = Fake::say("x");
    for path in [COMPLETIONS, CHAT] {
        let body = match path {
            COMPLETIONS => json!({"model": "nobody", "prompt": "x", "stream": true}),
            _ => json!({"model": "nobody", "stream": true,
                "messages": [{"role": "user", "content": "x"}]}),
        };
        let answer = post(fake.address, path, &body);
        assert_eq!(answer.status, 404);
        assert_eq!(answer.error(), (Some("model".to_owned()), "model_not_found".to_owned()));
        assert_eq!(answer.message(), "The model `nobody` does not exist.");
    }
}

#[test]
fn unknown_fields_are_served_and_counted() {
    let fake = Fake::say("x");
    let body = json!({"prompt": "x", "brand_new": {"a": [1, 2]}, "user": "me", "metadata": {}});
    assert_eq!(post(fake.address, COMPLETIONS, &body).status, 200);
    let page = get(fake.address, "/metrics");
    assert!(page.text().contains(
        "tessera:unknown_fields_total{model_name=\"org/base\",\
        engine=\"0\"} 1\n"
    ));
}

#[test]
fn routes_and_methods_that_are_not_there_have_openais_errors() {
    let fake = Fake::say("x");
    let answer = get(fake.address, "/v1/nothing");
    assert_eq!((answer.status, answer.error().1.as_str()), (404, "route_not_found"));
    let answer = get(fake.address, COMPLETIONS);
    assert_eq!((answer.status, answer.error().1.as_str()), (405, "method_not_allowed"));
    assert_eq!(answer.header("allow"), Some("POST, OPTIONS"));
    let answer = send(fake.address, "OPTIONS", "/v1/models", "", b"");
    assert_eq!((answer.status, answer.header("allow")), (204, Some("GET, HEAD, OPTIONS")));
    let answer = send(fake.address, "HEAD", "/v1/models", "", b"");
    assert_eq!((answer.status, answer.body.len()), (200, 0));
    for path in ["/health", "/ping", "/live", "/ready"] {
        let answer = get(fake.address, path);
        assert_eq!((answer.status, answer.body.len()), (200, 0), "{path}");
    }
    assert_eq!(get(fake.address, "/version").json(), json!({"version": env!("CARGO_PKG_VERSION")}));
    let form = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\
        content-type: text/plain\r\nconnection: close\r\n\r\n{}";
    assert_eq!(raw(fake.address, form).status, 415);
}

#[test]
fn what_the_engine_cannot_do_has_a_status_before_the_stream_and_an_event_within() {
    let body = json!({"prompt": "x"});
    let stream = json!({"prompt": "x", "stream": true});
    let fake = Fake::new(Script::Fail(0), |_| {});
    for body in [&body, &stream] {
        let answer = post(fake.address, COMPLETIONS, body);
        assert_eq!((answer.status, answer.error().1.as_str()), (500, "engine_failed"));
    }
    let fake = Fake::new(Script::Gone, |_| {});
    let answer = post(fake.address, COMPLETIONS, &stream);
    assert_eq!((answer.status, answer.error().1.as_str()), (503, "engine_stopped"));
    assert_eq!(answer.header("retry-after"), None, "it does not come back by itself");
    let fake = Fake::new(Script::Fail(2), |_| {});
    assert_eq!(post(fake.address, COMPLETIONS, &body).status, 500);
    let frames = post_stream(fake.address, COMPLETIONS, &stream).frames();
    assert_eq!(frames.len(), 3);
    let error: Value = serde_json::from_str(frames[2].strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(error["error"]["code"], "engine_failed");
    fake.engine.stats().stopped.store(true, std::sync::atomic::Ordering::Release);
    assert_eq!(get(fake.address, "/health").status, 503);
    assert_eq!(get(fake.address, "/live").status, 200);
    assert_eq!(post(fake.address, COMPLETIONS, &body).error().1, "engine_stopped");
}

/// Longest message and `param`, with what says that they were cut.
const MESSAGE_CHARS_MAX: usize = 2_003;
const PARAM_CHARS_MAX: usize = 257;

#[test]
fn a_message_quotes_no_more_than_a_reader_can_use_and_keeps_its_end() {
    let fake = Fake::new(Script::Echo(1), |app| app.http.strict_fields = true);
    let long = "é".repeat(100_000);
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": {}}});
    let messages = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (COMPLETIONS, json!({"prompt": "x", &long: 1})),
        (COMPLETIONS, json!({"prompt": "x", "model": long})),
        (COMPLETIONS, json!({"prompt": "x", "logit_bias": {&long: 1}})),
        (COMPLETIONS, json!({"prompt": "x", "guided_grammar": format!("root ::= {long}")})),
        (CHAT, json!({"messages": messages, "response_format": {"type": long}})),
        (CHAT, json!({"messages": messages, "tools": [tool], "tool_choice": long})),
        ("/v1/load_lora_adapter", json!({"lora_name": long, "lora_path": "x"})),
        ("/v1/messages", json!({"max_tokens": 1, "messages": [{"role": long, "content": "x"}]})),
        ("/v1/responses", json!({"input": [{"type": long}]})),
    ];
    for (path, body) in cases {
        let answer = post(fake.address, path, &body);
        let error = &answer.json()["error"];
        let chars = |key: &str| error[key].as_str().map_or(0, |text| text.chars().count());
        assert!((400..500).contains(&answer.status), "{path}: {error}");
        assert!((1..=MESSAGE_CHARS_MAX).contains(&chars("message")), "{path}: {error}");
        assert!(chars("param") <= PARAM_CHARS_MAX, "{path}: {error}");
    }
    let unknown = post(fake.address, COMPLETIONS, &json!({"prompt": "x", &long: 1})).message();
    assert!(unknown.ends_with("leave it out."), "{unknown}");
}

#[test]
fn a_full_queue_is_429_for_all_prompts_of_a_request_or_none() {
    let fake = Fake::with_queue(Script::Hang(vec![]), 3, |_| {});
    let held = post_stream_later(&fake, &json!({"prompt": ["a", "b"]}));
    fake.wait_seen(2);
    let answer = post(fake.address, COMPLETIONS, &json!({"prompt": ["a", "b"]}));
    assert_eq!((answer.status, answer.error().1.as_str()), (429, "queue_full"));
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(fake.engine.in_flight(), 2, "the refused request holds no place");
    drop(held);
    fake.wait_cancelled(2);
}

/// A request whose answer is not read.
fn post_stream_later(fake: &Fake, body: &Value) -> std::net::TcpStream {
    let body = body.to_string();
    let message = crate::client::message("POST", COMPLETIONS, "", body.as_bytes());
    crate::client::connect(fake.address, &message)
}
