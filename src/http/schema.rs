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
    let kinds = match schema.get("type") {
        Some(Value::Array(kinds)) => kinds.clone(),
        Some(kind) => vec![kind.clone()],
        None => Vec::new(),
    };
    if !kinds.is_empty() {
        schema["type"] = [kinds, vec!["null".into()]].concat().into();
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

integers! { i32 i64 }

/// A count or an id: how many there may be is its field's own limit.
impl Schema for u32 {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "integer", "minimum": 0})
    }
}

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
