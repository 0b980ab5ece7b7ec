//! The `prompt` of a request, and what other routes take in its form.

use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IntoDeserializer, SeqAccess, Visitor};

use crate::http::settings::PROMPTS_MAX;
use crate::ids::TokenId;
use crate::json::whole;

/// `prompt`: a string, a list of strings, token ids, or a list of lists of token ids.
#[derive(Debug)]
pub(in crate::http) enum Prompts {
    Texts(Vec<String>),
    Ids(Vec<Vec<TokenId>>),
}

/// An item of a list in `prompt`.
enum Item {
    Text(String),
    Id(TokenId),
    Ids(Vec<TokenId>),
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::read(deserializer, PROMPTS_MAX)
    }
}

impl Prompts {
    /// At most so many.
    pub fn read<'de, D: Deserializer<'de>>(
        deserializer: D,
        prompts_max: usize,
    ) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PromptsVisitor { prompts_max })
    }
}

struct PromptsVisitor {
    prompts_max: usize,
}

impl<'de> Visitor<'de> for PromptsVisitor {
    type Value = Prompts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a list of strings, token ids or a list of lists of token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<Prompts, E> {
        Ok(Prompts::Texts(vec![text.to_owned()]))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
        let mixed = || A::Error::custom("strings, token ids and lists cannot be mixed");
        let max = self.prompts_max;
        let check = |count: usize| match count > max {
            true => Err(A::Error::custom(format!("at most {max} prompts in a request"))),
            false => Ok(()),
        };
        match seq.next_element::<Item>()? {
            None => Ok(Prompts::Texts(Vec::new())),
            Some(Item::Text(first)) => {
                let mut texts = vec![first];
                while let Some(item) = seq.next_element()? {
                    let Item::Text(text) = item else { return Err(mixed()) };
                    texts.push(text);
                    check(texts.len())?;
                }
                Ok(Prompts::Texts(texts))
            }
            Some(Item::Id(first)) => {
                let mut ids = vec![first];
                while let Some(item) = seq.next_element()? {
                    let Item::Id(id) = item else { return Err(mixed()) };
                    ids.push(id);
                }
                Ok(Prompts::Ids(vec![ids]))
            }
            Some(Item::Ids(first)) => {
                let mut lists = vec![first];
                while let Some(item) = seq.next_element()? {
                    let Item::Ids(ids) = item else { return Err(mixed()) };
                    lists.push(ids);
                    check(lists.len())?;
                }
                Ok(Prompts::Ids(lists))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ItemVisitor)
    }
}

struct ItemVisitor;

impl<'de> Visitor<'de> for ItemVisitor {
    type Value = Item;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a token id or a list of token ids")
    }

    fn visit_str<E>(self, text: &str) -> Result<Item, E> {
        Ok(Item::Text(text.to_owned()))
    }

    fn visit_u64<E: serde::de::Error>(self, id: u64) -> Result<Item, E> {
        whole().deserialize(id.into_deserializer()).map(Item::Id)
    }

    fn visit_i64<E: serde::de::Error>(self, id: i64) -> Result<Item, E> {
        whole().deserialize(id.into_deserializer()).map(Item::Id)
    }

    fn visit_f64<E: serde::de::Error>(self, id: f64) -> Result<Item, E> {
        whole().deserialize(id.into_deserializer()).map(Item::Id)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element()? {
            ids.push(id);
        }
        Ok(Item::Ids(ids))
    }
}
