//! Structured output: what is written is of the form that was asked for, what is not supported is
//! refused by name, and nobody else notices.

pub mod engine;
mod http;
mod ranges;
mod schemas;
pub mod walk;

use serde_json::{Value, json};
use tessera::request::TokenMask;
use tessera::structured::{Form, limits};

use crate::Rng;
use walk::{END, Ended, VOCABULARY, World};

/// A grammar that refers to itself.
const SUMS: &str = r#"
# sums
root  ::= sum
sum   ::= term (ws [-+] ws term)*   # to the left
term  ::= digit+ | "(" ws sum ws ")"
digit ::= [0-9]
ws    ::= " "?
"#;

pub fn schema(schema: &Value) -> Form {
    Form::Json { schema: schema.to_string(), compact: false }
}

#[test]
fn a_form_takes_what_it_says_and_nothing_else() {
    let world = World::new();
    let regex = |text: &str| Form::Regex(text.to_owned());
    let grammar = |text: &str| Form::Grammar(text.to_owned());
    let choice = |all: &[&str]| Form::Choice(all.iter().map(|&c| c.to_owned()).collect());
    let point = json!({"type": "object", "properties": {"x": {"type": "integer"}},
        "required": ["x"], "additionalProperties": false});
    let pets = json!({"$defs": {
            "cat": {"type": "object", "properties": {"k": {"const": "cat"}}, "required": ["k"],
                "additionalProperties": false},
            "dog": {"type": "object", "properties": {"k": {"const": "dog"}}, "required": ["k"],
                "additionalProperties": false}},
        "discriminator": {"propertyName": "k"},
        "oneOf": [{"$ref": "#/$defs/cat"}, {"$ref": "#/$defs/dog"}]});
    let cases: &[(Form, &[&str], &[&str])] = &[
        (
            Form::json_object(false),
            &["{}", "{\"a\": [1,\n    null]}"],
            &["[]", "{   }", "{\n\n}", "1", "{", " {}", "{} "],
        ),
        (Form::json_object(true), &["{\"a\":[1,null]}"], &["{\"a\": 1}"]),
        (schema(&json!(true)), &["null", "[\n1\n]"], &["nul", "[1"]),
        (schema(&point), &["{\"x\":-1}", "{ \"x\" : 12 }"], &["{}", "{\"x\":1.5}", "{\"y\":1}"]),
        (schema(&pets), &["{\"k\":\"cat\"}", "{\"k\":\"dog\"}"], &["{\"k\":\"cow\"}"]),
        (schema(&json!({"const": "a\"\u{e9}"})), &["\"a\\\"\u{e9}\""], &["\"a\""]),
        (
            schema(&json!({"type": "string", "format": "date"})),
            &["\"2024-02-29\"", "\"2000-02-29\"", "\"1999-12-31\"", "\"2023-10-09\""],
            &["\"2023-02-29\"", "\"1900-02-29\"", "\"2023-04-31\""],
        ),
        (
            schema(&json!({"format": "date-time", "allOf": [{"type": "string"}]})),
            &["\"2024-02-29T23:59:59Z\"", "\"2024-03-01t00:00:00.5+01:00\""],
            &["\"2023-02-29T23:59:59Z\"", "\"2024-03-01T00:00:60Z\"", "5"],
        ),
        (
            schema(&json!({"type": "string", "format": "time"})),
            &["\"10:00:59Z\""],
            &["\"10:00:60Z\""],
        ),
        (
            schema(&json!({"type": "string", "format": "email"})),
            &["\"a@b\"", "\"jo-ann.o'neill+x@mail.example.com\"", "\"a.b.c.d@e-f.g\""],
            &["\"a\"", "\".a@b\"", "\"a..b@c\"", "\"a@b-\"", "\"a@b..c\"", "\"a b@c\""],
        ),
        (schema(&json!({"uniqueItems": false, "type": "array"})), &["[1,1]"], &["{}"]),
        (regex("[ab]{2}|c+"), &["ab", "c", "ccc"], &["a", "abc", "", "cab"]),
        (regex("^a.c$"), &["abc"], &["xabc", "abcd", "ac"]),
        (regex("a/b\"\n?"), &["a/b\"", "a/b\"\n"], &["a/b"]),
        (regex("a*"), &["", "aaa"], &["b", "ab"]),
        (regex(""), &[""], &["a"]),
        (choice(&["a", "ab", "b\"\\"]), &["a", "ab", "b\"\\"], &["", "b", "aba"]),
        (grammar("root ::= [a-z]+ \"x\""), &["ax", "aaxx"], &["a", "x", "axb"]),
        (grammar(SUMS), &["1+(2-34)", "( 5 )", "7 - 8"], &["", "1+", "(1", "1)", "1 +-2"]),
        (
            grammar("root ::= item{2,3} | \"\" # or none\nitem ::= [^\\]a-c\\x41-]\n  \"\\n\""),
            &["", "d\n/\n", "x\ny\nz\n"],
            &["d\n", "a\nd\n", "]\nd\n", "-\nd\n", "A\nd\n"],
        ),
        (grammar("start: \"(\" start \")\" | \"x\""), &["x", "((x))"], &["(x", "()", "x)"]),
    ];
    for (form, takes, not) in cases {
        takes.iter().for_each(|text| assert!(world.takes(form, text), "{form:?}: {text}"));
        not.iter().for_each(|text| assert!(!world.takes(form, text), "{form:?}: {text}"));
    }
}

