//! A JSON object to fields, in one pass and with the name of the field at fault.
//!
//! The body is never held as a tree of values: a tree of 32 MiB of small numbers would take more
//! than a gigabyte.

use std::collections::HashSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, Visitor};

use super::small::Small;
use super::unsupported::Unsupported;
use crate::http::error::{RequestError, shown};
use crate::http::schema::{Bounds, Property};

/// More fields than this are answered 400: no request needs as many.
const FIELDS_MAX: usize = 256;

/// The fields of one kind of request.
pub(in crate::http) trait Fields: Default {
    /// What is known of a field that is not served with every value.
    fn unsupported(key: &str) -> Option<&'static Unsupported>;

    /// Fields that are known to change nothing in the answer.
    fn ignored() -> Vec<&'static str>;

    /// Whether a field is one of those.
    fn is_ignored(key: &str) -> bool {
        Self::ignored().contains(&key)
    }

    /// What these fields are, for those who ask. One name may be there twice: the first counts.
    fn properties(bounds: &Bounds<'_>) -> Vec<Property>;

    /// Reads the value of `key`; false if it is none of these fields. An explicit null is as good
    /// as no field.
    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error>;
}

/// Declares a struct of optional fields and how to read them.
macro_rules! fields {
    ($(#[$meta:meta])* $name:ident { $($(#[doc = $doc:literal])* $field:ident: $type:ty,)* }
     unsupported $unsupported:expr; ignored $ignored:expr;) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        pub(in crate::http) struct $name {
            $($(#[doc = $doc])* pub $field: Option<$type>,)*
        }

        impl Fields for $name {
            fn unsupported(key: &str) -> Option<&'static Unsupported> {
                let table: &'static [Unsupported] = $unsupported;
                table.iter().find(|known| known.field == key)
            }

            fn ignored() -> Vec<&'static str> {
                let table: &[&str] = $ignored;
                table.to_vec()
            }

            fn properties(
                bounds: &$crate::http::schema::Bounds<'_>,
            ) -> Vec<$crate::http::schema::Property> {
                use $crate::http::schema::Property;
                vec![$(Property::optional::<$type>(stringify!($field), &[$($doc),*], bounds)),*]
            }

            fn set<'de, A: MapAccess<'de>>(
                &mut self,
                key: &str,
                map: &mut A,
            ) -> Result<bool, A::Error> {
                $(if key == stringify!($field) {
                    self.$field = map.next_value_seed($crate::json::whole())?;
                    return Ok(true);
                })*
                Ok(false)
            }
        }
    };
}
pub(in crate::http) use fields;

/// A request's fields, and the names of those that nobody knows.
#[derive(Debug)]
pub(in crate::http) struct Parsed<T> {
    pub fields: T,
    pub unknown: Vec<String>,
}

/// Reads a request.
///
/// # Errors
/// [`RequestError::Json`] and [`RequestError::Unsupported`], with the field if it is known.
pub(in crate::http) fn parse<T: Fields>(body: &[u8]) -> Result<Parsed<T>, RequestError> {
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
        return Err(RequestError::Json { param: reader.key.as_deref().map(shown), message, code });
    }
    match reader.refused {
        Some((param, message)) => Err(RequestError::Unsupported { param, message }),
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
