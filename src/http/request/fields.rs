//! The fields of requests.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::dialects;
use super::messages::{Messages, Object, Objects};
use super::parse::{Fields, fields};
use super::raw::Raw;
use super::small::{KEPT_ITEMS_MAX, Small};
use super::token_rules::{ALLOWED_TOKENS_MAX, BadWords, LogitBias};
use super::unsupported::{self, Unsupported};
use super::whole::whole_number;
use crate::http::error::shown;
use crate::ids::TokenId;

/// Prompts of one request; each is a sequence. More are answered 400.
const PROMPTS_MAX: usize = 128;
/// Stop strings of one request. More are answered 400.
const STOPS_MAX: usize = 16;
// They are read as any value is, of which the first items are kept.
const _: () = assert!(STOPS_MAX <= KEPT_ITEMS_MAX);
/// `stop_token_ids` of one request. More are answered 400.
const STOP_TOKENS_MAX: usize = 256;
/// Keys of `stream_options`. More are answered 400.
const STREAM_OPTIONS_MAX: usize = 16;
/// One stop string. A longer one is answered 400.
const STOP_BYTES_MAX: usize = 1024;

fields! {
    /// What both generation routes take.
    Common {
        model: String,
        max_tokens: u32,
        temperature: f32,
        top_p: f32,
        top_k: i64,
        min_p: f32,
        seed: i64,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        logit_bias: LogitBias,
        bad_words: BadWords,
        allowed_token_ids: TokenIds<ALLOWED_TOKENS_MAX>,
        min_tokens: u32,
        stop: Stops,
        stop_token_ids: TokenIds<STOP_TOKENS_MAX>,
        stream: bool,
        stream_options: StreamOptions,
        ignore_eos: bool,
        include_stop_str_in_output: bool,
        skip_special_tokens: bool,
        truncate_prompt_tokens: i64,
        cache_salt: String,
        priority: i32,
        n: u32,
        best_of: u32,
        prompt_logprobs: u32,
        return_token_ids: bool,
        return_tokens_as_token_ids: bool,
        add_special_tokens: bool,
        response_format: Raw,
        structured_outputs: Raw,
        guided_json: Raw,
        guided_regex: Raw,
        guided_choice: Raw,
        guided_grammar: Raw,
        grammar: Raw,
        json_schema: Raw,
    }
    unsupported unsupported::GENERATION;
    ignored unsupported::IGNORED;
}

fields! {
    /// What only `/v1/completions` takes.
    CompletionFields { prompt: Prompts, logprobs: u32, echo: bool, suffix: String, }
    unsupported unsupported::COMPLETIONS;
    ignored &[];
}

fields! {
    /// What only `/v1/chat/completions` takes.
    ChatFields {
        messages: Messages,
        max_completion_tokens: u32,
        logprobs: bool,
        top_logprobs: u32,
        add_generation_prompt: bool,
        continue_final_message: bool,
        chat_template_kwargs: Object,
        reasoning_effort: String,
        include_reasoning: bool,
        thinking_token_budget: u32,
        documents: Objects,
        tools: Objects,
        tool_choice: Raw,
        parallel_tool_calls: bool,
        functions: Objects,
        function_call: Raw,
    }
    unsupported unsupported::CHAT;
    ignored &[];
}

fields! {
    /// What `/v1/load_lora_adapter` takes.
    LoadFields { lora_name: String, lora_path: String, load_inplace: bool, }
    unsupported unsupported::LOAD;
    ignored &["lora_int_id"];
}

fields! {
    /// What `/v1/adapters/validate` takes.
    ValidateFields { lora_name: String, lora_path: String, }
    unsupported unsupported::LOAD;
    ignored &["lora_int_id", "load_inplace"];
}

fields! {
    /// What `/v1/unload_lora_adapter` takes.
    UnloadFields { lora_name: String, }
    unsupported &[];
    ignored &["lora_int_id"];
}

/// The fields of a generation route.
#[derive(Debug, Default)]
pub(in crate::http) struct Generation<T> {
    pub own: T,
    pub common: Common,
}

