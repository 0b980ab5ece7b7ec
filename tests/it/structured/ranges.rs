//! What a schema excludes is not written: ends of ranges, and objects of too few properties.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera::structured::{CallsForm, Form, Function};
use tessera::text::CallSyntax;

use super::schema;
use super::walk::{Ended, World};
use crate::Rng;

/// Ends of ranges: in one unit, in two and more, on both sides of zero.
const ENDS: &[(f64, f64)] = &[
    (0.0, 0.5),
    (1.0, 1.5),
    (3.0, 3.1),
    (10.0, 10.25),
    (0.0, 0.001),
    (-1.5, -1.0),
    (-0.5, 0.0),
    (-3.1, -3.0),
    (0.0, 1.0),
    (0.0, 2.0),
    (2.5, 3.0),
    (1.05, 1.1),
    (-0.5, 0.5),
    (-1.0, 1.0),
    (-2.0, -1.75),
];
const FRACTIONS: &[&str] = &[
    "", ".0", ".00", ".001", ".0005", ".05", ".07", ".1", ".10", ".25", ".3", ".5", ".50", ".75",
    ".99",
];

/// Numbers in and around a range, each in some spellings.
fn texts(low: f64, high: f64) -> Vec<String> {
    let wholes = low.trunc() as i64 - 1..=high.trunc() as i64 + 1;
    let signed = wholes.flat_map(|whole| match whole {
        0 => vec!["0".to_owned(), "-0".to_owned()],
        other => vec![other.to_string()],
    });
    let all = signed.flat_map(|whole| FRACTIONS.iter().map(move |rest| format!("{whole}{rest}")));
    all.collect()
}

/// Checks that what a form takes is what its schema takes, and tells how many texts it took.
fn check(world: &World, asked: &str, low: f64, high: f64, rng: &mut Rng) -> usize {
    let form = Form::Json { schema: asked.to_owned(), compact: false };
    let validator = jsonschema::validator_for(&serde_json::from_str(asked).unwrap()).unwrap();
    let check = |text: &str, how: &str| {
        let value: Value = serde_json::from_str(text).unwrap();
        assert!(validator.is_valid(&value), "{asked}: {text} is {how}");
    };
    let taken: Vec<String> =
        texts(low, high).into_iter().filter(|text| world.takes(&form, text)).collect();
    taken.iter().for_each(|text| check(text, "taken"));
    for _ in 0..5 {
        let (text, how) = world.write(&mut *world.guide(&form).unwrap(), rng, 60);
        if how != Ended::Cut {
            check(&text, "written");
        }
    }
    taken.len()
}

#[test]
fn an_end_that_a_range_leaves_out_is_not_written() {
    let world = World::new();
    let mut rng = Rng(77);
    for &(low, high) in ENDS {
        for (min, max) in [
            ("exclusiveMinimum", "maximum"),
            ("exclusiveMinimum", "exclusiveMaximum"),
            ("minimum", "exclusiveMaximum"),
            ("minimum", "maximum"),
        ] {
            let asked = json!({"type": "number", min: low, max: high}).to_string();
            assert!(check(&world, &asked, low, high, &mut rng) > 0, "{asked} takes nothing");
        }
    }
    // What is in the range stays in it.
    let asked = json!({"type": "number", "exclusiveMinimum": 3, "maximum": 3.1});
    for text in ["3.1", "3.05", "3.001", "3.00000000001"] {
        assert!(world.takes(&schema(&asked), text), "{text}");
    }
    let asked = json!({"type": "number", "exclusiveMaximum": 0, "minimum": -0.5});
    for text in ["-0.5", "-0.001", "-0.00000000000000000000000001"] {
        assert!(world.takes(&schema(&asked), text), "{text}");
    }
}

