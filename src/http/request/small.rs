//! Any JSON value, of which little is kept.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Number;

/// Items of a list or an object that are kept; the rest are counted.
pub(in crate::http) const KEPT_ITEMS_MAX: usize = 16;

/// A value that is looked at only to see whether it asks for something: all of it is checked to be
/// JSON, little of it is kept.
#[derive(Debug, PartialEq)]
pub(in crate::http) enum Small {
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

/// A whole number that is not negative, also one written as `8.0`.
pub(in crate::http) fn whole_number(number: &Number) -> Option<u64> {
    // Above it not every whole number has an f64 of its own.
    let is_whole = |x: &f64| (0.0..=9e15).contains(x) && x.fract() == 0.0;
    number.as_u64().or_else(|| number.as_f64().filter(is_whole).map(|x| x as u64))
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
