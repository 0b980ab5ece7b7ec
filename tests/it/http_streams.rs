//! Streams of each shape, byte for byte.

use serde_json::{Value, json};
use tessera::engine::FinishReason;

use crate::client::{post, post_stream};
use crate::fake::{Fake, Script, letter};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// Sets the parts that differ from run to run.
fn normal(frame: &str) -> String {
    let Some(json) = frame.strip_prefix("data: {") else { return frame.to_owned() };
    let mut json: Value = serde_json::from_str(&format!("{{{json}")).unwrap();
    if json.get("error").is_some() {
        return frame.to_owned();
    }
    for call in json.pointer_mut("/choices/0/delta/tool_calls/0").into_iter() {
        if let Some(Value::String(id)) = call.get_mut("id") {
            assert!(id.len() == 29 && id.starts_with("call_"), "{id}");
            *id = "call_ID".to_owned();
        }
    }
    let id = json["id"].as_str().unwrap();
    let (prefix, hex) = id.split_once('-').unwrap();
    assert!(hex.len() == 32 && hex.bytes().all(|b| b.is_ascii_hexdigit()), "{id}");
    json["id"] = format!("{prefix}-ID").into();
    let fingerprint = json["system_fingerprint"].as_str().unwrap();
    let hex = fingerprint.strip_prefix("fp_").unwrap();
    assert!(hex.len() == 10 && hex.bytes().all(|b| b.is_ascii_hexdigit()), "{fingerprint}");
    json["system_fingerprint"] = "FP".into();
    assert!(json["created"].as_u64().unwrap() > 1_700_000_000);
    json["created"] = 1.into();
    format!("data: {json}")
}

pub fn frames(fake: &Fake, path: &str, body: &Value) -> Vec<String> {
    let mut reader = post_stream(fake.address, path, body);
    assert_eq!(reader.status, 200);
    let header = |name: &str| {
        let found = reader.headers.iter().find(|(n, _)| n == name);
        found.map(|(_, value)| value.clone()).unwrap_or_default()
    };
    assert_eq!(header("content-type"), "text/event-stream; charset=utf-8");
    assert_eq!(header("cache-control"), "no-cache");
    assert_eq!(header("x-accel-buffering"), "no");
    reader.frames().iter().map(|frame| normal(frame)).collect()
}

/// A chunk of completions with these choices and what follows them.
fn completion(rest: &str) -> String {
    format!(
        "data: {{\"id\":\"cmpl-ID\",\"object\":\"text_completion\",\"created\":1,\
         \"model\":\"org/base\",\"system_fingerprint\":\"FP\",{rest}}}"
    )
}

/// One choice without logprobs.
fn text(index: usize, text: &str, finish: &str) -> String {
    let rest = "\"logprobs\":null,\"finish_reason\"";
    completion(&format!("\"choices\":[{{\"index\":{index},\"text\":\"{text}\",{rest}:{finish}}}]"))
}

/// The same of a chat.
pub fn chat(rest: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-ID\",\"object\":\"chat.completion.chunk\",\"created\":1,\
         \"model\":\"org/base\",\"system_fingerprint\":\"FP\",{rest}}}"
    )
}

pub fn delta(index: usize, delta: &str, finish: &str) -> String {
    let rest = "\"logprobs\":null,\"finish_reason\"";
    format!("\"choices\":[{{\"index\":{index},\"delta\":{delta},{rest}:{finish}}}]")
}

pub const ROLE: &str = "{\"role\":\"assistant\",\"content\":\"\"}";
const STOP: &str = "\"stop\",\"stop_reason\":null";
pub const DONE: &str = "data: [DONE]";

fn message() -> Value {
    json!([{"role": "user", "content": "x"}])
}

#[test]
fn a_completion() {
    let fake = Fake::say("Hi!");
    let got = frames(&fake, COMPLETIONS, &json!({"prompt": "x", "stream": true}));
    let expected = [
        text(0, "H", "null"),
        text(0, "i", "null"),
        text(0, "!", "null"),
        text(0, "", STOP),
        DONE.to_owned(),
    ];
    assert_eq!(got, expected);
}

#[test]
fn a_chat_with_usage_at_the_end() {
    let fake = Fake::say("Hi");
    let body = json!({"messages": message(), "stream": true,
        "stream_options": {"include_usage": true}});
    let got = frames(&fake, CHAT, &body);
    let prompt = fake.seen.lock().unwrap()[0].0.prompt().len();
    let total = prompt + 3;
    let chunk = |content: &str, finish: &str| {
        chat(&format!("{},\"usage\":null", delta(0, content, finish)))
    };
    let expected = [
        chunk(ROLE, "null"),
        chunk("{\"content\":\"H\"}", "null"),
        chunk("{\"content\":\"i\"}", "null"),
        chunk("{}", STOP),
        chat(&format!(
            "\"choices\":[],\"usage\":{{\"prompt_tokens\":{prompt},\"completion_tokens\":3,\
             \"total_tokens\":{total},\"prompt_tokens_details\":{{\"cached_tokens\":2}}}}"
        )),
        DONE.to_owned(),
    ];
    assert_eq!(got, expected);
}

