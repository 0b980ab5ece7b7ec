//! The fields of requests.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::dialects;
use super::messages::{Messages, Object, Objects};
use super::parse::{Fields, fields};
use super::prompts::Prompts;
use super::raw::Raw;
use super::small::{KEPT_ITEMS_MAX, Small};
use super::token_rules::{ALLOWED_TOKENS_MAX, BadWords, LogitBias};
use super::unsupported::{self, Unsupported};
use crate::http::error::shown;
use crate::http::schema::{Bounds, Property};
use crate::ids::TokenId;

/// Stop strings of one request. More are answered 400.
pub(super) const STOPS_MAX: usize = 16;
// They are read as any value is, of which the first items are kept.
const _: () = assert!(STOPS_MAX <= KEPT_ITEMS_MAX);
/// `stop_token_ids` of one request. More are answered 400.
const STOP_TOKENS_MAX: usize = 256;
/// Keys of `stream_options`. More are answered 400.
pub(in crate::http) const STREAM_OPTIONS_MAX: usize = 16;
/// One stop string. A longer one is answered 400.
pub(super) const STOP_BYTES_MAX: usize = 1024;

fields! {
    /// What both generation routes take.
    Common {
        /// An adapter, the base model, or `base:adapter`; the base unless given.
        model: String,
        /// Tokens to generate at most; more than the context leaves is cut to that.
        max_tokens: u32,
        /// Divides the logits; 0 always takes the likeliest token.
        temperature: f64,
        /// Keeps the likeliest tokens whose probabilities reach this together.
        top_p: f64,
        /// Keeps so many of the likeliest tokens; 0 and -1 keep all.
        top_k: i64,
        /// Drops tokens less likely than this share of the likeliest one's.
        min_p: f64,
        /// The same seed, prompt and adapter give the same tokens; -1 is as good as none.
        seed: i64,
        /// Makes tokens of the prompt and the answer less likely, by division.
        repetition_penalty: f64,
        /// Taken off the logits of tokens that the answer holds.
        presence_penalty: f64,
        /// The same, once for each time that it holds them.
        frequency_penalty: f64,
        /// Added to the logits of tokens, by their ids.
        logit_bias: LogitBias,
        /// Texts that the answer does not hold.
        bad_words: BadWords,
        /// No other token is drawn.
        allowed_token_ids: TokenIds<ALLOWED_TOKENS_MAX>,
        /// Before so many no token is drawn that would end the answer.
        min_tokens: u32,
        /// Strings that end the answer.
        stop: Stops,
        /// Tokens that end the answer.
        stop_token_ids: TokenIds<STOP_TOKENS_MAX>,
        /// Whether the answer comes as server-sent events.
        stream: bool,
        /// Only with `stream`.
        stream_options: StreamOptions,
        /// Whether the model's own end is passed over.
        ignore_eos: bool,
        /// Whether what ends the answer is a part of it.
        include_stop_str_in_output: bool,
        /// Whether special tokens are left out of the text; true unless given.
        skip_special_tokens: bool,
        /// Keeps so many of the last tokens of a prompt; -1: what fits.
        truncate_prompt_tokens: i64,
        /// Requests of another salt share nothing with this one in the prefix cache.
        cache_salt: String,
        /// Of waiting requests those with the lowest start first.
        priority: i32,
        /// Answers for each prompt.
        n: u32,
        /// Samples that the likeliest `n` are taken from; not streamed.
        best_of: u32,
        /// Logprobs of the prompt with so many alternatives; not streamed.
        prompt_logprobs: u32,
        /// Whether the ids of tokens are told.
        return_token_ids: bool,
        /// Whether logprobs name tokens by their ids.
        return_tokens_as_token_ids: bool,
        /// Whether prompts get the tokenizer's special tokens.
        add_special_tokens: bool,
        /// The form of the answer, as OpenAI's clients ask for it.
        response_format: Raw,
        /// The form of the answer, as vLLM's clients ask for it.
        structured_outputs: Raw,
        /// A JSON schema of the answer.
        guided_json: Raw,
        /// A regular expression of the answer.
        guided_regex: Raw,
        /// Texts of which the answer is one.
        guided_choice: Raw,
        /// A grammar of the answer, in GBNF or Lark.
        guided_grammar: Raw,
        /// The same; an empty one asks for nothing.
        grammar: Raw,
        /// A JSON schema of the answer.
        json_schema: Raw,
    }
    unsupported unsupported::GENERATION;
    ignored unsupported::IGNORED;
}

fields! {
    /// What only `/v1/completions` takes.
    CompletionFields {
        /// Texts or lists of token ids to go on with.
        prompt: Prompts,
        /// Logprobs of the drawn tokens with so many alternatives.
        logprobs: u32,
        /// Whether each text begins with its prompt.
        echo: bool,
        /// What stands after the text that is asked for.
        suffix: String,
    }
    unsupported unsupported::COMPLETIONS;
    ignored &[];
}

fields! {
    /// What only `/v1/chat/completions` takes.
    ChatFields {
        /// The chat so far.
        messages: Messages,
        /// The newer name of `max_tokens`, which it wins over.
        max_completion_tokens: u32,
        /// Whether the logprobs of the drawn tokens are told.
        logprobs: bool,
        /// So many alternatives of each; only with `logprobs`.
        top_logprobs: u32,
        /// Whether the template begins the assistant's turn; true unless given.
        add_generation_prompt: bool,
        /// Whether the model goes on with the last message.
        continue_final_message: bool,
        /// Variables of the model's template.
        chat_template_kwargs: Object,
        /// The template's variable of that name.
        reasoning_effort: String,
        /// Whether the answer tells what was thought; true unless given.
        include_reasoning: bool,
        /// Tokens of a thought at most.
        thinking_token_budget: u32,
        /// For templates that write them.
        documents: Objects,
        /// Functions that the model may call.
        tools: Objects,
        /// Which of them it may call, or must.
        tool_choice: Raw,
        /// Whether it may call more than one.
        parallel_tool_calls: bool,
        /// OpenAI's older name of `tools`.
        functions: Objects,
        /// OpenAI's older name of `tool_choice`.
        function_call: Raw,
    }
    unsupported unsupported::CHAT;
    ignored &[];
}

fields! {
    /// What `/v1/load_lora_adapter` takes.
    LoadFields {
        /// The name to serve it under.
        lora_name: String,
        /// A directory beneath the server's --adapter-root.
        lora_path: String,
        /// Whether it may take the place of one with that name.
        load_inplace: bool,
    }
    unsupported unsupported::LOAD;
    ignored &["lora_int_id"];
}

fields! {
    /// What `/v1/adapters/validate` takes.
    ValidateFields {
        /// The name to serve it under, to check that too.
        lora_name: String,
        /// A directory beneath the server's --adapter-root.
        lora_path: String,
    }
    unsupported unsupported::LOAD;
    ignored &["lora_int_id", "load_inplace"];
}

fields! {
    /// What `/v1/unload_lora_adapter` takes.
    UnloadFields {
        /// The name to forget.
        lora_name: String,
    }
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

    fn ignored() -> Vec<&'static str> {
        [T::ignored(), Common::ignored()].concat()
    }

    fn properties(bounds: &Bounds<'_>) -> Vec<Property> {
        T::properties(bounds).into_iter().chain(Common::properties(bounds)).collect()
    }

    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        Ok(self.own.set(key, map)? || self.common.set(key, map)?)
    }
}

fields! {
    /// `stream_options`.
    StreamFields {
        /// Whether a last chunk tells how many tokens there were.
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
