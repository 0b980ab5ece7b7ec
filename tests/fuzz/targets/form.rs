//! What form an answer must have: a schema, an expression, choices or a grammar. What is taken can
//! be followed: some token may always come next.

use serde_json::json;
use tessera::structured::{Form, FormError};

use super::{Target, same, text};
use crate::Rng;
use crate::mutate::joined;
use crate::walk::{Ended, World};

/// Tokens of one text.
const TOKENS_MAX: usize = 12;

fn seeds() -> Vec<Vec<u8>> {
    let schema = json!({
        "$defs": {"leaf": {"type": "object", "properties": {"k": {"const": "a"}},
            "required": ["k"], "additionalProperties": false}},
        "type": "object",
        "properties": {
            "i": {"type": "integer", "minimum": -5, "maximum": 1000},
            "n": {"type": "number", "exclusiveMinimum": 0.5, "multipleOf": 0.25},
            "s": {"type": "string", "pattern": "^[a-z]{1,4}$", "maxLength": 9},
            "d": {"type": "string", "format": "date-time"},
            "e": {"enum": ["x", 1, null, [true]]},
            "a": {"type": "array", "items": {"$ref": "#/$defs/leaf"}, "minItems": 1, "maxItems": 3},
            "o": {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
            "t": {"type": "array", "prefixItems": [{"type": "boolean"}], "items": false},
        },
        "patternProperties": {"^x_": {"type": "boolean"}},
        "required": ["i", "s"],
        "additionalProperties": {"type": "string"},
    });
    let choices = json!(["yes", "no", "maybe \"so\"", "é\n"]).to_string();
    let gbnf = "# sums\nroot ::= sum\nsum ::= term (ws [-+] ws term)*\n\
                term ::= digit+ | \"(\" sum \")\"\n\
                digit ::= [0-9] | \"\\x41\"\nws ::= \" \"{0,2}\n";
    let lark = "start: sum\nsum: TERM (\"+\" TERM)*\nTERM: /[0-9]+/ | \"x\"i\n%ignore / +/\n";
    [
        joined(&["json", &schema.to_string()]),
        joined(&["json compact", r#"{"type":["object","null"],"minProperties":1}"#]),
        joined(&[
            "json",
            r##"{"oneOf":[{"type":"integer"},{"allOf":[{"$ref":"#/$defs/a"}]}],
            "$defs":{"a":{"type":"string","minLength":2}}}"##,
        ]),
        joined(&["regex", r"^(\d{2,4}-)?[a-f\w]+(?:x|y)*\.(é|\u00e9)?$"]),
        joined(&["choice", &choices]),
        joined(&["grammar", gbnf]),
        joined(&["grammar", lark]),
    ]
    .into()
}

fn form(kind: &str, text: String) -> Form {
    match kind {
        "regex" => Form::Regex(text),
        "grammar" => Form::Grammar(text),
        "choice" => Form::Choice(serde_json::from_str(&text).unwrap_or_default()),
        kind => Form::Json { schema: text, compact: kind.contains("compact") },
    }
}

fn check(world: &World, form: &Form) -> Result<String, String> {
    let mut guide = match world.guide(form) {
        Ok(guide) => guide,
        Err(FormError::Late { .. }) => return Err("it takes too long to compile".to_owned()),
        Err(error) => return Ok(error.to_string()),
    };
    let mut other = guide.fork();
    let walk = |guide: &mut dyn tessera::request::Guide| {
        let mut rng = Rng(1);
        let mut tokens = Vec::new();
        while tokens.len() < TOKENS_MAX {
            let mask = guide.mask()?;
            let allowed: Vec<_> =
                (0..crate::walk::VOCABULARY).filter(|&t| mask.allows(t)).collect();
            if allowed.is_empty() {
                return Err("no token may come next".to_owned());
            }
            let token = rng.pick(&allowed);
            if token == crate::walk::END {
                return Ok((tokens, Ended::Drawn));
            }
            tokens.push(token);
            if guide.accept(token)? {
                return Ok((tokens, Ended::Whole));
            }
        }
        Ok((tokens, Ended::Cut))
    };
    let walked = walk(guide.as_mut());
    same(&walk(other.as_mut()), &walked, "a text of a form")?;
    match walked {
        Ok((_, ended)) => Ok(format!("a text, {ended:?}")),
        Err(error) if error == "no token may come next" => Err(error),
        Err(error) => Ok(error),
    }
}

/// The kind, and the text.
pub const FORM: Target = Target {
    name: "form",
    seeds,
    words: &[
        "type",
        "object",
        "array",
        "string",
        "integer",
        "number",
        "boolean",
        "null",
        "properties",
        "required",
        "additionalProperties",
        "patternProperties",
        "propertyNames",
        "minProperties",
        "maxProperties",
        "items",
        "prefixItems",
        "minItems",
        "maxItems",
        "uniqueItems",
        "contains",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
        "minLength",
        "maxLength",
        "pattern",
        "format",
        "date-time",
        "email",
        "uuid",
        "ipv6",
        "uri",
        "const",
        "enum",
        "anyOf",
        "oneOf",
        "allOf",
        "not",
        "if",
        "then",
        "else",
        "$ref",
        "#",
        "#/$defs/a",
        "$defs",
        "definitions",
        "$id",
        "$anchor",
        "$schema",
        "description",
        "default",
        "x-guidance",
        "unevaluatedProperties",
        "dependentRequired",
        "nullable",
        "discriminator",
        "root ::= ",
        " ::= ",
        "start: ",
        "%ignore ",
        "%import common.INT",
        "%llguidance {}",
        "%json {}",
        "(?:",
        "(?=",
        "(?!",
        "(?<x>",
        "(?i:",
        "[^a]",
        "[[:alpha:]]",
        "\\p{L}",
        "\\b",
        "\\w",
        "\\x00",
        "{1,100000}",
        "{0,}",
        "{5}",
        "*",
        "+?",
        ".*",
        "|",
        "^",
        "$",
        "/",
        "\"",
        "~",
        "->",
        "!",
        "[lazy]",
        "[stop=\"x\"]",
        "[max_tokens=3]",
        "[temperature=1]",
        "json compact",
        "regex",
        "choice",
        "grammar",
    ],
    start: || {
        let world = World::new();
        Box::new(move |parts| check(&world, &form(&text(parts, 0), text(parts, 1))))
    },
    slice: 60,
    heap_bytes_max: 512 << 20,
};
