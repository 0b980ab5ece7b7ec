//! What a chat request gives the template beside plain messages: calls and results of tools, its
//! own variables, documents, and a last message to continue.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera::text::{Chat, ChatTemplate, ServedText, TextError};

use crate::client::{Answer, post};
use crate::fake::{Fake, Script};

const CHAT: &str = "/v1/chat/completions";

fn chat(messages: Value) -> Chat {
    let messages = messages.as_array().unwrap().iter();
    let messages = messages.map(|m| m.as_object().unwrap().clone()).collect();
    Chat { messages, ..Chat::default() }
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::new(source, BTreeMap::new(), 512).unwrap()
}

fn shaped(source: &str, mut chat: Chat) -> Result<String, TextError> {
    let template = template(source);
    template.shape(&mut chat)?;
    template.render(&chat)
}

/// Writes calls with their arguments as JSON of an object.
const OBJECTS: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}\
    {% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}\
    {% endfor %}{{ m.role }}:{{ m.content }};{% endfor %}";
/// Adds arguments to text, which takes a string.
const TEXTS: &str = "{% for m in messages %}{% for c in m.tool_calls or [] %}\
    {{ c.function.name + c.function.arguments }}{% endfor %}{{ m.role }}:{{ m.content }};\
    {% endfor %}";
/// Writes each argument by itself.
const PIECES: &str = "{% for m in messages %}{% for c in m.tool_calls or [] %}\
    {{ c.function.name }}{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}\
    {% endfor %}{% endfor %}{{ m.role }}:{{ m.content }};{% endfor %}";
const PLAIN: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";

fn call(arguments: Value) -> Value {
    json!({"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function",
        "function": {"name": "f", "arguments": arguments}}]})
}

#[test]
fn arguments_of_calls_have_the_form_that_the_template_reads() {
    let result = json!({"role": "tool", "tool_call_id": "1", "content": "r"});
    let turns = |arguments| chat(json!([call(arguments), result]));
    for arguments in [json!("{\"a\": 1}"), json!({"a": 1})] {
        let objects = shaped(OBJECTS, turns(arguments.clone())).unwrap();
        assert_eq!(objects, "f{\"a\": 1}assistant:;tool:r;");
        let pieces = shaped(PIECES, turns(arguments)).unwrap();
        assert_eq!(pieces, "f<a>1assistant:;tool:r;");
    }
    let texts = shaped(TEXTS, turns(json!("{\"a\":  1}"))).unwrap();
    assert_eq!(texts, "f{\"a\":  1}assistant:;tool:r;");
    assert_eq!(shaped(OBJECTS, turns(json!(""))).unwrap(), "f{}assistant:;tool:r;");
}

#[test]
fn what_a_template_does_not_write_of_tools_is_refused() {
    let refused = |source, chat, expected| match shaped(source, chat) {
        Err(TextError::NotWritten { what }) => assert_eq!(what, expected),
        other => panic!("{other:?}"),
    };
    let tools = |mut chat: Chat| {
        chat.tools = Some(vec![json!({"type": "function", "function": {"name": "f"}})]);
        chat
    };
    let user = json!([{"role": "user", "content": "x"}]);
    let result = json!([{"role": "tool", "content": "r"}]);
    refused(PLAIN, tools(chat(user.clone())), "tools");
    refused(PLAIN, chat(result.clone()), "results of tools");
    refused(PLAIN, chat(json!([call(json!({}))])), "calls of tools");
    refused(TEXTS, tools(chat(user.clone())), "tools");
    let no_results = "{{ tools }}{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}\
        {% endif %}{% endfor %}";
    refused(no_results, chat(result), "results of tools");
    let documents = Chat { documents: Some(vec![json!({"text": "d"})]), ..chat(user.clone()) };
    refused(PLAIN, documents.clone(), "documents");
    let source = "{% for d in documents or [] %}{{ d.text }}{% endfor %}";
    assert_eq!(shaped(source, documents).unwrap(), "d");
    assert!(shaped(OBJECTS, tools(chat(user))).unwrap().contains("\"name\": \"f\""));
}

/// `render_jinja_template(..., continue_final_message=True)` of transformers 5.23.0.
#[test]
fn a_last_message_is_continued_where_transformers_continues_it() {
    let ended = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}";
    let trims = "{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>{% endfor %}";
    let parts = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %};\
        {% endfor %}";
    let user = json!({"role": "user", "content": "a"});
    let cases = [
        (
            ended,
            json!([user, {"role": "assistant", "content": "b c "}]),
            "<|user|>a</s><|assistant|>b c ",
        ),
        (
            trims,
            json!([user, {"role": "assistant", "content": " b c \n"}]),
            "<|user|>a</s><|assistant|>b c",
        ),
        (
            parts,
            json!([{"role": "user", "content": [{"type": "text", "text": "a"},
            {"type": "text", "text": "b "}]}]),
            "ab ",
        ),
    ];
    for (source, messages, expected) in cases {
        let open = Chat { continue_final_message: true, ..chat(messages) };
        assert_eq!(shaped(source, open).unwrap(), expected);
    }
    let hidden = "{% for m in messages %}{{ m.role }}{% endfor %}";
    let open = Chat { continue_final_message: true, ..chat(json!([user])) };
    let error = shaped(hidden, open).unwrap_err();
    assert!(matches!(error, TextError::NotContinued { .. }), "{error}");
}

