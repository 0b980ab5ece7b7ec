//! `POST /tokenize`, `POST /detokenize` and `GET /tokenizer_info`, as vLLM has them, for the text
//! of any name that is served.

use std::fmt;
use std::sync::Arc;

use hyper::Response;
use percent_encoding::percent_decode_str;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, json};

use super::chat::Chat;
use crate::http::caller::Caller;
use crate::http::error::{ApiError, RequestError};
use crate::http::generation::endpoint::Endpoint;
use crate::http::generation::tools;
use crate::http::models::resolve;
use crate::http::request::body::Payload;
use crate::http::request::fields::{ChatFields, Generation};
use crate::http::request::parse::{Fields, fields, parse};
use crate::http::request::unsupported::Unsupported;
use crate::http::schema::{Bounds, Property, Schema};
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::wire::{Detokenized, Tokenized, to_json};
use crate::ids::TokenId;
use crate::json::or_more;
use crate::request::Invalid;

/// Tokens of one `/detokenize`, or as many as the context takes if those are more. More are
/// answered 400.
const DETOKENIZED_MAX: usize = 1 << 16;
/// Names that `/tokenizer_info` has of every tokenizer, null where it has no such token.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

fields! {
    /// What only `/tokenize` takes.
    TokenizeFields {
        /// A text; a chat has `messages` instead.
        prompt: String,
        /// Whether the tokens are spelled too, as the vocabulary has them.
        return_token_strs: bool,
    }
    unsupported &[];
    ignored &[];
}

fields! {
    /// What `/detokenize` takes.
    DetokenizeFields {
        /// Whose tokens they are; the base model's unless given.
        model: String,
        /// Their ids.
        tokens: Ids,
    }
    unsupported &[];
    ignored &[];
}

/// A text, or all of a chat request: whatever of that changes the prompt changes it here too.
#[derive(Default)]
pub(in crate::http) struct TokenizeRequest {
    own: TokenizeFields,
    chat: Generation<ChatFields>,
}

impl Fields for TokenizeRequest {
    fn unsupported(key: &str) -> Option<&'static Unsupported> {
        Generation::<ChatFields>::unsupported(key)
    }

    fn ignored() -> Vec<&'static str> {
        Generation::<ChatFields>::ignored()
    }

    fn properties(bounds: &Bounds<'_>) -> Vec<Property> {
        let chat = Generation::<ChatFields>::properties(bounds);
        TokenizeFields::properties(bounds).into_iter().chain(chat).collect()
    }

    fn set<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<bool, A::Error> {
        Ok(self.own.set(key, map)? || self.chat.set(key, map)?)
    }
}

/// A text's or a chat's tokens, as a request with it would have them.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) async fn tokenize(
    state: &Arc<State>,
    caller: Caller,
    payload: Payload,
) -> Result<Response<Body>, ApiError> {
    let bytes = payload.bytes.len();
    let work = move |state: &State| Ok(tokenize_now(state, &caller, &payload)?);
    let json = state.on_text(bytes, work).await?;
    Ok(whole("application/json", json))
}

fn tokenize_now(
    state: &State,
    caller: &Caller,
    payload: &Payload,
) -> Result<Vec<u8>, RequestError> {
    let parsed = parse::<TokenizeRequest>(&payload.bytes)?;
    state.check_unknown(&parsed.unknown)?;
    let TokenizeRequest { own, chat: Generation { own: mut chat, common } } = parsed.fields;
    let text = resolve(state, caller, common.model.as_deref())?.text;
    let limits = &state.model.limits;
    let context_tokens_max = limits.context_tokens_max;
    let adds_special = common.add_special_tokens;
    let tokens = match (own.prompt, chat.messages.is_some()) {
        (None, false) => return Err(RequestError::Missing("prompt")),
        (Some(_), true) => {
            let message = "prompt and messages cannot both be given; leave one of them out";
            return Err(Invalid::value("prompt", message).into());
        }
        (Some(prompt), false) => {
            check_has_no_chat(&mut chat)?;
            let tokens = text.tokenizer.encode(&prompt, adds_special.unwrap_or(true));
            let param = "prompt";
            tokens.map_err(|error| RequestError::Text { param, error, context_tokens_max })?
        }
        (None, true) => {
            let input = Chat::read(chat, &common, limits)?.input;
            input.encode(&text, context_tokens_max, adds_special, Ok)?.concat()
        }
    };
    let spelled = |id: &TokenId| text.tokenizer.spelling(*id).unwrap_or_default();
    let returns_strs = own.return_token_strs.unwrap_or(false);
    let token_strs = returns_strs.then(|| tokens.iter().map(spelled).collect());
    let (count, max_model_len) = (tokens.len(), context_tokens_max);
    Ok(to_json(&Tokenized { count, max_model_len, tokens, token_strs }))
}

