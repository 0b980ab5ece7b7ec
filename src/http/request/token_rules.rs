//! The fields that speak of single tokens: what is taken off their logits or added to them, and
//! which may be drawn.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::ids::TokenId;
use crate::json::or_more;
use crate::request::{BIASES, Invalid, SamplingParams, TokenMask, TokenRules};
use crate::text::Tokenizer;

/// Tokens of one `logit_bias`. More are answered 400.
pub(super) const LOGIT_BIASES_MAX: usize = 1024;
/// Words of one `bad_words`. More are answered 400.
pub(super) const BAD_WORDS_MAX: usize = 1024;
/// One of them. A longer one is answered 400.
pub(super) const BAD_WORD_BYTES_MAX: usize = 1024;
/// Ids of one `allowed_token_ids`, which is as many as any vocabulary has. More are answered 400.
pub(in crate::http) const ALLOWED_TOKENS_MAX: usize = 1 << 20;

/// What a request says of single tokens.
#[derive(Debug, Default)]
pub(in crate::http) struct TokenFields<'a> {
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub logit_bias: Option<&'a LogitBias>,
    pub bad_words: Option<&'a BadWords>,
    pub allowed_token_ids: Option<&'a [TokenId]>,
    pub min_tokens: Option<u32>,
}

impl TokenFields<'_> {
    /// Puts them into `params`. `ends`: tokens that would end the answer, and those that are told
    /// not to (`ignore_eos`).
    ///
    /// # Errors
    /// [`Invalid`] for a word that is no tokens, and a set of allowed tokens that is none.
    pub fn fill(
        self,
        params: SamplingParams,
        tokenizer: &Tokenizer,
        ends: impl Iterator<Item = TokenId>,
        vocabulary: u32,
    ) -> Result<SamplingParams, Invalid> {
        let min_tokens = self.min_tokens.unwrap_or(0);
        let rules = TokenRules {
            bias: self.logit_bias.map_or_else(Vec::new, |LogitBias(bias)| bias.clone()),
            bad_words: match self.bad_words {
                Some(BadWords(words)) => sequences(words, tokenizer)?,
                None => Vec::new(),
            },
            allowed: self.allowed_token_ids.map(|ids| allowed(ids, vocabulary)).transpose()?,
            min_tokens,
            held_back: if min_tokens > 0 { ends.collect() } else { Vec::new() },
        };
        Ok(SamplingParams {
            presence_penalty: self.presence_penalty.unwrap_or(0.0) as f32,
            frequency_penalty: self.frequency_penalty.unwrap_or(0.0) as f32,
            rules: Arc::new(rules),
            ..params
        })
    }
}

fn allowed(ids: &[TokenId], vocabulary: u32) -> Result<TokenMask, Invalid> {
    let invalid = |message: String| Invalid::value("allowed_token_ids", message);
    if ids.is_empty() {
        return Err(invalid("allowed_token_ids must hold at least one token id".to_owned()));
    }
    if let Some(id) = ids.iter().find(|&&id| id >= vocabulary) {
        let id = or_more(*id);
        return Err(invalid(format!("token ids must be below {vocabulary}, got {id}")));
    }
    let mut mask = TokenMask::none(vocabulary as usize);
    ids.iter().for_each(|&id| mask.allow(id));
    Ok(mask)
}

/// Each word as a text begins with it, and, where a space before it makes another first token of
/// it and no more tokens, as it stands within one: vLLM's rule (sampling_params.py,
/// `update_from_tokenizer`).
fn sequences(words: &[String], tokenizer: &Tokenizer) -> Result<Vec<Vec<TokenId>>, Invalid> {
    let encode = |text: &str| {
        let encoded = tokenizer.encode(text, false);
        encoded.map_err(|error| Invalid::value("bad_words", error.to_string()))
    };
    // What Python strips.
    let is_space = |c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c);
    let mut sequences = Vec::new();
    for word in words {
        let word = word.trim_start_matches(is_space);
        let first = encode(word)?;
        if first.is_empty() {
            let message = "every word must hold more than white space";
            return Err(Invalid::value("bad_words", message));
        }
        let inner = encode(&format!(" {word}"))?;
        let differs = inner.len() == first.len() && inner[0] != first[0];
        sequences.push(first);
        sequences.extend(differs.then_some(inner));
    }
    Ok(sequences)
}

/// `logit_bias`: token ids, written as text, and what is added to their logits.
#[derive(Debug)]
pub(in crate::http) struct LogitBias(Vec<(TokenId, f32)>);

impl<'de> Deserialize<'de> for LogitBias {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LogitBiasVisitor)
    }
}

struct LogitBiasVisitor;

impl<'de> Visitor<'de> for LogitBiasVisitor {
    type Value = LogitBias;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of token ids and numbers")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LogitBias, A::Error> {
        let mut biases = BTreeMap::new();
        while let Some(key) = map.next_key::<String>()? {
            let digits = key.bytes().all(|byte| byte.is_ascii_digit());
            let Some(token) = key.parse::<TokenId>().ok().filter(|_| digits) else {
                let message = format!("every key must be a token id, got '{key}'");
                return Err(A::Error::custom(message));
            };
            if biases.len() == LOGIT_BIASES_MAX {
                let message = format!("at most {LOGIT_BIASES_MAX} tokens can have a bias");
                return Err(A::Error::custom(message));
            }
            let bias: f64 = map.next_value()?;
            // Before it is rounded: what is just outside may not be afterwards.
            if !BIASES.contains(&bias) {
                let (least, most) = (BIASES.start(), BIASES.end());
                return Err(A::Error::custom(format!(
                    "a bias must be between {least} and {most}, got {bias} for token {token}"
                )));
            }
            if biases.insert(token, bias as f32).is_some() {
                return Err(A::Error::custom(format!("token {token} is given twice")));
            }
        }
        Ok(LogitBias(biases.into_iter().collect()))
    }

    /// An empty list asks for nothing, as an empty object does.
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LogitBias, A::Error> {
        match seq.next_element::<IgnoredAny>()? {
            None => Ok(LogitBias(Vec::new())),
            Some(_) => Err(A::Error::invalid_type(serde::de::Unexpected::Seq, &self)),
        }
    }
}

/// `bad_words`: a list of strings, or one.
#[derive(Debug)]
pub(in crate::http) struct BadWords(Vec<String>);

impl<'de> Deserialize<'de> for BadWords {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let BadWords(words) = deserializer.deserialize_any(BadWordsVisitor)?;
        if words.iter().any(String::is_empty) {
            return Err(D::Error::custom("a word must not be empty"));
        }
        if words.iter().any(|word| word.len() > BAD_WORD_BYTES_MAX) {
            let message = format!("a word must be at most {BAD_WORD_BYTES_MAX} bytes");
            return Err(D::Error::custom(message));
        }
        Ok(Self(words))
    }
}

struct BadWordsVisitor;

impl<'de> Visitor<'de> for BadWordsVisitor {
    type Value = BadWords;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of strings")
    }

    /// An empty one asks for nothing, as an empty list does.
    fn visit_str<E>(self, word: &str) -> Result<BadWords, E> {
        let words = (!word.is_empty()).then(|| word.to_owned());
        Ok(BadWords(words.into_iter().collect()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<BadWords, A::Error> {
        let mut words = Vec::new();
        while let Some(word) = seq.next_element()? {
            if words.len() == BAD_WORDS_MAX {
                return Err(A::Error::custom(format!("at most {BAD_WORDS_MAX} words")));
            }
            words.push(word);
        }
        Ok(BadWords(words))
    }
}
