//! A JSON object to fields, in one pass and with the name of the field at fault.
//!
//! The body is never held as a tree of values: a tree of 32 MiB of small numbers would take more
//! than a gigabyte.

use std::collections::HashSet;
use std::fmt;

use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor,
};

use super::error::{ApiError, shown};
use super::unsupported::Unsupported;

/// More fields than this are answered 400: no request needs as many.
const FIELDS_MAX: usize = 256;
/// What of a value of no interest is kept.
const KEPT_ITEMS_MAX: usize = super::wire::STOPS_MAX;

/// The fields of one kind of request.
pub(super) trait Fields: Default {
    /// What is known of a field that is not served with every value.
    fn unsupported(key: &str) -> Option<&'static Unsupported>;

    /// Whether a field is known to change nothing in the answer.
    fn is_ignored(key: &str) -> bool;

    /// Reads the value of `key`; false if it is none of these fields. An explicit null is as good
    /// as no field.
    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// Declares a struct of optional fields and how to read them.
macro_rules! fields {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $field:ident: $type:ty,)* }
     unsupported $unsupported:expr; ignored $ignored:expr;) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub(super) struct $name { $($(#[$doc])* pub $field: Option<$type>,)* }

        impl Fields for $name {
            fn unsupported(key: &str) -> Option<&'static Unsupported> {
                let table: &'static [Unsupported] = $unsupported;
                table.iter().find(|known| known.field == key)
            }

            fn is_ignored(key: &str) -> bool {
                let table: &[&str] = $ignored;
                table.contains(&key)
            }

            fn set<'de, A: MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> Result<bool, A::Error> {
                $(if key == stringify!($field) {
                    self.$field = map.next_value()?;
                    return Ok(true);
                })*
                Ok(false)
            }
        }
    };
}
pub(super) use fields;

/// A request's fields, and the names of those that nobody knows.
#[derive(Debug)]
pub(super) struct Parsed<T> {
    pub fields: T,
    pub unknown: Vec<String>,
}

/// Reads a request.
///
/// # Errors
/// [`ApiError::Json`] and [`ApiError::Unsupported`], with the field if it is known.
pub(super) fn parse<T: Fields>(body: &[u8]) -> Result<Parsed<T>, ApiError> {
    let mut reader = Reader::<T> {
        fields: T::default(),
        key: None,
        seen: HashSet::new(),
        unknown: Vec::new(),
        refused: None,
    };
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = reader.deserialize(&mut json).and_then(|()| json.end());
    if let Err(error) = read {
        let code = if error.is_data() { "invalid_value" } else { "invalid_json" };
        let message = match &reader.key {
            Some(key) => format!("{}: {}", shown(key), shown(&error.to_string())),
            None => {
                format!("The request body must be one JSON object: {}", shown(&error.to_string()))
            }
        };
        return Err(ApiError::Json { param: reader.key.as_deref().map(shown), message, code });
    }
    match reader.refused {
        Some((param, message)) => Err(ApiError::Unsupported { param, message }),
        None => Ok(Parsed { fields: reader.fields, unknown: reader.unknown }),
    }
}

/// Reads one object. What it knows when an error comes says where that was.
struct Reader<T> {
    fields: T,
    /// The field being read.
    key: Option<String>,
    seen: HashSet<String>,
    unknown: Vec<String>,
    /// The first field that is not served with its value, and why.
    refused: Option<(String, String)>,
}

impl<'de, T: Fields> DeserializeSeed<'de> for &mut Reader<T> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<T: Fields> Reader<T> {
    fn deserialize<'de, D: Deserializer<'de>>(&mut self, deserializer: D) -> Result<(), D::Error> {
        DeserializeSeed::deserialize(self, deserializer)
    }
}

impl<'de, T: Fields> Visitor<'de> for &mut Reader<T> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            self.key = Some(key.clone());
            if !self.seen.insert(key.clone()) {
                return Err(A::Error::custom("the field is given twice"));
            }
            if self.seen.len() > FIELDS_MAX {
                let message = format!("a request must have at most {FIELDS_MAX} fields");
                return Err(A::Error::custom(message));
            }
            if self.fields.set(&key, &mut map)? {
                continue;
            }
            let value: Small = map.next_value()?;
            if let Some(known) = T::unsupported(&key) {
                if !known.is_neutral(&value) && self.refused.is_none() {
                    self.refused = Some((key, known.message()));
                }
            } else if !T::is_ignored(&key) {
                self.unknown.push(shown(&key));
            }
        }
        self.key = None;
        Ok(())
    }
}

/// A value that is looked at only to see whether it asks for something: all of it is checked to be
/// JSON, little of it is kept.
#[derive(Debug, PartialEq)]
pub(super) enum Small {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    /// The first items, and how many there are.
    Array(Vec<Small>, usize),
    Object(Vec<(String, Small)>, usize),
}

impl<'de> Deserialize<'de> for Small {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SmallVisitor)
    }
}

struct SmallVisitor;

impl<'de> Visitor<'de> for SmallVisitor {
    type Value = Small;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Small, E> {
        Ok(Small::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Small, E> {
        Ok(Small::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Small, E> {
        Ok(Small::Number(value as f64))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Small, E> {
        Ok(Small::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Small, E> {
        Ok(Small::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Small, E> {
        Ok(Small::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Small, A::Error> {
        let (mut items, mut count) = (Vec::new(), 0);
        while let Some(item) = seq.next_element::<Small>()? {
            count += 1;
            if items.len() < KEPT_ITEMS_MAX {
                items.push(item);
            }
        }
        Ok(Small::Array(items, count))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Small, A::Error> {
        let (mut items, mut count) = (Vec::new(), 0);
        while let Some(item) = map.next_entry::<String, Small>()? {
            count += 1;
            if items.len() < KEPT_ITEMS_MAX {
                items.push(item);
            }
        }
        Ok(Small::Object(items, count))
    }
}

#[cfg(test)]
mod tests {
    use super::parse;
    use crate::http::wire::{ChatFields, CompletionFields, Generation};

    #[test]
    fn no_bytes_make_the_parser_panic() {
        let body = br#"{"model":"a","prompt":[[1,2],[3]],"messages":[{"role":"user","content":
            [{"type":"text","text":"\u00e9"}]}],"stop":["a"],"logit_bias":{"5":1e3},"seed":-1}"#;
        let mut random = 1_u64;
        let mut below = |n: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % n
        };
        for _ in 0..20_000 {
            let mut bytes = body.to_vec();
            for _ in 0..=below(3) {
                let at = below(bytes.len());
                match below(3) {
                    0 => bytes[at] = below(256) as u8,
                    1 => bytes[at] = br#"{}[]",:0-.eE\"#[below(13)],
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let _ = parse::<Generation<CompletionFields>>(&bytes);
            let _ = parse::<Generation<ChatFields>>(&bytes);
        }
    }
}
