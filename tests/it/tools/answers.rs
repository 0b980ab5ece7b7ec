//! Calls in answers, whole and streamed.

use serde_json::{Value, json};

use super::{Server, TAGGED, body, weather};
use crate::client::{post, post_stream};

const CHAT: &str = "/v1/chat/completions";
const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

/// A choice without what differs from run to run: ids of calls become their places.
fn normal(mut choice: Value) -> Value {
    let calls = choice.pointer_mut("/message/tool_calls").and_then(Value::as_array_mut);
    for (i, call) in calls.into_iter().flatten().enumerate() {
        let id = call["id"].as_str().unwrap();
        assert!(id.starts_with("call_") && id.len() == 29, "{id}");
        call["id"] = i.into();
    }
    choice
}

/// What a stream's chunks add up to, as a whole answer's choice.
fn joined(chunks: &[Value]) -> Value {
    let mut message = json!({"role": "assistant", "content": "", "refusal": null});
    let mut finish = Value::Null;
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        if let Some(content) = delta["content"].as_str() {
            message["content"] = (message["content"].as_str().unwrap().to_owned() + content).into();
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let index = call["index"].as_u64().unwrap() as usize;
            let calls = &mut message["tool_calls"];
            if calls.is_null() {
                *calls = json!([]);
            }
            let calls = calls.as_array_mut().unwrap();
            match call.get("id") {
                Some(_) => {
                    assert_eq!((calls.len(), &call["function"]["arguments"]), (index, &"".into()));
                    let mut call = call.clone();
                    call.as_object_mut().unwrap().remove("index");
                    calls.push(call);
                }
                None => {
                    assert!(call.get("type").is_none() && call["function"].get("name").is_none());
                    let more = call["function"]["arguments"].as_str().unwrap();
                    assert!(!more.is_empty());
                    let arguments = &mut calls[index]["function"]["arguments"];
                    *arguments = (arguments.as_str().unwrap().to_owned() + more).into();
                }
            }
        }
        if !choice["finish_reason"].is_null() {
            finish = choice["finish_reason"].clone();
        }
    }
    if message["content"] == "" && !message["tool_calls"].is_null() {
        message["content"] = Value::Null;
    }
    json!({"message": message, "finish_reason": finish})
}

fn whole(server: &Server, body: &Value) -> Value {
    let answer = post(server.fake.address, CHAT, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let choice = normal(answer.json()["choices"][0].take());
    json!({"message": choice["message"], "finish_reason": choice["finish_reason"]})
}

fn streamed(server: &Server, body: &Value) -> Value {
    let mut body = body.clone();
    body["stream"] = true.into();
    normal(joined(&post_stream(server.fake.address, CHAT, &body).chunks()))
}

/// The answer, whole and streamed alike, one byte a token and in the tokenizer's tokens.
fn answer(text: &str, body: &Value) -> Value {
    let mut answers = Vec::new();
    for by_bytes in [true, false] {
        let server = Server::new(TAGGED, text, by_bytes);
        answers.extend([whole(&server, body), streamed(&server, body)]);
    }
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{text}: {answers:#?}");
    answers.remove(0)
}

fn call(id: usize, name: &str, arguments: &str) -> Value {
    json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}})
}

#[test]
fn calls_are_told_apart_from_content_whole_and_streamed() {
    let told = answer(CALL, &body(json!({"tools": weather()})));
    let message = json!({"role": "assistant", "content": null, "refusal": null,
        "tool_calls": [call(0, "f", "{\"a\": 1}")]});
    assert_eq!(told, json!({"message": message, "finish_reason": "tool_calls"}));

    let two = format!("I look. \n{CALL}\n{}\n", CALL.replace("\"f\"", "\"g\""));
    let told = answer(&two, &body(json!({"tools": weather(), "tool_choice": "auto"})));
    let message = json!({"role": "assistant", "content": "I look.", "refusal": null,
        "tool_calls": [call(0, "f", "{\"a\": 1}"), call(1, "g", "{\"a\": 1}")]});
    assert_eq!(told, json!({"message": message, "finish_reason": "tool_calls"}));

    // One call only: what would follow is not drawn.
    let fields = json!({"tools": weather(), "parallel_tool_calls": false});
    let told = answer(&two, &body(fields));
    assert_eq!(told["message"]["tool_calls"], json!([call(0, "f", "{\"a\": 1}")]));
    assert_eq!(told["finish_reason"], "tool_calls");

    let plain = "no call: <tool_call>{}</tool_call> <tool";
    let told = answer(plain, &body(json!({"tools": weather()})));
    let message = json!({"role": "assistant", "content": plain, "refusal": null});
    assert_eq!(told, json!({"message": message, "finish_reason": "stop"}));

    // Where nothing may be called nothing is taken out.
    for fields in
        [json!({}), json!({"tools": weather(), "tool_choice": "none"}), json!({"tools": []})]
    {
        let told = answer(CALL, &body(fields));
        let message = json!({"role": "assistant", "content": CALL, "refusal": null});
        assert_eq!(told, json!({"message": message, "finish_reason": "stop"}));
    }
}

