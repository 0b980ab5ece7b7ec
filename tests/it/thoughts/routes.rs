//! Thoughts on the other spellings of a chat.

use serde_json::{Value, json};

use super::{CLOSE, FREE, OPENS, PLAIN, Server};
use crate::client::{post, post_stream};
use crate::fake::letter;

const MESSAGES: &str = "/v1/messages";
const RESPONSES: &str = "/v1/responses";
const THOUGHT: &str = "<think>\nIt is 4.\n</think>\n\nFour.";

fn body(path: &str, fields: &Value) -> Value {
    let mut body = match path {
        MESSAGES => json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 99}),
        _ => json!({"input": "x"}),
    };
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn ask(server: &Server, path: &str, fields: &Value) -> Value {
    let answer = post(server.fake.address, path, &body(path, fields));
    assert_eq!(answer.status, 200, "{fields}: {}", answer.text());
    answer.json()
}

fn events(server: &Server, path: &str, fields: &Value) -> Vec<Value> {
    let mut body = body(path, fields);
    body["stream"] = true.into();
    let frames = post_stream(server.fake.address, path, &body).frames();
    let data = frames.iter().filter_map(|frame| frame.split_once("data: "));
    data.filter_map(|(_, json)| serde_json::from_str(json).ok()).collect()
}

/// The prompt of the last request.
fn prompt(server: &Server) -> String {
    let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
    server.tokenizer.decode(request.prompt(), false)
}

