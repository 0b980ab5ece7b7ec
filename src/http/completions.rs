//! `POST /v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use hyper::Response;

use super::body::Payload;
use super::error::ApiError;
use super::generate::{self, Choices, Chunks, Head, Job, Options, Piece};
use super::logprobs::legacy;
use super::models::resolve;
use super::parse::parse;
use super::sse::{Body, whole};
use super::wire::{CompletionChoice, CompletionFields, Generation, Prompts, Usage, to_json};
use super::{State, guard};
use crate::ids::TokenId;
use crate::request::{Invalid, Request, RequestFields};
use crate::text::Tokenizer;

/// OpenAI's default.
const TOKENS_MAX_DEFAULT: u32 = 16;

/// Everything about the answer that the request decides.
struct Form {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    has_logprobs: bool,
    /// Of each choice, if they are to be returned.
    prompts: Vec<Vec<TokenId>>,
}

pub(super) async fn handle(
    state: &Arc<State>,
    payload: Payload,
    arrived: Instant,
) -> Result<Response<Body>, ApiError> {
    state.check_open()?;
    let prepared =
        state.off_thread(&state.text_tasks, move |state| prepare(state, payload, arrived));
    let (form, job) = prepared.await?;
    let mut choices = Choices::start(state, job);
    if form.head.options.stream {
        return generate::stream(state, choices, Stream { form, begun: Vec::new() }).await;
    }
    let wholes = generate::collect(&mut choices).await?;
    let ids: Vec<Vec<TokenId>> =
        wholes.iter().map(|whole| whole.drawn.iter().map(|drawn| drawn.token).collect()).collect();
    let returns_ids = form.head.options.return_token_ids;
    let answers = wholes.iter().enumerate().map(|(index, whole)| CompletionChoice {
        index,
        text: &whole.text,
        logprobs: form.has_logprobs.then(|| legacy(&form.tokenizer, &whole.drawn, &mut 0)),
        finish_reason: whole.finish,
        prompt_token_ids: form.prompts.get(index).map(Vec::as_slice),
        token_ids: returns_ids.then(|| ids[index].as_slice()),
    });
    let answers: Vec<_> = answers.collect();
    let answer = form.head.answer(&answers, Some(Some(choices.usage())));
    Ok(whole("application/json", to_json(&answer)))
}

/// Bytes to a job; slow for long texts.
fn prepare(state: &State, payload: Payload, arrived: Instant) -> Result<(Form, Job), ApiError> {
    let parsed = parse::<Generation<CompletionFields>>(&payload.bytes)?;
    drop(payload);
    state.metrics.unknown_fields(&parsed.unknown);
    let Generation { own, mut common } = parsed.fields;
    let options = Options::new(&common)?;
    let target = resolve(state, common.model.as_deref())?;
    let prompts = own.prompt.ok_or(ApiError::Missing("prompt"))?;
    let count = match &prompts {
        Prompts::Texts(texts) => texts.len(),
        Prompts::Ids(lists) => lists.len(),
    };
    if count == 0 {
        return Err(Invalid::value("prompt", "prompt must hold at least one prompt").into());
    }
    let tokens_max = Some(common.max_tokens.unwrap_or(TOKENS_MAX_DEFAULT));
    let fields = generate::fields(state, &common, tokens_max, own.logprobs)?;
    fields.sampling.clone().validated()?;
    // Before the costly part: a full server says so at once.
    let tickets = state.app.engine.reserve(count)?;
    let adds_special = common.add_special_tokens.unwrap_or(true);
    let prompts = match prompts {
        Prompts::Ids(lists) => lists,
        Prompts::Texts(texts) => {
            let encode = |text: &String| encode(state, text, adds_special);
            texts.iter().map(encode).collect::<Result<_, _>>()?
        }
    };
    let mut sequences = Vec::with_capacity(count);
    let mut returned = Vec::new();
    for (ticket, prompt) in tickets.into_iter().zip(prompts) {
        if options.return_token_ids {
            returned.push(prompt.clone());
        }
        let mut fields = RequestFields { prompt, ..fields.clone() };
        if common.seed.is_none() {
            fields.sampling.seed = guard::entropy();
        }
        sequences.push((ticket, Request::new(fields, &state.app.limits)?));
    }
    let form = Form {
        head: Head::new("cmpl", "text_completion", target.name.clone(), options),
        tokenizer: state.app.tokenizer.clone(),
        has_logprobs: own.logprobs.is_some(),
        prompts: returned,
    };
    let stops = generate::stops(&mut common);
    Ok((form, Job { target, sequences, stops, arrived }))
}

fn encode(state: &State, text: &str, adds_special: bool) -> Result<Vec<TokenId>, ApiError> {
    if text.is_empty() {
        return Err(Invalid::value("prompt", "a prompt must not be empty").into());
    }
    let context_tokens_max = state.app.limits.context_tokens_max;
    let ids = state.app.tokenizer.encode(text, adds_special);
    ids.map_err(|error| ApiError::Text { param: "prompt", error, context_tokens_max })
}

struct Stream {
    form: Form,
    /// Characters of each choice's tokens so far, and whether its prompt has been returned.
    begun: Vec<(usize, bool)>,
}

impl Chunks for Stream {
    fn head(&self) -> &Head {
        &self.form.head
    }

    fn opening(&self, _: Usage) -> Option<Vec<u8>> {
        None
    }

    fn piece(&mut self, piece: Piece, usage: Usage) -> Vec<Vec<u8>> {
        let Piece { index, text, drawn, finish } = piece;
        let Form { head, tokenizer, has_logprobs, prompts } = &self.form;
        let returns_ids = head.options.return_token_ids;
        if text.is_empty() && finish.is_none() && !has_logprobs && !returns_ids {
            return Vec::new();
        }
        if self.begun.len() <= index {
            self.begun.resize(index + 1, (0, false));
        }
        let (offset, has_prompt) = &mut self.begun[index];
        let drawn = drawn.as_slice();
        let ids: Vec<TokenId> = drawn.iter().map(|drawn| drawn.token).collect();
        let returns_prompt = returns_ids && !std::mem::replace(has_prompt, true);
        let prompt = prompts.get(index).filter(|_| returns_prompt);
        let choice = CompletionChoice {
            index,
            text: &text,
            logprobs: has_logprobs.then(|| legacy(tokenizer, drawn, offset)),
            finish_reason: finish,
            prompt_token_ids: prompt.map(Vec::as_slice),
            token_ids: returns_ids.then_some(ids.as_slice()),
        };
        vec![to_json(&head.answer(&[choice], head.chunk_usage(usage)))]
    }
}
