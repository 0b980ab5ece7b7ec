//! The types of fields as JSON Schema says them: what their `Deserialize` takes.

use serde_json::{Value, json};

use super::fields::{
    STOP_BYTES_MAX, STOPS_MAX, STREAM_OPTIONS_MAX, Stops, StreamFields, StreamOptions, TokenIds,
};
use super::messages::{Messages, Object, Objects, TextOrList};
use super::parse::Fields;
use super::prompts::Prompts;
use super::raw::Raw;
use super::token_rules::{
    BAD_WORD_BYTES_MAX, BAD_WORDS_MAX, BadWords, LOGIT_BIASES_MAX, LogitBias,
};
use crate::http::schema::{Bounds, Property, Schema};
use crate::http::settings::PROMPTS_MAX;
use crate::request::BIASES;

/// Properties of an object in the order of their names' first place.
pub(in crate::http) fn object(properties: Vec<Property>) -> Value {
    let mut all = serde_json::Map::new();
    for Property { name, description, mut schema } in properties {
        if !description.is_empty() {
            schema["description"] = description.into();
        }
        all.entry(name).or_insert(schema);
    }
    json!({"type": "object", "properties": all})
}

impl Schema for Prompts {
    fn schema(bounds: &Bounds<'_>) -> Value {
        prompts(PROMPTS_MAX, bounds)
    }
}

/// One text, several, the tokens of one, or those of several.
pub(in crate::http) fn prompts(most: usize, bounds: &Bounds<'_>) -> Value {
    let text = json!({"type": "string", "minLength": 1});
    let ids = json!({"type": "array", "minItems": 1, "items": bounds.token()});
    let several =
        |of: &Value| json!({"type": "array", "minItems": 1, "maxItems": most, "items": of});
    json!({"anyOf": [text, several(&text), ids, several(&ids)]})
}

impl Schema for Stops {
    fn schema(_: &Bounds<'_>) -> Value {
        // Bytes, of which a character has one at least.
        let stop = json!({"type": "string", "minLength": 1, "maxLength": STOP_BYTES_MAX});
        json!({"anyOf": [stop, {"type": "array", "maxItems": STOPS_MAX, "items": stop}]})
    }
}

impl<const MAX: usize> Schema for TokenIds<MAX> {
    fn schema(bounds: &Bounds<'_>) -> Value {
        json!({"type": "array", "maxItems": MAX, "items": bounds.token()})
    }
}

impl Schema for StreamOptions {
    fn schema(bounds: &Bounds<'_>) -> Value {
        let mut schema = object(StreamFields::properties(bounds));
        schema["maxProperties"] = STREAM_OPTIONS_MAX.into();
        schema
    }
}

impl Schema for LogitBias {
    fn schema(_: &Bounds<'_>) -> Value {
        let (least, most) = (BIASES.start(), BIASES.end());
        json!({"anyOf": [
            {
                "type": "object",
                "maxProperties": LOGIT_BIASES_MAX,
                // More digits are the id of no token.
                "propertyNames": {"pattern": "^0*[0-9]{1,9}$"},
                "additionalProperties": {"type": "number", "minimum": least, "maximum": most},
            },
            {"type": "array", "maxItems": 0},
        ]})
    }
}

impl Schema for BadWords {
    fn schema(_: &Bounds<'_>) -> Value {
        let word = json!({"type": "string", "minLength": 1, "maxLength": BAD_WORD_BYTES_MAX});
        json!({"anyOf": [
            {"type": "string", "maxLength": BAD_WORD_BYTES_MAX},
            {"type": "array", "maxItems": BAD_WORDS_MAX, "items": word},
        ]})
    }
}

impl Schema for Messages {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "array", "minItems": 1, "items": {"type": "object"}})
    }
}

impl Schema for TextOrList {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]})
    }
}

impl Schema for Object {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "object"})
    }
}

impl Schema for Objects {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "array", "items": {"type": "object"}})
    }
}

/// Read later: what it is, its route says.
impl Schema for Raw {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({})
    }
}