#[test]
fn what_a_schema_asks_for_and_is_not_followed_is_refused_by_name_and_place() {
    let world = World::new();
    let inner = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
    let cases = [
        (inner(json!({"not": {}})), "at #/properties/a: the keyword \"not\" is not supported"),
        (json!({"if": {}, "then": {}}), "\"if\""),
        (json!({"dependentRequired": {}}), "\"dependentRequired\""),
        (json!({"type": "array", "contains": {}}), "\"contains\""),
        (json!({"type": "array", "uniqueItems": true}), "\"uniqueItems\""),
        (json!({"propertyNames": {}}), "\"propertyNames\""),
        (json!({"unevaluatedProperties": false}), "\"unevaluatedProperties\""),
        (json!({"$dynamicRef": "#a"}), "\"$dynamicRef\""),
        (json!({"type": "string", "nullable": true}), "\"nullable\""),
        (json!({"type": "object", "requierd": ["a"]}), "\"requierd\""),
        // The library's own switch, which would have it leave words unread.
        (json!({"x-guidance": {"lenient": true}, "not": {}}), "\"x-guidance\""),
        // Draft 6 has no such word, and the library leaves it unread there.
        (json!({"$schema": "http://json-schema.org/draft-06/schema#", "if": {}}), "\"if\""),
        (
            json!({"$schema": "http://json-schema.org/draft-07/schema#",
            "items": {"prefixItems": [{}]}}),
            "prefixItems is no keyword",
        ),
        (json!({"items": [{}], "prefixItems": [{}]}), "prefixItems cannot stand beside"),
        (json!({"$ref": "#/default/a", "default": {"a": {"not": {}}}}), "at #/default/a: the key"),
        (json!({"$ref": "#/$defs/none"}), "\"#/$defs/none\" points at nothing"),
        (json!({"$ref": "http://other/"}), "$ref must be"),
        (json!({"$ref": "#"}), "leads back to itself"),
        (
            json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}},
            "items": {"$ref": "#/$defs/a"}}),
            "leads back to itself",
        ),
        (json!({"$ref": "#/$defs/a~1b", "$defs": {"a/b": {}}}), "$ref must be"),
        (
            json!({"properties": {"a": {"$id": "b", "type": "null"}}}),
            "$id is supported at the root",
        ),
        (json!({"items": {"format": "iri"}}), "at #/items: format must be one of date, date-time"),
        (json!({"type": "string", "pattern": "a(?=b)"}), "look-around"),
        (json!({"type": "strin"}), "at #: type must be one of array"),
        (json!({"type": ["null", 5]}), ", got 5"),
        (json!({"oneOf": [{"type": "number"}, {"type": "integer"}]}), "oneOf"),
        (json!({"const": 9_007_199_254_740_993_u64}), "2^53"),
        (json!({"type": "object", "required": "a"}), "required must be a list"),
        (
            json!({"properties": {"a": 5}}),
            "at #/properties/a: a schema must be an object, got a number",
        ),
        (json!({"enum": []}), "nsatisfiable"),
        (json!({"type": "array", "minItems": 5, "maxItems": 3}), "nsatisfiable"),
        (json!(false), "the schema false takes no value"),
        (json!(5), "a schema must be an object"),
    ];
    for (asked, why) in cases {
        let refused = world.refused(&schema(&asked));
        assert!(refused.contains(why), "{asked}: {refused}");
    }
    let broken = Form::Json { schema: "{\"a\"".to_owned(), compact: false };
    assert!(world.refused(&broken).contains("EOF"));
}