/// A server whose template is this one.
fn fake(source: &'static str) -> Fake {
    Fake::new(Script::Echo(1), move |app| {
        let ServedText { tokenizer, eos_tokens, defaults, named_tokens, .. } = &*app.model.text;
        let (tokenizer, eos_tokens) = (tokenizer.clone(), eos_tokens.clone());
        let (defaults, named_tokens) = (defaults.clone(), named_tokens.clone());
        let template = Some(Arc::new(template(source)));
        let text = ServedText { tokenizer, template, eos_tokens, defaults, named_tokens };
        app.model.text = Arc::new(text);
    })
}

/// The prompt that a request makes.
fn prompt(fake: &Fake, more: Value) -> Result<String, Answer> {
    let mut body = json!({"messages": [{"role": "user", "content": "u"}]});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let tokens = post(fake.address, "/tokenize", &body);
    if tokens.status != 200 {
        let answer = post(fake.address, CHAT, &body);
        assert_eq!((answer.status, answer.error()), (400, tokens.error()), "{body}");
        return Err(answer);
    }
    let tokens = tokens.json()["tokens"].clone();
    let answer = post(fake.address, CHAT, &body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    let seen = fake.seen.lock().unwrap().last().unwrap().0.prompt().to_vec();
    assert_eq!(json!(seen), tokens, "a request has the tokens that it is told");
    let text = post(fake.address, "/detokenize", &json!({"tokens": tokens}));
    Ok(text.json()["prompt"].as_str().unwrap().to_owned())
}

#[test]
fn a_request_gives_the_template_its_own_variables() {
    let source = "{{ enable_thinking | default('?') }}|{{ reasoning_effort | default('?') }}|\
        {{ (more or {}).a | default('?') }}|{{ messages[-1].content }}{{ add_generation_prompt }}\
        {% for d in documents or [] %}{{ d.text }}{% endfor %}";
    let fake = fake(source);
    let cases = [
        (json!({}), "?|?|?|uTrue"),
        (
            json!({"chat_template_kwargs": {"enable_thinking": false, "more": {"a": [1]}}}),
            "False|?|[1]|uTrue",
        ),
        (json!({"reasoning_effort": "high"}), "True|high|?|uTrue"),
        (json!({"reasoning_effort": "none"}), "False|none|?|uTrue"),
        (
            json!({"reasoning_effort": "low", "chat_template_kwargs": {"reasoning_effort": "x"}}),
            "True|x|?|uTrue",
        ),
        (json!({"documents": [{"text": "d"}]}), "?|?|?|uTrued"),
        (json!({"add_generation_prompt": false}), "?|?|?|uFalse"),
        (json!({"continue_final_message": true}), "?|?|?|u"),
        (json!({"chat_template_kwargs": null, "reasoning_effort": null}), "?|?|?|uTrue"),
    ];
    for (more, expected) in cases {
        let prompt = prompt(&fake, more.clone()).map_err(|answer| answer.text().to_owned());
        assert_eq!(prompt.as_deref(), Ok(expected), "{more}");
    }
    let cases = [
        (json!({"chat_template_kwargs": {"messages": []}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": {"tools": []}}), "chat_template_kwargs"),
        (json!({"chat_template_kwargs": [1]}), "chat_template_kwargs"),
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (json!({"documents": ["x"]}), "documents"),
        (
            json!({"continue_final_message": true, "add_generation_prompt": true}),
            "continue_final_message",
        ),
    ];
    for (more, param) in cases {
        let answer = prompt(&fake, more.clone()).unwrap_err();
        assert_eq!(answer.error().0.as_deref(), Some(param), "{more}");
    }
}

#[test]
fn a_history_with_tools_reaches_the_template() {
    let fake = fake(OBJECTS);
    let user = json!({"role": "user", "content": "u"});
    let of = |messages: Value| prompt(&fake, json!({"messages": messages}));
    let newer = of(json!([user, call(json!("{\"a\": 1}")),
        {"role": "tool", "tool_call_id": "1", "content": [{"type": "text", "text": "r"}]}]));
    let expected = "user:u;f{\"a\": 1}assistant:;tool:r;";
    assert_eq!(newer.map_err(|a| a.text().to_owned()).as_deref(), Ok(expected));
    let older = of(json!([user, {"role": "assistant", "content": "",
        "function_call": {"name": "f", "arguments": "{\"a\": 1}"}},
        {"role": "function", "name": "f", "content": "r"}]));
    assert_eq!(older.map_err(|a| a.text().to_owned()).as_deref(), Ok(expected));
    let broken = [
        json!([user, call(json!("not JSON"))]),
        json!([user, call(json!("[1]"))]),
        json!([user, call(json!(5))]),
        json!([user, {"role": "assistant", "tool_calls": [{"id": "1"}]}]),
        json!([user, {"role": "assistant", "tool_calls": [{"function": {"arguments": "{}"}}]}]),
        json!([user, {"role": "assistant", "tool_calls": {"a": 1}}]),
        json!([{"role": "user", "content": "u", "tool_calls": [{"function": {"name": "f",
            "arguments": "{}"}}]}]),
        json!([{"role": "tool", "content": null}]),
    ];
    for messages in broken {
        let answer = of(messages.clone()).unwrap_err();
        assert_eq!(answer.error(), (Some("messages".into()), "invalid_value".into()), "{messages}");
    }
}
