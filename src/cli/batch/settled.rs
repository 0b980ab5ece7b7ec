//! An answer without what differs from one run to the next for no reason of the input: ids that a
//! server draws, the time, and what its cache had. So equal runs write equal files.

use serde_json::{Value, json};

/// Where answers have ids of the server's own; `*` is each of a list.
const IDS: &[&[&str]] = &[
    &["id"],
    &["choices", "*", "message", "tool_calls", "*", "id"],
    // Anthropic's calls of tools.
    &["content", "*", "id"],
    // The items of /v1/responses.
    &["output", "*", "id"],
    &["output", "*", "call_id"],
];
/// Times, in seconds since 1970.
const TIMES: &[&str] = &["created", "created_at", "completed_at"];

/// Settles an answer: its ids are made of `seed`, the line's own; each keeps its prefix and its
/// length. Times are 0. Tokens that a cache had are counted as all others.
pub fn settle(mut body: Value, seed: &str) -> Value {
    let mut count = 0;
    for path in IDS {
        each(&mut body, path, &mut |id| {
            if let Some(text) = id.as_str() {
                *id = drawn_anew(text, seed, count).into();
                count += 1;
            }
        });
    }
    for name in TIMES {
        if let Some(time) = body.get_mut(*name).filter(|time| time.is_number()) {
            *time = json!(0);
        }
    }
    if let Some(usage) = body.get_mut("usage").and_then(Value::as_object_mut) {
        usage.remove("prompt_tokens_details");
        let details = usage.get_mut("input_tokens_details").and_then(Value::as_object_mut);
        if let Some(details) = details {
            details.insert("cached_tokens".to_owned(), json!(0));
        }
        // Anthropic's input_tokens are those that the cache had not.
        let cached = usage.get("cache_read_input_tokens").and_then(Value::as_u64);
        let input = usage.get("input_tokens").and_then(Value::as_u64);
        if let Some((cached, input)) = cached.zip(input) {
            usage.insert("input_tokens".to_owned(), json!(input + cached));
            usage.insert("cache_read_input_tokens".to_owned(), json!(0));
        }
    }
    body
}

/// `call_` and 24 digits become `call_` and 24 others, always the same of one line.
fn drawn_anew(id: &str, seed: &str, count: usize) -> String {
    let tail = id.rfind(['-', '_']).map_or(0, |at| at + 1);
    let digest = blake3::hash(format!("{seed} {count}").as_bytes()).to_hex();
    let digits = id[tail..].chars().count().min(digest.len());
    format!("{}{}", &id[..tail], &digest[..digits])
}

fn each(value: &mut Value, path: &[&str], change: &mut impl FnMut(&mut Value)) {
    match path {
        [] => change(value),
        ["*", rest @ ..] => {
            value.as_array_mut().into_iter().flatten().for_each(|one| each(one, rest, change));
        }
        [name, rest @ ..] => {
            if let Some(one) = value.get_mut(*name) {
                each(one, rest, change);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(id: &str, call: &str, created: u64, cached: u64) -> Value {
        json!({"id": id, "created": created, "model": "m", "choices": [
            {"message": {"content": "x", "tool_calls": [{"id": call, "function": {"name": "f"}}]}}],
            "usage": {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": cached}}})
    }

    #[test]
    fn two_answers_of_one_line_become_one() {
        let one = settle(chat("chatcmpl-0123456789abcdef", "call_00", 1, 0), "a");
        let two = settle(chat("chatcmpl-fedcba9876543210", "call_ff", 2, 16), "a");
        assert_eq!(one, two);
        let id = one["id"].as_str().unwrap();
        assert!(id.starts_with("chatcmpl-") && id.len() == "chatcmpl-0123456789abcdef".len());
        assert_ne!(one["choices"][0]["message"]["tool_calls"][0]["id"], one["id"]);
        assert_ne!(
            one["id"],
            settle(chat("chatcmpl-0123456789abcdef", "call_00", 1, 0), "b")["id"]
        );
        assert_eq!((&one["created"], &one["usage"]["prompt_tokens"]), (&json!(0), &json!(9)));
    }

    #[test]
    fn what_a_model_wrote_stays() {
        let said = json!({"id": "msg_1", "content": [
            {"type": "tool_use", "id": "toolu_1", "input": {"id": "order_77", "created": 5}}],
            "usage": {"input_tokens": 3, "cache_read_input_tokens": 16, "output_tokens": 2}});
        let settled = settle(said.clone(), "a");
        assert_eq!(settled["content"][0]["input"], said["content"][0]["input"]);
        assert_ne!(settled["content"][0]["id"], said["content"][0]["id"]);
        let usage = json!({"input_tokens": 19, "cache_read_input_tokens": 0, "output_tokens": 2});
        assert_eq!(settled["usage"], usage);
        assert_eq!(settle(json!("no object"), "a"), json!("no object"));
    }
}
