//! `POST /v1/loglikelihood`: how likely given continuations are after given prompts, which is what
//! evaluations by multiple choice ask for.

use std::fmt;
use std::sync::Arc;

use hyper::Response;
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Value, json};

use crate::engine::{Event, PromptScore};
use crate::http::arrival::Arrival;
use crate::http::caller::Caller;
use crate::http::clock::unix_now_s;
use crate::http::error::{ApiError, RequestError};
use crate::http::generation::logprobs::finite;
use crate::http::generation::passes::{self, PASSES_MAX, PassFields, Passes};
use crate::http::models::resolve;
use crate::http::random::new_id;
use crate::http::request::body::Payload;
use crate::http::request::parse::{Fields, fields, parse};
use crate::http::request::prompts::Prompts;
use crate::http::request::schemas::prompts;
use crate::http::request::unsupported::{Neutral, Unsupported};
use crate::http::schema::{Bounds, Schema};
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::wire::{Loglikelihood, Loglikelihoods, to_json};
use crate::ids::TokenId;
use crate::request::{Invalid, RequestFields, RequestParams};
use crate::text::ServedText;

fields! {
    /// What `/v1/loglikelihood` takes.
    LoglikelihoodFields {
        /// An adapter, the base model, or `base:adapter`; the base unless given.
        model: String,
        /// Prompts and what comes after each: both texts, or both lists of token ids.
        requests: Pairs,
        /// Whether texts get the tokenizer's special tokens; true unless given.
        add_special_tokens: bool,
    }
    unsupported UNSUPPORTED;
    ignored &[];
}

/// What completions have.
const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::spelled("prompt", Neutral::Null, "requests"),
    Unsupported::new("stream", Neutral::Is(false)),
];

/// `requests`.
#[derive(Debug)]
pub(in crate::http) struct Pairs(Vec<Pair>);

/// One of them.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Pair {
    prompt: Prompt,
    continuation: Prompt,
}

/// One text, or one list of token ids.
#[derive(Debug)]
enum Prompt {
    Text(String),
    Ids(Vec<TokenId>),
}

impl<'de> Deserialize<'de> for Prompt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match Prompts::read(deserializer, 1)? {
            // An empty list is one of no tokens.
            Prompts::Texts(mut texts) => texts.pop().map_or(Self::Ids(Vec::new()), Self::Text),
            Prompts::Ids(mut lists) => Self::Ids(lists.pop().unwrap_or_default()),
        })
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(PairsVisitor).map(Self)
    }
}

impl Schema for Pairs {
    fn schema(bounds: &Bounds<'_>) -> Value {
        let mut of = prompts(1, bounds);
        if let Some(Value::Array(forms)) = of.get_mut("anyOf") {
            // Of which one must hold something, which depends on the tokenizer.
            forms.push(json!({"type": "string", "maxLength": 0}));
            forms.push(json!({"type": "array", "maxItems": 0}));
        }
        let pair = json!({
            "type": "object",
            "properties": {"prompt": of, "continuation": of},
            "required": ["prompt", "continuation"],
            "additionalProperties": false,
        });
        json!({"type": "array", "minItems": 1, "maxItems": PASSES_MAX, "items": pair})
    }
}

struct PairsVisitor;

