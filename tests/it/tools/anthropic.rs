//! Tools on `/v1/messages`.

use serde_json::{Value, json};

use super::{Server, TAGGED};
use crate::client::{Answer, post, post_stream};

const PATH: &str = "/v1/messages";
const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"]});
    json!([{"name": "f", "description": "d", "input_schema": schema},
        {"type": "custom", "name": "get_weather", "input_schema": schema, "strict": false,
         "cache_control": {"type": "ephemeral"}}])
}

fn asked(more: Value) -> Value {
    let mut body = json!({"max_tokens": 512, "messages": [{"role": "user", "content": "x"}],
        "tools": tools()});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn history(messages: Value) -> Value {
    json!({"messages": messages})
}

fn tool_use(id: &str, name: &str) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": {"a": 1}})
}

fn tool_result(id: &str, content: Value) -> Value {
    json!({"type": "tool_result", "tool_use_id": id, "content": content})
}

/// The content and why it ends, ids of calls as their places.
fn told(mut message: Value) -> (Value, String) {
    let content = message["content"].as_array_mut().unwrap();
    let calls = content.iter_mut().filter(|block| block["type"] == "tool_use");
    for (i, call) in calls.enumerate() {
        let id = call["id"].as_str().unwrap();
        assert!(id.starts_with("toolu_") && id.len() == 30, "{id}");
        call["id"] = i.into();
    }
    (message["content"].take(), message["stop_reason"].as_str().unwrap().to_owned())
}

fn whole(server: &Server, body: &Value) -> (Value, String) {
    let answer = post(server.fake.address, PATH, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    told(answer.json())
}

/// What a client makes of a stream: blocks come one after another.
fn streamed(server: &Server, body: &Value) -> (Value, String) {
    let mut body = body.clone();
    body["stream"] = true.into();
    let frames = post_stream(server.fake.address, PATH, &body).frames();
    let mut content: Vec<Value> = Vec::new();
    let mut input: Option<String> = None;
    let mut is_open = false;
    let mut reason = Value::Null;
    for frame in frames {
        let event: Value = serde_json::from_str(frame.split_once("data: ").unwrap().1).unwrap();
        let at = event["index"].as_u64().map(|at| at as usize);
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert!(at == Some(content.len()) && !is_open, "{event}");
                is_open = true;
                content.push(event["content_block"].clone());
                input = (event["content_block"]["type"] == "tool_use").then(String::new);
                assert!(input.is_none() || event["content_block"]["input"] == json!({}));
            }
            "content_block_delta" => {
                assert!(at == Some(content.len() - 1) && is_open, "{event}");
                let last = content.last_mut().unwrap();
                match &mut input {
                    Some(input) => *input += event["delta"]["partial_json"].as_str().unwrap(),
                    None => {
                        let more = event["delta"]["text"].as_str().unwrap();
                        last["text"] = (last["text"].as_str().unwrap().to_owned() + more).into();
                    }
                }
            }
            "content_block_stop" => {
                assert!(at == Some(content.len() - 1) && is_open, "{event}");
                is_open = false;
                // Of what was cut a client makes what it can; so does the server.
                if let Some(input) = input.take().and_then(|i| serde_json::from_str(&i).ok()) {
                    content.last_mut().unwrap()["input"] = input;
                }
            }
            "message_delta" => reason = event["delta"]["stop_reason"].clone(),
            _ => {}
        }
    }
    assert!(!is_open);
    told(json!({"content": content, "stop_reason": reason}))
}