/// Ranges in other words, with their ends. The last is of whole numbers, and one still.
const SAID: &[(f64, f64, &str)] = &[
    (0.0, 0.5, r#"{"type":"number","exclusiveMinimum":0.0,"maximum":0.50}"#),
    (0.0, 0.5, r#"{"type":"number","exclusiveMinimum":-0,"maximum":5e-1}"#),
    (1.0, 1.5, r#"{"type":"number","exclusiveMinimum":1e0,"maximum":1.50}"#),
    (1.0, 1.5, r#"{"type":"number","exclusiveMinimum":1.00,"maximum":15e-1}"#),
    (-0.5, 0.0, r#"{"type":"number","minimum":-0.5,"exclusiveMaximum":-0.0}"#),
    (0.0, 0.5, r#"{"type":"number","exclusiveMinimum":0,"minimum":0,"maximum":0.5}"#),
    (0.0, 0.5, r#"{"type":"number","exclusiveMinimum":0,"minimum":0.25,"maximum":0.5}"#),
    (1.0, 1.5, r#"{"type":"number","exclusiveMaximum":1.5,"maximum":1.5,"exclusiveMinimum":1}"#),
    (0.0, 0.5, r#"{"exclusiveMinimum":0,"maximum":0.5,"type":["number","null"]}"#),
    (0.0, 0.5, r#"{"type":"number","exclusiveMinimum":0,"maximum":0.5,"multipleOf":0.25}"#),
    (3.0, 3.1, r#"{"type":"number","exclusiveMinimum":3,"maximum":3.1,"multipleOf":0.05}"#),
    (-1.5, -1.0, r#"{"type":"number","exclusiveMaximum":-1,"minimum":-1.5,"multipleOf":0.5}"#),
    (0.0, 0.5, r#"{"type":"number","allOf":[{"exclusiveMinimum":0},{"maximum":0.5}]}"#),
    (
        3.0,
        3.1,
        r##"{"$defs":{"a":{"exclusiveMinimum":3}},"type":"number","$ref":"#/$defs/a",
        "maximum":3.1}"##,
    ),
    (
        3.0,
        3.1,
        r##"{"default":{"exclusiveMinimum":3,"type":"number","maximum":3.1},"$ref":"#/default"}"##,
    ),
    (
        3.0,
        3.1,
        r#"{"type":"number","exclusiveMinimum":3,"anyOf":[{"maximum":3.1},
        {"exclusiveMaximum":3.05}]}"#,
    ),
    (
        -1.5,
        -1.0,
        r#"{"$schema":"http://json-schema.org/draft-04/schema#","type":"number","minimum":-1.5,
        "maximum":-1,"exclusiveMaximum":true}"#,
    ),
    (
        1.0,
        1.5,
        r#"{"$schema":"http://json-schema.org/draft-04/schema#","type":"number","minimum":1,
        "maximum":1.5,"exclusiveMinimum":true}"#,
    ),
    (
        0.0,
        3.5,
        r#"{"type":"integer","exclusiveMinimum":0,"maximum":3.5,"default":{"maximum":0.5}}"#,
    ),
];

#[test]
fn an_end_is_left_out_however_the_schema_says_it() {
    let world = World::new();
    let mut rng = Rng(78);
    for (low, high, asked) in SAID {
        assert!(check(&world, asked, *low, *high, &mut rng) > 0, "{asked} takes nothing");
    }
    // Named as the words are.
    let named = json!({"type": "object", "required": ["const"], "additionalProperties": false,
        "properties": {"const": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}}});
    assert!(!world.takes(&schema(&named), "{\"const\":0}"));
    assert!(world.takes(&schema(&named), "{\"const\":0.5}"));
    // A value is no schema.
    let value = json!({"const": {"exclusiveMinimum": 0, "maximum": 0.5}});
    assert!(world.takes(&schema(&value), "{\"exclusiveMinimum\":0,\"maximum\":0.5}"));
    let into = json!({"$defs": {"a": value}, "$ref": "#/$defs/a/const"});
    assert!(world.refused(&schema(&into)).contains("points into a const or an enum"));
    let narrow = json!({"type": "number", "exclusiveMinimum": 0, "maximum": 1e-200});
    let refused = world.refused(&schema(&narrow));
    assert!(refused.contains("exclusiveMinimum 0 and a range that ends at 1e-200"), "{refused}");
}

#[test]
fn an_end_that_an_argument_leaves_out_is_not_written_in_a_call() {
    let world = World::new();
    let range = json!({"type": "number", "exclusiveMinimum": 3, "maximum": 3.1});
    let small = json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.1});
    let arguments = json!({"type": "object", "properties": {"x": range, "y": small},
        "required": ["x", "y"], "additionalProperties": false});
    let form = Form::Calls(Arc::new(CallsForm {
        syntax: CallSyntax::Json,
        functions: vec![Function { name: "f".to_owned(), schema: arguments.to_string() }],
        special: Vec::new(),
        is_required: true,
        is_single: true,
        answer: None,
    }));
    let call = |x: &str, y: &str| {
        let text = format!("{{\"name\": \"f\", \"arguments\": {{\"x\":{x},\"y\":{y}}}}}");
        world.takes(&form, &text)
    };
    assert!(call("3.1", "0.1") && call("3.01", "0.001"));
    assert!(!call("3", "0.1") && !call("3.0", "0.1") && !call("3.1", "0") && !call("3.2", "0.1"));
}

#[test]
fn as_many_properties_are_promised_as_keys_are_told_apart() {
    let world = World::new();
    let open = json!({"type": "object", "additionalProperties": {"enum": [2]}});
    let with = |fields: Value| {
        let mut schema = open.clone();
        schema.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        schema
    };
    let refused = [
        (with(json!({"minProperties": 3, "maxProperties": 3})), "at #: minProperties", 1),
        (with(json!({"minProperties": 3, "required": ["a", "a"]})), "at #: minProperties", 2),
        (json!({"items": {"minProperties": 2}}), "at #/items: minProperties", 1),
        (
            json!({"type": ["object", "null"], "additionalProperties": false,
                "patternProperties": {"^a": {"type": "null"}}, "minProperties": 2}),
            "at #: minProperties",
            1,
        ),
    ];
    for (asked, place, most) in refused {
        let why = world.refused(&schema(&asked));
        assert!(why.contains(&format!("{place} may be at most {most} here")), "{asked}: {why}");
    }
    let closed = json!({"type": "object", "additionalProperties": false, "minProperties": 3,
        "properties": {"a": {"const": 2}, "b": {"const": 2}, "c": {"const": 2}},
        "required": ["a", "b", "c"]});
    let takes: [(Value, &[&str], &[&str]); 4] = [
        (with(json!({"minProperties": 1})), &["{\"a\":2}", "{\"a\":2,\"b\":2}"], &["{}"]),
        (
            with(json!({"minProperties": 2, "required": ["a"]})),
            &["{\"a\":2,\"b\":2}"],
            // The second key cannot be the required one.
            &["{\"a\":2}", "{\"a\":2,\"a\":2}"],
        ),
        (closed, &["{\"a\":2,\"b\":2,\"c\":2}"], &["{\"a\":2,\"b\":2}"]),
        (json!({"type": "null", "minProperties": 9}), &["null"], &["{}"]),
    ];
    let mut rng = Rng(79);
    for (asked, takes, not) in takes {
        let form = schema(&asked);
        takes.iter().for_each(|text| assert!(world.takes(&form, text), "{asked}: {text}"));
        not.iter().for_each(|text| assert!(!world.takes(&form, text), "{asked}: {text}"));
        let validator = jsonschema::validator_for(&asked).unwrap();
        for _ in 0..20 {
            let (text, how) = world.write(&mut *world.guide(&form).unwrap(), &mut rng, 60);
            let valid = || validator.is_valid(&serde_json::from_str(&text).unwrap());
            assert!(how == Ended::Cut || valid(), "{asked}: {text}");
        }
    }
}