#[test]
fn a_call_that_is_cut_by_its_length_leaks_no_mark() {
    for by_bytes in [true, false] {
        let server = Server::new(TAGGED, CALL, by_bytes);
        for tokens in 2..server.tokens - 1 {
            let mut body = body(json!({"tools": weather(), "max_tokens": tokens}));
            let told = whole(&server, &body);
            assert_eq!(told, streamed(&server, &body), "{tokens}");
            let content = told["message"]["content"].as_str().unwrap_or("");
            assert!(content.is_empty(), "{told}");
            assert_eq!(told["finish_reason"], "length");
            body["n"] = 2.into();
            assert_eq!(post(server.fake.address, CHAT, &body).status, 200);
        }
    }
}

#[test]
fn a_choice_by_name_ends_with_stop_and_an_old_one_is_answered_in_its_form() {
    let named = json!({"type": "function", "function": {"name": "f"}});
    let told = answer(CALL, &body(json!({"tools": weather(), "tool_choice": named})));
    assert_eq!(told["finish_reason"], "stop");
    assert_eq!(told["message"]["tool_calls"], json!([call(0, "f", "{\"a\": 1}")]));
    let functions: Vec<Value> =
        weather().as_array().unwrap().iter().map(|tool| tool["function"].clone()).collect();
    let mut body = body(json!({"functions": functions}));
    let server = Server::new(TAGGED, CALL, true);
    let told = whole(&server, &body);
    let message = json!({"role": "assistant", "content": null, "refusal": null,
        "function_call": {"name": "f", "arguments": "{\"a\": 1}"}});
    assert_eq!(told, json!({"message": message, "finish_reason": "function_call"}));
    body["stream"] = true.into();
    let chunks = post_stream(server.fake.address, CHAT, &body).chunks();
    let calls: Vec<&Value> = chunks
        .iter()
        .map(|chunk| &chunk["choices"][0]["delta"]["function_call"])
        .filter(|call| !call.is_null())
        .collect();
    assert_eq!(calls[0], &json!({"name": "f", "arguments": ""}));
    let more = calls[1..].iter().map(|call| call["arguments"].as_str().unwrap());
    assert_eq!(more.collect::<String>(), "{\"a\": 1}");
}

#[test]
fn a_streamed_call_byte_for_byte() {
    let server = Server::new(TAGGED, &format!("Hm\n{CALL}"), true);
    let body = body(json!({"tools": weather(), "stream": true}));
    let frames = post_stream(server.fake.address, CHAT, &body).frames();
    let choices = frames.iter().filter_map(|frame| {
        let (_, rest) = frame.split_once("\"choices\":[")?;
        Some(rest.strip_suffix("]}").unwrap().to_owned())
    });
    let mut choices: Vec<String> = choices.collect();
    let id = choices.iter().find_map(|choice| {
        let at = choice.find("call_")?;
        Some(choice[at..at + 29].to_owned())
    });
    let id = id.unwrap();
    choices.iter_mut().for_each(|choice| *choice = choice.replace(&id, "ID"));
    let delta = |delta: &str| {
        format!("{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":null}}")
    };
    let more = |text: &str| {
        delta(&format!(
            "\"tool_calls\":[{{\"index\":0,\"function\":{{\"arguments\":\"{text}\"}}}}]"
        ))
    };
    let mut expected = vec![
        delta("\"role\":\"assistant\",\"content\":\"\""),
        delta("\"content\":\"H\""),
        delta("\"content\":\"m\""),
        delta(
            "\"tool_calls\":[{\"index\":0,\"id\":\"ID\",\"type\":\"function\",\
             \"function\":{\"name\":\"f\",\"arguments\":\"\"}}]",
        ),
    ];
    expected.extend(["{", "\\\"", "a", "\\\"", ":", " ", "1", "}"].map(more));
    expected.push(
        "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"tool_calls\",\
         \"stop_reason\":null}"
            .to_owned(),
    );
    assert_eq!(choices, expected);
    assert_eq!(frames.last().unwrap(), "data: [DONE]");
}

#[test]
fn logprobs_and_token_ids_of_a_call_are_all_told_once() {
    let server = Server::new(TAGGED, CALL, false);
    let mut body = body(json!({"tools": weather(), "logprobs": true, "return_token_ids": true}));
    let told = post(server.fake.address, CHAT, &body).json();
    let choice = &told["choices"][0];
    assert_eq!(choice["token_ids"].as_array().unwrap().len(), server.tokens);
    assert_eq!(choice["logprobs"]["content"].as_array().unwrap().len(), server.tokens);
    body["stream"] = true.into();
    let chunks = post_stream(server.fake.address, CHAT, &body).chunks();
    let all = |pointer: &str| -> Vec<Value> {
        let lists = chunks.iter().filter_map(|chunk| chunk.pointer(pointer)?.as_array().cloned());
        lists.flatten().collect()
    };
    assert_eq!(Value::from(all("/choices/0/token_ids")), choice["token_ids"]);
    assert_eq!(Value::from(all("/choices/0/logprobs/content")), choice["logprobs"]["content"]);
}

#[test]
fn marks_that_are_special_tokens_are_seen_and_ids_are_as_the_template_wants_them() {
    let text = "Yes.[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}}]";
    let server = Server::new(super::LISTED, text, false);
    assert!(server.special > 0);
    let body = body(json!({"tools": weather()}));
    let told = post(server.fake.address, CHAT, &body).json();
    let message = &told["choices"][0]["message"];
    assert_eq!(message["content"], "Yes.");
    let call = &message["tool_calls"][0];
    assert_eq!(call["function"], json!({"name": "f", "arguments": "{\"a\": 1}"}));
    let id = call["id"].as_str().unwrap();
    assert!(id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
}
