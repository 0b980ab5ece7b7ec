//! `POST /v1/embeddings`: the model's last hidden state, after its final norm, as a text's vector.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::Response;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess};
use serde_json::{Number, Value, json};

use super::rephrase::respelled;
use crate::engine::Event;
use crate::http::arrival::Arrival;
use crate::http::caller::Caller;
use crate::http::clock::unix_now_s;
use crate::http::error::{ApiError, RequestError, ServerError};
use crate::http::generation::passes::{self, PASSES_MAX, PassFields, Passes};
use crate::http::models::resolve;
use crate::http::random::new_id;
use crate::http::request::body::Payload;
use crate::http::request::parse::{Fields, fields, parse};
use crate::http::request::prompt::PromptInput;
use crate::http::request::prompts::Prompts;
use crate::http::request::schemas::prompts;
use crate::http::request::small::whole_number;
use crate::http::request::unsupported::{Neutral, Unsupported};
use crate::http::schema::{Bounds, Schema};
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::http::wire::{Embedding, Embeddings, Vector, to_json};
use crate::ids::TokenId;
use crate::request::{Invalid, Pooling, RequestFields, RequestParams};

fields! {
    /// What `/v1/embeddings` takes.
    EmbeddingFields {
        /// An adapter, the base model, or `base:adapter`; the base unless given.
        model: String,
        /// Texts or lists of token ids.
        input: Input,
        /// Numbers, or their little-endian bytes in base64.
        encoding_format: Encoding,
        /// Keeps the first so many numbers.
        dimensions: Number,
        /// Whether vectors have the length 1; true unless given.
        normalize: bool,
        /// The last token's state, or the mean of all.
        pooling: PoolingName,
        /// Whether texts get the tokenizer's special tokens; true unless given.
        add_special_tokens: bool,
    }
    unsupported UNSUPPORTED;
    ignored &[];
}

/// What other servers' embeddings have.
const UNSUPPORTED: &[Unsupported] = &[
    Unsupported::spelled("prompt", Neutral::Null, "input"),
    Unsupported::spelled("messages", Neutral::Empty, "input"),
    Unsupported::spelled("inputs", Neutral::Null, "input"),
    Unsupported::spelled("texts", Neutral::Empty, "input"),
    Unsupported::spelled("output_dimension", Neutral::Null, "dimensions"),
    Unsupported::spelled("output_dimensionality", Neutral::Null, "dimensions"),
    Unsupported::new("embed_dtype", Neutral::Words(&["float32"])),
    Unsupported::new("output_dtype", Neutral::Words(&["float", "float32"])),
    Unsupported::new("embedding_types", Neutral::Words(&["float"])),
    Unsupported::new("endianness", Neutral::Words(&["native", "little"])),
    Unsupported::spelled("use_activation", Neutral::Is(true), "normalize"),
    Unsupported::new("input_type", Neutral::Empty),
    Unsupported::new("task", Neutral::Words(&["embed"])),
    Unsupported::new("task_type", Neutral::Empty),
    Unsupported::new("instruction", Neutral::Empty),
    Unsupported::new("prompt_name", Neutral::Empty),
    Unsupported::new("late_chunking", Neutral::Is(false)),
    Unsupported::new("truncate", Neutral::Is(false)),
    Unsupported::new("truncation", Neutral::Is(false)),
    Unsupported::new("stream", Neutral::Is(false)),
];

/// `input`: as `prompt` of completions, and more of them.
#[derive(Debug)]
pub(in crate::http) struct Input(Prompts);

impl<'de> Deserialize<'de> for Input {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Prompts::read(deserializer, PASSES_MAX).map(Self)
    }
}

/// `encoding_format`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum Encoding {
    Float,
    Base64,
}

/// `pooling`.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(in crate::http) enum PoolingName {
    Last,
    Mean,
}

impl Schema for Input {
    fn schema(bounds: &Bounds<'_>) -> Value {
        prompts(PASSES_MAX, bounds)
    }
}

impl Schema for Encoding {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "string", "enum": ["float", "base64"]})
    }
}

impl Schema for PoolingName {
    fn schema(_: &Bounds<'_>) -> Value {
        json!({"type": "string", "enum": ["last", "mean"]})
    }
}

