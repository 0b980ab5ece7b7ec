//! Thoughts in chats, whole and streamed.

use serde_json::{Value, json};
use tessera::http::ReasoningParser;

use super::{BRACKETS, FREE, OPENS, PLAIN, Server, answer, told};
use crate::client::post;
use crate::fake::Fake;

const THOUGHT: &str = "<think>\nIt is 4: 2 < 3.\n</think>\n\nFour.";

#[test]
fn a_thought_is_told_apart_from_its_answer_whole_and_streamed() {
    let none = json!({});
    let cases = [
        (FREE, THOUGHT, Some("It is 4: 2 < 3."), Some("Four.")),
        (FREE, "Four </think>.", None, Some("Four </think>.")),
        (FREE, "<think>\n\n</think>\n\nFour", None, Some("Four")),
        (FREE, "<think>no end", Some("no end"), None),
        (FREE, "<think>a</think>\n", Some("a"), None),
        (OPENS, "a\n</think>\n\n b", Some("a"), Some("b")),
        (OPENS, "<think>a</think>b <think>", Some("a"), Some("b <think>")),
        (OPENS, "a", Some("a"), None),
        (OPENS, "</think>", None, None),
        (BRACKETS, "[THINK]a[/THINK]b", Some("a"), Some("b")),
        // Marks that the template does not know, but the vocabulary does.
        (PLAIN, "[THINK]a[/THINK]b", Some("a"), Some("b")),
    ];
    for (template, text, thought, content) in cases {
        assert_eq!(answer(template, text, &none), told(thought, content), "{text}");
    }
}

#[test]
fn a_prompt_that_has_ended_the_thought_leaves_content_alone() {
    for fields in [
        json!({"chat_template_kwargs": {"enable_thinking": false}}),
        json!({"reasoning_effort": "none"}),
    ] {
        for text in [THOUGHT, "\n4"] {
            assert_eq!(answer(FREE, text, &fields), told(None, Some(text)));
        }
    }
    // What a user says is not what the template says.
    let fields = json!({"messages": [{"role": "user", "content": "what is <think>"}]});
    assert_eq!(answer(FREE, "a", &fields), told(None, Some("a")));
}

#[test]
fn an_answer_that_goes_on_with_a_message_begins_where_that_ends() {
    let go_on = |content: Value| {
        json!({"messages": [{"role": "user", "content": "x"},
            {"role": "assistant", "content": content}], "continue_final_message": true})
    };
    let cases = [
        ("<think>so", Some("a"), Some("b")),
        ("<think>so</think>b", None, Some("a</think>b")),
        ("so", None, Some("a</think>b")),
    ];
    for (begun, thought, content) in cases {
        let parts = json!([{"type": "text", "text": begun}]);
        for content_of in [begun.into(), parts] {
            let told_of = answer(FREE, "a</think>b", &go_on(content_of));
            assert_eq!(told_of, told(thought, content), "{begun}");
        }
    }
}

#[test]
fn a_thought_that_is_cut_by_its_length_leaks_no_mark() {
    for by_bytes in [true, false] {
        let server = Server::new(FREE, THOUGHT, by_bytes);
        for tokens in 1..server.tokens {
            let fields = json!({"max_tokens": tokens});
            let whole = server.whole(&fields);
            assert_eq!(whole, server.streamed(&fields));
            assert_eq!(whole["finish_reason"], "length");
            let text = |key: &str| whole["message"][key].as_str().unwrap_or("").to_owned();
            assert!("It is 4: 2 < 3.".starts_with(&text("reasoning")), "{whole}");
            // One character may be any text's.
            let content = text("content");
            assert!("Four.".starts_with(&content) || content == "<", "{whole}");
            assert!(!content.is_empty() || whole["message"]["content"].is_null(), "{whole}");
        }
    }
}

#[test]
fn the_tokens_of_a_thought_are_counted_with_its_marks() {
    let count = |template: &str, text: &str, by_bytes: bool| {
        let server = Server::new(template, text, by_bytes);
        let usage = server.whole(&json!({}))["usage"].take();
        assert_eq!(usage, server.streamed(&json!({}))["usage"]);
        let opening = &server.chunks(&json!({"n": 2}))[0];
        assert!(opening["usage"].is_null());
        usage["completion_tokens_details"]["reasoning_tokens"].clone()
    };
    assert_eq!(count(FREE, "<think>abc</think>de", true), "<think>abc</think>".len());
    assert_eq!(count(FREE, "Four", true), 0);
    assert_eq!(count(FREE, "<no", true), 0);
    assert_eq!(count(OPENS, "abc</think>de", true), "abc</think>".len());
    // All but the token that ends the answer, and with it.
    assert_eq!(count(OPENS, "abc</think>", true), "abc</think>".len());
    assert_eq!(count(OPENS, "abc", true), 4);
    assert_eq!(count(BRACKETS, "[THINK][/THINK]a", false), 2);
    let server = Server::new(FREE, "<think>abc</think>de", true);
    let fields = json!({"n": 2});
    let usage = server.ask(&fields)["usage"].take();
    assert_eq!(usage["completion_tokens_details"], json!({"reasoning_tokens": 36}));
    let fields = json!({"stream_options": {"include_usage": true, "continuous_usage_stats": true},
        "stream": true, "messages": [{"role": "user", "content": "x"}]});
    let chunks = crate::client::post_stream(server.fake.address, super::CHAT, &fields).chunks();
    let counts: Vec<u64> = chunks
        .iter()
        .map(|chunk| &chunk["usage"]["completion_tokens_details"]["reasoning_tokens"])
        .map(|count| count.as_u64().unwrap())
        .collect();
    assert!(counts[0] == 0 && counts.is_sorted() && counts.last() == Some(&18), "{counts:?}");
}

