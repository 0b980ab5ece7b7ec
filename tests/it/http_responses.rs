//! `/v1/responses`: chats as OpenAI's newer clients spell them.

use serde_json::{Value, json};

use crate::client::{Answer, post, post_stream};
use crate::fake::{Fake, Script};

const PATH: &str = "/v1/responses";

fn asked(more: Value) -> Value {
    let mut body = json!({"model": "org/base", "input": "x"});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

/// Sets the parts that differ from run to run.
fn normal(text: &str) -> String {
    let mut text = text.to_owned();
    for prefix in ["msg_", "resp_"] {
        while let Some((before, after)) = text.split_once(prefix) {
            let (hex, rest) = after.split_at(32);
            assert!(hex.bytes().all(|b| b.is_ascii_hexdigit()), "{text}");
            text = format!("{before}{}{rest}", prefix.replace('_', "-ID"));
        }
    }
    if let Some((before, after)) = text.split_once("\"created_at\":") {
        let rest = after.trim_start_matches(|c: char| c.is_ascii_digit());
        assert!(after.len() - rest.len() == 10, "{text}");
        text = format!("{before}\"created_at\":1{rest}");
    }
    text
}

/// A response as the wire has it.
fn response(status: &str, output: &str, details: &str, usage: &str) -> String {
    format!(
        "{{\"id\":\"resp-ID\",\"object\":\"response\",\"created_at\":1,\"status\":\"{status}\",\
         \"background\":false,\"error\":null,\"incomplete_details\":{details},\
         \"max_tool_calls\":null,\"model\":\"org/base\",\"output\":[{output}],\
         \"previous_response_id\":null,\"store\":false,\"tool_choice\":\"auto\",\"tools\":[],\
         \"truncation\":\"disabled\",\"instructions\":null,\"max_output_tokens\":null,\
         \"metadata\":{{}},\"parallel_tool_calls\":true,\
         \"reasoning\":{{\"effort\":null,\"summary\":null}},\"temperature\":null,\
         \"text\":{{\"format\":{{\"type\":\"text\"}}}},\"top_logprobs\":0,\"top_p\":null,\
         \"user\":null,\"usage\":{usage}}}"
    )
}

fn part(text: &str) -> String {
    format!("{{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":[],\"text\":\"{text}\"}}")
}

fn item(status: &str, content: &str) -> String {
    format!(
        "{{\"id\":\"msg-ID\",\"type\":\"message\",\"status\":\"{status}\",\
         \"role\":\"assistant\",\"content\":[{content}]}}"
    )
}

fn usage(prompt: usize, output: usize) -> String {
    let total = prompt + output;
    format!(
        "{{\"input_tokens\":{prompt},\"input_tokens_details\":{{\"cached_tokens\":2,\
         \"cache_write_tokens\":0}},\"output_tokens\":{output},\
         \"output_tokens_details\":{{\"reasoning_tokens\":0}},\"total_tokens\":{total}}}"
    )
}

#[test]
fn a_whole_response() {
    let fake = Fake::say("Hi");
    let answer = post(fake.address, PATH, &asked(json!({})));
    let prompt = fake.seen.lock().unwrap()[0].0.prompt().len();
    let message = item("completed", &part("Hi"));
    let expected = response("completed", &message, "null", &usage(prompt, 3));
    assert_eq!(normal(answer.text()), expected);
    let chat = json!({"model": "org/base", "messages": [{"role": "user", "content": "x"}]});
    post(fake.address, "/v1/chat/completions", &chat);
    let seen = fake.seen.lock().unwrap();
    assert_eq!(seen[0].0.prompt(), seen[1].0.prompt(), "a text is a user's message");
}

#[test]
fn a_stream_byte_for_byte() {
    let fake = Fake::say("Hi");
    let mut reader = post_stream(fake.address, PATH, &asked(json!({"stream": true})));
    assert_eq!(reader.status, 200);
    let frames: Vec<String> = reader.frames().iter().map(|frame| normal(frame)).collect();
    let prompt = fake.seen.lock().unwrap()[0].0.prompt().len();
    let event = |number: usize, name: &str, rest: &str| {
        format!(
            "event: response.{name}\ndata: {{\"type\":\"response.{name}\",\
             \"sequence_number\":{number},{rest}}}"
        )
    };
    let at = |rest: &str| {
        format!("\"item_id\":\"msg-ID\",\"output_index\":0,\"content_index\":0,{rest}")
    };
    let delta = |text: &str| at(&format!("\"delta\":\"{text}\",\"logprobs\":[]"));
    let begun = format!("\"response\":{}", response("in_progress", "", "null", "null"));
    let message = item("completed", &part("Hi"));
    let whole = response("completed", &message, "null", &usage(prompt, 3));
    let added = format!("\"output_index\":0,\"item\":{}", item("in_progress", ""));
    let expected = [
        event(0, "created", &begun),
        event(1, "in_progress", &begun),
        event(2, "output_item.added", &added),
        event(3, "content_part.added", &at(&format!("\"part\":{}", part("")))),
        event(4, "output_text.delta", &delta("H")),
        event(5, "output_text.delta", &delta("i")),
        event(6, "output_text.done", &at("\"text\":\"Hi\",\"logprobs\":[]")),
        event(7, "content_part.done", &at(&format!("\"part\":{}", part("Hi")))),
        event(8, "output_item.done", &format!("\"output_index\":0,\"item\":{message}")),
        event(9, "completed", &format!("\"response\":{whole}")),
    ];
    assert_eq!(frames, expected);
}

#[test]
fn a_response_that_is_cut_is_incomplete() {
    let fake = Fake::say("Hi");
    let answer = post(fake.address, PATH, &asked(json!({"max_output_tokens": 1}))).json();
    assert_eq!(
        (&answer["status"], &answer["max_output_tokens"]),
        (&json!("incomplete"), &json!(1))
    );
    assert_eq!(answer["incomplete_details"], json!({"reason": "max_output_tokens"}));
    assert_eq!(answer["output"][0]["status"], "incomplete");
    let body = asked(json!({"max_output_tokens": 1, "stream": true}));
    let frames = post_stream(fake.address, PATH, &body).frames();
    assert!(frames.last().unwrap().starts_with("event: response.incomplete\n"), "{frames:?}");
}

#[test]
fn a_stream_that_fails_says_so() {
    let fake = Fake::new(Script::Fail(1), |_| {});
    let frames = post_stream(fake.address, PATH, &asked(json!({"stream": true}))).frames();
    let last = frames.last().unwrap();
    assert!(last.starts_with("event: response.failed\n"), "{last}");
    let error = "\"error\":{\"code\":\"server_error\",\"message\":\"the step failed for a test\"}";
    assert!(last.contains("\"status\":\"failed\"") && last.contains(error), "{last}");
}

#[test]
fn logprobs_are_told_where_they_are_asked_for() {
    let fake = Fake::say("H");
    let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 1});
    let answer = post(fake.address, PATH, &asked(more.clone())).json();
    let entry = |token: &str, logprob: f64, bytes: &[u8]| {
        let one = json!({"token": token, "logprob": logprob, "bytes": bytes});
        let mut whole = one.clone();
        whole["top_logprobs"] = json!([one]);
        whole
    };
    let (first, last) = (entry("H", -0.1, b"H"), entry("</s>", -0.433_333_34, b"</s>"));
    let expected = json!([first, last]);
    assert_eq!(answer["output"][0]["content"][0]["logprobs"], expected);
    assert_eq!(answer["top_logprobs"], 1);
    let mut body = asked(more);
    body["stream"] = true.into();
    let frames = post_stream(fake.address, PATH, &body).frames();
    let json = |frame: &String| {
        serde_json::from_str::<Value>(frame.split_once("data: ").unwrap().1).unwrap()
    };
    let events: Vec<Value> = frames.iter().map(json).collect();
    let of = |kind: &str| {
        let found = events.iter().filter(|event| event["type"] == kind);
        found.map(|event| event["logprobs"].clone()).collect::<Vec<_>>()
    };
    assert_eq!(of("response.output_text.delta"), [json!([first]), json!([last])]);
    assert_eq!(of("response.output_text.done"), [expected]);
}

