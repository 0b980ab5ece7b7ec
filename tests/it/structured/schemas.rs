//! Random schemas of what is supported.

use serde_json::{Map, Value, json};

use crate::Rng;

const PATTERNS: &[&str] =
    &["^[a-c]{2,5}$", "x", "^(ab|cd)*$", r"^\d{2}-\d{2}$", "[A-Z]$", "^.{3}$"];
const FORMATS: &[&str] =
    &["date", "date-time", "time", "ipv4", "ipv6", "uuid", "email", "hostname", "duration"];
const NAMES: &[&str] = &["a", "b", "name", "é \"", "type", "$ref", "x-y"];

/// A schema, with definitions that it may refer to.
pub fn schema(rng: &mut Rng) -> Value {
    let mut schema = within(rng, 3);
    let defs: Map<String, Value> = (0..2).map(|i| (format!("d{i}"), within(rng, 1))).collect();
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("$defs".to_owned(), Value::Object(defs));
        fields.insert("title".to_owned(), json!("random"));
    }
    schema
}

fn within(rng: &mut Rng, levels: usize) -> Value {
    let simple = levels == 0 || rng.below(4) == 0;
    match if simple { rng.below(6) } else { 6 + rng.below(9) } {
        0 => json!({"type": (["null", "boolean", "integer", "string"][rng.below(4)])}),
        1 => whole(rng),
        2 => number(rng),
        3 => string(rng),
        4 => listed(rng),
        5 => json!({"type": "string", "format": (FORMATS[rng.below(FORMATS.len())])}),
        6 | 7 => list(rng, levels - 1),
        8..=10 => object(rng, levels - 1),
        11 => json!({"anyOf": [within(rng, levels - 1), within(rng, levels - 1)]}),
        12 => json!({"oneOf": [list(rng, levels - 1), whole(rng), {"type": "null"}]}),
        13 => json!({"$ref": format!("#/$defs/d{}", rng.below(2))}),
        _ => json!({"allOf": [object(rng, levels - 1), object(rng, levels - 1)]}),
    }
}

fn whole(rng: &mut Rng) -> Value {
    let low = rng.below(300) as i64 - 150;
    let mut schema = json!({"type": "integer", "minimum": low});
    match rng.below(3) {
        0 => schema["maximum"] = json!(low + rng.below(50) as i64),
        1 => schema["exclusiveMaximum"] = json!(low + 20 + rng.below(50) as i64),
        _ => {}
    }
    // The validator counts in floats, in which long numbers are multiples of nothing.
    if rng.below(4) == 0 && schema.as_object().unwrap().len() == 3 {
        schema["multipleOf"] = json!(1 + rng.below(7));
    }
    schema
}

fn number(rng: &mut Rng) -> Value {
    let low = rng.below(100) as f64 / 4.0 - 10.0;
    match rng.below(3) {
        0 => json!({"type": "number", "minimum": low, "maximum": low + 2.5}),
        1 => json!({"type": "number", "exclusiveMinimum": low}),
        _ => json!({"type": "number", "exclusiveMaximum": low}),
    }
}

fn string(rng: &mut Rng) -> Value {
    let least = rng.below(4);
    match rng.below(3) {
        0 => json!({"type": "string", "pattern": (PATTERNS[rng.below(PATTERNS.len())])}),
        1 => json!({"type": "string", "minLength": least, "maxLength": least + rng.below(5)}),
        _ => json!({"type": "string", "minLength": least}),
    }
}

fn listed(rng: &mut Rng) -> Value {
    let all = [
        json!("é\"\\\n"),
        json!(""),
        json!(null),
        json!(true),
        json!(17),
        json!(-2.5),
        json!([1, "a"]),
        json!({"k": [false]}),
        json!("plain"),
    ];
    match rng.below(2) {
        0 => json!({"const": (all[rng.below(all.len())])}),
        _ => {
            let first = rng.below(all.len() - 3);
            json!({"enum": (&all[first..first + 3])})
        }
    }
}

fn list(rng: &mut Rng, levels: usize) -> Value {
    let mut schema = json!({"type": "array", "items": within(rng, levels)});
    let least = rng.below(3);
    if rng.below(2) == 0 {
        schema["minItems"] = json!(least);
        schema["maxItems"] = json!(least + rng.below(3));
    } else if rng.below(2) == 0 {
        schema["prefixItems"] = json!([within(rng, levels), within(rng, levels)]);
        schema["minItems"] = json!(1);
    }
    schema
}

fn object(rng: &mut Rng, levels: usize) -> Value {
    let first = rng.below(NAMES.len() - 2);
    let names = &NAMES[first..first + 1 + rng.below(3)];
    let properties: Map<String, Value> =
        names.iter().map(|name| ((*name).to_owned(), within(rng, levels))).collect();
    let required: Vec<&str> = names.iter().copied().filter(|_| rng.below(2) == 0).collect();
    let mut schema = json!({"type": "object", "properties": properties, "required": required});
    match rng.below(4) {
        0 => schema["additionalProperties"] = json!(false),
        1 => schema["additionalProperties"] = within(rng, 0),
        2 => schema["patternProperties"] = json!({"^p": within(rng, 0)}),
        _ => {}
    }
    schema
}
