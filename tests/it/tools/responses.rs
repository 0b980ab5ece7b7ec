//! Tools on `/v1/responses`.

use serde_json::{Value, json};

use super::{Server, TAGGED};
use crate::client::{post, post_stream};

const PATH: &str = "/v1/responses";
const CALL: &str = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";

fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"]});
    json!([{"type": "function", "name": "f", "description": "d", "parameters": schema,
         "strict": false},
        {"type": "function", "name": "get_weather", "parameters": schema}])
}

fn asked(more: Value) -> Value {
    let mut body = json!({"input": "x", "tools": tools()});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// Items without what differs from run to run.
fn normal(items: &Value) -> Value {
    let mut items = items.clone();
    let mut ids = Vec::new();
    for (i, item) in items.as_array_mut().unwrap().iter_mut().enumerate() {
        let id = item["id"].as_str().unwrap().to_owned();
        let prefix = if item["type"] == "message" { "msg_" } else { "fc_" };
        assert!(id.starts_with(prefix) && id.len() == prefix.len() + 32, "{id}");
        ids.push(id.split_once('_').unwrap().1.to_owned());
        item["id"] = i.into();
        if let Some(id) = item["call_id"].as_str() {
            assert!(id.starts_with("call_") && id.len() == 29, "{id}");
            item["call_id"] = i.into();
        }
    }
    let count = ids.len();
    ids.dedup();
    assert_eq!(ids.len(), count, "ids are unlike");
    items
}

fn whole(server: &Server, body: &Value) -> Value {
    let answer = post(server.fake.address, PATH, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()
}

fn events(server: &Server, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = true.into();
    let frames = post_stream(server.fake.address, PATH, &body).frames();
    let json =
        |frame: &String| serde_json::from_str(frame.split_once("data: ").unwrap().1).unwrap();
    let events: Vec<Value> = frames.iter().map(json).collect();
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i, "{event}");
    }
    events
}

/// The items that a stream's events add up to.
fn added(events: &[Value]) -> Value {
    let mut items: Vec<Value> = Vec::new();
    let mut so_far = String::new();
    for event in events {
        let at = event["output_index"].as_u64().map(|at| at as usize);
        match event["type"].as_str().unwrap() {
            "response.output_item.added" => {
                assert_eq!(at, Some(items.len()));
                assert_eq!(event["item"]["status"], "in_progress");
                let is_call = event["item"]["type"] == "function_call";
                let begin = if is_call { json!("") } else { json!([]) };
                assert_eq!(event["item"][if is_call { "arguments" } else { "content" }], begin);
                items.push(event["item"].clone());
                so_far.clear();
            }
            "response.output_text.delta" | "response.function_call_arguments.delta" => {
                assert_eq!(event["item_id"], items[at.unwrap()]["id"]);
                so_far += event["delta"].as_str().unwrap();
            }
            "response.output_text.done" => assert_eq!(event["text"], so_far.as_str()),
            "response.function_call_arguments.done" => {
                assert_eq!(event["arguments"], so_far.as_str());
                assert_eq!(event["name"], items[at.unwrap()]["name"]);
            }
            "response.output_item.done" => {
                assert_eq!(event["item"]["id"], items[at.unwrap()]["id"]);
                items[at.unwrap()] = event["item"].clone();
            }
            _ => {}
        }
    }
    items.into()
}

fn call(at: usize, status: &str, name: &str, arguments: &str) -> Value {
    json!({"id": at, "type": "function_call", "status": status, "call_id": at, "name": name,
        "arguments": arguments})
}

fn message(at: usize, text: &str) -> Value {
    let part = json!({"type": "output_text", "annotations": [], "logprobs": [], "text": text});
    json!({"id": at, "type": "message", "status": "completed", "role": "assistant",
        "content": [part]})
}

#[test]
fn calls_are_items_of_their_own_whole_and_streamed_alike() {
    let two = format!("I look.\n{CALL} and {}", CALL.replace("\"f\"", "\"g\""));
    let cases = [
        (CALL.to_owned(), json!([call(0, "completed", "f", "{\"a\": 1}")])),
        (
            two,
            json!([
                message(0, "I look."),
                call(1, "completed", "f", "{\"a\": 1}"),
                message(2, " and"),
                call(3, "completed", "g", "{\"a\": 1}")
            ]),
        ),
        ("none".to_owned(), json!([message(0, "none")])),
    ];
    for (said, items) in cases {
        for by_bytes in [true, false] {
            let server = Server::new(TAGGED, &said, by_bytes);
            let answer = whole(&server, &asked(json!({})));
            assert_eq!(normal(&answer["output"]), items, "{said}");
            assert_eq!(answer["status"], "completed");
            let events = events(&server, &asked(json!({})));
            assert_eq!(normal(&added(&events)), items, "{said}");
            let last = events.last().unwrap();
            assert_eq!(last["type"], "response.completed");
            assert_eq!(normal(&last["response"]["output"]), items);
        }
    }
}

