//! From a request's bytes to its answer: what the generation routes share.

use std::sync::Arc;

use hyper::Response;

use super::choices::{Choices, SequenceGroup, best};
use super::endpoint::{Asked, Endpoint, Reply, ReplyOptions};
use super::stream;
use super::thoughts::{self, Telling};
use crate::engine::Ticket;
use crate::http::arrival::Arrival;
use crate::http::caller::Caller;
use crate::http::error::{ApiError, RequestError};
use crate::http::models::resolve;
use crate::http::random;
use crate::http::request::body::Payload;
use crate::http::request::ends::Ends;
use crate::http::request::fields::{Common, Generation, TokenIds};
use crate::http::request::forms;
use crate::http::request::parse::parse;
use crate::http::request::shape::Shape;
use crate::http::request::token_rules::TokenFields;
use crate::http::request::told;
use crate::http::request::told::{Samples, sample_seed};
use crate::http::spelling::Spelling;
use crate::http::sse::{Body, whole};
use crate::http::state::State;
use crate::ids::{Digest, TokenId};
use crate::request::{
    Invalid, Limits, RANGES, Request, RequestFields, RequestParams, Share, check_range,
};
use crate::text::ServedText;

/// Answers a request of a generation route.
///
/// # Errors
/// Any of [`ApiError`] but those of loading.
pub(in crate::http) async fn handle<E: Endpoint>(
    state: &Arc<State>,
    caller: Caller,
    payload: Payload,
    arrived: Arrival,
) -> Result<Response<Body>, ApiError> {
    state.check_open()?;
    let bytes = payload.bytes.len();
    let prepare = move |state: &State| prepare::<E>(state, &caller, payload, arrived);
    let (mut endpoint, group, samples) = state.on_text(bytes, prepare).await?;
    let mut choices = Choices::start(state, group);
    if endpoint.reply().options.stream {
        return stream::stream(state.http.keep_alive_ms, choices, endpoint).await;
    }
    let outputs = choices.collect(|output| endpoint.see(output)).await?;
    let outputs = best(outputs, samples);
    Ok(whole("application/json", endpoint.whole(&outputs, choices.usage())))
}

/// Bytes to sequences; slow for long texts.
fn prepare<E: Endpoint>(
    state: &State,
    caller: &Caller,
    payload: Payload,
    arrived: Arrival,
) -> Result<(E, SequenceGroup, Samples), ApiError> {
    let parsed = parse::<Generation<E::Fields>>(&payload.bytes)?;
    drop(payload);
    let Generation { mut own, mut common } = parsed.fields;
    state.check_unknown(&[parsed.unknown, common.unknown()].concat())?;
    let repeats = E::translate(&mut own, &mut common)?;
    let planned = plan::<E>(state, caller, Generation { own, common }, arrived);
    let (mut reply, group, samples) = planned.map_err(E::respelled)?;
    reply.repeats = repeats;
    Ok((E::new(reply), group, samples))
}

/// Fields to sequences, and what their answer has in common.
fn plan<E: Endpoint>(
    state: &State,
    caller: &Caller,
    fields: Generation<E::Fields>,
    arrived: Arrival,
) -> Result<(Reply, SequenceGroup, Samples), ApiError> {
    let Generation { own, mut common } = fields;
    let mut options = ReplyOptions::new(&common)?;
    let samples = Samples::new(&common, options.stream)?;
    let (terms, of_thoughts) = (E::prompt_terms(&own), E::thoughts(&own));
    let target = resolve(state, caller, common.model.as_deref())?;
    target.told_to(&arrived);
    let limits = &state.model.limits;
    let asked = E::read(own, &common, limits)?;
    let Asked { input, tokens_max, tokens_max_param, logprobs, tools } = asked;
    // A newer name of it wins, and it must be right all the same.
    common.max_tokens.map_or(Ok(()), |asked| limits.check_tokens_max(asked))?;
    let prompt_param = input.param();
    let spelled = |invalid: Invalid| spelled(invalid, prompt_param, tokens_max_param);
    let respelled = |error: RequestError| match error {
        RequestError::Invalid(invalid) => RequestError::Invalid(spelled(invalid)),
        error => error,
    };
    let text = target.text.clone();
    options.may_call = tools.is_some();
    options.calls_old = tools.as_ref().is_some_and(|tools| tools.is_old);
    let (form, calls) = match (forms::read(&mut common)?, tools) {
        (form, Some(tools)) => tools.plan(&text, state.http.tool_call_parser, form)?,
        (form, None) => (form, None),
    };
    let shape = Shape::new(&common, &terms, &text, tokens_max, limits)?;
    let mut ends = Ends::new(&text, &mut common, limits)?;
    shape.end().into_iter().for_each(|end| ends.push_own(end));
    let mut fields = params(&text, &common, limits, tokens_max, logprobs, ends.tokens.clone())?;
    let draws = tokens_max != Some(0);
    let scores = terms.scores(options.prompt_logprobs, logprobs, draws);
    fields.prompt_logprobs = scores;
    fields.cache_salt = cache_salt(caller, &common)?;
    fields.share = caller.share();
    let params = RequestParams::new(fields, limits).map_err(spelled)?;
    // Before the costly part: what can never be served, and a full server, are said at once.
    let count = input.count() * samples.drawn;
    samples.check(input.count(), state.engine.requests_max()).map_err(spelled)?;
    shape.check(&input, &text, &params, limits).map_err(respelled)?;
    state.engine.check_places(count)?;
    let guide = forms::guide(state, &text, &common, form)?;
    let (given, begun) =
        (told::given(&input, &terms, shape.keep.is_some()), thoughts::begun(&input));
    let adds_special = common.add_special_tokens;
    let prompts = shape.encode(input, &text, adds_special, &params, limits).map_err(respelled)?;
    if terms.echo || scores.is_some() {
        told::check(&prompts, samples.drawn, scores.unwrap_or(0)).map_err(spelled)?;
    }
    // A chat is one prompt.
    let first = (prompts.first().map_or(&[][..], Vec::as_slice), begun);
    let (thoughts, guide) = of_thoughts.plan(state, &text, first, &ends, guide)?;
    options.thoughts = thoughts.as_ref().map_or(Telling::InText, |terms| terms.telling);
    let params = params.with_guide(guide);
    // Who sends what cannot be served takes nobody's place.
    let tickets = state.engine.reserve(count)?;
    let sequences = sequences(tickets, &params, &prompts, samples, common.seed, limits);
    let sequences = sequences.map_err(spelled)?;
    let (as_ids, shows_special) = (options.tokens_as_ids, ends.shows_special);
    let spelling = Spelling { tokenizer: text.tokenizer.clone(), as_ids, shows_special };
    let prompts = told::told(prompts, given, &terms, &spelling, draws, options.return_token_ids);
    let (name, fingerprint) = (target.name.clone(), state.model.fingerprint());
    let reply =
        Reply::new::<E>(name, fingerprint, options, spelling, logprobs, prompts, samples.told);
    let ends = Arc::new(ends);
    let drawn = samples.drawn;
    let group = SequenceGroup { target, sequences, samples: drawn, ends, thoughts, calls, arrived };
    Ok((reply, group, samples))
}

