//! From a request's bytes to its answer: what both generation routes share.

use std::sync::Arc;
use std::time::Instant;

use hyper::Response;

use super::body::Payload;
use super::choices::{Choices, SequenceGroup};
use super::endpoint::{Asked, Endpoint, Reply, ReplyOptions};
use super::error::ApiError;
use super::fields::{Common, Generation, Stops};
use super::models::resolve;
use super::parse::parse;
use super::settings::ServedModel;
use super::sse::{Body, whole};
use super::state::State;
use super::{random, stream};
use crate::request::{Invalid, RequestFields, RequestParams, SamplingParams};

/// Answers a request of a generation route.
///
/// # Errors
/// Any of [`ApiError`] but those of loading.
pub(super) async fn handle<E: Endpoint>(
    state: &Arc<State>,
    payload: Payload,
    arrived: Instant,
) -> Result<Response<Body>, ApiError> {
    state.check_open()?;
    let prepare = move |state: &State| prepare::<E>(state, payload, arrived);
    let (endpoint, group) = state.off_thread(&state.text_tasks, prepare).await?;
    let mut choices = Choices::start(state, group);
    if endpoint.reply().options.stream {
        return stream::stream(state.http.keep_alive_ms, choices, endpoint).await;
    }
    let outputs = choices.collect().await?;
    Ok(whole("application/json", endpoint.whole(&outputs, choices.usage())))
}

/// Bytes to sequences; slow for long texts.
fn prepare<E: Endpoint>(
    state: &State,
    payload: Payload,
    arrived: Instant,
) -> Result<(E, SequenceGroup), ApiError> {
    let parsed = parse::<Generation<E::Fields>>(&payload.bytes)?;
    drop(payload);
    state.metrics.unknown_fields(&parsed.unknown);
    let Generation { own, mut common } = parsed.fields;
    let options = ReplyOptions::new(&common)?;
    let target = resolve(state, common.model.as_deref())?;
    let limits = &state.model.limits;
    let Asked { input, tokens_max, tokens_max_param, logprobs } = E::read(own, &common, limits)?;
    let prompt_param = input.param();
    // The field at fault as this route spells it.
    let spelled = |invalid: Invalid| {
        let param = match invalid.param {
            "prompt" => prompt_param,
            "max_tokens" => tokens_max_param,
            param => param,
        };
        Invalid { param, ..invalid }
    };
    let params = params(&state.model, &common, tokens_max, logprobs).map_err(spelled)?;
    // Before the costly part: a full server says so at once.
    let tickets = state.engine.reserve(input.count())?;
    let prompts = input.encode(&state.model, common.add_special_tokens)?;
    let returned = if options.return_token_ids { prompts.clone() } else { Vec::new() };
    let mut sequences = Vec::with_capacity(prompts.len());
    for (ticket, prompt) in tickets.into_iter().zip(prompts) {
        // Negative seeds are as good as others.
        let seed = common.seed.map_or_else(random::seed, |seed| seed as u64);
        let params = params.clone().with_seed(seed);
        sequences.push((ticket, params.with_prompt(prompt, limits).map_err(spelled)?));
    }
    let tokenizer = state.model.tokenizer.clone();
    let has_logprobs = logprobs.is_some();
    let reply = Reply::new::<E>(target.name.clone(), options, tokenizer, has_logprobs, returned);
    let stops = common.stop.take().map_or_else(Vec::new, |Stops(stops)| stops);
    Ok((E::new(reply), SequenceGroup { target, sequences, stops, arrived }))
}

/// All parameters of a request, but for the seed.
fn params(
    model: &ServedModel,
    common: &Common,
    tokens_max: Option<u32>,
    logprobs: Option<u32>,
) -> Result<RequestParams, Invalid> {
    let top_k = match common.top_k.unwrap_or(0) {
        -1 => 0,
        k => u32::try_from(k).map_err(|_| {
            let message = format!("top_k must be -1, 0 (both mean off) or above, got {k}");
            Invalid::value("top_k", message)
        })?,
    };
    let sampling = SamplingParams {
        temperature: common.temperature.unwrap_or(1.0),
        top_p: common.top_p.unwrap_or(1.0),
        top_k,
        min_p: common.min_p.unwrap_or(0.0),
        seed: 0,
    };
    let stop_tokens = match common.ignore_eos {
        Some(true) => Vec::new(),
        _ => model.eos_tokens.clone(),
    };
    let fields = RequestFields {
        tokens_max,
        sampling,
        stop_tokens,
        logprobs,
        // No field asks for these.
        prompt_logprobs: None,
        pooling: None,
        cache_salt: None,
    };
    RequestParams::new(fields, &model.limits)
}