#[test]
fn a_broken_expression_or_grammar_is_refused_with_the_reason() {
    let world = World::new();
    for (text, why) in [("(", "unclosed group"), ("a(?=b)", "look-around"), (r"(a)\1", "backref")] {
        let refused = world.refused(&Form::Regex(text.to_owned()));
        assert!(refused.contains(why), "{text}: {refused}");
    }
    for (text, why) in [
        ("start: x", "x"),
        ("start: \"a", "1"),
        ("", "start"),
        ("# x\nroot ::= \"a", "line 2: expected a text that ends"),
        ("root ::= [a", "a class that ends"),
        ("root ::= (\"a\"", "expected )"),
        ("root ::= x", "the rule x is not given"),
        ("x ::= \"a\"", "no rule root"),
        ("root ::= \"a\"\nroot ::= \"b\"", "root is given twice"),
        ("root ::= \"a\"{3,2}", "{least,most}"),
        ("root ::= \"\\q\"", "a known escape"),
        ("start: %json {\"not\": {}}", "%json is not supported"),
        ("start: x\nx[temperature=0.5]: \"a\"", "temperature"),
        ("start: start", "no text of it"),
    ] {
        let refused = world.refused(&Form::Grammar(text.to_owned()));
        assert!(refused.contains(why), "{text}: {refused}");
        assert!(!refused.contains("backtrace") && refused.len() < 1500, "{text}: {refused}");
    }
    assert!(world.refused(&Form::Choice(Vec::new())).contains("at least one choice"));
}

#[test]
fn a_form_that_asks_for_too_much_is_refused_and_takes_nothing_down() {
    let world = World::new();
    let nested = |n: usize| Form::Regex("(".repeat(n) + "a" + &")".repeat(n));
    assert!(world.refused(&nested(limits::NESTING_MAX + 1)).contains("at most 1000 deep"));
    assert!(world.refused(&nested(limits::NESTING_MAX)).contains("number of nested parentheses"));
    let long = Form::Regex("a".repeat(limits::FORM_BYTES_MAX + 1));
    assert!(world.refused(&long).contains("at most 262144 bytes, got 262145"));
    // Large without being too much.
    assert!(world.takes(&Form::Regex("(a|b){0,200000}c".to_owned()), "abbac"));
    let wide = |n: usize| {
        let named = (0..n).map(|i| (format!("p{i}"), json!({"type": "null"})));
        schema(&json!({"type": "object", "properties": Value::Object(named.collect())}))
    };
    assert!(world.refused(&wide(401)).contains("at most 400 properties of an object"));
    assert!(world.takes(&wide(400), "{\"p7\":null,\"p399\":null}"));
    let branches: Vec<String> = (0..2100).map(|i| format!("\"a\" x{i}")).collect();
    let rules: String = (0..2100).map(|i| format!("x{i}: /b{{{i}}}/\n")).collect();
    let many = Form::Grammar(format!("start: {}\n{rules}", branches.join(" | ")));
    assert!(world.refused(&many).contains("2000"), "known before anything is drawn");
    let patterns = (0..65).map(|i| (format!("^{i}"), json!({})));
    let patterns = json!({"patternProperties": Value::Object(patterns.collect())});
    assert!(world.refused(&schema(&patterns)).contains("at most 64 patternProperties"));
    // Deep by reference: on a thread's usual stack these would end the process.
    let rules = |rule: fn(usize) -> String| {
        let mut grammar = "start: a0\n".to_owned();
        let mut count = 0;
        while grammar.len() < limits::GRAMMAR_BYTES_MAX - 40 {
            grammar += &rule(count);
            count += 1;
        }
        Form::Grammar(grammar + &format!("a{count}: \"q\"\n"))
    };
    assert!(world.takes(&rules(|i| format!("a{i}:(a{})\n", i + 1)), "q"));
    assert!(world.takes(&rules(|i| format!("a{i}:\"x\" a{}|\"y\"\n", i + 1)), "xxy"));
    let long = Form::Grammar("#".repeat(limits::GRAMMAR_BYTES_MAX + 1));
    assert!(world.refused(&long).contains("at most 65536 bytes"));
    let defs: serde_json::Map<String, Value> = (0..7000)
        .map(|i| (format!("d{i}"), json!({"$ref": format!("#/$defs/d{}", i + 1)})))
        .chain([("d7000".to_owned(), json!({"type": "null"}))])
        .collect();
    let deep = schema(&json!({"$ref": "#/$defs/d0", "$defs": defs}));
    assert!(world.takes(&deep, "null"));
    assert!(world.takes(&Form::Regex("a".to_owned()), "a"));
}

