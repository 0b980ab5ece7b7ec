//! What a message holds reaches the template: any keys, the forms of content, and their limits.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tessera::text::{Chat, ChatTemplate, TextFiles};

use crate::client::post;
use crate::fake::Fake;

const CHAT: &str = "/v1/chat/completions";

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, BTreeMap::new(), 512).unwrap()
}

fn chat(messages: Value) -> Chat {
    let messages = messages.as_array().unwrap().iter();
    let messages = messages.map(|m| m.as_object().unwrap().clone()).collect();
    Chat { messages, ..Chat::default() }
}

/// What a client's messages become.
fn shaped(source: &str, messages: Value) -> String {
    let template = template(source);
    let mut chat = chat(messages);
    template.shape(&mut chat).unwrap();
    template.render(&chat).unwrap()
}

/// `AutoTokenizer.apply_chat_template(messages, tokenize=False)` of transformers 5.23.0.
#[test]
fn every_key_of_a_message_reaches_the_template_as_transformers_hands_it() {
    let source = "{% for m in messages %}{{ m | tojson }}{% endfor %}";
    let cases = [
        (
            json!({"role": "user", "content": "a", "name": "Bo"}),
            r#"{"role": "user", "content": "a", "name": "Bo"}"#,
        ),
        (
            json!({"weight": 0, "role": "assistant", "x": {"z": [1.0, true], "a": "é"}}),
            r#"{"weight": 0, "role": "assistant", "x": {"z": [1.0, true], "a": "é"}}"#,
        ),
        (
            json!({"role": "assistant", "content": null, "tool_calls": null, "annotations": []}),
            r#"{"role": "assistant", "annotations": []}"#,
        ),
        (
            json!({"role": "assistant", "reasoning": "r"}),
            r#"{"thinking": "r", "role": "assistant", "reasoning": "r", "reasoning_content": "r"}"#,
        ),
        (
            json!({"role": "assistant", "reasoning_content": "r", "content": "a", "thinking": "t"}),
            r#"{"thinking": "t", "role": "assistant", "reasoning_content": "r", "content": "a"}"#,
        ),
        (
            json!({"role": "assistant", "reasoning": "r", "thinking": null}),
            r#"{"thinking": "r", "role": "assistant", "reasoning": "r", "reasoning_content": "r"}"#,
        ),
    ];
    for (message, expected) in cases {
        assert_eq!(template(source).render(&chat(json!([message]))).unwrap(), expected);
    }
}

