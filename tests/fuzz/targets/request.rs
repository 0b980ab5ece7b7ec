//! A request's JSON, to each endpoint that reads some. The same request has the same answer again,
//! and each answer is as `/openapi.json` has it.

use serde_json::Value;

use super::head::{Server, answers, check, letter};
use super::{Target, same, text};
use crate::mutate::joined;
use crate::openapi;

/// Longest text of an error: a screen of it.
const ERROR_CHARS_MAX: usize = 2_100;
/// For an answer, on a busy machine.
const ANSWER_MS: u64 = 20_000;

const BODIES: &[(&str, &str)] = &[
    (
        "/v1/completions",
        r#"{"model":"sql","prompt":["a",[1,2]],"max_tokens":4,"temperature":0.5,
        "top_p":0.9,"top_k":5,"min_p":0.1,"n":2,"best_of":2,"echo":true,"logprobs":2,"seed":7,
        "stop":["x","y"],"stop_token_ids":[5],"presence_penalty":1,"frequency_penalty":-1,
        "repetition_penalty":1.1,"logit_bias":{"5":-100,"6":3.5},"suffix":null,"user":"u",
        "bad_words":["z"],"allowed_token_ids":[7,8],"min_tokens":1,"ignore_eos":false,
        "prompt_logprobs":1,"truncate_prompt_tokens":8,"cache_salt":"s","priority":-1,
        "return_token_ids":true,"add_special_tokens":true}"#,
    ),
    (
        "/v1/completions",
        r#"{"model":"org/base","prompt":[5,6,7],"stream":true,
        "stream_options":{"include_usage":true,"continuous_usage_stats":true},
        "structured_outputs":{"regex":"[a-c]+"},"skip_special_tokens":false}"#,
    ),
    (
        "/v1/chat/completions",
        r#"{"model":"sql","messages":[{"role":"system","content":"s"},
        {"role":"user","content":[{"type":"text","text":"hi"}],"name":"n"},
        {"role":"assistant","content":null,"tool_calls":[{"id":"c","type":"function",
        "function":{"name":"f","arguments":"{\"a\":1}"}}]},
        {"role":"tool","tool_call_id":"c","content":"2"}],
        "tools":[{"type":"function","function":{"name":"f","description":"d","strict":true,
        "parameters":{"type":"object","properties":{"a":{"type":"integer"}},"required":["a"],
        "additionalProperties":false}}}],"tool_choice":{"type":"function","function":{"name":"f"}},
        "parallel_tool_calls":false,"max_completion_tokens":9,"logprobs":true,"top_logprobs":2}"#,
    ),
    (
        "/v1/chat/completions",
        r#"{"messages":[{"role":"user","content":"x"}],"response_format":
        {"type":"json_schema","json_schema":{"name":"n","strict":true,"schema":{"type":"object",
        "properties":{"a":{"enum":[1,"b"]}}}}},"stream":true,"reasoning_effort":"low",
        "chat_template_kwargs":{"enable_thinking":false},"add_generation_prompt":true,
        "documents":[{"title":"t","text":"x"}],"metadata":{"k":"v"},"n":2}"#,
    ),
    (
        "/v1/messages",
        r#"{"model":"sql","max_tokens":5,"system":[{"type":"text","text":"s",
        "cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":[
        {"type":"text","text":"hi"}]},{"role":"assistant","content":[{"type":"thinking",
        "thinking":"t","signature":"x"},{"type":"tool_use","id":"i","name":"f","input":{"a":1}}]},
        {"role":"user","content":[{"type":"tool_result","tool_use_id":"i","content":[
        {"type":"text","text":"2"}],"is_error":false}]}],"tools":[{"name":"f","description":"d",
        "input_schema":{"type":"object"}}],"tool_choice":{"type":"any"},"temperature":1,
        "top_k":3,"top_p":0.5,"stop_sequences":["x"],"stream":true,
        "thinking":{"type":"enabled","budget_tokens":1024},"metadata":{"user_id":"u"}}"#,
    ),
    ("/v1/messages/count_tokens", r#"{"model":"sql","messages":[{"role":"user","content":"x"}]}"#),
    (
        "/v1/responses",
        r#"{"model":"sql","input":[{"role":"user","content":[{"type":"input_text",
        "text":"x"}]},{"type":"function_call","call_id":"c","name":"f","arguments":"{}"},
        {"type":"function_call_output","call_id":"c","output":"2"},{"type":"reasoning","id":"r",
        "summary":[],"content":[{"type":"reasoning_text","text":"t"}]}],"instructions":"i",
        "max_output_tokens":9,"stream":true,"store":false,"temperature":0,"top_p":1,
        "tools":[{"type":"function","name":"f","parameters":{"type":"object"},"strict":false}],
        "tool_choice":"auto","text":{"format":{"type":"json_object"}},"truncation":"disabled",
        "reasoning":{"effort":"low"},"include":[],"metadata":{"a":"b"}}"#,
    ),
    ("/v1/responses", r#"{"input":"x"}"#),
    (
        "/v1/embeddings",
        r#"{"model":"sql","input":["a","b"],"encoding_format":"base64","user":"u",
        "dimensions":4,"truncate_prompt_tokens":-1}"#,
    ),
    ("/v1/loglikelihood", r#"{"model":"sql","context":"a","continuation":"b","pairs":null}"#),
    ("/v1/loglikelihood", r#"{"model":"sql","pairs":[["a","b"],["c","d"]]}"#),
    (
        "/tokenize",
        r#"{"model":"sql","prompt":"x","add_special_tokens":true,
        "return_token_strs":true}"#,
    ),
    (
        "/tokenize",
        r#"{"messages":[{"role":"user","content":"x"}],"add_generation_prompt":true,
        "continue_final_message":false,"tools":[],"chat_template_kwargs":{}}"#,
    ),
    ("/detokenize", r#"{"model":"sql","tokens":[1,2,300]}"#),
    ("/v1/load_lora_adapter", r#"{"lora_name":"n","lora_path":"/nowhere","load_inplace":false}"#),
    ("/v1/unload_lora_adapter", r#"{"lora_name":"n","lora_int_id":1}"#),
    ("/v1/adapters/validate", r#"{"lora_path":"/nowhere"}"#),
];

/// An error's text for clients.
fn error_of(body: &[u8]) -> Result<String, String> {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = value["error"]["message"].as_str();
    let message = message.ok_or_else(|| format!("no error: {value}"))?;
    match message.chars().count() {
        chars if chars > ERROR_CHARS_MAX => Err(format!("an error of {chars} characters")),
        _ => Ok(message.to_owned()),
    }
}

/// An endpoint that reads JSON, whatever has become of the path.
fn endpoint(path: &str) -> &'static str {
    let by_name = BODIES.iter().find(|(known, _)| *known == path);
    let sum = path.bytes().map(usize::from).sum::<usize>();
    by_name.unwrap_or(&BODIES[sum % BODIES.len()]).0
}

fn ask(server: &Server, path: &str, body: &[u8]) -> Result<(u16, String), String> {
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let (came, is_closed) = server.exchange(&[head.as_bytes(), body].concat(), ANSWER_MS);
    if !is_closed {
        return Err("no answer".to_owned());
    }
    let mut answers = answers(&came)?;
    let Some(answer) = answers.pop().filter(|_| answers.is_empty()) else {
        return Err(format!("{} answers and another", answers.len()));
    };
    check(&answer)?;
    openapi::check("POST", path, &answer);
    match answer.status {
        200 => Ok((200, String::new())),
        status => Ok((status, error_of(&answer.body)?)),
    }
}

/// The path, and the body.
pub const REQUEST: Target = Target {
    name: "request",
    seeds: || BODIES.iter().map(|(path, body)| joined(&[path, body])).collect(),
    words: &[
        "model",
        "prompt",
        "messages",
        "input",
        "role",
        "content",
        "text",
        "type",
        "user",
        "assistant",
        "system",
        "developer",
        "tool",
        "function",
        "stream",
        "stream_options",
        "include_usage",
        "n",
        "best_of",
        "max_tokens",
        "max_completion_tokens",
        "stop",
        "tools",
        "tool_choice",
        "tool_calls",
        "auto",
        "none",
        "required",
        "any",
        "allowed_tools",
        "response_format",
        "json_schema",
        "json_object",
        "structured_outputs",
        "guided_json",
        "guided_regex",
        "guided_choice",
        "guided_grammar",
        "grammar",
        "choice",
        "regex",
        "json",
        "logprobs",
        "top_logprobs",
        "logit_bias",
        "seed",
        "echo",
        "suffix",
        "temperature",
        "sql",
        "org/chat",
        "org/base",
        "sql:0.5",
        "sql+org/chat",
        "sql=0.5,org/chat=0.5",
        "image_url",
        "input_image",
        "document",
        "tool_use",
        "tool_result",
        "thinking",
        "redacted_thinking",
        "input_text",
        "output_text",
        "function_call",
        "reasoning",
        "message",
        "item_reference",
        "previous_response_id",
        "arguments",
        "name",
        "parameters",
        "schema",
        "strict",
        "lora_name",
        "lora_path",
        "chat_template",
        "chat_template_kwargs",
        "continue_final_message",
        "cache_salt",
        "priority",
        "encoding_format",
        "base64",
        "float",
        "dimensions",
        "context",
        "continuation",
        "pairs",
        "tokens",
        "</s>",
        "<s>",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/messages",
        "/v1/responses",
        "/tokenize",
    ],
    start: || {
        let server = Server::start();
        Box::new(move |parts| {
            let (path, body) = (text(parts, 0), parts.get(1).copied().unwrap_or_default());
            let path = endpoint(&path);
            let (status, error) = ask(&server, path, body)?;
            same(&ask(&server, path, body)?, &(status, error.clone()), "an answer")?;
            let spelled: String = status.to_string().chars().map(letter).collect();
            Ok(format!("{path} {spelled} {error}"))
        })
    },
    slice: 120,
    heap_bytes_max: 256 << 20,
};
