//! Requests and answers as they are on the wire.

use std::fmt;

use serde::de::{Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

use super::parse::{Fields, Small, fields};
use super::unsupported::{self, Unsupported};
use crate::ids::TokenId;

/// Prompts of one request; each is a sequence. More are answered 400.
pub(super) const PROMPTS_MAX: usize = 128;
/// Stop strings of one request. More are answered 400.
pub(super) const STOPS_MAX: usize = 16;
/// One stop string. A longer one is answered 400.
pub(super) const STOP_BYTES_MAX: usize = 1024;

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
        stop: Stops,
        stream: bool,
        stream_options: StreamOptions,
        ignore_eos: bool,
        return_token_ids: bool,
        add_special_tokens: bool,
    }
    unsupported unsupported::GENERATION;
    ignored unsupported::IGNORED;
}

fields! {
    /// What only `/v1/completions` takes.
    CompletionFields { prompt: Prompts, logprobs: u32, }
    unsupported &[];
    ignored &[];
}

fields! {
    /// What only `/v1/chat/completions` takes.
    ChatFields {
        messages: Vec<WireMessage>,
        max_completion_tokens: u32,
        logprobs: bool,
        top_logprobs: u32,
        add_generation_prompt: bool,
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
    /// What `/v1/unload_lora_adapter` takes.
    UnloadFields { lora_name: String, }
    unsupported &[];
    ignored &["lora_int_id"];
}

/// The fields of a generation route.
#[derive(Debug, Default)]
pub(super) struct Generation<T> {
    pub own: T,
    pub common: Common,
}

impl<T: Fields> Fields for Generation<T> {
    fn unsupported(key: &str) -> Option<&'static Unsupported> {
        T::unsupported(key).or_else(|| Common::unsupported(key))
    }

    fn is_ignored(key: &str) -> bool {
        T::is_ignored(key) || Common::is_ignored(key)
    }

    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        Ok(self.own.set(key, map)? || self.common.set(key, map)?)
    }
}

/// `stream_options`.
#[derive(Debug, Default, Deserialize)]
pub(super) struct StreamOptions {
    pub include_usage: Option<bool>,
    /// vLLM's: usage so far on every chunk.
    pub continuous_usage_stats: Option<bool>,
}

/// `prompt`: a string, a list of strings, token ids, or a list of lists of token ids.
#[derive(Debug)]
pub(super) enum Prompts {
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
        deserializer.deserialize_any(PromptsVisitor)
    }
}

struct PromptsVisitor;

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
        let check = |count: usize| match count > PROMPTS_MAX {
            true => Err(A::Error::custom(format!("at most {PROMPTS_MAX} prompts in a request"))),
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
pub(super) struct Stops(pub Vec<String>);

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

/// One of `messages`.
#[derive(Debug, Deserialize)]
pub(super) struct WireMessage {
    pub role: String,
    pub content: Option<Content>,
    pub tool_calls: Option<Small>,
    pub function_call: Option<Small>,
}

/// A message's `content`.
#[derive(Debug)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message's content.
#[derive(Debug, Deserialize)]
pub(super) struct Part {
    pub r#type: String,
    pub text: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ContentVisitor)
    }
}

struct ContentVisitor;

impl<'de> Visitor<'de> for ContentVisitor {
    type Value = Content;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a list of parts")
    }

    fn visit_str<E>(self, text: &str) -> Result<Content, E> {
        Ok(Content::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
        let mut parts = Vec::new();
        while let Some(part) = seq.next_element()? {
            parts.push(part);
        }
        Ok(Content::Parts(parts))
    }
}

/// `usage`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    /// Absent while it is not known, never guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptDetails>,
}

/// `usage.prompt_tokens_details`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PromptDetails {
    pub cached_tokens: u64,
}

/// An answer or a chunk of it, with choices of one kind.
#[derive(Serialize)]
pub(super) struct Answer<'a, C> {
    pub id: &'a str,
    pub object: &'a str,
    pub created: u64,
    pub model: &'a str,
    pub choices: &'a [C],
    /// Absent, null, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// vLLM's, of chat with `return_token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [TokenId]>,
}

/// A choice of `/v1/completions`.
#[derive(Serialize)]
pub(super) struct CompletionChoice<'a> {
    pub index: usize,
    pub text: &'a str,
    pub logprobs: Option<LegacyLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [TokenId]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [TokenId]>,
}

/// A choice of `/v1/chat/completions`.
#[derive(Serialize)]
pub(super) struct ChatChoice<'a> {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<AssistantMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<Delta<'a>>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [TokenId]>,
}

/// What the model said.
#[derive(Serialize)]
pub(super) struct AssistantMessage<'a> {
    pub role: &'static str,
    pub content: &'a str,
    pub refusal: Option<&'a str>,
}

/// What is new in it.
#[derive(Default, Serialize)]
pub(super) struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}

/// `logprobs` of completions: one entry a token in each list.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct LegacyLogprobs {
    pub text_offset: Vec<usize>,
    pub token_logprobs: Vec<f32>,
    pub tokens: Vec<String>,
    pub top_logprobs: Vec<Ranking>,
}

/// Tokens and their logprobs, best first, as an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranking(pub Vec<(String, f32)>);

impl Serialize for Ranking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// `logprobs` of chat.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
    pub refusal: Option<&'static str>,
}

/// One token of them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChatLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<Vec<ChatLogprob>>,
}

/// `GET /v1/models`.
#[derive(Serialize)]
pub(super) struct ModelList {
    pub object: &'static str,
    pub data: Vec<ModelCard>,
}

/// A model or an adapter.
#[derive(Serialize)]
pub(super) struct ModelCard {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub owned_by: &'static str,
    /// The base's name, or an adapter's digest: never a path.
    pub root: String,
    pub parent: Option<String>,
    pub max_model_len: Option<u32>,
    pub permission: [Permission; 1],
}

/// What vLLM says of every model.
#[derive(Serialize)]
pub(super) struct Permission {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub allow_create_engine: bool,
    pub allow_sampling: bool,
    pub allow_logprobs: bool,
    pub allow_search_indices: bool,
    pub allow_view: bool,
    pub allow_fine_tuning: bool,
    pub organization: &'static str,
    pub group: Option<&'static str>,
    pub is_blocking: bool,
}

/// JSON of one of the above.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Writing to memory does not fail, and all map keys are strings.
    serde_json::to_vec(value).unwrap_or_default()
}
