//! A chat template and a chat for it. The same chat gives the same prompt again, no longer than a
//! prompt may be.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Map, Value, json};
use tessera::text::{Chat, ChatTemplate, TextError, text_bytes_max};

use super::{Target, same, text};
use crate::mutate::joined;
use crate::root;

const CONTEXT_TOKENS_MAX: u32 = 512;
/// The clock of `strftime_now`.
const NOW_UNIX_S: i64 = 1_700_000_000;

fn seeds() -> Vec<Vec<u8>> {
    let chat = json!({
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
            {"role": "assistant", "content": null, "reasoning_content": "so", "tool_calls": [
                {"id": "c1", "type": "function",
                 "function": {"name": "f", "arguments": {"a": 1}}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ],
        "add_generation_prompt": true,
        "tools": [{"type": "function", "function": {"name": "f", "description": "d",
            "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}}}],
        "documents": [{"title": "t", "text": "x"}],
    });
    let mut seeds = Vec::new();
    for model in ["llama", "llama3", "mistral", "qwen3"] {
        let file = root().join("tests/golden").join(model).join("chat_template.jinja");
        let source = fs::read(file).expect("a golden template");
        seeds.push(joined(&[chat.to_string().into_bytes(), source]));
    }
    let file = fs::read(root().join("tests/data/text/templates.json")).expect("templates");
    let cases: Vec<Value> = serde_json::from_slice(&file).expect("templates");
    for case in cases {
        let chat = json!({"messages": case["messages"],
            "add_generation_prompt": case["add_generation_prompt"]});
        let source = case["source"].as_str().expect("a source");
        seeds.push(joined(&[chat.to_string().as_bytes(), source.as_bytes()]));
    }
    seeds
}

/// A chat of an object's fields; one turn where it has none.
fn chat(bytes: &[u8]) -> Chat {
    let fields: Map<String, Value> = serde_json::from_slice(bytes).unwrap_or_default();
    let list = |key: &str| fields.get(key).and_then(Value::as_array).cloned();
    let flag = |key: &str| fields.get(key).and_then(Value::as_bool).unwrap_or(false);
    let messages = list("messages").unwrap_or_default();
    let messages = messages.into_iter().filter_map(|message| match message {
        Value::Object(message) => Some(message),
        _ => None,
    });
    Chat {
        messages: messages.collect(),
        add_generation_prompt: flag("add_generation_prompt"),
        continue_final_message: flag("continue_final_message"),
        tools: list("tools"),
        documents: list("documents"),
        variables: fields.get("variables").and_then(Value::as_object).cloned().unwrap_or_default(),
    }
}

/// What is no answer to anybody.
fn failed(error: &TextError) -> Result<String, String> {
    match error {
        TextError::TemplateLate { .. } => Err("work that no step of the budget stands for".into()),
        other => Ok(other.to_string()),
    }
}

fn check(source: &str, mut chat: Chat) -> Result<String, String> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens: BTreeMap<_, _> = tokens.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    let template = ChatTemplate::at(source, tokens, CONTEXT_TOKENS_MAX, || NOW_UNIX_S);
    let template = match template {
        Ok(template) => template,
        Err(error) => return failed(&error),
    };
    let before = chat.clone();
    if let Err(error) = template.shape(&mut chat) {
        return failed(&error);
    }
    let (mut again, mut twice) = (before, chat.clone());
    let shaped = template.shape(&mut again).and_then(|()| template.shape(&mut twice));
    shaped.map_err(|error| format!("a shaped chat is refused: {error}"))?;
    same(&again, &chat, "a shaped chat")?;
    same(&twice, &chat, "a chat that is shaped twice")?;
    let rendered = template.render(&chat);
    same(&template.render(&chat), &rendered, "a prompt")?;
    match rendered {
        Ok(prompt) if prompt.len() > text_bytes_max(CONTEXT_TOKENS_MAX) => {
            Err(format!("a prompt of {} bytes", prompt.len()))
        }
        Ok(_) => {
            let (calls, thoughts) = (template.call_syntax(), template.thought_syntax());
            Ok(format!("a prompt, {calls:?}, {thoughts:?}"))
        }
        Err(error) => failed(&error),
    }
}

/// A chat, and the source.
pub const TEMPLATE: Target = Target {
    name: "template",
    seeds,
    words: &[
        "{{ ",
        " }}",
        "{% ",
        " %}",
        "{%- ",
        " -%}",
        "{# ",
        " #}",
        "{% if ",
        "{% elif ",
        "{% else %}",
        "{% endif %}",
        "{% for m in messages %}",
        "{% endfor %}",
        "{% set x = ",
        "{% endset %}",
        "{% macro f(a, b=1) %}",
        "{% endmacro %}",
        "{{ f(1) }}",
        "{% call ",
        "{% endcall %}",
        "{% filter upper %}",
        "{% endfilter %}",
        "{% generation %}",
        "{% endgeneration %}",
        "{% raw %}",
        "{% endraw %}",
        "{% include 'x' %}",
        "{% break %}",
        "{% continue %}",
        "loop.index0",
        "loop.last",
        "loop.previtem",
        "loop.cycle(1, 2)",
        "loop(messages)",
        " recursive",
        "namespace(x=1)",
        "ns.x",
        "messages",
        "message.content",
        "message['role']",
        "tools",
        "documents",
        "bos_token",
        "add_generation_prompt",
        "raise_exception('x')",
        "strftime_now('%d %b %Y')",
        "range(1000000000)",
        "range(10)",
        "dict(a=1)",
        "lipsum()",
        "cycler(1)",
        "joiner()",
        " | tojson",
        " | tojson(indent=4)",
        " | trim",
        " | length",
        " | join(',')",
        " | map(attribute='x')",
        " | selectattr('a')",
        " | list",
        " | sort",
        " | indent(99999)",
        " | replace('a', 'bbbb')",
        " | format(1)",
        " | string",
        " | items",
        " | batch(2)",
        " | groupby('role')",
        " | urlencode",
        " | wordwrap",
        " | center(99999)",
        " | int",
        " | float",
        " | round(2)",
        " | default('x', true)",
        ".split('x')",
        ".strip()",
        ".format(1, a=2)",
        ".join(messages)",
        ".replace('', 'x')",
        ".ljust(99999)",
        ".zfill(99999)",
        ".encode()",
        ".items()",
        ".get('x')",
        ".append(1)",
        ".update({})",
        ".__class__",
        "'%s' % x",
        "'%9999d' % 1",
        "'%.9999f' % 1.5",
        " * 1000000",
        " ** 9999",
        " ~ x",
        " is defined",
        " is string",
        " is mapping",
        " not in ",
        "[::-1]",
        "[-1:]",
        "[1:2:0]",
        "x[0]",
        "1 / 0",
        "9223372036854775807 + 1",
        "-",
        "lambda",
        "none",
        "role",
        "content",
        "user",
        "assistant",
        "system",
        "tool",
        "developer",
        "tool_calls",
        "function",
        "arguments",
        "name",
        "text",
        "type",
        "messages",
        "continue_final_message",
        "variables",
        "reasoning_content",
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "CONTINUE_FINAL_MESSAGE_TAG ",
    ],
    start: || {
        Box::new(|parts| {
            let bytes = parts.first().copied().unwrap_or_default();
            check(&text(parts, 1), chat(bytes))
        })
    },
    slice: 60,
    heap_bytes_max: 128 << 20,
};
