//! Answers as they are on the wire.

use std::borrow::Cow;

use serde::{Serialize, Serializer};

use crate::ids::TokenId;

/// `usage`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Usage {
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    pub total_tokens: u64,
    /// Absent while it is not known, never guessed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<PromptDetails>,
    /// Of names whose answers may hold thoughts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_tokens_details: Option<CompletionDetails>,
}

/// `usage.completion_tokens_details`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct CompletionDetails {
    pub reasoning_tokens: u64,
}

/// `usage.prompt_tokens_details`.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct PromptDetails {
    pub cached_tokens: u64,
}

/// An answer or a chunk of it, with choices of one kind.
#[derive(Serialize)]
pub(super) struct Answer<'a, C> {
    pub id: &'a str,
    pub object: &'a str,
    pub created: u64,
    pub model: &'a str,
    /// The same as long as equal requests have equal answers.
    pub system_fingerprint: &'a str,
    pub choices: &'a [C],
    /// Absent, null, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<Usage>>,
    /// vLLM's, of chat: absent, null where not asked for, or there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Option<PromptLogprobs>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Option<&'a [TokenId]>>,
}

/// A choice of `/v1/completions`. What only vLLM has is absent, null or there.
#[derive(Serialize)]
pub(super) struct CompletionChoice<'a> {
    pub index: usize,
    pub text: Cow<'a, str>,
    pub logprobs: Option<LegacyLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Option<&'a StopReason>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<Option<PromptLogprobs>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<Option<&'a [TokenId]>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Option<Vec<TokenId>>>,
}

/// A choice of `/v1/chat/completions`.
#[derive(Serialize)]
pub(super) struct ChatChoice<'a> {
    pub index: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<AssistantMessage<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delta: Option<MessageDelta<'a>>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Option<&'a StopReason>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Option<Vec<TokenId>>>,
}

/// vLLM's `stop_reason`: what of a request's own wishes ended a text.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum StopReason {
    /// One of `stop`.
    Text(String),
    /// One of `stop_token_ids`.
    Token(TokenId),
}

/// What the model said.
#[derive(Serialize)]
pub(super) struct AssistantMessage<'a> {
    pub role: &'static str,
    /// Null where there is none beside calls or of a model that thinks.
    pub content: Option<&'a str>,
    pub refusal: Option<&'a str>,
    /// What was thought, as vLLM names it: absent of models that do not, null where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<Option<&'a str>>,
    /// The same, as others name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<Option<&'a str>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall<'a>>,
}

/// A call of a function, or what is new of it: id, type and name come once.
#[derive(Serialize)]
pub(super) struct ToolCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub r#type: Option<&'static str>,
    pub function: FunctionCall<'a>,
}

/// Which function, and with what.
#[derive(Serialize)]
pub(super) struct FunctionCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    pub arguments: &'a str,
}

/// What is new in it.
#[derive(Default, Serialize)]
pub(super) struct MessageDelta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// What is thought, by both of its names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<ToolCall<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionCall<'a>>,
}

/// `logprobs` of completions: one entry a token in each list.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct LegacyLogprobs {
    pub text_offset: Vec<usize>,
    pub token_logprobs: Vec<Option<f32>>,
    pub tokens: Vec<String>,
    pub top_logprobs: Vec<Option<Ranking>>,
}

/// Tokens and their logprobs, best first, as an object.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranking(pub Vec<(String, f32)>);

impl Serialize for Ranking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// vLLM's `prompt_logprobs`: one a token, null for the first.
pub(super) type PromptLogprobs = Vec<Option<PromptRanking>>;

/// Tokens and how likely they are, as an object by id.
#[derive(Clone, Debug)]
pub(super) struct PromptRanking(pub Vec<(TokenId, PromptLogprob)>);

impl Serialize for PromptRanking {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(token, logprob)| (token, logprob)))
    }
}

/// One token of them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PromptLogprob {
    pub logprob: f32,
    pub rank: u32,
    pub decoded_token: String,
}

/// `logprobs` of chat.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChatLogprobs {
    pub content: Vec<ChatLogprob>,
    pub refusal: Option<&'static str>,
}

/// One token of them.
#[derive(Clone, Debug, Serialize)]
pub(super) struct ChatLogprob {
    pub token: String,
    pub logprob: f32,
    pub bytes: Vec<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub top_logprobs: Option<Vec<ChatLogprob>>,
}

/// `POST /v1/embeddings`.
#[derive(Serialize)]
pub(super) struct Embeddings<'a> {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub data: Vec<Embedding>,
    pub usage: Usage,
}

/// One vector of them.
#[derive(Serialize)]
pub(super) struct Embedding {
    pub object: &'static str,
    pub index: usize,
    pub embedding: Vector,
}

/// As numbers, or their little-endian bytes in base64.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Vector {
    Floats(Vec<f32>),
    Base64(String),
}

/// `POST /v1/loglikelihood`.
#[derive(Serialize)]
pub(super) struct Loglikelihoods<'a> {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: &'a str,
    pub data: Vec<Loglikelihood>,
    pub usage: Usage,
}

/// One continuation.
#[derive(Serialize)]
pub(super) struct Loglikelihood {
    pub object: &'static str,
    pub index: usize,
    /// The sum of `token_logprobs`.
    pub loglikelihood: f64,
    /// Whether each of its tokens is the likeliest at its place.
    pub is_greedy: bool,
    pub token_ids: Vec<TokenId>,
    pub token_logprobs: Vec<f32>,
    pub prompt_tokens: usize,
    pub continuation_tokens: usize,
}

/// `POST /tokenize`.
#[derive(Serialize)]
pub(super) struct Tokenized {
    pub count: usize,
    pub max_model_len: u32,
    pub tokens: Vec<TokenId>,
    /// Null unless asked for.
    pub token_strs: Option<Vec<String>>,
}

/// `POST /detokenize`.
#[derive(Serialize)]
pub(super) struct Detokenized {
    pub prompt: String,
}

/// `GET /v1/models`.
#[derive(Serialize)]
pub(super) struct ModelList {
    pub object: &'static str,
    pub data: Vec<ModelCard>,
}

/// A model or an adapter.
#[derive(Serialize)]
pub(super) struct ModelCard {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub owned_by: &'static str,
    /// The base's name, or an adapter's digest: never a path.
    pub root: String,
    pub parent: Option<String>,
    pub max_model_len: Option<u32>,
    pub permission: [Permission; 1],
}

/// What vLLM says of every model.
#[derive(Serialize)]
pub(super) struct Permission {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub allow_create_engine: bool,
    pub allow_sampling: bool,
    pub allow_logprobs: bool,
    pub allow_search_indices: bool,
    pub allow_view: bool,
    pub allow_fine_tuning: bool,
    pub organization: &'static str,
    pub group: Option<&'static str>,
    pub is_blocking: bool,
}

/// JSON of one of the above.
pub(super) fn to_json(value: &impl Serialize) -> Vec<u8> {
    // Writing to memory does not fail, and all map keys are strings.
    serde_json::to_vec(value).unwrap_or_default()
}
