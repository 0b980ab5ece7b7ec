//! What models think, told apart from what they answer.

mod answers;
mod forms;
mod reader;
mod routes;

use std::sync::Arc;

use serde_json::{Value, json};
use tessera::http::App;
use tessera::ids::TokenId;
use tessera::text::Tokenizer;

use crate::client::{post, post_stream};
use crate::fake::Fake;
use crate::spoken::{Spoken, tokenizer};

const CHAT: &str = "/v1/chat/completions";
/// Its model begins its thoughts itself, or is told that there are none.
const FREE: &str = "{% for m in messages %}{{ m.role }}:{{ m.reasoning_content or '' }}\
    {{ m.content or '' }};{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}\
    {% if add_generation_prompt %}assistant:{% if enable_thinking is defined and not \
    enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}";
/// Begins the thought in the prompt.
const OPENS: &str = "{% for m in messages %}{{ m.role }}:{{ m.content or '' }};{% endfor %}\
    {% if tools %}{{ tools | tojson }}{% for m in messages %}{% for c in m.tool_calls or [] %}\
    <tool_call>{\"name\": \"{{ c.function.name }}\", \"arguments\": \
    {{ c.function.arguments | tojson }}}</tool_call>{% endfor %}{% endfor %}{% endif %}\
    {% if add_generation_prompt %}assistant:<think>\n{% endif %}";
/// Has marks that are special tokens.
const BRACKETS: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }}{% endfor %}\
    {# [THINK] #}";
/// Says nothing of thoughts.
const PLAIN: &str = "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}";

/// Logits of the model.
const VOCABULARY: u32 = 516;
/// Marks that are tokens, the last two of them special.
const MARKS: [(&str, bool); 4] =
    [("<think>", false), ("</think>", false), ("[THINK]", true), ("[/THINK]", true)];
const OPEN: TokenId = 512;
const CLOSE: TokenId = 513;

/// A server whose model says one text.
struct Server {
    fake: Fake,
    tokenizer: Arc<Tokenizer>,
    /// Tokens of the text, with the one that ends it.
    tokens: usize,
}

impl Server {
    fn new(template: &str, text: &str, by_bytes: bool) -> Self {
        Self::with(template, text, by_bytes, |_| {})
    }

    /// `by_bytes`: one token a byte, also where a mark is a token.
    fn with(template: &str, text: &str, by_bytes: bool, change: impl FnOnce(&mut App)) -> Self {
        let tokenizer = tokenizer(&MARKS);
        let Spoken { fake, tokens, .. } =
            Spoken::new(&tokenizer, template, text, by_bytes, |app| {
                app.model.limits.vocabulary_tokens = VOCABULARY;
                change(app);
            });
        Self { fake, tokenizer, tokens: tokens.len() }
    }

    /// The whole answer to a chat with further fields.
    fn ask(&self, fields: &Value) -> Value {
        let answer = post(self.fake.address, CHAT, &body(fields));
        assert_eq!(answer.status, 200, "{fields}: {}", answer.text());
        answer.json()
    }

    fn whole(&self, fields: &Value) -> Value {
        let mut answer = self.ask(fields);
        let choice = answer["choices"][0].take();
        let usage = answer["usage"].take();
        without_ids(json!({"message": choice["message"], "finish_reason": choice["finish_reason"],
            "stop_reason": choice["stop_reason"], "usage": usage}))
    }

    fn chunks(&self, fields: &Value) -> Vec<Value> {
        let mut body = body(fields);
        body["stream"] = true.into();
        body["stream_options"] = json!({"include_usage": true});
        post_stream(self.fake.address, CHAT, &body).chunks()
    }

    /// What the chunks of a stream add up to, as a whole answer.
    fn streamed(&self, fields: &Value) -> Value {
        let chunks = self.chunks(fields);
        without_ids(joined(&chunks))
    }
}

/// A chat with further fields.
fn body(fields: &Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

fn without_ids(mut answer: Value) -> Value {
    let calls = answer.pointer_mut("/message/tool_calls").and_then(Value::as_array_mut);
    for call in calls.into_iter().flatten() {
        call.as_object_mut().unwrap().remove("id");
    }
    answer
}

/// Of a name whose answers may hold thoughts.
fn joined(chunks: &[Value]) -> Value {
    let mut message = json!({"role": "assistant", "content": null, "refusal": null,
        "reasoning": null, "reasoning_content": null});
    let mut end = [Value::Null, Value::Null];
    let mut usage = Value::Null;
    for (i, chunk) in chunks.iter().enumerate() {
        if chunk["usage"].is_object() {
            usage = chunk["usage"].clone();
        }
        let choice = &chunk["choices"][0];
        for key in ["reasoning", "reasoning_content", "content"] {
            let Some(text) = choice["delta"][key].as_str().filter(|_| i > 0) else { continue };
            assert!(!text.is_empty(), "{chunk}");
            assert!(key == "content" || message["content"].is_null(), "a thought comes first");
            let before = message[key].as_str().unwrap_or("").to_owned();
            message[key] = (before + text).into();
        }
        for call in choice["delta"]["tool_calls"].as_array().into_iter().flatten() {
            if call.get("id").is_some() {
                let mut call = call.clone();
                call.as_object_mut().unwrap().remove("index");
                message["tool_calls"] = json!([call]);
                continue;
            }
            let arguments = &mut message["tool_calls"][0]["function"]["arguments"];
            let more = call["function"]["arguments"].as_str().unwrap();
            *arguments = (arguments.as_str().unwrap().to_owned() + more).into();
        }
        if !choice["finish_reason"].is_null() {
            end = [choice["finish_reason"].clone(), choice["stop_reason"].clone()];
        }
    }
    let [finish, stop] = end;
    json!({"message": message, "finish_reason": finish, "stop_reason": stop, "usage": usage})
}

/// The answer, whole and streamed alike, one byte a token and in the tokenizer's tokens: without
/// its usage, which differs.
fn answer(template: &str, text: &str, fields: &Value) -> Value {
    let mut answers = Vec::new();
    for by_bytes in [true, false] {
        let server = Server::new(template, text, by_bytes);
        let (whole, streamed) = (server.whole(fields), server.streamed(fields));
        assert_eq!(whole, streamed, "{text}");
        answers.push(whole);
    }
    answers.iter_mut().for_each(|answer| drop(answer["usage"].take()));
    assert_eq!(answers[0], answers[1], "{text}");
    answers.remove(0)
}

/// An answer that has ended by itself.
fn told(thought: Option<&str>, content: Option<&str>) -> Value {
    let message = json!({"role": "assistant", "content": content, "refusal": null,
        "reasoning": thought, "reasoning_content": thought});
    json!({"message": message, "finish_reason": "stop", "stop_reason": null, "usage": null})
}