#[test]
fn a_completion_with_usage_on_every_chunk() {
    let fake = Fake::say("H");
    let options = json!({"include_usage": true, "continuous_usage_stats": true});
    let body = json!({"prompt": "x", "stream": true, "stream_options": options});
    let usage = |drawn: usize| {
        let total = 2 + drawn;
        format!(
            "\"usage\":{{\"prompt_tokens\":2,\"completion_tokens\":{drawn},\
             \"total_tokens\":{total},\"prompt_tokens_details\":{{\"cached_tokens\":2}}}}"
        )
    };
    let chunk = |content: &str, finish: &str, drawn: usize| {
        let rest = "\"logprobs\":null,\"finish_reason\"";
        let choice = format!("{{\"index\":0,\"text\":\"{content}\",{rest}:{finish}}}");
        completion(&format!("\"choices\":[{choice}],{}", usage(drawn)))
    };
    let expected = [
        chunk("H", "null", 1),
        chunk("", STOP, 2),
        completion(&format!("\"choices\":[],{}", usage(2))),
        DONE.to_owned(),
    ];
    assert_eq!(frames(&fake, COMPLETIONS, &body), expected);
    let body = json!({"messages": message(), "stream": true, "stream_options": options});
    let chunks = post_stream(fake.address, CHAT, &body).chunks();
    let drawn: Vec<_> = chunks.iter().map(|c| c["usage"]["completion_tokens"].clone()).collect();
    assert_eq!(drawn, [0, 1, 2, 2]);
}

#[test]
fn logprobs_of_either_route() {
    let fake = Fake::say("H");
    let body = json!({"prompt": "x", "stream": true, "logprobs": 1});
    let chunk = |content: &str, finish: &str, lists: &str| {
        completion(&format!(
            "\"choices\":[{{\"index\":0,\"text\":\"{content}\",\"logprobs\":{{{lists}}},\
             \"finish_reason\":{finish}}}]"
        ))
    };
    let first = "\"text_offset\":[0],\"token_logprobs\":[-0.1],\"tokens\":[\"H\"],\
                 \"top_logprobs\":[{\"H\":-0.1}]";
    let last = "\"text_offset\":[1],\"token_logprobs\":[-0.43333334],\"tokens\":[\"</s>\"],\
                \"top_logprobs\":[{\"</s>\":-0.43333334}]";
    let expected = [chunk("H", "null", first), chunk("", STOP, last), DONE.to_owned()];
    assert_eq!(frames(&fake, COMPLETIONS, &body), expected);
    let body = json!({"messages": message(), "stream": true, "logprobs": true, "top_logprobs": 1});
    let chunk = |content: &str, finish: &str, logprobs: &str| {
        chat(&format!(
            "\"choices\":[{{\"index\":0,\"delta\":{content},\"logprobs\":{logprobs},\
             \"finish_reason\":{finish}}}]"
        ))
    };
    let entry = |token: &str, logprob: &str, bytes: &str| {
        let one = format!("\"token\":\"{token}\",\"logprob\":{logprob},\"bytes\":{bytes}");
        format!("{{\"content\":[{{{one},\"top_logprobs\":[{{{one}}}]}}],\"refusal\":null}}")
    };
    let expected = [
        chat(&delta(0, ROLE, "null")),
        chunk("{\"content\":\"H\"}", "null", &entry("H", "-0.1", "[72]")),
        chunk("{}", STOP, &entry("</s>", "-0.43333334", "[60,47,115,62]")),
        DONE.to_owned(),
    ];
    assert_eq!(frames(&fake, CHAT, &body), expected);
}

#[test]
fn two_samples_of_either_route() {
    let fake = Fake::say("Hi");
    // How samples take turns is theirs to say; each has its own chunks in order.
    let of = |frames: &[String], index: usize| {
        let mine = format!("\"index\":{index},");
        frames.iter().filter(|frame| frame.contains(&mine)).cloned().collect::<Vec<_>>()
    };
    let got = frames(&fake, COMPLETIONS, &json!({"prompt": "x", "stream": true, "n": 2}));
    assert_eq!((got.len(), got.last().unwrap().as_str()), (7, DONE));
    for i in 0..2 {
        let expected = [text(i, "H", "null"), text(i, "i", "null"), text(i, "", STOP)];
        assert_eq!(of(&got, i), expected);
    }
    let got = frames(&fake, CHAT, &json!({"messages": message(), "stream": true, "n": 2}));
    assert_eq!((got.len(), got.last().unwrap().as_str()), (9, DONE));
    assert_eq!(got[..2], [0, 1].map(|i| chat(&delta(i, ROLE, "null"))));
    for i in 0..2 {
        let expected = [
            chat(&delta(i, ROLE, "null")),
            chat(&delta(i, "{\"content\":\"H\"}", "null")),
            chat(&delta(i, "{\"content\":\"i\"}", "null")),
            chat(&delta(i, "{}", STOP)),
        ];
        assert_eq!(of(&got, i), expected);
    }
}

