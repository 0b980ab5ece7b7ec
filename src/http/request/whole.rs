//! Numbers of requests as clients write them: `8.0` is the integer 8, and what is wrong with a
//! number is said in ranges.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, Visitor};
use serde::forward_to_deserialize_any;

/// Reads a value of any type; wherever that type wants an integer, however deep within it, a whole
/// number is one.
pub(in crate::http) struct Whole<T>(pub T);

/// The seed for a type.
pub(in crate::http) fn whole<T>() -> Whole<std::marker::PhantomData<T>> {
    Whole(std::marker::PhantomData)
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

    /// The integer that it is, within a range.
    fn within<E: Error>(self, least: i128, most: i128) -> Result<i128, E> {
        let integer = self.integer().filter(|integer| (least..=most).contains(integer));
        let is_too_large = matches!(self.integer(), Some(integer) if integer > most);
        let expected = match least {
            _ if is_too_large => format!("an integer of at most {most}"),
            _ if self.is_inexact() => "a number above 2^53 without point or exponent".to_owned(),
            0 => "an integer of 0 or more".to_owned(),
            _ if self.integer().is_some() => format!("an integer of at least {least}"),
            _ => "an integer".to_owned(),
        };
        integer.ok_or_else(|| E::custom(format!("expected {expected}, got {self}")))
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
        visitor.visit_f64(match number {
            Number::Negative(number) => number as f64,
            Number::Positive(number) => number as f64,
            Number::Float(number) => number,
        })
    }

    nested! {
        deserialize_any();
        deserialize_option();
        deserialize_seq();
        deserialize_map();
        deserialize_newtype_struct(name: &'static str);
        deserialize_tuple(len: usize);
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_enum(name: &'static str, variants: &'static [&'static str]);
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

    fn visit_enum<A: EnumAccess<'de>>(self, data: A) -> Result<V::Value, A::Error> {
        self.0.visit_enum(data)
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

/// The integer of 0 or more that a float is.
pub(in crate::http) fn whole_number(number: f64) -> Option<u64> {
    u64::try_from(Number::Float(number).integer()?).ok()
}
