//! From a request's bytes to its answer: what both generation routes share.

use std::sync::Arc;
use std::time::Instant;

use hyper::Response;

use super::body::Payload;
use super::choices::{Choices, SequenceGroup, best};
use super::endpoint::{Asked, Endpoint, Reply, ReplyOptions};
use super::error::ApiError;
use super::fields::{Common, Generation, Stops, TokenIds};
use super::logprobs::Spelling;
use super::models::resolve;
use super::parse::parse;
use super::sse::{Body, whole};
use super::state::State;
use super::told::{Samples, ToldPrompt, sample_seed};
use super::{random, stream, told};
use crate::ids::TokenId;
use crate::request::{Invalid, Limits, RequestFields, RequestParams};
use crate::text::ServedText;

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
    let (endpoint, group, samples) = state.off_thread(&state.text_tasks, prepare).await?;
    let mut choices = Choices::start(state, group);
    if endpoint.reply().options.stream {
        return stream::stream(state.http.keep_alive_ms, choices, endpoint).await;
    }
    let outputs = best(choices.collect().await?, samples);
    Ok(whole("application/json", endpoint.whole(&outputs, choices.usage())))
}

/// Bytes to sequences; slow for long texts.
fn prepare<E: Endpoint>(
    state: &State,
    payload: Payload,
    arrived: Instant,
) -> Result<(E, SequenceGroup, Samples), ApiError> {
    let parsed = parse::<Generation<E::Fields>>(&payload.bytes)?;
    drop(payload);
    state.metrics.unknown_fields(&parsed.unknown);
    let Generation { own, mut common } = parsed.fields;
    let options = ReplyOptions::new(&common)?;
    let samples = Samples::new(&common, options.stream)?;
    let terms = E::prompt_terms(&own);
    let target = resolve(state, common.model.as_deref())?;
    let limits = &state.model.limits;
    let Asked { input, tokens_max, tokens_max_param, logprobs } = E::read(own, &common, limits)?;
    let prompt_param = input.param();
    // The field at fault as this route spells it.
    let spelled = |invalid: Invalid| match invalid.param {
        "prompt" => Invalid { param: prompt_param, ..invalid },
        "max_tokens" => {
            let message = invalid.message.replace("max_tokens", tokens_max_param);
            Invalid { param: tokens_max_param, message, ..invalid }
        }
        _ => invalid,
    };
    let stops = common.stop.take().map_or_else(Vec::new, |Stops(stops)| stops);
    let text = target.text.clone();
    let stop_tokens = stop_tokens(&text, &common, &stops, limits)?;
    let mut fields = params(&text, &common, tokens_max, logprobs, stop_tokens)?;
    let draws = tokens_max != Some(0);
    fields.prompt_logprobs = terms.scores(options.prompt_logprobs, logprobs, draws);
    let params = RequestParams::new(fields, limits).map_err(spelled)?;
    // Before the costly part: a full server says so at once.
    let mut tickets = state.engine.reserve(input.count() * samples.drawn)?.into_iter();
    let mut given = told::given(&input, &terms).into_iter();
    let prompts = input.encode(&text, limits.context_tokens_max, common.add_special_tokens)?;
    let mut sequences = Vec::with_capacity(tickets.len());
    let mut told_prompts = Vec::new();
    for prompt in prompts {
        for (sample, ticket) in tickets.by_ref().take(samples.drawn).enumerate() {
            // In vLLM and llama.cpp -1 asks for a random one; other negative seeds are as good as
            // any.
            let seed = common.seed.filter(|&seed| seed != -1);
            let seed = seed.map_or_else(random::seed, |seed| sample_seed(seed as u64, sample));
            let params = params.clone().with_seed(seed);
            sequences.push((ticket, params.with_prompt(prompt.clone(), limits).map_err(spelled)?));
        }
        if terms.echo {
            told_prompts.push(ToldPrompt::echoed(&text, prompt, given.next(), draws));
        } else if options.return_token_ids {
            told_prompts.push(ToldPrompt { ids: prompt, echo: None });
        }
    }
    let as_ids = options.tokens_as_ids;
    let spelling = Spelling { tokenizer: text.tokenizer.clone(), as_ids };
    let name = target.name.clone();
    let reply = Reply::new::<E>(name, options, spelling, logprobs, told_prompts, samples.told);
    let group = SequenceGroup { target, sequences, samples: samples.drawn, stops, arrived };
    Ok((E::new(reply), group, samples))
}

/// All parameters of a request, but for the seed.
fn params(
    text: &ServedText,
    common: &Common,
    tokens_max: Option<u32>,
    logprobs: Option<u32>,
    stop_tokens: Vec<TokenId>,
) -> Result<RequestFields, Invalid> {
    let top_k = |k: i64| match k {
        -1 => Ok(0),
        // More than any vocabulary has.
        k if k > i64::from(u32::MAX) => Ok(0),
        k => u32::try_from(k).map_err(|_| {
            let message = format!("top_k must be -1, 0 (both mean off) or above, got {k}");
            Invalid::value("top_k", message)
        }),
    };
    let Common { temperature, top_p, min_p, repetition_penalty, .. } = *common;
    let top_k = common.top_k.map(top_k).transpose()?;
    let defaults = &text.defaults;
    Ok(RequestFields {
        tokens_max,
        tokens_cap: defaults.tokens_max,
        sampling: defaults.fill(temperature, top_p, top_k, min_p, repetition_penalty),
        stop_tokens,
        logprobs,
        prompt_logprobs: None,
        // No field asks for these.
        pooling: None,
        cache_salt: None,
    })
}

/// Tokens that end the sequence: the name's own, those of `stop_token_ids`, and those that a stop
/// string spells, of which a special one is no part of the text that is searched for it.
fn stop_tokens(
    text: &ServedText,
    common: &Common,
    stops: &[String],
    limits: &Limits,
) -> Result<Vec<TokenId>, Invalid> {
    let mut ids = match common.ignore_eos {
        Some(true) => Vec::new(),
        _ => text.eos_tokens.clone(),
    };
    let asked = common.stop_token_ids.as_ref().map_or(&[][..], |TokenIds(ids)| ids);
    let max = limits.vocabulary_tokens;
    if let Some(id) = asked.iter().find(|&&id| id >= max) {
        let message = format!("token ids must be below {max}, got {id}");
        return Err(Invalid::value("stop_token_ids", message));
    }
    let tokenizer = &text.tokenizer;
    let special = |stop: &String| tokenizer.token_id(stop).filter(|&id| tokenizer.is_special(id));
    ids.extend(asked.iter().copied().chain(stops.iter().filter_map(special)));
    Ok(ids)
}