#[test]
fn a_thought_that_is_not_asked_for_is_nowhere_in_the_answer() {
    let text = "<think>secret</think>Four";
    let fields = json!({"include_reasoning": false, "logprobs": true, "top_logprobs": 2,
        "return_token_ids": true});
    for template in [FREE, OPENS] {
        let text = if template == OPENS { &text["<think>".len()..] } else { text };
        let server = Server::new(template, text, true);
        let whole = server.ask(&fields);
        let choice = &whole["choices"][0];
        let of_content = "Four".len() + 1;
        let message = json!({"role": "assistant", "content": "Four", "refusal": null,
            "reasoning": null, "reasoning_content": null});
        assert_eq!(choice["message"], message);
        assert_eq!(whole["usage"]["completion_tokens"], text.len() + 1);
        let thought = if template == OPENS { "secret</think>".len() } else { text.len() - 4 };
        let counted = &whole["usage"]["completion_tokens_details"]["reasoning_tokens"];
        assert_eq!(*counted, thought);
        let (ids, logprobs) = (&choice["token_ids"], &choice["logprobs"]["content"]);
        let chunks = server.chunks(&fields);
        let all = |pointer: &str| -> Vec<Value> {
            let lists =
                chunks.iter().filter_map(|chunk| chunk.pointer(pointer)?.as_array().cloned());
            lists.flatten().collect()
        };
        let streamed = all("/choices/0/token_ids");
        let spelled = |ids: &[Value]| -> String {
            ids.iter().map(|id| server.tokenizer.token_str(id.as_u64().unwrap() as u32)).collect()
        };
        assert_eq!(Value::from(streamed.clone()), *ids);
        assert_eq!(Value::from(all("/choices/0/logprobs/content")), *logprobs);
        // Until it is there the mark may be any text.
        let expected = if template == OPENS { of_content } else { of_content + 6 };
        assert_eq!((streamed.len(), logprobs.as_array().unwrap().len()), (expected, expected));
        assert!(!spelled(&streamed).contains("secret"), "{}", spelled(&streamed));
    }
}

#[test]
fn logprobs_and_token_ids_of_a_thought_are_all_told_once() {
    let server = Server::new(FREE, THOUGHT, false);
    let fields = json!({"logprobs": true, "return_token_ids": true});
    let whole = server.ask(&fields)["choices"][0].take();
    assert_eq!(whole["token_ids"].as_array().unwrap().len(), server.tokens);
    let chunks = server.chunks(&fields);
    let all = |pointer: &str| -> Vec<Value> {
        let lists = chunks.iter().filter_map(|chunk| chunk.pointer(pointer)?.as_array().cloned());
        lists.flatten().collect()
    };
    assert_eq!(Value::from(all("/choices/0/token_ids")), whole["token_ids"]);
    assert_eq!(Value::from(all("/choices/0/logprobs/content")), whole["logprobs"]["content"]);
    // A content, even an empty one, says that the thought is over.
    let first = chunks.iter().skip(1).position(|c| c["choices"][0]["delta"]["content"].is_string());
    let last = chunks.iter().rposition(|c| c["choices"][0]["delta"]["reasoning"].is_string());
    assert!(first.unwrap() + 1 > last.unwrap(), "{chunks:#?}");
}

#[test]
fn stop_strings_end_what_is_answered_and_not_what_is_thought() {
    let text = "<think>one\n\ntwo</think>\n\nthree\n\nfour";
    let mut expected = told(Some("one\n\ntwo"), Some("three"));
    expected["stop_reason"] = "\n\n".into();
    assert_eq!(answer(FREE, text, &json!({"stop": ["\n\n"]})), expected);
    expected["message"]["content"] = "three\n\n".into();
    let included = json!({"stop": "\n\n", "include_stop_str_in_output": true});
    assert_eq!(answer(FREE, text, &included), expected);
    // Who names the mark wants the thought alone.
    let mut expected = told(Some("one\n\ntwo"), None);
    expected["stop_reason"] = "</think>".into();
    assert_eq!(answer(FREE, text, &json!({"stop": ["x", "</think>"]})), expected);
    let special = answer(BRACKETS, "[THINK]a[/THINK]b", &json!({"stop": "[/THINK]"}));
    let mut expected = told(Some("a"), None);
    expected["stop_reason"] = "[/THINK]".into();
    assert_eq!(special, expected);
}