#[test]
fn content_has_the_form_that_the_template_reads() {
    let both = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}\
        {% for p in m.content %}{{ p.text }}{% endfor %}{% endif %};{% endfor %}";
    let through_a_macro = "{% macro text(c) %}{% if c is string %}{{ c }}{% else %}\
        {% for p in c %}{{ p['text'] }}{% endfor %}{% endif %}{% endmacro %}\
        {% for m in messages %}{{ text(m.content) }};{% endfor %}";
    let lists = "{% for m in messages %}{% for p in m.content %}{{ p['text'] }}{% endfor %};\
        {% endfor %}";
    let strings = "{% for m in messages %}{{ m.content }};{% endfor %}";
    let first_part = "{% for m in messages %}{% if m.content is string %}{{ m.content }}\
        {% else %}{{ m.content[0].text }}{% endif %};{% endfor %}";
    let by_role = "{% for m in messages %}{% if m.role == 'user' %}{% for p in m.content %}\
        {{ p.text }}{% endfor %}{% else %}{{ m.content.strip() }}{% endif %};{% endfor %}";
    let dumped = "{% for m in messages %}{{ m.content | tojson }};{% endfor %}";
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let cases = [
        ("both", both, "ab;", "x;"),
        ("through a macro", through_a_macro, "ab;", "x;"),
        ("lists", lists, "ab;", "x;"),
        ("strings", strings, "a\nb;", "x;"),
        ("the first part", first_part, "a\nb;", "x;"),
        ("by role", by_role, "ab;", "x;"),
        ("dumped", dumped, "\"a\\nb\";", "\"x\";"),
    ];
    for (name, source, of_parts, of_text) in cases {
        let user = |content: &Value| json!([{"role": "user", "content": content}]);
        assert_eq!(shaped(source, user(&parts)), of_parts, "{name}");
        assert_eq!(shaped(source, user(&"x".into())), of_text, "{name}");
    }
    let turns = json!([{"role": "system", "content": parts}, {"role": "user", "content": "x"},
        {"role": "assistant", "content": parts}]);
    assert_eq!(shaped(by_role, turns), "a\nb;x;a\nb;");
    let empty = json!([{"role": "user", "content": []}]);
    assert_eq!((shaped(strings, empty.clone()), shaped(lists, empty)), (";".into(), ";".into()));
    let cached = json!([{"role": "user",
        "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]}]);
    let keys = "{% for m in messages %}{% for p in m.content %}{{ p.text }}\
        {{ (p.cache_control or {}).type }}{% endfor %}{% endfor %}";
    assert_eq!(shaped(keys, cached), "aephemeral");
}

#[test]
fn of_several_templates_tools_choose() {
    let config = json!({"chat_template": [{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | tojson }}"}]});
    let files = TextFiles {
        tokenizer_config: Some(config.to_string().into_bytes()),
        ..TextFiles::default()
    };
    let template = ChatTemplate::from_files(&files, 512).unwrap().unwrap();
    let mut chat = chat(json!([{"role": "user", "content": "x"}]));
    assert_eq!(template.render(&chat).unwrap(), "plain");
    chat.tools = Some(vec![json!({"a": 1})]);
    assert_eq!(template.render(&chat).unwrap(), "[{\"a\": 1}]");
}

#[test]
fn line_ends_of_a_template_are_plain_and_those_of_a_message_stay() {
    let source = "a\r\n{%- for m in messages %}\r\n<{{ m.role }}>\r{{ m.content }}\r\n{% endfor %}";
    let messages = json!([{"role": "user", "content": "x\r\ny\r"}]);
    assert_eq!(template(source).render(&chat(messages)).unwrap(), "a<user>\nx\r\ny\r\n");
}

#[test]
fn clients_may_send_what_other_servers_take() {
    let fake = Fake::say("x");
    let user = json!({"role": "user", "content": "x"});
    let taken = [
        json!([user, {"role": "assistant", "content": null}, user]),
        json!([user, {"role": "assistant"}, user]),
        json!([user, {"role": "assistant", "content": "x", "refusal": null, "annotations": [],
            "audio": null, "tool_calls": null, "function_call": null}, user]),
        json!([user, {"role": "assistant", "content": null, "tool_calls": []}, user]),
        json!([{"role": "user", "content": "x", "name": "Bo", "weight": 0.5, "meta": {"a": [1]}}]),
        json!([{"role": "user", "content": [{"type": "input_text", "text": "a"}, "b"]},
            {"role": "assistant", "content": [{"type": "output_text", "text": "a"},
                {"type": "refusal", "refusal": "no"}]}, user]),
        json!([{"role": "user", "content": []}]),
    ];
    for messages in taken {
        let answer = post(fake.address, CHAT, &json!({"messages": messages}));
        assert_eq!(answer.status, 200, "{messages}: {}", answer.text());
    }
}

#[test]
fn messages_are_bounded_and_refused_by_name() {
    let fake = Fake::say("x");
    let with = |key: &str, value: Value| json!([{"role": "user", "content": "x", key: value}]);
    let mut deep = json!(1);
    for _ in 0..40 {
        deep = json!([deep]);
    }
    let cases = [
        (with("many", json!(vec![0; 200_000])), "message_values_max"),
        (with("deep", deep), "message_depth_max"),
        (with("content", json!({"text": "x"})), "a string or a list of parts"),
        (with("content", json!([5])), "must be an object"),
        (with("content", json!([{"text": "x"}])), "must have a type"),
        (with("content", json!([{"type": "refusal", "text": "x"}])), "must have a refusal"),
        (with("content", json!([{"type": "input_audio", "input_audio": {}}])), "'input_audio'"),
    ];
    for (messages, expected) in cases {
        let answer = post(fake.address, CHAT, &json!({"messages": messages}));
        assert!(answer.status == 400 && answer.message().contains(expected), "{}", answer.text());
    }
    let twice = br#"{"messages": [{"role": "user", "content": "x", "content": "y"}]}"#;
    let answer = crate::client::send(fake.address, "POST", CHAT, "", twice);
    assert!(answer.status == 400 && answer.message().contains("given twice"), "{}", answer.text());
}
