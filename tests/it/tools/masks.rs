//! Masks that make a model call.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera::structured::{CallsForm, Form, Function};
use tessera::text::CallSyntax;

use super::take;
use crate::Rng;
use crate::structured::walk::{Ended, World};

fn form(syntax: CallSyntax, change: impl FnOnce(&mut CallsForm)) -> Form {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let none = json!({"type": "object", "additionalProperties": false});
    let function =
        |name: &str, schema: &Value| Function { name: name.to_owned(), schema: schema.to_string() };
    let mut form = CallsForm {
        syntax,
        functions: vec![function("f", &schema), function("get_weather", &none)],
        special: Vec::new(),
        is_required: true,
        is_single: false,
        answer: None,
    };
    change(&mut form);
    Form::Calls(Arc::new(form))
}

const SYNTAXES: [CallSyntax; 9] = [
    CallSyntax::Json,
    CallSyntax::Parameters,
    CallSyntax::Tagged,
    CallSyntax::Listed,
    CallSyntax::Named,
    CallSyntax::Sections,
    CallSyntax::Fenced,
    CallSyntax::Piped,
    CallSyntax::Functools,
];

#[test]
fn whatever_is_drawn_under_a_mask_is_a_call_that_is_found() {
    let world = World::new();
    let mut rng = Rng(3);
    for syntax in SYNTAXES {
        let guide = world.guide(&form(syntax, |_| {})).unwrap();
        let mut calls_most = 0;
        for _ in 0..12 {
            let (text, ended) = world.write(&mut *guide.fork(), &mut rng, 150);
            // Half a character; where marks have such, real tokenizers have them as one token.
            let text = text.trim_end_matches('\u{fffd}');
            let (content, calls) = take(syntax, std::iter::once(text), ended == Ended::Cut);
            let is_bare = matches!(syntax, CallSyntax::Json | CallSyntax::Parameters);
            if ended == Ended::Cut && (is_bare || calls.is_empty()) {
                continue;
            }
            assert!(content.is_empty() && !calls.is_empty(), "{syntax:?}: {text}");
            calls_most = calls_most.max(calls.len());
            let last = if ended == Ended::Cut { calls.len() - 1 } else { calls.len() };
            for (name, arguments) in &calls[..last] {
                let arguments: Value = serde_json::from_str(arguments).unwrap();
                match name.as_str() {
                    "f" => assert!(arguments["a"].is_i64() || arguments["a"].is_number(), "{text}"),
                    "get_weather" => assert_eq!(arguments, json!({}), "{text}"),
                    other => panic!("{other}"),
                }
            }
        }
        assert!(calls_most > 0, "{syntax:?}");
    }
}

#[test]
fn a_form_of_calls_takes_calls_and_nothing_else() {
    let world = World::new();
    let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
    let none = "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {}}\n</tool_call>";
    let two = format!("{call}\n{none}");
    let required = form(CallSyntax::Tagged, |_| {});
    for taken in [call, none, &two] {
        assert!(world.takes(&required, taken), "{taken}");
    }
    let wrong = call.replace("\"f\"", "\"g\"");
    let other = call.replace("\"a\"", "\"b\"");
    for not in ["", "x", "{}", &wrong, &other, &format!("x{call}"), &format!("{call}x")] {
        assert!(!world.takes(&required, not), "{not}");
    }
    let single = form(CallSyntax::Tagged, |form| form.is_single = true);
    assert!(world.takes(&single, call) && !world.takes(&single, &two));
    let auto = form(CallSyntax::Tagged, |form| form.is_required = false);
    let around = format!("Well, <b>.\n{call}\n{none} So.");
    for taken in ["", "any <text>", call, &two, &around] {
        assert!(world.takes(&auto, taken), "{taken}");
    }
    for not in [&wrong, &other, &format!("x{wrong}")] {
        assert!(!world.takes(&auto, not), "{not}");
    }
    let answer = form(CallSyntax::Tagged, |form| {
        form.is_required = false;
        form.answer = Some("{\"type\": \"integer\"}".to_owned());
    });
    assert!(world.takes(&answer, call) && world.takes(&answer, "12"));
    assert!(!world.takes(&answer, "x") && !world.takes(&answer, &wrong));
    let bare = form(CallSyntax::Json, |form| form.is_required = false);
    let call = "{\"name\": \"f\", \"arguments\": {\"a\": 1}}";
    assert!(["", "x {", call].iter().all(|text| world.takes(&bare, text)));
    assert!(!world.takes(&bare, "{\"x\": 1}"));
}

#[test]
fn sections_are_written_as_the_templates_write_them() {
    let world = World::new();
    let section = |call: &str| format!("<｜tool▁call▁begin｜>{call}<｜tool▁call▁end｜>");
    let all = |calls: &str| format!("<｜tool▁calls▁begin｜>{calls}<｜tool▁calls▁end｜>");
    let plain = section("f<｜tool▁sep｜>{\"a\": 1}");
    let fenced = section("function<｜tool▁sep｜>f\n```json\n{\"a\": 1}\n```");
    let cases = [(CallSyntax::Sections, plain, ""), (CallSyntax::Fenced, fenced, "\n")];
    for (syntax, call, between) in cases {
        let required = form(syntax, |_| {});
        assert!(world.takes(&required, &all(&call)), "{call}");
        assert!(world.takes(&required, &all(&format!("{call}{between}{call}"))), "{call}");
        for not in ["x", &call, &all(""), &all(&call.replace("f<", "g<").replace("f\n", "g\n"))] {
            assert!(!world.takes(&required, not), "{not}");
        }
        let single = form(syntax, |form| form.is_single = true);
        assert!(!world.takes(&single, &all(&format!("{call}{between}{call}"))), "{call}");
        let auto = form(syntax, |form| form.is_required = false);
        assert!(world.takes(&auto, &format!("Well.{}", all(&call))), "{call}");
        assert!(world.takes(&auto, "Well, <b>"));
        let wrong = all(&call).replace("\"a\"", "\"b\"");
        assert!(!world.takes(&auto, &wrong), "{wrong}");
    }
}

#[test]
fn a_mark_that_is_a_special_token_is_drawn_as_that_token() {
    let world = World::new();
    for is_required in [true, false] {
        let form = form(CallSyntax::Listed, |form| {
            form.special = vec![("[TOOL_CALLS]", 6)];
            form.is_required = is_required;
        });
        let mut guide = world.guide(&form).unwrap();
        let mask = guide.mask().unwrap();
        assert!(mask.allows(6));
        let letters = (7..512).filter(|&token| mask.allows(token)).count();
        assert_eq!(letters > 0, !is_required);
        guide.accept(6).unwrap();
        let mask = guide.mask().unwrap();
        assert!(mask.allows(crate::fake::letter('[')) && !mask.allows(crate::fake::letter('x')));
    }
}

#[test]
fn what_is_not_supported_of_parameters_is_refused_by_name() {
    let world = World::new();
    let form = form(CallSyntax::Tagged, |form| {
        form.functions[1].schema = r#"{"type": "object", "properties": {"a": {"not": {}}}}"#.into();
    });
    let why = world.refused(&form);
    assert!(why.contains("get_weather") && why.contains("\"not\""), "{why}");
}