fn call(id: usize, name: &str, input: Value) -> Value {
    json!({"type": "tool_use", "id": id, "name": name, "input": input})
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

#[test]
fn calls_are_blocks_of_their_own_whole_and_streamed_alike() {
    let two = format!("I look.\n{CALL} and {}", CALL.replace("\"f\"", "\"g\""));
    let cases = [
        (CALL.to_owned(), json!([call(0, "f", json!({"a": 1}))]), "tool_use"),
        (
            two,
            json!([
                text("I look."),
                call(0, "f", json!({"a": 1})),
                text(" and"),
                call(1, "g", json!({"a": 1}))
            ]),
            "tool_use",
        ),
        ("none".to_owned(), json!([text("none")]), "end_turn"),
    ];
    for (said, content, reason) in cases {
        for by_bytes in [true, false] {
            let server = Server::new(TAGGED, &said, by_bytes);
            let body = asked(json!({}));
            let told = whole(&server, &body);
            assert_eq!(told, (content.clone(), reason.to_owned()), "{said}");
            assert_eq!(told, streamed(&server, &body), "{said}");
        }
    }
}

#[test]
fn of_a_call_that_is_cut_the_values_that_are_whole_are_told() {
    let said = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"x\\\"}\"}], \
                \"c\": 12}}</tool_call>";
    let server = Server::new(TAGGED, said, true);
    let input = |tokens: usize| {
        let (content, reason) = whole(&server, &asked(json!({"max_tokens": tokens})));
        assert_eq!(reason, "max_tokens");
        content[0]["input"].clone()
    };
    // Before its name there is no call yet, and no text either.
    let cut = asked(json!({"max_tokens": 5}));
    assert_eq!(whole(&server, &cut), (json!([]), "max_tokens".to_owned()));
    assert_eq!(streamed(&server, &cut), (json!([]), "max_tokens".to_owned()));
    let place = |part: &str| said.find(part).unwrap();
    assert_eq!(input(place("[1")), json!({}));
    assert_eq!(input(place(" {\"b\"")), json!({"a": [1]}));
    assert_eq!(input(place("\"}], ")), json!({"a": [1, {}]}));
    assert_eq!(input(place("], ") + 1), json!({"a": [1, {"b": "x\"}"}]}));
    // Of a number more digits may have followed.
    assert_eq!(input(place("2}}")), json!({"a": [1, {"b": "x\"}"}]}));
}

/// The prompt of the last request, and whether it is masked.
fn seen(server: &Server) -> (String, bool) {
    let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
    (server.tokenizer.decode(request.prompt(), false), request.terms().guide.is_some())
}

#[test]
fn a_choice_says_what_is_called() {
    let server = Server::new(TAGGED, CALL, true);
    let both = &["\"f\"", "\"get_weather\""][..];
    let cases = [
        (json!(null), both, false, "tool_use"),
        (json!({"type": "auto"}), both, false, "tool_use"),
        (json!({"type": "auto", "disable_parallel_tool_use": true}), both, false, "tool_use"),
        (json!({"type": "any"}), both, true, "tool_use"),
        (json!({"type": "tool", "name": "f"}), both, true, "tool_use"),
        (json!({"type": "none"}), &[], false, "end_turn"),
    ];
    for (choice, shown, is_masked, reason) in cases {
        let told = whole(&server, &asked(json!({"tool_choice": choice})));
        assert_eq!(told.1, reason, "{choice}");
        let (prompt, masked) = seen(&server);
        assert_eq!(masked, is_masked, "{choice}");
        for name in both {
            assert_eq!(prompt.contains(name), shown.contains(name), "{choice}: {prompt}");
        }
    }
    let said = format!("{CALL}\n{CALL}");
    let server = Server::new(TAGGED, &said, true);
    for (is_single, calls) in [(false, 2), (true, 1)] {
        let choice = json!({"type": "auto", "disable_parallel_tool_use": is_single});
        let (content, _) = whole(&server, &asked(json!({"tool_choice": choice})));
        assert_eq!(content.as_array().unwrap().len(), calls);
    }
}

/// Shows all that a message holds.
const TELLING: &str = "{{ tools | tojson if tools }}{% for m in messages %}{{ m.role }}\
    {% if m.tool_call_id %}({{ m.tool_call_id }} {{ m.name }}){% endif %}:{{ m.content or '-' }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \
    \"arguments\": {{ c.function.arguments | tojson }}}{{ c.id }}{% endfor %};{% endfor %}";

#[test]
fn a_history_with_calls_and_results_reaches_the_template() {
    let server = Server::new(TELLING, "x", true);
    let user = |content: Value| json!({"role": "user", "content": content});
    let assistant = |content: Value| json!({"role": "assistant", "content": content});
    let made = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}";
    let mut failed = tool_result("i", json!("no"));
    failed["is_error"] = true.into();
    let mut silent = failed.clone();
    silent.as_object_mut().unwrap().remove("content");
    let one = assistant(json!([tool_use("i", "f")]));
    let cases = [
        (
            json!([user(json!("q")), one, user(json!([tool_result("i", json!("r"))]))]),
            format!("user:q;assistant:-{made}i;tool(i f):r;"),
        ),
        (
            json!([
                user(json!("q")),
                assistant(json!([text("t"), tool_use("i", "f"), tool_use("j", "g")])),
                user(json!([
                    tool_result("j", json!([text("b")])),
                    tool_result("i", json!("a")),
                    text("more")
                ]))
            ]),
            format!(
                "user:q;assistant:t{made}i{}j;tool(i f):a;tool(j g):b;user:more;",
                made.replace("\"f\"", "\"g\"")
            ),
        ),
        // Turns of one role are one.
        (
            json!([
                user(json!("q")),
                assistant(json!("t")),
                one,
                user(json!([tool_result("i", json!(null))])),
                user(json!("u"))
            ]),
            format!("user:q;assistant:t{made}i;tool(i f):-;user:u;"),
        ),
        (
            json!([user(json!("q")), one, user(json!([failed]))]),
            format!("user:q;assistant:-{made}i;tool(i f):Error: no;"),
        ),
        (
            json!([user(json!("q")), one, user(json!([silent]))]),
            format!("user:q;assistant:-{made}i;tool(i f):Error;"),
        ),
    ];
    for (messages, expected) in cases {
        let mut body = asked(history(messages.clone()));
        body.as_object_mut().unwrap().remove("tools");
        let answer = post(server.fake.address, PATH, &body);
        assert_eq!(answer.status, 200, "{messages}: {}", answer.text());
        assert_eq!(seen(&server).0, expected, "{messages}");
    }
}

