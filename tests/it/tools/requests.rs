//! What requests say of tools.

use serde_json::{Value, json};
use tessera::http::ToolCallParser;
use tessera::ids::TokenId;
use tessera::text::CallSyntax;

use super::{LISTED, Server, TAGGED, body, weather};
use crate::client::{Answer, post};

const CHAT: &str = "/v1/chat/completions";

fn ask(server: &Server, fields: Value) -> Answer {
    post(server.fake.address, CHAT, &body(fields))
}

/// The prompt of the last request, and what may be drawn first: any of these, if all may not.
fn seen(server: &Server) -> (String, Option<String>) {
    let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
    let prompt = server.tokenizer.decode(request.prompt(), false);
    let mask = request.terms().guide.clone().map(|mut guide| guide.mask().unwrap());
    let allowed = |mask: tessera::request::TokenMask| -> String {
        let ids = (7..512).filter(|&id: &TokenId| mask.allows(id));
        ids.map(|id| server.tokenizer.token_str(id)).filter(|token| token.len() == 1).collect()
    };
    (prompt, mask.map(allowed))
}

#[test]
fn the_template_writes_what_may_be_called_and_a_mask_makes_it_be_called() {
    let server = Server::new(TAGGED, "x", true);
    let named = |name: &str| json!({"type": "function", "function": {"name": name}});
    let allowed = |mode: &str| {
        json!({"type": "allowed_tools",
            "allowed_tools": {"mode": mode, "tools": [named("get_weather")]}})
    };
    let flat = json!({"type": "allowed_tools", "mode": "auto",
        "tools": [{"type": "function", "name": "get_weather"}]});
    // What is asked for, the functions that are shown, and what a mask begins with.
    /// A mask that lets a text begin as it likes.
    const ANY: &str = "any";
    let both = &["\"f\"", "\"get_weather\""][..];
    let cases = [
        (json!(null), both, None),
        (json!("auto"), both, None),
        (json!("none"), &[], None),
        (json!("required"), both, Some("<")),
        (named("f"), both, Some("<")),
        // A mask keeps it to those.
        (allowed("auto"), &both[1..], Some(ANY)),
        (flat, &both[1..], Some(ANY)),
        (allowed("required"), &both[1..], Some("<")),
    ];
    for (choice, shown, first) in cases {
        let answer = ask(&server, json!({"tools": weather(), "tool_choice": choice}));
        assert_eq!(answer.status, 200, "{choice}: {}", answer.text());
        let (prompt, mask) = seen(&server);
        for name in both {
            assert_eq!(prompt.contains(name), shown.contains(name), "{choice}: {prompt}");
        }
        assert!(!prompt.contains("strict"), "{prompt}");
        match first {
            Some(ANY) => assert!(mask.is_some(), "{choice}"),
            first => assert_eq!(mask.as_deref(), first, "{choice}"),
        }
    }
    // A strict function masks a call, and nothing before it.
    let mut strict = weather();
    strict[0]["function"]["strict"] = true.into();
    assert_eq!(ask(&server, json!({"tools": strict})).status, 200);
    let (prompt, mask) = seen(&server);
    assert!(mask.unwrap().contains("<x{") || !prompt.contains("strict"));
    // Functions without parameters have none.
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    assert_eq!(ask(&server, json!({"tools": tools})).status, 200);
    assert!(seen(&server).0.contains("\"properties\": {}"));
}

#[test]
fn a_form_of_an_answer_stands_beside_calls() {
    let server = Server::new(TAGGED, "12", true);
    let form = json!({"type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "integer"}}});
    let answer = ask(&server, json!({"tools": weather(), "response_format": form}));
    assert_eq!(answer.status, 200, "{}", answer.text());
    let mut first: Vec<char> = seen(&server).1.unwrap().chars().collect();
    first.sort_unstable();
    assert_eq!(first.into_iter().collect::<String>(), "-0123456789<");
    let answer = ask(&server, json!({"tools": weather(), "guided_regex": "a"}));
    assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some("guided_regex")));
}