/// What only a chat's template shows cannot be part of a text.
///
/// # Errors
/// [`RequestError`], with the field at fault.
fn check_has_no_chat(chat: &mut ChatFields) -> Result<(), RequestError> {
    let tools = if chat.functions.is_some() { "functions" } else { "tools" };
    let shown = tools::read(chat)?;
    let given = [
        (tools, shown.is_some()),
        ("documents", chat.documents.as_ref().is_some_and(|all| !all.0.is_empty())),
        (
            "chat_template_kwargs",
            chat.chat_template_kwargs.as_ref().is_some_and(|all| !all.0.is_empty()),
        ),
        ("reasoning_effort", chat.reasoning_effort.is_some()),
        ("continue_final_message", chat.continue_final_message == Some(true)),
    ];
    match given.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((param, _)) => {
            let message = format!("{param} is part of a chat; send messages instead of prompt");
            Err(Invalid::value(param, message).into())
        }
    }
}

/// The text of tokens, special ones among them.
///
/// # Errors
/// [`RequestError`], with the field at fault.
pub(in crate::http) async fn detokenize(
    state: &Arc<State>,
    caller: Caller,
    payload: Payload,
) -> Result<Response<Body>, ApiError> {
    let bytes = payload.bytes.len();
    let work = move |state: &State| Ok(detokenize_now(state, &caller, &payload)?);
    let json = state.on_text(bytes, work).await?;
    Ok(whole("application/json", json))
}

fn detokenize_now(
    state: &State,
    caller: &Caller,
    payload: &Payload,
) -> Result<Vec<u8>, RequestError> {
    let parsed = parse::<DetokenizeFields>(&payload.bytes)?;
    state.check_unknown(&parsed.unknown)?;
    let DetokenizeFields { model, tokens } = parsed.fields;
    let text = resolve(state, caller, model.as_deref())?.text;
    let Ids(tokens) = tokens.ok_or(RequestError::Missing("tokens"))?;
    let limits = &state.model.limits;
    let max = DETOKENIZED_MAX.max(limits.context_tokens_max as usize);
    let invalid = |message: String| Err(Invalid::value("tokens", message).into());
    if tokens.len() > max {
        return invalid(format!("tokens must hold at most {max} tokens, got {}", tokens.len()));
    }
    // The model may have rows that the tokenizer has no tokens for; they have no text.
    let ids = limits.vocabulary_tokens.max(text.tokenizer.vocabulary_tokens());
    if let Some(id) = tokens.iter().find(|&&id| id >= ids) {
        return invalid(format!("token ids must be below {ids}, got {}", or_more(*id)));
    }
    Ok(to_json(&Detokenized { prompt: text.tokenizer.decode(&tokens, false) }))
}

/// What a client needs to tokenize and render by itself; `?model=` names whose.
///
/// # Errors
/// [`RequestError::ModelNotFound`] and [`RequestError::NotMerged`].
pub(in crate::http) fn info(
    state: &State,
    caller: &Caller,
    query: Option<&str>,
) -> Result<Response<Body>, RequestError> {
    let pairs = query.unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
    let model = pairs.filter(|(key, _)| *key == "model").map(|(_, value)| value).next_back();
    let model = model.map(|model| percent_decode_str(model).decode_utf8_lossy());
    let target = resolve(state, caller, model.as_deref())?;
    let text = target.text;
    let mut info = Map::new();
    info.insert("model".to_owned(), target.name.into());
    info.extend(NAMED.map(|name| (name.to_owned(), Value::Null)));
    let named = text.named_tokens.iter();
    info.extend(named.map(|(name, token)| (name.clone(), token.as_str().into())));
    let template = text.template.as_ref().map(|template| template.source());
    info.insert("chat_template".to_owned(), template.into());
    info.insert("model_max_length".to_owned(), state.model.limits.context_tokens_max.into());
    Ok(whole("application/json", to_json(&Value::Object(info))))
}

/// Any number of token ids.
#[derive(Debug)]
pub(in crate::http) struct Ids(Vec<TokenId>);

impl<'de> Deserialize<'de> for Ids {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(IdsVisitor).map(Self)
    }
}

impl Schema for Ids {
    fn schema(_: &Bounds<'_>) -> Value {
        // The model may have fewer, an adapter's tokenizer more.
        let id = json!({"type": "integer", "minimum": 0, "maximum": TokenId::MAX});
        json!({"type": "array", "items": id})
    }
}

struct IdsVisitor;

impl<'de> Visitor<'de> for IdsVisitor {
    type Value = Vec<TokenId>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of token ids")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<TokenId>, A::Error> {
        let mut ids = Vec::new();
        while let Some(id) = seq.next_element()? {
            ids.push(id);
        }
        Ok(ids)
    }
}