/// How vectors are to look.
struct Shape {
    model: String,
    encoding: Encoding,
    dimensions: Option<usize>,
    normalize: bool,
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
    let (passes, shape) = state.on_text(bytes, prepare).await?;
    let (events, usage) = passes::run(state, passes).await?;
    let bytes = events.len() * state.model.hidden_size * size_of::<f32>();
    let write = move |_: &State| {
        let vectors = events.into_iter().filter_map(|event| match event {
            Event::Embedding(vector) => Some(vector),
            _ => None,
        });
        let data = vectors.enumerate().map(|(index, vector)| {
            let embedding = shape.of(vector)?;
            Ok(Embedding { object: "embedding", index, embedding })
        });
        let answer = Embeddings {
            id: format!("embd-{}", new_id()),
            object: "list",
            created: unix_now_s(),
            model: &shape.model,
            data: data.collect::<Result<_, ServerError>>()?,
            usage,
        };
        Ok(to_json(&answer))
    };
    // Thousands of vectors are many megabytes of digits.
    let json = state.on_text(bytes, write).await?;
    Ok(whole("application/json", json))
}

fn prepare(
    state: &State,
    caller: &Caller,
    payload: &Payload,
    arrived: Arrival,
) -> Result<(Passes, Shape), ApiError> {
    let parsed = parse::<PassFields<EmbeddingFields>>(&payload.bytes)?;
    state.check_unknown(&parsed.unknown)?;
    let fields = parsed.fields.0;
    let target = resolve(state, caller, fields.model.as_deref())?;
    target.told_to(&arrived);
    let Input(input) = fields.input.ok_or(RequestError::Missing("input"))?;
    let shape = Shape {
        model: target.name.clone(),
        encoding: fields.encoding_format.unwrap_or(Encoding::Float),
        dimensions: fields.dimensions.map(|n| dimensions(&n, state)).transpose()?,
        normalize: fields.normalize.unwrap_or(true),
    };
    let pooling = match fields.pooling.unwrap_or(PoolingName::Last) {
        PoolingName::Last => Pooling::Last,
        PoolingName::Mean => Pooling::Mean,
    };
    let limits = &state.model.limits;
    let params = RequestFields {
        pooling: Some(pooling),
        cache_salt: caller.cache_salt(None),
        share: caller.share(),
        ..RequestFields::default()
    };
    let params = RequestParams::new(params, limits)?;
    let input = PromptInput::from(input);
    if input.count() == 0 {
        return Err(Invalid::value("input", "input must hold at least one text").into());
    }
    let text = &target.text;
    let prompts = passes::encode(state, input, text, fields.add_special_tokens, &params);
    let prompts = prompts.map_err(|error| respelled(error, &[("prompt", "input")]))?;
    let tickets = passes::reserve(state, prompts.len())?;
    let request = |prompt: Vec<TokenId>| params.clone().with_prompt(prompt, limits);
    let requests = prompts.into_iter().map(request).collect::<Result<_, _>>()?;
    Ok((Passes { target, tickets, requests, arrived }, shape))
}

fn dimensions(asked: &Number, state: &State) -> Result<usize, Invalid> {
    let most = state.model.hidden_size;
    let n = whole_number(asked).and_then(|n| usize::try_from(n).ok());
    n.filter(|n| (1..=most).contains(n)).ok_or_else(|| {
        let message = format!("dimensions must be a whole number from 1 to {most}, got {asked}");
        Invalid::value("dimensions", message)
    })
}

impl Shape {
    /// # Errors
    /// [`ServerError::EngineFailed`] for what JSON has no number for.
    fn of(&self, mut vector: Vec<f32>) -> Result<Vector, ServerError> {
        vector.truncate(self.dimensions.unwrap_or(usize::MAX));
        if self.normalize {
            let squares: f64 = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            // A vector of zeros has no direction and stays as it is.
            let length = if squares == 0.0 { 1.0 } else { squares.sqrt() };
            vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        if !vector.iter().all(|x| x.is_finite()) {
            let message = "the model produced no finite vector for this request";
            return Err(ServerError::EngineFailed(message.to_owned()));
        }
        Ok(match self.encoding {
            Encoding::Float => Vector::Floats(vector),
            Encoding::Base64 => {
                let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                Vector::Base64(STANDARD.encode(bytes))
            }
        })
    }
}
