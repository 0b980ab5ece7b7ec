//! Fields that clients send and that are not built: each is refused by name unless its value asks
//! for nothing, so that no request is ever answered as if a part of it had not been there. Other
//! servers' names for what this API has are in `dialects.rs`.

use super::small::Small;

/// A field and the values of it that ask for nothing. Null always does.
#[derive(Debug)]
pub(in crate::http) struct Unsupported {
    pub field: &'static str,
    neutral: Neutral,
    /// What this API has for it.
    instead: Option<&'static str>,
}

/// Values that ask for nothing.
#[derive(Debug)]
pub(in crate::http) enum Neutral {
    Null,
    Empty,
    Is(bool),
    Number(f64),
    Numbers(&'static [f64]),
    /// One of these words, or a list of just one.
    Words(&'static [&'static str]),
}

impl Unsupported {
    pub const fn new(field: &'static str, neutral: Neutral) -> Self {
        Self { field, neutral, instead: None }
    }

    /// A field that this API has under another name.
    pub const fn spelled(field: &'static str, neutral: Neutral, instead: &'static str) -> Self {
        Self { field, neutral, instead: Some(instead) }
    }

    /// Whether a request with this value may be served.
    pub fn is_neutral(&self, value: &Small) -> bool {
        match (&self.neutral, value) {
            (_, Small::Null) => true,
            (Neutral::Empty, Small::Array(_, count) | Small::Object(_, count)) => *count == 0,
            (Neutral::Empty, Small::Text(text)) => text.is_empty(),
            (Neutral::Is(neutral), Small::Bool(value)) => neutral == value,
            (Neutral::Number(neutral), Small::Number(value)) => neutral == value,
            (Neutral::Numbers(neutral), Small::Number(value)) => neutral.contains(value),
            (Neutral::Words(words), Small::Text(text)) => words.contains(&text.as_str()),
            (Neutral::Words(words), Small::Array(items, 1)) => {
                matches!(&items[..], [Small::Text(text)] if words.contains(&text.as_str()))
            }
            _ => false,
        }
    }

    /// What to tell the client.
    pub fn message(&self) -> String {
        if let Some(instead) = self.instead {
            return format!("{} is not a field of this API; send {instead} instead.", self.field);
        }
        let but = match &self.neutral {
            Neutral::Null => "leave it out".to_owned(),
            Neutral::Empty => "leave it out or empty".to_owned(),
            Neutral::Is(value) => format!("leave it out or {value}"),
            Neutral::Number(value) => format!("leave it out or {value}"),
            Neutral::Numbers(values) => format!("leave it out or one of {values:?}"),
            Neutral::Words(words) => format!("leave it out or one of {words:?}"),
        };
        format!("{} is not supported by this server; {but}.", self.field)
    }
}

/// Of both generation routes.
pub(in crate::http) const GENERATION: &[Unsupported] = &[
    Unsupported::new("length_penalty", Neutral::Number(1.0)),
    Unsupported::new("logits_processors", Neutral::Empty),
    Unsupported::new("use_beam_search", Neutral::Is(false)),
    Unsupported::new("prompt_embeds", Neutral::Null),
    Unsupported::new("kv_transfer_params", Neutral::Empty),
    Unsupported::new("vllm_xargs", Neutral::Empty),
    Unsupported::new("modalities", Neutral::Words(&["text"])),
    Unsupported::new("audio", Neutral::Null),
    Unsupported::new("prediction", Neutral::Null),
    Unsupported::new("web_search_options", Neutral::Null),
    Unsupported::new("chat_template", Neutral::Null),
    Unsupported::new("mm_processor_kwargs", Neutral::Empty),
    // How other servers name an adapter: not to be answered by the base.
    Unsupported::spelled("lora", Neutral::Empty, "its name as model"),
    Unsupported::spelled("lora_path", Neutral::Null, "its name as model"),
    Unsupported::spelled("adapter_id", Neutral::Null, "its name as model"),
    Unsupported::spelled("adapter_source", Neutral::Null, "its name as model"),
    Unsupported::spelled("merged_adapters", Neutral::Null, "the name of one as model"),
];

/// Of chat only: what completions have.
pub(in crate::http) const CHAT: &[Unsupported] = &[
    Unsupported::spelled("prompt", Neutral::Null, "messages"),
    Unsupported::new("echo", Neutral::Is(false)),
    Unsupported::new("suffix", Neutral::Empty),
];