impl<T: Fields> Fields for Generation<T> {
    fn unsupported(key: &str) -> Option<&'static Unsupported> {
        let known = T::unsupported(key).or_else(|| Common::unsupported(key));
        known.or_else(|| dialects::FIELDS.iter().find(|known| known.field == key))
    }

    fn is_ignored(key: &str) -> bool {
        T::is_ignored(key) || Common::is_ignored(key)
    }

    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        Ok(self.own.set(key, map)? || self.common.set(key, map)?)
    }
}

fields! {
    /// `stream_options`.
    StreamFields {
        include_usage: bool,
        /// vLLM's: usage so far on every chunk.
        continuous_usage_stats: bool,
    }
    unsupported &[];
    // It pads chunks, so that their lengths say nothing of what is in them.
    ignored &["include_obfuscation"];
}

/// `stream_options`, and the names in it that nobody knows.
#[derive(Debug, Default)]
pub(in crate::http) struct StreamOptions {
    pub fields: StreamFields,
    unknown: Vec<String>,
}

impl<'de> Deserialize<'de> for StreamOptions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(StreamVisitor)
    }
}

struct StreamVisitor;

impl<'de> Visitor<'de> for StreamVisitor {
    type Value = StreamOptions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<StreamOptions, A::Error> {
        let mut options = StreamOptions::default();
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            if !seen.insert(key.clone()) || seen.len() > STREAM_OPTIONS_MAX {
                let message = format!(
                    "each of at most {STREAM_OPTIONS_MAX} options once, got {}",
                    shown(&key)
                );
                return Err(A::Error::custom(message));
            }
            if options.fields.set(&key, &mut map)? {
                continue;
            }
            map.next_value::<IgnoredAny>()?;
            if !StreamFields::is_ignored(&key) {
                options.unknown.push(shown(&format!("stream_options.{key}")));
            }
        }
        Ok(options)
    }
}

impl Common {
    /// Names within its fields that nobody knows.
    pub fn unknown(&self) -> Vec<String> {
        self.stream_options.as_ref().map_or_else(Vec::new, |options| options.unknown.clone())
    }
}

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
        let id = TokenId::try_from(id);
        id.map(Item::Id).map_err(|_| E::custom("a token id must be below 2^32"))
    }

    fn visit_f64<E: serde::de::Error>(self, id: f64) -> Result<Item, E> {
        match whole_number(id) {
            Some(id) => self.visit_u64(id),
            None => Err(E::custom(format!("a token id must be an integer of 0 or more, got {id}"))),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Item, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element()? {
            ids.push(id);
        }
        Ok(Item::Ids(ids))
    }
}

/// `stop`: a string or a list of strings.
#[derive(Debug)]
pub(in crate::http) struct Stops(pub Vec<String>);

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let stops = match Small::deserialize(deserializer)? {
            Small::Text(stop) => vec![stop],
            Small::Array(items, count) => {
                if count > STOPS_MAX {
                    let message = format!("at most {STOPS_MAX} stop strings, got {count}");
                    return Err(D::Error::custom(message));
                }
                let text = |item| match item {
                    Small::Text(text) => Ok(text),
                    _ => Err(D::Error::custom("every stop must be a string")),
                };
                items.into_iter().map(text).collect::<Result<_, _>>()?
            }
            _ => return Err(D::Error::custom("expected a string or a list of strings")),
        };
        if stops.iter().any(String::is_empty) {
            return Err(D::Error::custom("a stop string must not be empty"));
        }
        if stops.iter().any(|stop| stop.len() > STOP_BYTES_MAX) {
            let message = format!("a stop string must be at most {STOP_BYTES_MAX} bytes");
            return Err(D::Error::custom(message));
        }
        Ok(Self(stops))
    }
}

/// A list of token ids. More than `MAX` are answered 400.
#[derive(Debug)]
pub(in crate::http) struct TokenIds<const MAX: usize>(pub Vec<TokenId>);

impl<'de, const MAX: usize> Deserialize<'de> for TokenIds<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TokenIdsVisitor::<MAX>).map(Self)
    }
}

struct TokenIdsVisitor<const MAX: usize>;

impl<'de, const MAX: usize> Visitor<'de> for TokenIdsVisitor<MAX> {
    type Value = Vec<TokenId>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<TokenId>, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element()? {
            if ids.len() == MAX {
                return Err(A::Error::custom(format!("at most {MAX} token ids")));
            }
            ids.push(id);
        }
        Ok(ids)
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse::parse;
    use super::{ChatFields, CompletionFields, Generation};

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