fn thinking(text: &str) -> Value {
    json!({"type": "thinking", "thinking": text, "signature": ""})
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

#[test]
fn a_message_has_a_block_of_thinking_whole_and_streamed() {
    for by_bytes in [true, false] {
        let server = Server::new(FREE, THOUGHT, by_bytes);
        let told = ask(&server, MESSAGES, &json!({}));
        let text = json!({"type": "text", "text": "Four."});
        assert_eq!(told["content"], json!([thinking("It is 4."), text]));
        let thought = told["usage"]["output_tokens_details"]["thinking_tokens"].as_u64().unwrap();
        assert!(thought > 2 && (!by_bytes || thought as usize == server.tokens - 8), "{thought}");
        let events = events(&server, MESSAGES, &json!({}));
        let mut blocks: Vec<Value> = Vec::new();
        for event in &events {
            match event["type"].as_str().unwrap() {
                "content_block_start" => {
                    assert_eq!(event["index"], blocks.len());
                    blocks.push(event["content_block"].clone());
                }
                "content_block_delta" => {
                    let delta = &event["delta"];
                    let key = match delta["type"].as_str().unwrap() {
                        "thinking_delta" => "thinking",
                        _ => "text",
                    };
                    let block = &mut blocks[event["index"].as_u64().unwrap() as usize][key];
                    *block = format!("{}{}", block.as_str().unwrap(), delta[key].as_str().unwrap())
                        .into();
                }
                _ => {}
            }
        }
        assert_eq!(Value::from(blocks), told["content"]);
        let expected = [
            "message_start",
            "content_block_start",
            "ping",
            "content_block_delta",
            "content_block_stop",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop",
        ];
        assert_eq!(kinds(&events), expected);
    }
    // A thought that is cut is all that there is.
    let cut = ask(&Server::new(FREE, "<think>a", true), MESSAGES, &json!({"max_tokens": 8}));
    assert_eq!(cut["content"], json!([thinking("a")]));
    assert_eq!(cut["stop_reason"], "max_tokens");
}

#[test]
fn a_response_has_an_item_of_reasoning_whole_and_streamed() {
    let server = Server::new(FREE, THOUGHT, true);
    let fields = json!({"include": ["message.output_text.logprobs"]});
    let told = ask(&server, RESPONSES, &fields);
    let [item, message] = &told["output"].as_array().unwrap()[..] else { panic!("{told:#}") };
    let content = json!([{"type": "reasoning_text", "text": "It is 4."}]);
    assert_eq!((&item["type"], &item["content"]), (&"reasoning".into(), &content));
    assert_eq!((&item["summary"], &item["status"]), (&json!([]), &"completed".into()));
    assert!(item["id"].as_str().unwrap().starts_with("rs_"));
    assert_eq!(message["content"][0]["text"], "Four.");
    // Of the text and of the end, and of nothing that is thought.
    let logprobs = message["content"][0]["logprobs"].as_array().unwrap();
    assert_eq!(logprobs.len(), "Four.".len() + 1);
    let counted = &told["usage"]["output_tokens_details"]["reasoning_tokens"];
    assert_eq!(*counted, "<think>\nIt is 4.\n</think>".len());
    let events = events(&server, RESPONSES, &fields);
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_text.delta",
        "response.reasoning_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds(&events), expected);
    let deltas = events.iter().filter(|e| e["type"] == "response.reasoning_text.delta");
    let thought: String = deltas.map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(thought, "It is 4.");
    let last = &events.last().unwrap()["response"];
    assert_eq!(last["output"][0]["content"], content);
    assert_eq!(last["output"][1]["content"], message["content"]);
    let cut =
        ask(&Server::new(FREE, "<think>a", true), RESPONSES, &json!({"max_output_tokens": 8}));
    assert_eq!(
        (cut["output"].as_array().unwrap().len(), &cut["status"]),
        (1, &"incomplete".into())
    );
    assert_eq!(cut["output"][0]["status"], "incomplete");
}

#[test]
fn a_form_begins_after_the_thought_on_every_route() {
    let schema = json!({"type": "object", "properties": {}, "additionalProperties": false});
    let format = json!({"type": "json_schema", "name": "a", "schema": schema});
    let of_messages = json!({"output_config": {"format": {"type": "json_schema",
        "schema": schema}}, "thinking": {"type": "enabled", "budget_tokens": 2}});
    let budgeted = json!({"text": {"format": format}, "thinking_token_budget": 2});
    let free = json!({"text": {"format": format}});
    for (path, fields, is_bound) in
        [(MESSAGES, of_messages, true), (RESPONSES, budgeted, true), (RESPONSES, free, false)]
    {
        let server = Server::new(OPENS, "x", true);
        ask(&server, path, &fields);
        let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
        let mut guide = request.terms().guide.clone().unwrap();
        for _ in 0..2 {
            assert!(guide.mask().unwrap().allows(letter('x')), "{path}");
            guide.accept(letter('x')).unwrap();
        }
        let allows_more = guide.mask().unwrap().allows(letter('x'));
        assert_eq!(allows_more, !is_bound, "what is thought has its budget");
        guide.accept(CLOSE).unwrap();
        let mask = guide.mask().unwrap();
        assert!(mask.allows(letter('{')) && !mask.allows(letter('x')), "{path}");
    }
    // A budget has nothing to bound where there are no thoughts.
    let fake = crate::fake::Fake::say("x");
    let refused = |path: &str, fields: Value, field: &str| {
        let answer = post(fake.address, path, &body(path, &fields));
        assert_eq!((answer.status, answer.message().contains(field)), (400, true), "{fields}");
    };
    refused(MESSAGES, json!({"thinking_token_budget": 2}), "thinking_token_budget");
    refused(RESPONSES, json!({"thinking_token_budget": 2}), "--reasoning-parser");
    refused(RESPONSES, json!({"thinking_token_budget": "x"}), "thinking_token_budget");
    refused(MESSAGES, json!({"include_reasoning": false}), "include_reasoning");
    refused(RESPONSES, json!({"include_reasoning": false}), "include_reasoning");
    let fields = json!({"thinking": {"type": "enabled", "budget_tokens": 1024}});
    assert_eq!(post(fake.address, MESSAGES, &body(MESSAGES, &fields)).status, 200);
    for (budget, status) in [(json!(1024.0), 200), (json!(1.5), 400), (json!(-1), 400)] {
        let fields = json!({"thinking": {"type": "enabled", "budget_tokens": budget}});
        let answer = post(fake.address, MESSAGES, &body(MESSAGES, &fields));
        assert_eq!(answer.status, status, "{budget}: {}", answer.text());
    }
}

#[test]
fn thoughts_of_a_history_reach_a_template_that_reads_them() {
    let turn = |content: Value| json!({"role": "assistant", "content": content});
    let user = json!({"role": "user", "content": "a"});
    let text = json!({"type": "text", "text": "b"});
    let redacted = json!({"type": "redacted_thinking", "data": "?"});
    let cases = [
        (json!([thinking("t"), text]), "user:a;assistant:tb;user:a;assistant:"),
        (json!([redacted, thinking("t"), thinking("u"), text]), {
            "user:a;assistant:t\nub;user:a;assistant:"
        }),
        // One that was cut.
        (json!([thinking("t")]), "user:a;assistant:t;user:a;assistant:"),
        (json!([redacted, text]), "user:a;assistant:b;user:a;assistant:"),
    ];
    let server = Server::new(FREE, "x", true);
    for (content, expected) in cases {
        ask(&server, MESSAGES, &json!({"messages": [user, turn(content), user]}));
        assert_eq!(prompt(&server), expected);
    }
    let reasoning = |key: &str, kind: &str| {
        json!({"type": "reasoning", "id": "rs_1", "summary": [], "status": "completed",
            "encrypted_content": null, key: [{"type": kind, "text": "t"}]})
    };
    let unreadable = json!({"type": "reasoning", "id": "rs_1", "summary": [],
        "encrypted_content": "?"});
    let said = json!({"type": "message", "role": "assistant", "content": "b"});
    for (item, expected) in [
        (reasoning("content", "reasoning_text"), "user:a;assistant:tb;user:a;assistant:"),
        (reasoning("summary", "summary_text"), "user:a;assistant:tb;user:a;assistant:"),
        (unreadable, "user:a;assistant:b;user:a;assistant:"),
    ] {
        ask(&server, RESPONSES, &json!({"input": [user, item, said, user]}));
        assert_eq!(prompt(&server), expected);
        // What nothing follows belongs to no turn.
        ask(&server, RESPONSES, &json!({"input": [user, item, user]}));
        assert_eq!(prompt(&server), "user:a;user:a;assistant:");
    }
    // A template that reads none leaves them out.
    let plain = Server::new(PLAIN, "x", true);
    ask(&plain, MESSAGES, &json!({"messages": [user, turn(json!([thinking("t"), text])), user]}));
    assert_eq!(prompt(&plain), "user:a;assistant:b;user:a;");
}

#[test]
fn a_thought_of_a_history_that_is_none_is_refused_by_name() {
    let server = Server::new(FREE, "x", true);
    let history = |role: &str, block: Value| {
        let turn = json!({"role": role, "content": [block, {"type": "text", "text": "b"}]});
        json!({"messages": [{"role": "user", "content": "a"}, turn,
            {"role": "user", "content": "a"}]})
    };
    let mut more = thinking("t");
    more["more"] = 1.into();
    for (path, fields, expected) in [
        (MESSAGES, history("assistant", json!({"type": "thinking"})), "a thinking, a string"),
        (MESSAGES, history("assistant", json!({"type": "redacted_thinking"})), "a data, a string"),
        (MESSAGES, history("user", thinking("t")), "the role assistant"),
        (MESSAGES, history("assistant", more), "more"),
        (
            MESSAGES,
            history("assistant", json!({"type": "thinking", "thinking": "t", "signature": 1})),
            "signature",
        ),
        (RESPONSES, json!({"input": [{"type": "reasoning", "content": 5}]}), "content"),
        (
            RESPONSES,
            json!({"input": [{"type": "reasoning", "content": [{"type": "text", "text": "a"}]}]}),
            "'text'",
        ),
        (RESPONSES, json!({"input": [{"type": "reasoning", "more": 5}]}), "more"),
    ] {
        let answer = post(server.fake.address, path, &body(path, &fields));
        assert_eq!(answer.status, 400, "{fields}");
        assert!(answer.text().contains(expected), "{fields}: {}", answer.text());
    }
}