#[test]
fn tools_are_counted() {
    let server = Server::new(TAGGED, "x", true);
    let count = |body: &Value| {
        let answer = post(server.fake.address, "/v1/messages/count_tokens", body);
        answer.json()["input_tokens"].as_u64().unwrap() as usize
    };
    let body = asked(json!({}));
    whole(&server, &body);
    let prompt = server.fake.seen.lock().unwrap().pop().unwrap().0.prompt().len();
    assert_eq!(count(&body), prompt);
    assert!(count(&asked(json!({"tool_choice": {"type": "none"}}))) < prompt);
}

fn refused(server: &Server, more: Value) -> String {
    let body = asked(more.clone());
    let answer: Answer = post(server.fake.address, PATH, &body);
    assert_eq!(answer.status, 400, "{more}: {}", answer.text());
    let error = answer.json()["error"].clone();
    assert_eq!(error["type"], "invalid_request_error");
    error["message"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_wrong_with_tools_is_said_by_name() {
    let server = Server::new(TAGGED, "x", true);
    let tool = |tool: Value| json!({"tools": [tool]});
    let with = |key: &str, value: Value| {
        let mut tool = tools()[0].clone();
        tool[key] = value;
        json!({"tools": [tool]})
    };
    let choice = |choice: Value| json!({"tool_choice": choice});
    let cases = [
        (tool(json!({"type": "web_search_20250305", "name": "web_search"})), "'web_search_"),
        (tool(json!({"type": "function", "function": {"name": "f"}})), "input_schema"),
        (tool(json!({"name": "f"})), "input_schema"),
        (tool(json!("f")), "tools"),
        (with("type", json!(5)), "type"),
        (with("name", json!(null)), "name"),
        (with("name", json!("a b")), "name"),
        (with("name", json!(5)), "name"),
        (with("description", json!(5)), "description"),
        (with("input_schema", json!([])), "input_schema"),
        (with("input_schema", json!({"type": "string"})), "input_schema"),
        (with("strict", json!("yes")), "strict"),
        (with("input_examples", json!([{"a": 1}])), "input_examples"),
        (with("defer_loading", json!(true)), "defer_loading"),
        (with("more", json!(1)), "more"),
        (json!({"tools": [tools()[0], tools()[0]]}), "twice"),
        (json!({"tools": vec![tools()[0].clone(); 300]}), "at most 128"),
        (json!({"tools": {}}), "tools"),
        (choice(json!("auto")), "tool_choice"),
        (choice(json!({"type": "some"})), "'some'"),
        (choice(json!({"type": "tool"})), "name"),
        (choice(json!({"type": "auto", "name": "f"})), "name"),
        (choice(json!({"type": "tool", "name": "nobody"})), "'nobody'"),
        (choice(json!({"type": "any", "more": 1})), "more"),
        (choice(json!({"type": "any", "disable_parallel_tool_use": 1})), "tool_choice"),
        (json!({"tools": [], "tool_choice": {"type": "any"}}), "tools"),
        (json!({"parallel_tool_calls": false}), "disable_parallel_tool_use"),
    ];
    for (more, expected) in cases {
        let message = refused(&server, more.clone());
        assert!(message.contains("tool") && message.contains(expected), "{more}: {message}");
    }
}

#[test]
fn calls_and_results_that_do_not_belong_together_are_refused() {
    let server = Server::new(TAGGED, "x", true);
    let user = |content: Value| json!({"role": "user", "content": content});
    let made = |id: &str| json!({"role": "assistant", "content": [tool_use(id, "f")]});
    let result = |id: &str| tool_result(id, json!("r"));
    let changed = |mut block: Value, key: &str, value: Value| {
        block[key] = value;
        block
    };
    let after_call = |block: Value| json!([user(json!("q")), made("i"), user(json!([block]))]);
    let as_call = |block: Value| {
        json!([user(json!("q")), {"role": "assistant", "content": [block]},
            user(json!([result("i")]))])
    };
    let image = json!([{"type": "image", "source": {}}]);
    let cases = [
        (json!([user(json!("q")), made("i")]), "no tool_result"),
        (json!([user(json!("q")), made("i"), user(json!("r"))]), "no tool_result"),
        (json!([user(json!([result("i")]))]), "no tool_use"),
        (after_call(result("j")), "'j'"),
        (
            json!([user(json!("q")), made("i"), user(json!([result("i"), result("i")]))]),
            "one tool_result",
        ),
        (
            json!([
                user(json!("q")),
                made("i"),
                user(json!([result("i")])),
                made("i"),
                user(json!([result("i")]))
            ]),
            "given twice",
        ),
        (
            json!([user(json!("q")), made("i"), user(json!([text("t"), result("i")]))]),
            "must come first",
        ),
        (json!([user(json!([tool_use("i", "f")]))]), "assistant"),
        (json!([user(json!("q")), {"role": "assistant", "content": [result("i")]}]), "user"),
        (as_call(changed(tool_use("i", "f"), "input", json!("{}"))), "input"),
        (as_call(changed(tool_use("i", "f"), "input", json!([1]))), "input"),
        (as_call(changed(tool_use("i", "f"), "name", json!(5))), "name"),
        (as_call(changed(tool_use("i", "f"), "id", json!(5))), "id"),
        (as_call(changed(tool_use("i", "f"), "id", json!(""))), "id"),
        (as_call(changed(tool_use("i", "f"), "more", json!(5))), "more"),
        (after_call(changed(result("i"), "content", image)), "'image'"),
        (after_call(changed(result("i"), "content", json!(5))), "content"),
        (after_call(changed(result("i"), "content", json!(["r"]))), "block"),
        (after_call(changed(result("i"), "is_error", json!("yes"))), "is_error"),
        (after_call(changed(result("i"), "tool_use_id", json!(null))), "tool_use_id"),
    ];
    for (messages, expected) in cases {
        let message = refused(&server, history(messages.clone()));
        assert!(
            message.contains("messages") && message.contains(expected),
            "{messages}: {message}"
        );
    }
    let mut deep = json!({});
    (0..64).for_each(|_| deep = json!({"a": deep}));
    let messages = as_call(changed(tool_use("i", "f"), "input", deep));
    assert!(refused(&server, history(messages)).contains("message_depth_max"));
}
