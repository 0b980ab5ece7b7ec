//! Templates against what jinja2 renders, set up as transformers sets it up. The expected texts are
//! written by tools/differential.

use std::fs;

use serde_json::{Map, Value, json};
use tessera::text::{Chat, ChatTemplate, TextError};

/// What the templates of tools/differential see as the present: 2026-03-07 09:05:02 UTC.
const NOW_UNIX_S: i64 = 1_772_874_302;

fn template(source: &str, context_tokens_max: u32) -> Result<ChatTemplate, TextError> {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(name, token)| (name.to_owned(), token.to_owned()));
    ChatTemplate::at(source, tokens.into(), context_tokens_max, || NOW_UNIX_S)
}

#[test]
fn small_templates_render_as_jinja2_renders_them() {
    let path = crate::root().join("tests/data/differential/jinja.json");
    let file: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let variables: Map<String, Value> =
        [("v".to_owned(), file["values"].clone())].into_iter().collect();
    let chat = Chat { variables, ..Chat::default() };
    let (mut wrong, mut refused) = (Vec::new(), Vec::new());
    let cases = file["cases"].as_array().unwrap();
    for case in cases {
        let (source, expected) = (case[0].as_str().unwrap(), case[1].as_str());
        let rendered = template(source, 512).and_then(|template| template.render(&chat));
        match (rendered, expected) {
            (Ok(ours), Some(expected)) if ours == expected => {}
            (Err(_), None) => {}
            (Err(error), Some(expected)) => {
                refused.push(format!("{source}\n    {expected:?}, we fail: {error}"));
            }
            (Ok(_), _) if RENDERED_OTHERWISE.contains(&source) => {}
            (Ok(ours), expected) => {
                wrong.push(format!("{source}\n    {expected:?}, we write {ours:?}"));
            }
        }
    }
    println!("{} templates; refused:\n{}", cases.len(), refused.join("\n"));
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(refused.len() <= REFUSED_MAX, "{} refused", refused.len());
}

/// What we refuse though jinja2 renders it; the test prints them.
const REFUSED_MAX: usize = 58;
/// What no published template does, and the template engine does otherwise: mostly what Python
/// refuses.
const RENDERED_OTHERWISE: &[&str] = &[
    "{{ 1 in \"1\" }}",
    "{{ \"a\" < 1 }}",
    "{{ none < 1 }}",
    "{{ [1, \"a\"] | sort }}",
    "{{ v.ll | groupby(\"k\") }}",
    "{{ \"a\".upper is callable }}",
    "{% set ns = namespace(_a=1) %}{{ ns._a }}",
    "{% macro m(a) %}x{% endmacro %}{{ m.name }}{{ m.arguments }}{{ m.catch_varargs }}",
    "{{ self }}",
    "{{ 1.5.real }}",
];

/// Reads what tools/differential/templates.py wrote to the folder of `TESSERA_TEMPLATES`.
#[test]
fn published_templates() {
    let Some(folder) = std::env::var_os("TESSERA_TEMPLATES") else {
        println!("skipped: TESSERA_TEMPLATES names no folder of cases");
        return;
    };
    let (mut equal, mut raised) = (0, 0);
    let (mut wrong, mut refused) = (Vec::new(), Vec::new());
    let (mut seen, mut dropped) = (String::new(), Vec::new());
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    for path in paths.iter().filter(|path| path.extension().is_some_and(|e| e == "jsonl")) {
        for line in fs::read_to_string(path).unwrap().lines() {
            let case: Value = serde_json::from_str(line).unwrap();
            let at = format!("{}: {}", path.file_name().unwrap().display(), case["name"]);
            let source = case["template"].as_str().unwrap();
            if seen != source {
                dropped.extend(drops(source).map(|drop| format!("{at}: {drop}")));
                source.clone_into(&mut seen);
            }
            let rendered =
                template(source, 4096).and_then(|template| template.render(&chat(&case["chat"])));
            match (rendered, case["expected"].as_str()) {
                (Ok(ours), Some(expected)) if ours == expected => equal += 1,
                (Err(_), None) => raised += 1,
                (Err(error), Some(_)) => refused.push(format!("{at}: {error}")),
                (Ok(ours), expected) => wrong.push(difference(&at, &ours, expected)),
            }
        }
    }
    println!("refused:\n{}\nwrong:\n{}", refused.join("\n"), wrong.join("\n"));
    let (refused, wrong) = (refused.len(), wrong.len());
    println!("{equal} equal, {raised} raise in both, {refused} refused, {wrong} wrong");
    assert!(equal > 0 && refused == 0 && wrong == 0);
    assert!(dropped.is_empty(), "texts of messages that do not come out:\n{}", dropped.join("\n"));
}

/// The first message of which a text does not reach the prompt, whatever form a client sends it in.
fn drops(source: &str) -> Option<String> {
    let template = template(source, 4096).ok()?;
    let parts = json!([{"type": "text", "text": "qoneq"}, {"type": "text", "text": "qtwoq"}]);
    for content in [json!("qoneq qtwoq"), parts] {
        let (user, plain) = (json!({"role": "user", "content": content}), json!("x"));
        let turns = [
            json!([user]),
            json!([{"role": "system", "content": content}, {"role": "user", "content": plain}]),
            json!([{"role": "user", "content": plain}, {"role": "assistant", "content": content},
                {"role": "user", "content": plain}]),
        ];
        for messages in turns {
            let mut chat = chat(&json!({"messages": messages}));
            template.shape(&mut chat).unwrap();
            let Ok(text) = template.render(&chat) else { continue };
            let is_dumped = text.contains("'type'") || text.contains("\"type\":");
            if !text.contains("qoneq") || !text.contains("qtwoq") || is_dumped {
                return Some(format!("{messages} becomes {text:?}"));
            }
        }
    }
    None
}

fn chat(json: &Value) -> Chat {
    let list = |key: &str| json[key].as_array().cloned();
    let object = |value: &Value| value.as_object().cloned().unwrap_or_default();
    Chat {
        messages: list("messages").unwrap_or_default().iter().map(object).collect(),
        add_generation_prompt: json["add_generation_prompt"] == true,
        continue_final_message: json["continue_final_message"] == true,
        tools: list("tools"),
        documents: list("documents"),
        variables: object(&json["variables"]),
    }
}

/// Where two texts part.
fn difference(at: &str, ours: &str, expected: Option<&str>) -> String {
    let Some(expected) = expected else { return format!("{at}: jinja2 raises, we write {ours:?}") };
    let same = ours.chars().zip(expected.chars()).take_while(|(a, b)| a == b).count();
    let near = |text: &str| text.chars().skip(same.saturating_sub(30)).take(90).collect::<String>();
    format!("{at}:\n  jinja2 {:?}\n  ours   {:?}", near(expected), near(ours))
}