#[test]
fn an_echo_with_and_without_logprobs() {
    let fake = Fake::say("H");
    let body = json!({"prompt": "xy", "stream": true, "echo": true});
    let expected = [text(0, "xyH", "null"), text(0, "", STOP), DONE.to_owned()];
    assert_eq!(frames(&fake, COMPLETIONS, &body), expected);
    let body = json!({"prompt": "xy", "stream": true, "echo": true, "logprobs": 0,
        "max_tokens": 0});
    let lists = "\"text_offset\":[0,0,1],\"token_logprobs\":[null,-0.43333334,-0.7666667],\
                 \"tokens\":[\"<s>\",\"x\",\"y\"],\
                 \"top_logprobs\":[null,{\"x\":-0.43333334},{\"y\":-0.7666667}]";
    let choice = format!(
        "\"choices\":[{{\"index\":0,\"text\":\"xy\",\"logprobs\":{{{lists}}},\
         \"finish_reason\":\"length\",\"stop_reason\":null}}]"
    );
    assert_eq!(frames(&fake, COMPLETIONS, &body), [completion(&choice), DONE.to_owned()]);
}

#[test]
fn a_stream_that_a_string_or_its_length_ends() {
    let fake = Fake::say("Hi!");
    let body = json!({"prompt": "x", "stream": true, "stop": ["!"]});
    let end = "\"stop\",\"stop_reason\":\"!\"";
    let expected = [text(0, "H", "null"), text(0, "i", "null"), text(0, "", end), DONE.to_owned()];
    assert_eq!(frames(&fake, COMPLETIONS, &body), expected);
    let body = json!({"messages": message(), "stream": true, "max_tokens": 1});
    let expected = [
        chat(&delta(0, ROLE, "null")),
        chat(&delta(0, "{\"content\":\"H\"}", "null")),
        chat(&delta(0, "{}", "\"length\",\"stop_reason\":null")),
        DONE.to_owned(),
    ];
    assert_eq!(frames(&fake, CHAT, &body), expected);
}

#[test]
fn a_stream_that_fails_ends_with_the_error() {
    let fake = Fake::new(Script::Fail(1), |_| {});
    let error = "data: {\"error\":{\"message\":\"the step failed for a test\",\
        \"type\":\"server_error\",\"param\":null,\"code\":\"engine_failed\"}}";
    let got = frames(&fake, COMPLETIONS, &json!({"prompt": "x", "stream": true}));
    assert_eq!(got, [text(0, "x", "null"), error.to_owned()]);
    let got = frames(&fake, CHAT, &json!({"messages": message(), "stream": true}));
    let first = chat(&delta(0, "{\"content\":\"x\"}", "null"));
    assert_eq!(got, [chat(&delta(0, ROLE, "null")), first, error.to_owned()]);
}

#[test]
fn token_ids_have_a_chunk_for_each_token() {
    // The two tokens of é, of which the first is no text.
    let tokens = vec![134, 109, 1];
    let fake = Fake::new(Script::Say(tokens, FinishReason::Stop), |_| {});
    let body = json!({"prompt": [letter('x')], "stream": true, "return_token_ids": true});
    let chunk = |content: &str, finish: &str, rest: &str| {
        completion(&format!(
            "\"choices\":[{{\"index\":0,\"text\":\"{content}\",\"logprobs\":null,\
             \"finish_reason\":{finish},{rest}}}]"
        ))
    };
    let prompt = letter('x');
    let expected = [
        chunk("", "null", &format!("\"prompt_token_ids\":[{prompt}],\"token_ids\":[134]")),
        chunk("é", "null", "\"token_ids\":[109]"),
        chunk("", STOP, "\"token_ids\":[1]"),
        DONE.to_owned(),
    ];
    assert_eq!(frames(&fake, COMPLETIONS, &body), expected);
}

#[test]
fn a_fingerprint_is_the_same_for_all_requests() {
    let fake = Fake::say("H");
    let of = |path: &str, body: &Value| post(fake.address, path, body).json();
    let first = of(COMPLETIONS, &json!({"prompt": "x"}));
    let second = of(CHAT, &json!({"messages": message(), "model": "sql"}));
    assert_eq!(first["system_fingerprint"], second["system_fingerprint"]);
}