#[test]
fn older_fields_mean_the_same() {
    let server = Server::new(TAGGED, "x", true);
    let functions = json!([{"name": "f", "description": "d"}]);
    for (choice, is_shown, is_masked) in [
        (json!("auto"), true, false),
        (json!("none"), false, false),
        (json!({"name": "f"}), true, true),
    ] {
        let answer = ask(&server, json!({"functions": functions, "function_call": choice}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let (prompt, mask) = seen(&server);
        assert_eq!((prompt.contains("\"f\""), mask.is_some()), (is_shown, is_masked), "{choice}");
    }
}

#[test]
fn what_is_wrong_with_tools_is_said_by_name() {
    let server = Server::new(TAGGED, "x", true);
    let tool = |function: Value| json!({"tools": [{"type": "function", "function": function}]});
    let with = |key: &str, value: Value| {
        let mut fields = tool(json!({"name": "f"}));
        fields[key] = value;
        fields
    };
    let f = json!({"type": "function", "function": {"name": "f"}});
    let bad_schema = json!({"type": "object", "properties": {"a": {"not": {}}}});
    let cases = [
        (json!({"tools": [{"type": "web_search"}]}), "tools", "'web_search'"),
        (json!({"tools": [{"function": {"name": "f"}}]}), "tools", "must have a type"),
        (json!({"tools": [{"type": "function"}]}), "tools", "tools[0] must have a function"),
        (json!({"tools": {}}), "tools", "a list of objects"),
        (json!({"tools": vec![f.clone(); 129]}), "tools", "at most 128"),
        (json!({"tools": [f, f]}), "tools", "given twice"),
        (tool(json!({})), "tools", "a name"),
        (tool(json!({"name": "a b"})), "tools", "a name"),
        (tool(json!({"name": "a".repeat(65)})), "tools", "1 to 64"),
        (tool(json!({"name": "f", "strict": 1})), "tools", "strict"),
        (tool(json!({"name": "f", "description": 1})), "tools", "description"),
        (tool(json!({"name": "f", "parameters": []})), "tools", "parameters"),
        (tool(json!({"name": "f", "parameters": {"type": "array"}})), "tools", "\"object\""),
        (
            tool(json!({"name": "f", "strict": true, "parameters": bad_schema})),
            "tools",
            "the keyword \"not\"",
        ),
        (with("tool_choice", json!("any")), "tool_choice", "'any'"),
        (with("tool_choice", json!(5)), "tool_choice", "got 5"),
        (with("tool_choice", json!({"type": "function"})), "tool_choice", "the name of a function"),
        (with("tool_choice", json!({"type": "custom"})), "tool_choice", "'custom'"),
        (
            with("tool_choice", json!({"type": "function", "function": {"name": "g"}})),
            "tool_choice",
            "'g' is no function of tools",
        ),
        (with("tool_choice", json!({"type": "allowed_tools"})), "tool_choice", "mode"),
        (json!({"tool_choice": "required"}), "tool_choice", "needs functions"),
        (with("functions", json!([{"name": "f"}])), "functions", "older names"),
        (json!({"function_call": {"name": "f"}}), "function_call", "'f' is no function"),
        (with("parallel_tool_calls", json!("x")), "parallel_tool_calls", "boolean"),
    ];
    for (fields, param, expected) in cases {
        let answer = ask(&server, fields.clone());
        let message = answer.message();
        assert_eq!(answer.status, 400, "{fields}");
        assert_eq!(answer.error().0.as_deref(), Some(param), "{fields}: {message}");
        assert!(message.contains(expected), "{fields}: {message}");
    }
    for fields in [
        json!({"tools": [], "tool_choice": "auto", "parallel_tool_calls": true}),
        json!({"tools": null, "tool_choice": "none", "functions": []}),
    ] {
        assert_eq!(ask(&server, fields.clone()).status, 200, "{fields}");
    }
}

#[test]
fn a_template_that_writes_no_tools_refuses_them() {
    let plain = "{% for m in messages %}{{ m.content }}{% endfor %}";
    let server = Server::new(plain, "x", true);
    for choice in ["auto", "required"] {
        let answer = ask(&server, json!({"tools": weather(), "tool_choice": choice}));
        assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some("tools")));
    }
    assert_eq!(ask(&server, json!({"tools": weather(), "tool_choice": "none"})).status, 200);
}

#[test]
fn the_syntax_of_calls_is_found_in_the_template_or_given() {
    let call = |inner: &str| {
        format!(
            "{{{{ tools | tojson if tools }}}}{{% for m in messages %}}{{{{ m.content }}}}\
             {{% for c in m.tool_calls or [] %}}{inner}{{% endfor %}}{{% endfor %}}"
        )
    };
    let name = "{{ c.function.name }}";
    let args = "{{ c.function.arguments | tojson }}";
    let cases = [
        (
            call(&format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {args}}}")),
            CallSyntax::Tagged,
        ),
        (call("<tool_call>{{ c.function | tojson }}</tool_call>"), CallSyntax::Tagged),
        (
            call(&format!("<tool_call>{{\"arguments\": {args}, \"name\": \"{name}\"}}")),
            CallSyntax::Tagged,
        ),
        (
            call(&format!("{{\"name\": \"{name}\", \"parameters\": {args}}}")),
            CallSyntax::Parameters,
        ),
        (call(&format!("{{\"name\": \"{name}\", \"arguments\": {args}}}")), CallSyntax::Json),
        (call("[TOOL_CALLS][{{ c.function | tojson }}]"), CallSyntax::Listed),
        (call(&format!("[TOOL_CALLS]{name}[ARGS]{args}")), CallSyntax::Named),
        (
            call(&format!(
                "[{name}({{% for k, v in c.function.arguments.items() %}}{{{{ k }}}}=\
                 {{{{ v | tojson }}}}{{% endfor %}})]"
            )),
            CallSyntax::Pythonic,
        ),
        (
            call(&format!("<tool_call><function={name}>{args}</function></tool_call>")),
            CallSyntax::Json,
        ),
    ];
    for (source, expected) in cases {
        let template = tessera::text::ChatTemplate::new(&source, [].into(), 512).unwrap();
        assert_eq!(template.call_syntax(), expected, "{source}");
    }
    let text = "[TOOL_CALLS]f[ARGS]{}";
    let calls = |parser: &str| {
        let parser = ToolCallParser::parse(parser).unwrap();
        let server = Server::with(TAGGED, text, false, |app| app.http.tool_call_parser = parser);
        let message =
            ask(&server, json!({"tools": weather()})).json()["choices"][0]["message"].take();
        message["tool_calls"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(["auto", "none", "mistral", "mistral_args"].map(calls), [0, 0, 1, 1]);
    assert!(ToolCallParser::parse("x").unwrap_err().contains("hermes"));
    assert_eq!(Server::new(LISTED, text, false).template.call_syntax(), CallSyntax::Listed);
}