#[test]
fn the_events_of_a_call_come_in_their_order() {
    let server = Server::new(TAGGED, CALL, false);
    let events = events(&server, &asked(json!({})));
    let mut kinds: Vec<&str> = events
        .iter()
        .map(|e| e["type"].as_str().unwrap().trim_start_matches("response."))
        .collect();
    kinds.dedup();
    let expected = [
        "created",
        "in_progress",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ];
    assert_eq!(kinds, expected);
}

#[test]
fn a_call_that_is_cut_is_incomplete() {
    let server = Server::new(TAGGED, CALL, true);
    let tokens = CALL.find("1}").unwrap();
    let body = asked(json!({"max_output_tokens": tokens}));
    let answer = whole(&server, &body);
    assert_eq!(answer["status"], "incomplete");
    let items = json!([call(0, "incomplete", "f", "{\"a\": ")]);
    assert_eq!(normal(&answer["output"]), items);
    assert_eq!(normal(&added(&events(&server, &body))), items);
    // Before its name there is no call yet, and no text either.
    let body = asked(json!({"max_output_tokens": 5}));
    assert_eq!(whole(&server, &body)["output"], json!([]));
    assert_eq!(added(&events(&server, &body)), json!([]));
}

#[test]
fn logprobs_are_those_of_the_texts() {
    let server = Server::new(TAGGED, &format!("Hm\n{CALL}"), true);
    let body = asked(json!({"include": ["message.output_text.logprobs"]}));
    let answer = whole(&server, &body);
    let logprobs = &answer["output"][0]["content"][0]["logprobs"];
    let tokens = logprobs.as_array().unwrap().iter().map(|one| one["token"].as_str().unwrap());
    assert!(tokens.collect::<String>().starts_with("Hm"), "{logprobs}");
    assert!(logprobs.as_array().unwrap().len() < server.tokens, "{logprobs}");
    let streamed = added(&events(&server, &body));
    assert_eq!(&streamed[0]["content"][0]["logprobs"], logprobs);
}

/// The prompt of the last request, and whether it is masked.
fn seen(server: &Server) -> (String, bool) {
    let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
    (server.tokenizer.decode(request.prompt(), false), request.terms().guide.is_some())
}

#[test]
fn a_choice_says_what_is_called_and_is_repeated() {
    let server = Server::new(TAGGED, CALL, true);
    let both = &["\"f\"", "\"get_weather\""][..];
    let named = json!({"type": "function", "name": "f"});
    let allowed = |mode: &str| json!({"type": "allowed_tools", "mode": mode, "tools": [named]});
    let cases = [
        (json!(null), both, false, 1),
        (json!("auto"), both, false, 1),
        (json!("required"), both, true, 1),
        (json!("none"), &[], false, 0),
        (named.clone(), both, true, 1),
        (allowed("auto"), &both[..1], true, 1),
        (allowed("required"), &both[..1], true, 1),
    ];
    for (choice, shown, is_masked, calls) in cases {
        let answer = whole(&server, &asked(json!({"tool_choice": choice, "max_tool_calls": 3})));
        let items = answer["output"].as_array().unwrap();
        assert_eq!(
            items.iter().filter(|i| i["type"] == "function_call").count(),
            calls,
            "{choice}"
        );
        let (prompt, masked) = seen(&server);
        assert_eq!(masked, is_masked, "{choice}");
        for name in both {
            assert_eq!(prompt.contains(name), shown.contains(name), "{choice}: {prompt}");
        }
        let repeated = if choice.is_null() { json!("auto") } else { choice };
        assert_eq!((&answer["tool_choice"], &answer["max_tool_calls"]), (&repeated, &json!(3)));
        let mut expected = tools();
        expected[1]["strict"] = false.into();
        expected[1]["description"] = Value::Null;
        assert_eq!(answer["tools"], expected);
    }
    let server = Server::new(TAGGED, &format!("{CALL}\n{CALL}"), true);
    for (parallel, calls) in [(true, 2), (false, 1)] {
        let answer = whole(&server, &asked(json!({"parallel_tool_calls": parallel})));
        assert_eq!(answer["output"].as_array().unwrap().len(), calls);
    }
}

/// Shows all that a message holds.
const TELLING: &str = "{{ tools | tojson if tools }}{% for m in messages %}{{ m.role }}\
    {% if m.tool_call_id %}({{ m.tool_call_id }} {{ m.name }}){% endif %}:{{ m.content or '-' }}\
    {% for c in m.tool_calls or [] %}<tool_call>\n{\"name\": \"{{ c.function.name }}\", \
    \"arguments\": {{ c.function.arguments | tojson }}}{{ c.id }}{% endfor %};{% endfor %}";

fn made(id: &str, name: &str) -> Value {
    json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": name,
        "arguments": "{\"a\": 1}", "status": "completed"})
}

