//! What an answer ends with, and where its tokens begin, in the cases that are easily one off.

use serde_json::{Value, json};

use crate::client::post;
use crate::fake::{Fake, Script, letter};
use crate::process::Server;

/// The token of the byte 0xF0, with which characters of four bytes begin. Byte-level vocabularies
/// have 94 printable letters of ASCII, 12 and then 82 of Latin-1, the last of them 0xFF.
const BEGIN_OF_FOUR: u32 = 7 + 94 + 12 + (0xF0 - 0xAE);

#[test]
fn a_token_after_a_broken_character_begins_behind_it() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    for (prompt, text, offsets) in [
        (vec![letter('a'), BEGIN_OF_FOUR, letter('b'), letter('c')], "a\u{FFFD}bc", [0, 1, 2, 3]),
        (
            vec![letter('a'), letter('b'), BEGIN_OF_FOUR, BEGIN_OF_FOUR],
            "ab\u{FFFD}\u{FFFD}",
            [0, 1, 2, 3],
        ),
    ] {
        let body = json!({"prompt": [prompt], "echo": true, "logprobs": 0, "max_tokens": 0});
        let answer = post(fake.address, "/v1/completions", &body);
        let choice = &answer.json()["choices"][0];
        assert_eq!(choice["text"], text, "{choice}");
        assert_eq!(choice["logprobs"]["text_offset"], json!(offsets), "{choice}");
    }
}

#[test]
fn a_call_that_is_as_long_as_it_may_be_is_whole_and_one_that_a_stop_string_cuts_is_none() {
    let server = Server::start(&[]);
    let schema = json!({"type": "object", "properties": {"animal": {"enum": ["fox", "owl"]}},
        "required": ["animal"], "additionalProperties": false});
    let tools = json!([{"type": "function", "function": {"name": "answer", "parameters": schema}}]);
    let ask = |more: Value| {
        let mut body = json!({"model": "demo", "temperature": 0, "max_tokens": 200, "tools": tools,
            "tool_choice": "required", "parallel_tool_calls": false,
            "messages": [{"role": "user", "content": "What is a fox?"}]});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let (status, reply) = server.post("/v1/chat/completions", &body);
        assert_eq!(status, 200, "{reply}");
        let choice = &reply["choices"][0];
        let call = &choice["message"]["tool_calls"][0]["function"];
        let arguments = call["arguments"].as_str().unwrap().to_owned();
        let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
        (choice["finish_reason"].as_str().unwrap().to_owned(), arguments, tokens)
    };
    let (finish, arguments, tokens) = ask(json!({}));
    assert_eq!(finish, "tool_calls");
    assert!(serde_json::from_str::<Value>(&arguments).is_ok(), "{arguments}");
    let exact = ask(json!({"max_tokens": tokens}));
    assert_eq!(exact, ("tool_calls".to_owned(), arguments.clone(), tokens));
    let (finish, cut, _) = ask(json!({"max_tokens": tokens - 3}));
    assert!(finish == "length" && cut.len() < arguments.len(), "{finish} {cut}");
    let stop = json!({"stop": ["fo", "ow"], "include_stop_str_in_output": true});
    let (finish, cut, _) = ask(stop);
    assert!(finish == "stop" && cut.len() < arguments.len(), "{finish} {cut}");
}