#[test]
fn items_and_instructions_are_the_chat_that_they_say() {
    let fake = Fake::say("H");
    let cases = [
        (json!({"instructions": "s"}), json!([["system", "s"], ["user", "x"]])),
        (
            json!({"input": [{"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant",
                 "content": [{"type": "output_text", "text": "b", "annotations": []}]},
                {"role": "user", "content": "c"}]}),
            json!([["user", "a"], ["assistant", "b"], ["user", "c"]]),
        ),
    ];
    for (more, turns) in cases {
        let answer = post(fake.address, PATH, &asked(more.clone()));
        assert_eq!(answer.status, 200, "{more}: {}", answer.text());
        let turns = turns.as_array().unwrap().iter();
        let turns: Vec<Value> =
            turns.map(|turn| json!({"role": turn[0], "content": turn[1]})).collect();
        let chat = post(fake.address, "/v1/chat/completions", &json!({"messages": turns}));
        assert_eq!(chat.status, 200);
        let seen = fake.seen.lock().unwrap();
        let [.., (one, _), (other, _)] = &seen[..] else { panic!("two requests") };
        assert_eq!(one.prompt(), other.prompt(), "{more}");
    }
}

#[test]
fn an_answer_repeats_what_was_asked() {
    let fake = Fake::say("5");
    let format = json!({"type": "json_schema", "name": "n", "schema": {"type": "integer"},
        "strict": true});
    let more = json!({"metadata": {"k": "v"}, "user": "u", "temperature": 0.1, "top_p": 0.7,
        "store": true, "truncation": "auto", "parallel_tool_calls": false,
        "text": {"format": format,
        "verbosity": "low"}, "reasoning": {"effort": "low"}, "instructions": "s",
        "include": ["reasoning.encrypted_content"], "previous_response_id": null, "tools": [],
        "tool_choice": "auto", "background": false});
    let answer = post(fake.address, PATH, &asked(more));
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(fake.seen.lock().unwrap()[0].0.terms().guide.is_some());
    let json = answer.json();
    let expected = [
        ("metadata", json!({"k": "v"})),
        ("user", json!("u")),
        ("temperature", json!(0.1)),
        ("top_p", json!(0.7)),
        ("store", json!(false)),
        ("truncation", json!("disabled")),
        ("parallel_tool_calls", json!(false)),
        ("text", json!({"format": format})),
        ("reasoning", json!({"effort": "low", "summary": null})),
        ("instructions", json!("s")),
    ];
    for (key, value) in expected {
        assert_eq!(json[key], value, "{key}");
    }
}