impl<'de> Visitor<'de> for PairsVisitor {
    type Value = Vec<Pair>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects with prompt and continuation")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<Pair>, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = seq.next_element()? {
            if pairs.len() == PASSES_MAX {
                return Err(A::Error::custom(format!("at most {PASSES_MAX} in a request")));
            }
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

/// Answers a request.
///
/// # Errors
/// Any of [`ApiError`] but those of loading.
pub(in crate::http) async fn handle(
    state: &Arc<State>,
    caller: Caller,
    payload: Payload,
    arrived: Arrival,
) -> Result<Response<Body>, ApiError> {
    state.check_open()?;
    let bytes = payload.bytes.len();
    let prepare = move |state: &State| prepare(state, &caller, &payload, arrived);
    let (passes, borders) = state.on_text(bytes, prepare).await?;
    let model = passes.target.name.clone();
    let (events, usage) = passes::run(state, passes).await?;
    let scores = events.iter().filter_map(|event| match event {
        Event::Scores(scores) => Some(scores),
        _ => None,
    });
    let data = scores.zip(&borders).enumerate().map(|(index, (scores, &border))| {
        // The first score is of the second token.
        scored(index, border, &scores[border - 1..])
    });
    let answer = Loglikelihoods {
        id: format!("loglik-{}", new_id()),
        object: "list",
        created: unix_now_s(),
        model: &model,
        data: data.collect(),
        usage,
    };
    Ok(whole("application/json", to_json(&answer)))
}

fn scored(index: usize, prompt_tokens: usize, scores: &[PromptScore]) -> Loglikelihood {
    let token_logprobs: Vec<f32> = scores.iter().map(|score| finite(score.logprob)).collect();
    Loglikelihood {
        object: "loglikelihood",
        index,
        loglikelihood: token_logprobs.iter().map(|&logprob| f64::from(logprob)).sum(),
        is_greedy: scores.iter().all(|score| score.rank == 1),
        token_ids: scores.iter().map(|score| score.token).collect(),
        token_logprobs,
        prompt_tokens,
        continuation_tokens: scores.len(),
    }
}

/// The sequences, and of each how many tokens its prompt has.
fn prepare(
    state: &State,
    caller: &Caller,
    payload: &Payload,
    arrived: Arrival,
) -> Result<(Passes, Vec<usize>), ApiError> {
    let parsed = parse::<PassFields<LoglikelihoodFields>>(&payload.bytes)?;
    state.check_unknown(&parsed.unknown)?;
    let fields = parsed.fields.0;
    let target = resolve(state, caller, fields.model.as_deref())?;
    target.told_to(&arrived);
    let Pairs(pairs) = fields.requests.ok_or(RequestError::Missing("requests"))?;
    if pairs.is_empty() {
        let message = "requests must hold at least one prompt with its continuation";
        return Err(Invalid::value(PARAM, message).into());
    }
    let limits = &state.model.limits;
    let params = RequestFields {
        tokens_max: Some(0),
        prompt_logprobs: Some(0),
        cache_salt: caller.cache_salt(None),
        share: caller.share(),
        ..RequestFields::default()
    };
    let params = RequestParams::new(params, limits)?;
    let adds_special = fields.add_special_tokens.unwrap_or(true);
    let text = &target.text;
    let check = |index: usize, tokens: &[TokenId]| {
        let checked = params.check_prompt(tokens, limits);
        checked.map_err(|e| Invalid { code: e.code, ..at(index, &e.message) })
    };
    check_pairs(&pairs, text, limits.context_tokens_max, check)?;
    passes::check_places(state, pairs.len())?;
    let (mut all, mut borders) = (Vec::new(), Vec::new());
    for (index, pair) in pairs.into_iter().enumerate() {
        let context_tokens_max = limits.context_tokens_max;
        let (tokens, border) =
            encode(pair, text, context_tokens_max, adds_special, |what| at(index, what))?;
        check(index, &tokens)?;
        all.push(tokens);
        borders.push(border);
    }
    let tickets = passes::reserve(state, all.len())?;
    let request = |tokens| params.clone().with_prompt(tokens, limits);
    let requests = all.into_iter().map(request).collect::<Result<_, _>>()?;
    Ok((Passes { target, tickets, requests, arrived }, borders))
}

/// A fault of one of them.
fn at(index: usize, message: &str) -> Invalid {
    Invalid::value(PARAM, format!("{PARAM}[{index}]: {message}"))
}

/// Checks what costs little, of all pairs: where one of them cannot be served, none is tokenized.
fn check_pairs(
    pairs: &[Pair],
    text: &ServedText,
    context_tokens_max: u32,
    check: impl Fn(usize, &[TokenId]) -> Result<(), Invalid>,
) -> Result<(), RequestError> {
    for (index, pair) in pairs.iter().enumerate() {
        match (&pair.prompt, &pair.continuation) {
            (Prompt::Text(prompt), Prompt::Text(continuation)) => {
                let fits = text.tokenizer.check_bytes(prompt.len() + continuation.len());
                let param = PARAM;
                fits.map_err(|error| RequestError::Text { param, error, context_tokens_max })?;
            }
            (Prompt::Ids(prompt), Prompt::Ids(continuation)) => {
                check(index, &[&prompt[..], continuation].concat())?;
            }
            _ => return Err(at(index, MIXED).into()),
        }
    }
    Ok(())
}

/// What is said of a text beside tokens.
const MIXED: &str = "prompt and continuation must both be texts, which are tokenized together, or \
                     both be lists of token ids";

/// The field that errors name.
const PARAM: &str = "requests";

/// The tokens of both, and how many of them are the prompt's. Texts are tokenized together: the
/// continuation's tokens are those that hold any of its text.
fn encode(
    pair: Pair,
    text: &ServedText,
    context_tokens_max: u32,
    adds_special: bool,
    invalid: impl Fn(&str) -> Invalid,
) -> Result<(Vec<TokenId>, usize), RequestError> {
    let (tokens, border) = match (pair.prompt, pair.continuation) {
        (Prompt::Text(prompt), Prompt::Text(continuation)) => {
            let both = prompt.clone() + &continuation;
            let encoded = text.tokenizer.encode_with_border(&both, prompt.len(), adds_special);
            let failed = |error| RequestError::Text { param: PARAM, error, context_tokens_max };
            encoded.map_err(failed)?
        }
        (Prompt::Ids(mut ids), Prompt::Ids(continuation)) => {
            let border = ids.len();
            ids.extend(continuation);
            (ids, border)
        }
        _ => return Err(invalid(MIXED).into()),
    };
    if border == tokens.len() {
        return Err(invalid("continuation must hold at least one token").into());
    }
    if border == 0 {
        let message = "the first token of a continuation needs one before it; begin the prompt \
                       with a token such as the end of a text";
        return Err(invalid(message).into());
    }
    Ok((tokens, border))
}
