//! What JSON the fields of requests are read from, as JSON Schema says it.

use serde_json::{Number, Value, json};

use crate::request::Limits;

/// What the served model bounds of requests.
#[derive(Clone, Copy)]
pub(super) struct Bounds<'a> {
    pub limits: &'a Limits,
    /// Numbers of a vector.
    pub hidden_size: usize,
}

impl Bounds<'_> {
    /// The id of a token that the model has.
    pub fn token(&self) -> Value {
        json!({"type": "integer", "minimum": 0, "maximum": self.limits.vocabulary_tokens - 1})
    }
}

/// A type that a field of a request is read as.
pub(super) trait Schema {
    /// The JSON that it is read from. What is more in an object than is said is taken too.
    fn schema(bounds: &Bounds<'_>) -> Value;
}

/// One field of a request.
pub(super) struct Property {
    pub name: &'static str,
    pub description: String,
    pub schema: Value,
}

impl Property {
    /// A field that may also be null, which is as good as no field. `lines` are its doc comment.
    pub fn optional<T: Schema>(name: &'static str, lines: &[&str], bounds: &Bounds<'_>) -> Self {
        let description = lines.concat().trim().to_owned();
        Self { name, description, schema: nullable(T::schema(bounds)) }
    }
}

/// The same, or null.
pub(super) fn nullable(mut schema: Value) -> Value {
    if let Some(one) = schema["type"].as_str() {
        schema["type"] = json!([one, "null"]);
        if let Some(Value::Array(words)) = schema.get_mut("enum") {
            words.push(Value::Null);
        }
    } else if let Some(Value::Array(forms)) = schema.get_mut("anyOf") {
        forms.push(json!({"type": "null"}));
    }
    // Else it takes any value, or null already.
    schema
}

impl Schema for String {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "string"})
    }
}

impl Schema for bool {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "boolean"})
    }
}

macro_rules! integers {
    ($($type:ty)*) => {
        $(impl Schema for $type {
            fn schema(_: &Bounds<'_>) -> Value {
                json!({"type": "integer", "minimum": <$type>::MIN, "maximum": <$type>::MAX})
            }
        })*
    };
}

integers! { u32 i32 i64 }

impl Schema for f64 {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "number"})
    }
}

impl Schema for Number {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "number"})
    }
}

impl<T: Schema> Schema for Vec<T> {
    fn schema(bounds: &Bounds<'_>) -> Value {
        json!({"type": "array", "items": T::schema(bounds)})
    }
}
