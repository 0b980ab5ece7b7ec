//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use hyper::Response;

use super::State;
use super::body::Payload;
use super::error::ApiError;
use super::generate::{self, Choices, Chunks, Head, Job, Options, Piece};
use super::logprobs::{self, Drawn};
use super::models::resolve;
use super::parse::{Small, parse};
use super::sse::{Body, whole};
use super::wire::{
    AssistantMessage, ChatChoice, ChatFields, ChatLogprobs, Content, Delta, Generation, Usage,
    WireMessage, to_json,
};
use crate::ids::TokenId;
use crate::request::{Invalid, Request, RequestFields};
use crate::text::{Message, Tokenizer};

/// Everything about the answer that the request decides.
struct Form {
    head: Head,
    tokenizer: Arc<Tokenizer>,
    has_logprobs: bool,
    /// If it is to be returned.
    prompt: Option<Vec<TokenId>>,
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
        return generate::stream(state, choices, Stream { form }).await;
    }
    let mut wholes = generate::collect(&mut choices).await?;
    let reply = wholes.pop().unwrap_or_default();
    let ids: Vec<TokenId> = reply.drawn.iter().map(|drawn| drawn.token).collect();
    let choice = ChatChoice {
        index: 0,
        message: Some(AssistantMessage { role: "assistant", content: &reply.text, refusal: None }),
        delta: None,
        logprobs: form.logprobs(&reply.drawn),
        finish_reason: reply.finish,
        token_ids: form.head.options.return_token_ids.then_some(&ids),
    };
    let choice = [choice];
    let mut answer = form.head.answer(&choice, Some(Some(choices.usage())));
    answer.prompt_token_ids = form.prompt.as_deref();
    Ok(whole("application/json", to_json(&answer)))
}

impl Form {
    fn logprobs(&self, drawn: &[Drawn]) -> Option<ChatLogprobs> {
        self.has_logprobs.then(|| logprobs::chat(&self.tokenizer, drawn))
    }
}

/// Bytes to a job; slow for long chats.
fn prepare(state: &State, payload: Payload, arrived: Instant) -> Result<(Form, Job), ApiError> {
    let parsed = parse::<Generation<ChatFields>>(&payload.bytes)?;
    drop(payload);
    state.metrics.unknown_fields(&parsed.unknown);
    let Generation { own, mut common } = parsed.fields;
    let options = Options::new(&common)?;
    let target = resolve(state, common.model.as_deref())?;
    let logprobs = top_logprobs(state, &own)?;
    let (tokens_param, tokens_max) = match own.max_completion_tokens {
        Some(max) => ("max_completion_tokens", Some(max)),
        None => ("max_tokens", common.max_tokens),
    };
    let fields = generate::fields(state, &common, tokens_max, logprobs)?;
    fields.sampling.clone().validated()?;
    let messages = own.messages.ok_or(ApiError::Missing("messages"))?;
    let messages = messages.into_iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(Invalid::value("messages", "messages must hold at least one message").into());
    }
    // Before the costly part: a full server says so at once.
    let tickets = state.app.engine.reserve(1)?;
    let context_tokens_max = state.app.limits.context_tokens_max;
    let text_error = |error| ApiError::Text { param: "messages", error, context_tokens_max };
    let template = state.app.template.as_ref().ok_or(ApiError::NoTemplate)?;
    let adds_prompt = own.add_generation_prompt.unwrap_or(true);
    let text = template.render(&messages, adds_prompt).map_err(text_error)?;
    // Templates write the begin-of-sequence token themselves.
    let adds_special = common.add_special_tokens.unwrap_or(false);
    let prompt = state.app.tokenizer.encode(&text, adds_special).map_err(text_error)?;
    let returned = options.return_token_ids.then(|| prompt.clone());
    let request = Request::new(RequestFields { prompt, ..fields }, &state.app.limits);
    let request = request.map_err(|invalid| {
        let param = match invalid.param {
            "prompt" => "messages",
            "max_tokens" => tokens_param,
            param => param,
        };
        Invalid { param, ..invalid }
    })?;
    let form = Form {
        head: {
            let object = match options.stream {
                true => "chat.completion.chunk",
                false => "chat.completion",
            };
            Head::new("chatcmpl", object, target.name.clone(), options)
        },
        tokenizer: state.app.tokenizer.clone(),
        has_logprobs: logprobs.is_some(),
        prompt: returned,
    };
    let sequences = tickets.into_iter().map(|ticket| (ticket, request.clone())).collect();
    let stops = generate::stops(&mut common);
    Ok((form, Job { target, sequences, stops, arrived }))
}