/// Every text that ends is JSON that the schema takes; one that is cut could have gone on.
#[test]
fn whatever_is_drawn_is_json_that_the_schema_takes() {
    let world = World::new();
    let mut rng = Rng(2311);
    let (mut ended, mut cut, mut refused) = (0, 0, 0);
    let cases = std::env::var("TESSERA_SCHEMAS").map_or(CASES, |cases| cases.parse().unwrap());
    for case in 0..cases {
        let asked = schemas::schema(&mut rng);
        let mut guide = match world.guide(&schema(&asked)) {
            Ok(guide) => guide,
            Err(error) => {
                let error = error.to_string();
                let known = [
                    "nsatisfiable",
                    "disjoint",
                    "circular",
                    "oneOf",
                    "no text of it",
                    "stack level",
                    "itself",
                ];
                assert!(known.iter().any(|known| error.contains(known)), "{asked}: {error}");
                refused += 1;
                continue;
            }
        };
        let options = jsonschema::options().should_validate_formats(true);
        let validator = options.build(&asked).unwrap();
        println!("{case} {asked}");
        let (text, how) = world.write(&mut *guide, &mut rng, 150);
        let value = serde_json::from_str::<Value>(&text);
        // JSON knows no bounds of numbers, and this parser does.
        if value.as_ref().is_err_and(|error| error.to_string().contains("number out of range")) {
            continue;
        }
        match how {
            Ended::Cut => {
                // A character may be cut too.
                let eof = value.is_err_and(|error| error.is_eof());
                assert!(eof || text.ends_with('\u{fffd}'), "{case} {asked}: {text}");
                cut += 1;
            }
            Ended::Drawn | Ended::Whole => {
                let value = value.unwrap_or_else(|error| panic!("{case} {asked}: {error}: {text}"));
                let fault = validator.validate(&value).err().map(|error| error.to_string());
                assert_eq!(fault, None, "{case} {asked}: {text}");
                ended += 1;
            }
        }
    }
    let all = (ended, cut, refused);
    assert!(ended > cases / 2 && cut > 0 && refused < cases / 4, "{all:?}");
}

/// Of a run. `TESSERA_SCHEMAS` asks for another number.
const CASES: usize = 250;

#[test]
fn the_end_is_allowed_where_the_form_is_whole_and_nowhere_else() {
    let world = World::new();
    let allowed = |mask: &TokenMask| (0..VOCABULARY).filter(|&t| mask.allows(t)).count();
    let mut guide = world.guide(&Form::Regex("ab*".to_owned())).unwrap();
    let of = |text: &str| world.tokenizer.token_id(text).unwrap();
    let first = guide.mask().unwrap();
    assert!(first.allows(of("a")) && !first.allows(END) && !first.allows(of("b")));
    assert!(!guide.accept(of("a")).unwrap());
    let second = guide.mask().unwrap();
    assert!(second.allows(END) && second.allows(of("b")));
    // Of the special tokens, which are no text, none but the end.
    assert!((0..7).all(|t| t == END || !second.allows(t)));
    // Two guides of one form know nothing of each other.
    let mut fork = guide.fork();
    assert!(fork.accept(of("a")).is_err());
    assert!(fork.mask().is_err(), "one that has failed stays failed");
    assert_eq!(guide.mask(), Ok(second));
    assert_eq!(world.guide(&Form::Regex("ab*".to_owned())).unwrap().mask(), Ok(first));
    // With no token that ends a text, it ends where nothing can follow.
    let whole = Form::Choice(vec!["ab".to_owned()]);
    let mut guide = world.forms.guide(&world.tokenizer, &whole, &[]).unwrap();
    assert!(allowed(&guide.mask().unwrap()) > 0 && !guide.mask().unwrap().allows(END));
    assert_eq!((guide.accept(of("a")), guide.accept(of("b"))), (Ok(false), Ok(true)));
    // A token that ends the text is no part of it, also where the form would take it as such.
    let stop = of("b");
    let mut guide =
        world.forms.guide(&world.tokenizer, &Form::Regex("ab*c".to_owned()), &[stop]).unwrap();
    guide.accept(of("a")).unwrap();
    assert!(!guide.mask().unwrap().allows(stop));
}
