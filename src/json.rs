//! JSON of others, read into this server's types. serde alone takes more than what is meant: a list
//! of values for an object, an object of one key for a word. Here an object is an object and a word
//! a string, at every depth. `8.0` is the integer 8, and what is wrong with a number is said in
//! ranges.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use serde::de::value::StrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, Error, IntoDeserializer, MapAccess, SeqAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;
use serde_json::value::RawValue;

/// Reads a whole text.
///
/// # Errors
/// For what is no JSON, or not of the type.
pub(crate) fn from_str<'de, T: Deserialize<'de>>(text: &'de str) -> serde_json::Result<T> {
    whole_of(serde_json::Deserializer::from_str(text))
}

/// The same of bytes, which must be UTF-8.
///
/// # Errors
/// Those of [`from_str`].
pub(crate) fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    whole_of(serde_json::Deserializer::from_slice(bytes))
}

/// Checks that all values of an object are objects or null, for a reader that would take lists for
/// them.
///
/// # Errors
/// For the first by name that is none.
pub(crate) fn check_objects(bytes: &[u8]) -> Result<(), String> {
    let values: BTreeMap<String, &RawValue> = from_slice(bytes).map_err(|e| e.to_string())?;
    match values.iter().find(|(_, value)| !value.get().starts_with(['{', 'n'])) {
        None => Ok(()),
        Some((key, _)) => Err(format!("what stands under {key:?} is no object")),
    }
}

fn whole_of<'de, R: serde_json::de::Read<'de>, T: Deserialize<'de>>(
    mut json: serde_json::Deserializer<R>,
) -> serde_json::Result<T> {
    let read = whole().deserialize(&mut json)?;
    json.end().map(|()| read)
}

/// Reads a value of any type. Wherever that type wants an integer, however deep within it, a whole
/// number is one; where it wants an object, only an object is one.
pub(crate) struct Whole<T>(T);

/// The seed for a type.
pub(crate) fn whole<T>() -> Whole<PhantomData<T>> {
    Whole(PhantomData)
}

impl<'de, T: DeserializeSeed<'de>> DeserializeSeed<'de> for Whole<T> {
    type Value = T::Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<T::Value, D::Error> {
        self.0.deserialize(Whole(deserializer))
    }
}

/// Below 2^53 every integer is a float of its own.
const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

/// A number as it stands in the request.
enum Number {
    Negative(i64),
    Positive(u64),
    Float(f64),
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Negative(number) => number.fmt(f),
            Self::Positive(number) => number.fmt(f),
            Self::Float(number) => write!(f, "{number:?}"),
        }
    }
}

impl Number {
    /// Whether it is a float that may stand for several integers, of which none is meant.
    fn is_inexact(&self) -> bool {
        matches!(self, Self::Float(number) if number.abs() >= EXACT_MAX)
    }

    /// The integer that it is.
    fn integer(&self) -> Option<i128> {
        match *self {
            Self::Negative(number) => Some(number.into()),
            Self::Positive(number) => Some(number.into()),
            Self::Float(number) if number.fract() == 0.0 && !self.is_inexact() => {
                Some(number as i128)
            }
            Self::Float(_) => None,
        }
    }

    fn rounded(&self) -> f64 {
        match *self {
            Self::Negative(number) => number as f64,
            Self::Positive(number) => number as f64,
            Self::Float(number) => number,
        }
    }

