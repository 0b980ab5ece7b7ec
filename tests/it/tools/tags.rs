//! Calls whose arguments are plain text in tags, and calls between marks of their own.

use serde_json::{Value, json};
use tessera::text::{CallPart, CallReader, CallSyntax, ChatTemplate};

use super::{Case, Server, body};
use crate::client::{post, post_stream};

/// As the templates of these models write calls, and as the models themselves err.
pub const CASES: &[Case] = &[
    (
        CallSyntax::Functions,
        "I look.\n\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n<parameter=b>\n\
         two\n<lines> & \"more\"\n</parameter>\n</function>\n</tool_call>",
        "I look.",
        &[("f", "{\"a\": \"1\", \"b\": \"two\\n<lines> & \\\"more\\\"\"}")],
    ),
    (
        CallSyntax::Functions,
        "<tool_call>\n<function=f>\n</function>\n</tool_call>\n<tool_call>\n<function=other>\n\
         <parameter=x>\n\n</parameter>\n</function>\n</tool_call>\n",
        "",
        &[("f", "{}"), ("other", "{\"x\": \"\"}")],
    ),
    // No outer tag.
    (
        CallSyntax::Functions,
        "So:\n<function=f>\n<parameter=a>1</parameter></function>",
        "So:",
        &[("f", "{\"a\": \"1\"}")],
    ),
    // Ends that are missing.
    (
        CallSyntax::Functions,
        "<tool_call><function=f>\n<parameter=a>\n1\n<parameter=b>\n2\n</function></tool_call>",
        "",
        &[("f", "{\"a\": \"1\", \"b\": \"2\"}")],
    ),
    (
        CallSyntax::Functions,
        "<tool_call><function=f><parameter=a>\n1\n</tool_call>",
        "",
        &[("f", "{\"a\": \"1\"}")],
    ),
    (
        CallSyntax::Functions,
        "<tool_call>\n<function=f>\n<parameter=a>\n1",
        "",
        &[("f", "{\"a\": \"1\"}")],
    ),
    (
        CallSyntax::Functions,
        "<tool_call><function=f><parameter=a>1</parameter>?</function> so",
        "?</function> so",
        &[("f", "{\"a\": \"1\"}")],
    ),
    (
        CallSyntax::Functions,
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        "<tool_call>{\"name\": \"f\"}</tool_call>",
        &[],
    ),
    (CallSyntax::Functions, "a <function=b c>", "a <function=b c>", &[]),
    (
        CallSyntax::Pairs,
        "Well.<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n<arg_key>b</arg_key>\n\
         <arg_value>{\"c\": [true]}</arg_value>\n<arg_key>d</arg_key>\n<arg_value>it's\n\
         </arg_value>\n</tool_call>",
        "Well.",
        &[("f", "{\"a\": 1, \"b\": {\"c\":[true]}, \"d\": \"it's\"}")],
    ),
    (
        CallSyntax::Pairs,
        "<tool_call>f<arg_key>a</arg_key><arg_value>x</arg_value></tool_call><tool_call>\
         get_weather</tool_call>",
        "",
        &[("f", "{\"a\": \"x\"}"), ("get_weather", "{}")],
    ),
    (CallSyntax::Pairs, "<tool_call>f\n</tool_call> so", " so", &[("f", "{}")]),
    (CallSyntax::Pairs, "<tool_call>not one</tool_call>", "<tool_call>not one</tool_call>", &[]),
    (
        CallSyntax::Fenced,
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n\
         {\"a\": \"`}\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>\
         get_weather\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I look.",
        &[("f", "{\"a\": \"`}\"}"), ("get_weather", "{}")],
    ),
    (
        CallSyntax::Sections,
        "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}<｜tool▁call▁end｜>\
         <｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        &[("f", "{\"a\": 1}"), ("g", "{}")],
    ),
    (
        CallSyntax::Piped,
        "Yes.<|tool_call|>[{\"name\": \"f\", \"arguments\": {\"a\": 1}}, {\"arguments\": {}, \
         \"name\": \"g\"}]<|/tool_call|>",
        "Yes.",
        &[("f", "{\"a\": 1}"), ("g", "{}")],
    ),
    (CallSyntax::Piped, "<|tool_call|>no", "<|tool_call|>no", &[]),
    (
        CallSyntax::Functools,
        "functools[{\"name\": \"f\", \"arguments\": {\"a\": 1}}]",
        "",
        &[("f", "{\"a\": 1}")],
    ),
    (CallSyntax::Functools, "functools.reduce(f, [])", "functools.reduce(f, [])", &[]),
    // The outer mark is missing, and the end.
    (
        CallSyntax::Sections,
        "Yes <｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}",
        "Yes",
        &[("f", "{\"a\": 1}")],
    ),
    (
        CallSyntax::Sections,
        "<｜tool▁calls▁begin｜>no<｜tool▁calls▁end｜>",
        "<｜tool▁calls▁begin｜>no<｜tool▁calls▁end｜>",
        &[],
    ),
];

/// A template that writes calls so.
fn template(call: &str) -> String {
    format!(
        "{{{{ tools | tojson if tools }}}}{{% for m in messages %}}{{{{ m.role }}}}:\
         {{{{ m.content or '' }}}}{{% for c in m.tool_calls or [] %}}{call}{{% endfor %}};\
         {{% endfor %}}"
    )
}

const FUNCTIONS: &str = "\n<tool_call>\n<function={{ c.function.name }}>\n\
    {% for k, v in c.function.arguments.items() %}<parameter={{ k }}>\n{{ v }}\n</parameter>\n\
    {% endfor %}</function>\n</tool_call>";