/// Of completions only: what chat has.
pub(in crate::http) const COMPLETIONS: &[Unsupported] = &[
    Unsupported::spelled("max_completion_tokens", Neutral::Null, "max_tokens"),
    Unsupported::spelled("messages", Neutral::Empty, "prompt"),
    Unsupported::spelled("top_logprobs", Neutral::Number(0.0), "logprobs"),
    Unsupported::new("add_generation_prompt", Neutral::Null),
    Unsupported::new("reasoning_effort", Neutral::Null),
    Unsupported::new("include_reasoning", Neutral::Is(true)),
    Unsupported::new("thinking_token_budget", Neutral::Null),
    Unsupported::new("continue_final_message", Neutral::Is(false)),
    Unsupported::new("chat_template_kwargs", Neutral::Empty),
    Unsupported::new("documents", Neutral::Empty),
    Unsupported::new("tools", Neutral::Empty),
    Unsupported::new("tool_choice", Neutral::Words(&["none", "auto"])),
    Unsupported::new("functions", Neutral::Empty),
    Unsupported::new("function_call", Neutral::Words(&["none", "auto"])),
];

/// Of requests for which nothing is generated: what shapes an answer, and what they do without.
pub(in crate::http) const PASSES: &[Unsupported] = &[
    Unsupported::new("truncate_prompt_tokens", Neutral::Null),
    Unsupported::new("cache_salt", Neutral::Null),
    Unsupported::new("priority", Neutral::Number(0.0)),
    Unsupported::new("max_tokens", Neutral::Null),
    Unsupported::new("max_completion_tokens", Neutral::Null),
    Unsupported::new("min_tokens", Neutral::Number(0.0)),
    Unsupported::new("n", Neutral::Number(1.0)),
    Unsupported::new("best_of", Neutral::Number(1.0)),
    Unsupported::new("stop", Neutral::Empty),
    Unsupported::new("suffix", Neutral::Empty),
    Unsupported::new("echo", Neutral::Is(false)),
    Unsupported::new("logprobs", Neutral::Null),
    Unsupported::new("top_logprobs", Neutral::Number(0.0)),
    Unsupported::new("prompt_logprobs", Neutral::Null),
    Unsupported::new("logit_bias", Neutral::Empty),
    Unsupported::new("tools", Neutral::Empty),
    Unsupported::new("tool_choice", Neutral::Words(&["none", "auto"])),
    Unsupported::new("functions", Neutral::Empty),
    Unsupported::new("response_format", Neutral::Null),
    Unsupported::new("structured_outputs", Neutral::Null),
    Unsupported::new("stream_options", Neutral::Null),
    Unsupported::new("chat_template_kwargs", Neutral::Empty),
    Unsupported::new("documents", Neutral::Empty),
];

/// Of loading an adapter.
pub(in crate::http) const LOAD: &[Unsupported] = &[
    Unsupported::new("is_3d_lora_weight", Neutral::Is(false)),
    Unsupported::new("base_model_name", Neutral::Null),
];

/// Fields of generation requests that change nothing in the answer.
pub(in crate::http) const IGNORED: &[&str] = &[
    "user",
    "store",
    "metadata",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "verbosity",
    "request_id",
    // Of beam search, which has a switch of its own.
    "early_stopping",
    "spaces_between_special_tokens",
];

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::dialects;
    use super::super::fields::{ChatFields, CompletionFields, Generation};
    use super::super::parse::{Fields, parse};
    use super::*;

    /// A value that asks for something.
    const ASKS: &str = "{\"a\": [1.5, 2]}";

    #[test]
    fn every_name_stands_once_and_is_refused_by_that_name() {
        fn refuses<T: Fields>(field: &str) -> bool {
            let body = format!("{{\"{field}\": {ASKS}}}");
            let refused = parse::<Generation<T>>(body.as_bytes()).err();
            refused.is_some_and(|error| format!("{error:?}").contains(field))
        }
        let mut names = HashSet::new();
        let both = GENERATION.iter().chain(dialects::FIELDS);
        for Unsupported { field, .. } in both.clone().chain(CHAT).chain(COMPLETIONS).chain(LOAD) {
            assert!(names.insert(*field) && !IGNORED.contains(field), "{field} stands twice");
        }
        for Unsupported { field, .. } in both {
            assert!(refuses::<CompletionFields>(field) && refuses::<ChatFields>(field), "{field}");
        }
        assert!(CHAT.iter().all(|known| refuses::<ChatFields>(known.field)));
        assert!(COMPLETIONS.iter().all(|known| refuses::<CompletionFields>(known.field)));
    }

    #[test]
    fn a_name_of_another_server_is_answered_with_the_one_of_this_api() {
        let body = br#"{"prompt": "a", "n_predict": 5}"#;
        let error = parse::<Generation<CompletionFields>>(body).err().map(|e| format!("{e:?}"));
        assert!(error.is_some_and(|error| error.contains("send max_tokens instead")));
    }
}