    /// The integer that it is, within a range. A `u32` is a count or an id, of which no limit is as
    /// high as the highest: more than that is read as that, and its field's own limit is told.
    fn within<E: Error>(self, least: i128, most: i128) -> Result<i128, E> {
        let integer = self.integer();
        if let Some(integer) = integer.filter(|integer| (least..=most).contains(integer)) {
            return Ok(integer);
        }
        let is_whole = self.rounded().fract() == 0.0;
        let expected = match least {
            _ if is_whole && self.rounded() >= most as f64 => match most == u32::MAX.into() {
                true => return Ok(most),
                false => format!("an integer of at most {most}"),
            },
            0 => "an integer of 0 or more".to_owned(),
            _ if is_whole && self.rounded() <= least as f64 => {
                format!("an integer of at least {least}")
            }
            _ if self.is_inexact() => "a number above 2^53 without point or exponent".to_owned(),
            _ => "an integer".to_owned(),
        };
        Err(E::custom(format!("expected {expected}, got {self}")))
    }
}

struct NumberVisitor {
    expected: &'static str,
}

impl Visitor<'_> for NumberVisitor {
    type Value = Number;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_i64<E>(self, number: i64) -> Result<Number, E> {
        Ok(Number::Negative(number))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Number, E> {
        Ok(Number::Positive(number))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Number, E> {
        Ok(Number::Float(number))
    }
}

/// Reads an object, and nothing else that would do for serde.
struct ObjectVisitor<V> {
    keys: &'static [&'static str],
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for ObjectVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.keys {
            [] => f.write_str("an object"),
            [key] => write!(f, "an object with {key}"),
            [keys @ .., last] => write!(f, "an object with {} and {last}", keys.join(", ")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Whole(map))
    }
}

/// Reads a string that is one of these words.
struct WordVisitor<V> {
    words: &'static [&'static str],
    visitor: V,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for WordVisitor<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "one of {:?}", self.words)
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<V::Value, E> {
        match self.words.contains(&word) {
            true => {
                let word: StrDeserializer<'_, E> = word.into_deserializer();
                self.visitor.visit_enum(word)
            }
            false => Err(E::custom(format!("expected one of {:?}, got {word:?}", self.words))),
        }
    }
}

macro_rules! integers {
    ($($method:ident $visit:ident $type:ty, $expected:literal;)*) => {
        $(fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
            let number = self.0.deserialize_any(NumberVisitor { expected: $expected })?;
            let (least, most) = (<$type>::MIN as i128, <$type>::MAX as i128);
            visitor.$visit(number.within::<D::Error>(least, most)? as $type)
        })*
    };
}