const PAIRS: &str = "\n<tool_call>{{ c.function.name }}\n\
    {% for k, v in c.function.arguments.items() %}<arg_key>{{ k }}</arg_key>\n\
    <arg_value>{{ v }}</arg_value>\n{% endfor %}</tool_call>";
const FENCED: &str = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.type }}<｜tool▁sep｜>\
    {{ c.function.name }}\n```json\n{{ c.function.arguments }}\n```<｜tool▁call▁end｜>\
    <｜tool▁calls▁end｜>";
const SECTIONS: &str = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ c.function.name }}\
    <｜tool▁sep｜>{{ c.function.arguments | tojson }}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";

const PIPED: &str = "<|tool_call|>[{{ c.function | tojson }}]";
const FUNCTOOLS: &str = "functools[{{ c.function | tojson }}]";

#[test]
fn the_syntax_is_found_in_the_template() {
    let cases = [
        (FUNCTIONS, CallSyntax::Functions),
        (PAIRS, CallSyntax::Pairs),
        (FENCED, CallSyntax::Fenced),
        (SECTIONS, CallSyntax::Sections),
        (PIPED, CallSyntax::Piped),
        (FUNCTOOLS, CallSyntax::Functools),
    ];
    for (call, expected) in cases {
        let template = ChatTemplate::new(&template(call), [].into(), 512).unwrap();
        assert_eq!(template.call_syntax(), expected, "{call}");
    }
}

fn tools() -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"},
        "b": {"type": "string"}, "c": {"anyOf": [{"type": "array"}, {"type": "null"}]}}});
    json!([{"type": "function", "function": {"name": "f", "parameters": schema}}])
}

#[test]
fn arguments_have_the_types_of_the_functions_schema_whole_and_streamed() {
    let functions = "<tool_call>\n<function=f>\n<parameter=a>\n5\n</parameter>\n<parameter=b>\n5\n\
        </parameter>\n<parameter=c>\n[1]\n</parameter>\n<parameter=d>\n5\n</parameter>\n\
        </function>\n</tool_call>";
    let pairs = "<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>5</arg_value>\n<arg_key>b</arg_key>\
        \n<arg_value>5</arg_value>\n<arg_key>c</arg_key>\n<arg_value>[1]</arg_value>\n</tool_call>";
    let cases = [
        (FUNCTIONS, functions, "{\"a\": 5, \"b\": \"5\", \"c\": [1], \"d\": \"5\"}"),
        (PAIRS, pairs, "{\"a\": 5, \"b\": \"5\", \"c\": [1]}"),
    ];
    for (call, said, arguments) in cases {
        for by_bytes in [true, false] {
            let server = Server::new(&template(call), said, by_bytes);
            let mut body = body(json!({"tools": tools()}));
            let path = "/v1/chat/completions";
            let choice = post(server.fake.address, path, &body).json()["choices"][0].take();
            assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
            let made = &choice["message"]["tool_calls"][0]["function"];
            assert_eq!(*made, json!({"name": "f", "arguments": arguments}));
            body["stream"] = true.into();
            let chunks = post_stream(server.fake.address, path, &body).chunks();
            let pieces = chunks.iter().filter_map(|chunk| {
                chunk.pointer("/choices/0/delta/tool_calls/0/function/arguments")?.as_str()
            });
            assert_eq!(pieces.collect::<String>(), arguments);
        }
    }
}

#[test]
fn a_forced_call_is_found_whatever_the_template_writes() {
    let tagged = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let fenced = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n\
        {\"a\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let sections = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"a\": 1}\
        <｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let cases = [(FUNCTIONS, tagged), (PAIRS, tagged), (FENCED, fenced), (SECTIONS, sections)];
    for (call, said) in cases {
        let server = Server::new(&template(call), said, true);
        let body = body(json!({"tools": tools(), "tool_choice": "required"}));
        let answer = post(server.fake.address, "/v1/chat/completions", &body);
        let message = &answer.json()["choices"][0]["message"];
        let made = json!({"name": "f", "arguments": "{\"a\": 1}"});
        assert_eq!(message["tool_calls"][0]["function"], made, "{message}");
        assert_eq!(message["content"], Value::Null);
        // What the mask takes is what the reader finds.
        let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
        let mut guide = request.terms().guide.clone().unwrap();
        for token in server.tokenizer.encode(said, false).unwrap() {
            assert!(guide.mask().unwrap().allows(token), "{said}");
            guide.accept(token).unwrap();
        }
    }
}

#[test]
fn wherever_a_golden_text_is_cut_in_two_the_same_calls_are_found() {
    for (syntax, text, ..) in CASES {
        let read = |cuts: &[&str]| {
            let names = ["f".to_owned()].into();
            let mut reader = CallReader::new(*syntax, names, false);
            let mut all = (String::new(), String::new());
            let parts = cuts.iter().map(|cut| reader.push(cut)).collect::<Vec<_>>();
            for read in parts.into_iter().chain([reader.finish(false)]) {
                all.0 += &read.content;
                for part in read.calls {
                    match part {
                        CallPart::Begin(name) => all.1 += &format!("|{name} "),
                        CallPart::Arguments(more) => all.1 += &more,
                    }
                }
            }
            all
        };
        let whole = read(&[text]);
        for (at, _) in text.char_indices() {
            assert_eq!(read(&[&text[..at], &text[at..]]), whole, "{text}");
        }
    }
}