fn output(id: &str, output: Value) -> Value {
    json!({"type": "function_call_output", "call_id": id, "output": output})
}

#[test]
fn a_history_with_calls_and_outputs_reaches_the_template() {
    let server = Server::new(TELLING, "x", true);
    let user = |text: &str| json!({"role": "user", "content": text});
    let said = json!({"type": "message", "role": "assistant", "id": "msg_1", "status": "completed",
        "content": [{"type": "output_text", "text": "t", "annotations": []}]});
    let f = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}";
    let g = f.replace("\"f\"", "\"g\"");
    let parts = json!([{"type": "input_text", "text": "r"}]);
    let cases = [
        (
            json!([user("q"), made("i", "f"), output("i", parts)]),
            format!("user:q;assistant:-{f}i;tool(i f):r;"),
        ),
        (
            json!([
                user("q"),
                said,
                made("i", "f"),
                made("j", "g"),
                output("j", json!("b")),
                output("i", json!("a")),
                user("u")
            ]),
            format!("user:q;assistant:t{f}i{g}j;tool(i f):a;tool(j g):b;user:u;"),
        ),
        (
            json!([user("q"), made("i", "f"), said, output("i", json!(""))]),
            format!("user:q;assistant:t{f}i;tool(i f):-;"),
        ),
        (
            json!([
                user("q"),
                made("i", "f"),
                output("i", json!("a")),
                made("j", "g"),
                output("j", json!("b"))
            ]),
            format!("user:q;assistant:-{f}i;tool(i f):a;assistant:-{g}j;tool(j g):b;"),
        ),
    ];
    for (input, expected) in cases {
        let answer = post(server.fake.address, PATH, &json!({"input": input}));
        assert_eq!(answer.status, 200, "{input}: {}", answer.text());
        assert_eq!(seen(&server).0, expected, "{input}");
    }
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
    let of = |item: Value| json!({"input": [{"role": "user", "content": "q"}, item]});
    let pair = |key: &str, value: Value, end: Value| {
        let mut call = made("i", "f");
        call[key] = value;
        json!({"input": [{"role": "user", "content": "q"}, call, end]})
    };
    let ok = || output("i", json!("r"));
    let image = json!([{"type": "input_image", "image_url": "x"}]);
    let cases = [
        (tool(json!({"type": "web_search"})), "tools", "'web_search'"),
        (tool(json!({"type": "custom", "name": "f"})), "tools", "'custom'"),
        (tool(json!({"type": "mcp", "server_label": "x"})), "tools", "'mcp'"),
        (tool(json!({"name": "f"})), "tools", "type"),
        (tool(json!({"type": "function", "function": {"name": "f"}})), "tools", "beside the type"),
        (tool(json!({"type": "function"})), "tools", "name"),
        (with("name", json!("a b")), "tools", "name"),
        (with("parameters", json!("x")), "tools", "parameters"),
        (with("strict", json!("x")), "tools", "strict"),
        (with("output_schema", json!({"type": "object"})), "tools", "output_schema"),
        (with("defer_loading", json!(true)), "tools", "defer_loading"),
        (json!({"tools": [tools()[0], tools()[0]]}), "tools", "twice"),
        (json!({"tools": 5}), "tools", "list"),
        (choice(json!("any")), "tool_choice", "'any'"),
        (choice(json!({"type": "web_search_preview"})), "tool_choice", "'web_search_preview'"),
        (choice(json!({"type": "function", "name": "nobody"})), "tool_choice", "'nobody'"),
        (json!({"max_tool_calls": 0}), "max_tool_calls", "at least 1"),
        (json!({"max_tool_calls": "x"}), "max_tool_calls", "max_tool_calls"),
        (of(made("i", "f")), "input", "no function_call_output"),
        (of(ok()), "input", "no function_call before it"),
        (pair("arguments", json!("{"), ok()), "input", "JSON"),
        (pair("arguments", json!("[1]"), ok()), "input", "object"),
        (pair("arguments", json!({"a": 1}), ok()), "input", "arguments"),
        (pair("name", json!(5), ok()), "input", "name"),
        (pair("call_id", json!(null), ok()), "input", "call_id"),
        (pair("namespace", json!("n"), ok()), "input", "namespace"),
        (pair("id", json!("fc"), output("i", image)), "input", "'input_image'"),
        (pair("id", json!("fc"), output("i", json!(5))), "input", "string or a list"),
        (json!({"input": [made("i", "f"), made("i", "g"), ok()]}), "input", "two calls"),
        (json!({"input": [made("i", "f"), ok(), ok()]}), "input", "two outputs"),
    ];
    for (more, param, expected) in cases {
        let answer = post(server.fake.address, PATH, &asked(more.clone()));
        let message = answer.message();
        assert_eq!(answer.status, 400, "{more}");
        assert_eq!(answer.error().0.as_deref(), Some(param), "{more}: {message}");
        assert!(message.contains(expected), "{more}: {message}");
    }
}