macro_rules! nested {
    ($($method:ident($($argument:ident: $type:ty),*);)*) => {
        $(fn $method<V: Visitor<'de>>(
            self,
            $($argument: $type,)*
            visitor: V,
        ) -> Result<V::Value, D::Error> {
            self.0.$method($($argument,)* Whole(visitor))
        })*
    };
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Whole<D> {
    type Error = D::Error;

    integers! {
        deserialize_u8 visit_u8 u8, "an integer of 0 or more";
        deserialize_u16 visit_u16 u16, "an integer of 0 or more";
        deserialize_u32 visit_u32 u32, "an integer of 0 or more";
        deserialize_u64 visit_u64 u64, "an integer of 0 or more";
        deserialize_i8 visit_i8 i8, "an integer";
        deserialize_i16 visit_i16 i16, "an integer";
        deserialize_i32 visit_i32 i32, "an integer";
        deserialize_i64 visit_i64 i64, "an integer";
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        let number = self.0.deserialize_any(NumberVisitor { expected: "a number" })?;
        visitor.visit_f64(number.rounded())
    }

    nested! {
        deserialize_any();
        deserialize_option();
        deserialize_seq();
        deserialize_map();
        deserialize_newtype_struct(name: &'static str);
        deserialize_tuple(len: usize);
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        keys: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(ObjectVisitor { keys, visitor })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        words: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.0.deserialize_str(WordVisitor { words, visitor })
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_bool(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_str(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_string(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_identifier(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_ignored_any(visitor)
    }

    forward_to_deserialize_any! { char bytes byte_buf unit unit_struct tuple_struct }
}

macro_rules! forwarded {
    ($($method:ident($type:ty);)*) => {
        $(fn $method<E: Error>(self, value: $type) -> Result<V::Value, E> {
            self.0.$method(value)
        })*
    };
}

/// Hands values on, and what is within them as a [`Whole`].
impl<'de, V: Visitor<'de>> Visitor<'de> for Whole<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }

    forwarded! {
        visit_bool(bool);
        visit_i64(i64);
        visit_u64(u64);
        visit_f64(f64);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.0.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<V::Value, D::Error> {
        self.0.visit_some(Whole(deserializer))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.0.visit_newtype_struct(Whole(inner))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.0.visit_seq(Whole(seq))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.0.visit_map(Whole(map))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Whole<A> {
    type Error = A::Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, A::Error> {
        self.0.next_element_seed(Whole(seed))
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Whole<A> {
    type Error = A::Error;

    /// Keys are strings, whatever they say.
    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, A::Error> {
        self.0.next_key_seed(seed)
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.0.next_value_seed(Whole(seed))
    }
}

/// A count or an id as it was sent, for those who read it.
pub(crate) fn or_more(number: u32) -> String {
    match number {
        u32::MAX => format!("{number} or more"),
        number => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        One,
        Two,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Inner {
        word: Word,
        count: Option<u32>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    struct Outer {
        inner: Vec<Inner>,
    }

    fn error<'de, T: Deserialize<'de> + fmt::Debug>(text: &'de str) -> String {
        from_str::<T>(text).unwrap_err().to_string()
    }

    #[test]
    fn an_object_is_no_list_and_a_word_no_object_at_any_depth() {
        let outer = from_str(r#"{"inner": [{"word": "two", "count": 8.0}, {"word": "one"}]}"#);
        let inner =
            vec![Inner { word: Word::Two, count: Some(8) }, Inner { word: Word::One, count: None }];
        assert_eq!(outer.ok(), Some(Outer { inner }));
        for (text, said) in [
            (r#"[[]]"#, "expected an object with inner"),
            (r#"{"inner": [["two", 8]]}"#, "expected an object with word and count"),
            (r#"{"inner": [{"word": {"two": null}}]}"#, "expected one of [\"one\", \"two\"]"),
            (r#"{"inner": [{"word": "ten"}]}"#, "got \"ten\""),
            (r#"{"inner": {}}"#, "expected a sequence"),
            (r#"{"inner": []} 1"#, "trailing characters"),
        ] {
            let error = error::<Outer>(text);
            assert!(error.contains(said), "{text}: {error}");
        }
    }

    #[test]
    fn a_number_out_of_range_is_told_the_end_that_it_is_beyond() {
        for (text, said) in [
            ("-1", "0 or more"),
            ("-1e300", "0 or more"),
            ("1.5", "0 or more"),
            ("1e400", "out of range"),
            ("true", "0 or more"),
        ] {
            let error = error::<u32>(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        for text in ["4294967295", "4294967296", "18446744073709551616", "1e300"] {
            assert_eq!(from_str::<u32>(text).ok(), Some(u32::MAX), "{text}");
        }
        for (text, said) in [
            ("9223372036854775808", "at most 9223372036854775807"),
            ("1e300", "at most 9223372036854775807"),
            ("-1e300", "at least -9223372036854775808"),
            ("9007199254740992.0", "without point or exponent"),
            ("0.5", "expected an integer, got 0.5"),
        ] {
            let error = error::<i64>(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        assert_eq!(from_str::<u32>("-0").ok(), Some(0));
        assert_eq!((or_more(7), or_more(u32::MAX)), ("7".into(), "4294967295 or more".into()));
    }

    #[test]
    fn values_that_are_no_objects_are_named() {
        assert_eq!(check_objects(br#"{"a": {"b": [1]}, "c": null}"#), Ok(()));
        let error = check_objects(br#"{"a": {}, "t": ["F32", [1], [0, 4]]}"#).unwrap_err();
        assert!(error.contains("\"t\""), "{error}");
    }
}