#[test]
fn a_call_may_follow_a_thought_and_none_is_in_it() {
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let text = format!("I call {call}\n</think>\n\n{call}");
    let fields = json!({"tools": tools});
    let told = answer(OPENS, &text, &fields);
    let message = &told["message"];
    assert_eq!(message["reasoning"], format!("I call {call}"));
    assert_eq!(message["content"], Value::Null);
    let function = json!({"name": "f", "arguments": "{\"a\": 1}"});
    assert_eq!(message["tool_calls"], json!([{"type": "function", "function": function}]));
    assert_eq!(told["finish_reason"], "tool_calls");
}

#[test]
fn the_parser_is_found_by_the_template_or_given_by_its_name() {
    let message = |template: &str, parser: &str, text: &str| {
        let parser = ReasoningParser::parse(parser).unwrap();
        let change = |app: &mut tessera::http::App| app.http.reasoning_parser = parser;
        let server = Server::with(template, text, true, change);
        let message = server.ask(&json!({}))["choices"][0]["message"].take();
        [message["reasoning_content"].clone(), message["content"].clone()]
    };
    let raw = json!(THOUGHT);
    assert_eq!(message(FREE, "none", THOUGHT), [Value::Null, raw.clone()]);
    assert_eq!(message(FREE, "mistral", THOUGHT), [Value::Null, raw]);
    let apart = [json!("It is 4: 2 < 3."), json!("Four.")];
    assert_eq!(message(FREE, "auto", THOUGHT), apart);
    for name in ["deepseek_r1", "deepseek_v3", "qwen3", "glm45", "step3", "olmo3"] {
        assert_eq!(message(PLAIN, name, THOUGHT), apart, "{name}");
    }
    // Some think before they write a mark, and without one.
    for name in ["deepseek_r1", "qwen3", "minimax_m2", "step3"] {
        assert_eq!(message(PLAIN, name, "a</think>b"), [json!("a"), json!("b")], "{name}");
        assert_eq!(message(PLAIN, name, "a"), [json!("a"), Value::Null], "{name}");
    }
    assert_eq!(message(PLAIN, "seed_oss", "a</seed:think>b"), [json!("a"), json!("b")]);
    for name in ["auto", "deepseek_v3", "mistral", "granite"] {
        assert_eq!(message(PLAIN, name, "a"), [Value::Null, json!("a")], "{name}");
    }
    let granite = "Here's my thought process: a\n\nHere is my response: b";
    assert_eq!(message(PLAIN, "granite", granite), [json!("a"), json!("b")]);
    let refused = ReasoningParser::parse("x").unwrap_err();
    assert!(refused.contains("auto, none") && refused.contains("seed_oss"), "{refused}");
}

#[test]
fn a_name_without_thoughts_has_no_word_of_them() {
    let fake = Fake::say("x<think>y");
    let body = super::body(&json!({}));
    let answer = post(fake.address, super::CHAT, &body);
    let text = answer.text().to_owned();
    assert!(!text.contains("reasoning") && !text.contains("details\":{\"r"), "{text}");
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "x<think>y");
}

#[test]
fn a_history_may_hold_thoughts_whether_or_not_the_template_reads_them() {
    let ask = |template: &str, thought: Value| {
        let server = Server::new(template, "x", true);
        let mut turn = json!({"role": "assistant", "content": "b"});
        turn.as_object_mut().unwrap().extend(thought.as_object().unwrap().clone());
        let user = json!({"role": "user", "content": "a"});
        server.ask(&json!({"messages": [user, turn, user]}));
        let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
        server.tokenizer.decode(request.prompt(), false)
    };
    for thought in [
        json!({"reasoning": "t"}),
        json!({"reasoning_content": "t"}),
        json!({"reasoning": "t", "reasoning_content": "t"}),
    ] {
        assert_eq!(ask(FREE, thought.clone()), "user:a;assistant:tb;user:a;assistant:");
        assert_eq!(ask(PLAIN, thought), "user:a;assistant:b;user:a;");
    }
}

#[test]
fn a_streamed_thought_byte_for_byte() {
    let server = Server::new(OPENS, "a\n</think>\n\nb", true);
    let mut body = super::body(&json!({}));
    body["stream"] = true.into();
    let frames = crate::client::post_stream(server.fake.address, super::CHAT, &body).frames();
    let choices = frames.iter().filter_map(|frame| {
        let (_, rest) = frame.split_once("\"choices\":[")?;
        Some(rest.strip_suffix("]}").unwrap().to_owned())
    });
    let delta = |delta: &str| {
        format!("{{\"index\":0,\"delta\":{{{delta}}},\"logprobs\":null,\"finish_reason\":null}}")
    };
    let expected = [
        delta("\"role\":\"assistant\",\"content\":\"\""),
        delta("\"reasoning\":\"a\",\"reasoning_content\":\"a\""),
        delta("\"content\":\"b\""),
        "{\"index\":0,\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\",\
         \"stop_reason\":null}"
            .to_owned(),
    ];
    assert_eq!(choices.collect::<Vec<_>>(), expected);
}