/// How many alternatives to report, if any logprobs.
fn top_logprobs(state: &State, own: &ChatFields) -> Result<Option<u32>, ApiError> {
    let max = state.app.limits.logprobs_max;
    match (own.logprobs.unwrap_or(false), own.top_logprobs) {
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => {
            let message = "top_logprobs may only be given with logprobs set to true";
            Err(Invalid::value("top_logprobs", message).into())
        }
        (true, Some(n)) if n > max => {
            let message = format!("top_logprobs must be at most {max}, got {n}");
            Err(Invalid::value("top_logprobs", message).into())
        }
        (true, top) => Ok(Some(top.unwrap_or(0))),
    }
}

/// A message as templates take it.
fn message(wire: WireMessage) -> Result<Message, ApiError> {
    let unsupported =
        |message: String| Err(ApiError::Unsupported { param: "messages".to_owned(), message });
    let is_given =
        |value: &Option<Small>| !matches!(value, None | Some(Small::Null | Small::Array(_, 0)));
    if is_given(&wire.tool_calls) || is_given(&wire.function_call) {
        return unsupported("Tool calls in messages are not supported by this server.".to_owned());
    }
    let role = match wire.role.as_str() {
        "system" | "user" | "assistant" => wire.role,
        // OpenAI's newer word for the same; templates do not know it.
        "developer" => "system".to_owned(),
        "tool" | "function" => {
            return unsupported("Messages of tools are not supported by this server.".to_owned());
        }
        role => {
            let role = super::error::shown(role);
            let message = format!(
                "a message's role must be system, developer, user or assistant, got '{role}'"
            );
            return Err(Invalid::value("messages", message).into());
        }
    };
    let content = match wire.content {
        Some(Content::Text(text)) => text,
        Some(Content::Parts(parts)) => {
            let mut texts = Vec::with_capacity(parts.len());
            for part in parts {
                match (part.r#type.as_str(), part.text) {
                    ("text", Some(text)) => texts.push(text),
                    ("text", None) => {
                        let message = "a part of type text must have a text";
                        return Err(Invalid::value("messages", message).into());
                    }
                    (kind, _) => {
                        let kind = super::error::shown(kind);
                        return unsupported(format!(
                            "Content parts of type '{kind}' are not supported by this server; \
                             send text."
                        ));
                    }
                }
            }
            // As vLLM joins them.
            texts.join("\n")
        }
        None => {
            return Err(Invalid::value("messages", "a message must have a content").into());
        }
    };
    Ok(Message { role, content })
}

struct Stream {
    form: Form,
}

impl Stream {
    fn chunk(
        &self,
        delta: Delta<'_>,
        logprobs: Option<ChatLogprobs>,
        finish_reason: Option<&'static str>,
        usage: Usage,
        ids: &[TokenId],
    ) -> Vec<u8> {
        let head = &self.form.head;
        let is_opening = delta.role.is_some();
        let choice = ChatChoice {
            index: 0,
            message: None,
            delta: Some(delta),
            logprobs,
            finish_reason,
            token_ids: (head.options.return_token_ids && !is_opening).then_some(ids),
        };
        let choice = [choice];
        let mut answer = head.answer(&choice, head.chunk_usage(usage));
        answer.prompt_token_ids = self.form.prompt.as_deref().filter(|_| is_opening);
        to_json(&answer)
    }
}

impl Chunks for Stream {
    fn head(&self) -> &Head {
        &self.form.head
    }

    fn opening(&self, usage: Usage) -> Option<Vec<u8>> {
        let delta = Delta { role: Some("assistant"), content: Some("") };
        Some(self.chunk(delta, None, None, usage, &[]))
    }

    fn piece(&mut self, piece: Piece, usage: Usage) -> Vec<Vec<u8>> {
        let Piece { text, drawn, finish, .. } = piece;
        let returns_ids = self.form.head.options.return_token_ids;
        let mut drawn = drawn.as_slice();
        let mut chunks = Vec::new();
        let has_news = !drawn.is_empty() && (self.form.has_logprobs || returns_ids);
        // Of a last token without text the news goes with the finish.
        if !text.is_empty() || (has_news && finish.is_none()) {
            let ids: Vec<TokenId> = drawn.iter().map(|drawn| drawn.token).collect();
            let delta = Delta { role: None, content: Some(&text) };
            chunks.push(self.chunk(delta, self.form.logprobs(drawn), None, usage, &ids));
            drawn = &[];
        }
        if finish.is_some() {
            let ids: Vec<TokenId> = drawn.iter().map(|drawn| drawn.token).collect();
            let logprobs = self.form.logprobs(drawn).filter(|_| !drawn.is_empty());
            chunks.push(self.chunk(Delta::default(), logprobs, finish, usage, &ids));
        }
        chunks
    }
}