/// A fault with the field as its route spells it.
fn spelled(invalid: Invalid, prompt: &'static str, tokens_max: &'static str) -> Invalid {
    match invalid.param {
        "prompt" => Invalid { param: prompt, ..invalid },
        "max_tokens" => {
            let message = invalid.message.replace("max_tokens", tokens_max);
            Invalid { param: tokens_max, message, ..invalid }
        }
        _ => invalid,
    }
}

/// The samples of the first prompt, those of the second, …
fn sequences(
    tickets: Vec<Ticket>,
    params: &RequestParams,
    prompts: &[Vec<TokenId>],
    samples: Samples,
    seed: Option<i64>,
    limits: &Limits,
) -> Result<Vec<(Ticket, Request)>, Invalid> {
    // In vLLM and llama.cpp -1 asks for a random one; other negative seeds are as good as any.
    let seed = seed.filter(|&seed| seed != -1);
    let sequence = |(i, ticket): (usize, Ticket)| {
        let sample = i % samples.drawn;
        let seed = seed.map_or_else(random::seed, |seed| sample_seed(seed as u64, sample));
        let prompt = prompts[i / samples.drawn].clone();
        Ok((ticket, params.clone().with_seed(seed).with_prompt(prompt, limits)?))
    };
    tickets.into_iter().enumerate().map(sequence).collect()
}

/// All parameters of a request, but for the seed.
fn params(
    text: &ServedText,
    common: &Common,
    limits: &Limits,
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
    let Common { presence_penalty, frequency_penalty, .. } = *common;
    let given =
        [temperature, top_p, min_p, repetition_penalty, presence_penalty, frequency_penalty];
    for ((param, _), value) in RANGES.iter().zip(given) {
        value.map_or(Ok(()), |value| check_range(param, value))?;
    }
    let top_k = common.top_k.map(top_k).transpose()?;
    let defaults = &text.defaults;
    let [temperature, top_p, min_p, repetition_penalty] =
        [temperature, top_p, min_p, repetition_penalty].map(|value| value.map(|x| x as f32));
    let sampling = defaults.fill(temperature, top_p, top_k, min_p, repetition_penalty);
    let token_fields = TokenFields {
        presence_penalty,
        frequency_penalty,
        logit_bias: common.logit_bias.as_ref(),
        bad_words: common.bad_words.as_ref(),
        allowed_token_ids: common.allowed_token_ids.as_ref().map(|TokenIds(ids)| &ids[..]),
        min_tokens: common.min_tokens,
    };
    let ends = text.eos_tokens.iter().chain(&stop_tokens).copied();
    let vocabulary = limits.vocabulary_tokens;
    let sampling = token_fields.fill(sampling, &text.tokenizer, ends, vocabulary)?;
    Ok(RequestFields {
        tokens_max,
        tokens_cap: defaults.tokens_max,
        sampling,
        stop_tokens,
        logprobs,
        // Set by the caller, or asked for by no field.
        prompt_logprobs: None,
        cache_salt: None,
        share: Share::default(),
        pooling: None,
        priority: common.priority.unwrap_or(0),
        guide: None,
    })
}

/// Longest `cache_salt`. A longer one is answered 400.
pub(in crate::http) const CACHE_SALT_CHARS_MAX: usize = 1024;

/// What a request's KV is shared under.
fn cache_salt(caller: &Caller, common: &Common) -> Result<Option<Digest>, Invalid> {
    let Some(salt) = &common.cache_salt else { return Ok(caller.cache_salt(None)) };
    match salt.chars().count() {
        1..=CACHE_SALT_CHARS_MAX => Ok(caller.cache_salt(Some(salt))),
        length => {
            let message = format!(
                "cache_salt must have between 1 and {CACHE_SALT_CHARS_MAX} characters, got {length}"
            );
            Err(Invalid::value("cache_salt", message))
        }
    }
}