#[test]
fn what_is_wrong_or_not_built_is_refused_by_name() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let item = |item: Value| json!({"input": [item]});
    let format = |format: Value| json!({"text": {"format": format}});
    let cases = [
        (json!({"input": null}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 5}), "input"),
        (item(json!({"type": "function_call", "name": "f"})), "input"),
        (item(json!({"type": "reasoning"})), "input"),
        (item(json!({"type": "item_reference", "id": "1"})), "input"),
        (item(json!({"role": "tool", "content": "x"})), "input"),
        (item(json!({"role": "user", "content": [{"type": "input_image"}]})), "input"),
        (item(json!({"role": "user", "content": "x", "name": "n"})), "input"),
        (item(json!({"role": "user", "content": "x".repeat(600)})), "input"),
        (json!({"previous_response_id": "resp_1"}), "previous_response_id"),
        (json!({"conversation": "c"}), "conversation"),
        (json!({"background": true}), "background"),
        (json!({"prompt": {"id": "p"}}), "prompt"),
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"max_tokens": 5}), "max_tokens"),
        (json!({"max_output_tokens": 513}), "max_output_tokens"),
        (json!({"messages": [{"role": "user", "content": "x"}]}), "messages"),
        (json!({"truncation": "some"}), "truncation"),
        (json!({"include": ["web_search_call.results"]}), "include"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"top_logprobs": 21, "include": ["message.output_text.logprobs"]}), "top_logprobs"),
        (json!({"reasoning": {"effort": "much"}}), "reasoning.effort"),
        (json!({"reasoning": {"summary": "detailed"}}), "reasoning"),
        (json!({"reasoning": ["low"]}), "reasoning"),
        (json!({"text": {"more": 1}}), "text"),
        (format(json!({"type": "xml"})), "text.format"),
        (format(json!({"type": "text", "name": "n"})), "text.format"),
        (format(json!({"type": "json_schema", "schema": {}})), "text.format"),
        (format(json!({"type": "json_schema", "name": "n"})), "text.format"),
        (format(json!({"type": "json_schema", "name": "n", "schema": {"not": {}}})), "text.format"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"n": 2}), "n"),
        (json!({"temperature": 3}), "temperature"),
    ];
    for (more, param) in cases {
        let answer: Answer = post(fake.address, PATH, &asked(more.clone()));
        assert_eq!(answer.status, 400, "{more}: {}", answer.text());
        assert_eq!(answer.error().0.as_deref(), Some(param), "{more}: {}", answer.text());
    }
    assert_eq!(fake.seen.lock().unwrap().len(), 0);
}
