//! Completions and chat: what clients read, byte for byte.

use serde_json::{Value, json};
use tessera::engine::FinishReason;
use tessera::ids::{Digest, TokenId};

use crate::client::{get, post, post_stream, send};
use crate::fake::{BASE, BOS, EOS, Fake, Script, letter, letters, logprob};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// An f32 as the shortest text that is read as the same f32.
fn number(value: f32) -> Value {
    value.to_string().parse().unwrap()
}

fn choice(fake: &Fake, body: &Value) -> Value {
    let answer = post(fake.address, COMPLETIONS, body);
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["choices"][0].take()
}

#[test]
fn the_whole_answer_is_what_the_stream_adds_up_to() {
    let fake = Fake::say("Hello");
    let answer = post(fake.address, CHAT, &json!({"messages": [{"role": "user", "content": "x"}]}));
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let json = answer.json();
    assert_eq!(json["object"], "chat.completion");
    let expected = json!({"index": 0, "logprobs": null, "finish_reason": "stop", "message":
        {"role": "assistant", "content": "Hello", "refusal": null}, "stop_reason": null,
        "token_ids": null});
    assert_eq!(json["choices"], json!([expected]));
    // Five letters and the end-of-sequence token.
    assert_eq!(json["usage"]["completion_tokens"], 6);
    let json = post(fake.address, COMPLETIONS, &json!({"prompt": "x"})).json();
    assert_eq!(json["object"], "text_completion");
    let expected = json!({"index": 0, "text": "Hello", "logprobs": null, "finish_reason": "stop",
        "stop_reason": null, "prompt_logprobs": null, "prompt_token_ids": null,
        "token_ids": null});
    assert_eq!(json["choices"], json!([expected]));
    let usage = json!({"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2}});
    assert_eq!(json["usage"], usage);
}

#[test]
fn every_form_of_a_prompt_reaches_the_engine_as_its_tokens() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let (a, b) = (letter('a'), letter('b'));
    let cases: [(Value, bool, Vec<Vec<TokenId>>); 6] = [
        // Text begins with the begin-of-sequence token, token ids are taken as they are.
        (json!("a"), true, vec![vec![BOS, a]]),
        (json!("a"), false, vec![vec![a]]),
        (json!(["a", "b"]), true, vec![vec![BOS, a], vec![BOS, b]]),
        (json!([a, b]), true, vec![vec![a, b]]),
        (json!([[a, b], [b]]), true, vec![vec![a, b], vec![b]]),
        (json!([[a]]), true, vec![vec![a]]),
    ];
    for (prompt, special, expected) in cases {
        fake.seen.lock().unwrap().clear();
        let body = json!({"prompt": prompt, "add_special_tokens": special, "max_tokens": 1});
        let json = post(fake.address, COMPLETIONS, &body).json();
        let mut seen: Vec<_> =
            fake.seen.lock().unwrap().iter().map(|(r, _)| r.prompt().to_vec()).collect();
        seen.sort();
        let mut sorted = expected.clone();
        sorted.sort();
        assert_eq!(seen, sorted, "{body}");
        // Each choice stands at its prompt's place.
        let texts: Vec<_> =
            json["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect();
        let letter = |ids: &Vec<TokenId>| if ids.ends_with(&[a]) { "a" } else { "b" };
        assert_eq!(texts, expected.iter().map(letter).collect::<Vec<_>>(), "{body}");
        let tokens: usize = expected.iter().map(Vec::len).sum();
        assert_eq!(json["usage"]["prompt_tokens"], tokens);
        assert_eq!(json["usage"]["completion_tokens"], expected.len());
    }
}

#[test]
fn streams_of_several_prompts_keep_their_index() {
    let fake = Fake::new(Script::Echo(5), |_| {});
    let prompts: Vec<String> = ('a'..='j').map(String::from).collect();
    let body = json!({"prompt": prompts, "stream": true, "stream_options":
        {"include_usage": true, "continuous_usage_stats": true}, "max_tokens": 5});
    let mut texts = vec![String::new(); prompts.len()];
    let mut finished = 0;
    let mut chunks = post_stream(fake.address, COMPLETIONS, &body).chunks();
    let usage = chunks.pop().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["total_tokens"]), (&json!([]), &json!(70)));
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
        finished += usize::from(choice["finish_reason"] == "length");
        assert_eq!(chunk["usage"]["prompt_tokens"], 20);
    }
    assert_eq!(finished, prompts.len());
    assert_eq!(texts, prompts.iter().map(|p| p.repeat(5)).collect::<Vec<_>>());
}

#[test]
fn the_model_names_the_adapter_and_its_digest_reaches_the_engine() {
    let fake = Fake::say("x");
    let cases = [
        (json!("sql"), Some(1)),
        (json!("org/chat"), Some(2)),
        (json!("org/base:sql"), Some(1)),
        (json!("org/base"), None),
        (json!(""), None),
        (Value::Null, None),
    ];
    for (model, digest) in cases {
        fake.seen.lock().unwrap().clear();
        let json = post(fake.address, COMPLETIONS, &json!({"model": model, "prompt": "x"})).json();
        let expected = model.as_str().filter(|m| !m.is_empty()).unwrap_or(BASE);
        assert_eq!(json["model"], expected);
        let seen = fake.seen.lock().unwrap().pop().unwrap().1;
        assert_eq!(seen, digest.map(|byte| Digest([byte; 32])), "{model}");
    }
}

#[test]
fn logprobs_of_completions_hold_the_drawn_token_and_the_end_token() {
    let fake = Fake::say("ab");
    let body = json!({"prompt": "x", "logprobs": 2});
    let choice = choice(&fake, &body);
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["a", "b", "</s>"]));
    assert_eq!(logprobs["text_offset"], json!([0, 1, 2]));
    let expected: Vec<Value> = (0..3).map(|i| number(logprob(i))).collect();
    assert_eq!(logprobs["token_logprobs"], json!(expected));
    // lm-eval's test of greedy decoding: both numbers are the same text.
    for i in 0..2 {
        let top = logprobs["top_logprobs"][i].as_object().unwrap();
        assert_eq!(top.len(), 2);
        assert_eq!(
            top.values().next().unwrap().to_string(),
            logprobs["token_logprobs"][i].to_string()
        );
    }
    let zero = self::choice(&fake, &json!({"prompt": "x", "logprobs": 0}));
    assert_eq!(zero["logprobs"]["top_logprobs"][0], json!({"a": number(logprob(0))}));
}

#[test]
fn streamed_logprobs_are_those_of_the_whole_answer() {
    let fake = Fake::say("abc");
    let plain = choice(&fake, &json!({"prompt": "x", "logprobs": 1}));
    let body = json!({"prompt": "x", "logprobs": 1, "stream": true});
    let chunks = post_stream(fake.address, COMPLETIONS, &body).chunks();
    for key in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        let all: Vec<Value> = chunks
            .iter()
            .flat_map(|chunk| chunk["choices"][0]["logprobs"][key].as_array().unwrap().clone())
            .collect();
        assert_eq!(json!(all), plain["logprobs"][key], "{key}");
    }
}

#[test]
fn logprobs_of_chat_have_bytes_and_alternatives() {
    let fake = Fake::say("a");
    let body = json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true,
        "top_logprobs": 2});
    let json = post(fake.address, CHAT, &body).json();
    let content = json["choices"][0]["logprobs"]["content"].as_array().unwrap();
    let expected = json!({"token": "a", "logprob": number(logprob(0)), "bytes": [97],
        "top_logprobs": [
        {"token": "a", "logprob": number(logprob(0)), "bytes": [97]},
        {"token": "b", "logprob": number(logprob(0) - 1.0), "bytes": [98]},
    ]});
    assert_eq!(content[0], expected);
    assert_eq!((content.len(), &content[1]["token"]), (2, &json!("</s>")));
    let mut stream = body.clone();
    stream["stream"] = true.into();
    let chunks = post_stream(fake.address, CHAT, &stream).chunks();
    let streamed: Vec<Value> = chunks
        .iter()
        .filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned())
        .flatten()
        .collect();
    assert_eq!(&streamed, content);
}

#[test]
fn token_ids_are_returned_when_asked_for() {
    let fake = Fake::say("ab");
    let generated = json!([letter('a'), letter('b'), EOS]);
    let body = json!({"prompt": "x", "return_token_ids": true});
    let choice = choice(&fake, &body);
    assert_eq!(choice["token_ids"], generated);
    assert_eq!(choice["prompt_token_ids"], json!([BOS, letter('x')]));
    let stream = json!({"prompt": "x", "return_token_ids": true, "stream": true});
    let chunks = post_stream(fake.address, COMPLETIONS, &stream).chunks();
    let ids = |chunk: &Value| chunk["choices"][0]["token_ids"].as_array().unwrap().clone();
    assert_eq!(json!(chunks.iter().flat_map(ids).collect::<Vec<_>>()), generated);
    assert_eq!(chunks[0]["choices"][0]["prompt_token_ids"], json!([BOS, letter('x')]));
    assert!(chunks[1]["choices"][0].get("prompt_token_ids").is_none());
    let mut chat =
        json!({"messages": [{"role": "user", "content": "x"}], "return_token_ids": true});
    let json = post(fake.address, CHAT, &chat).json();
    let prompt = json!(fake.seen.lock().unwrap().last().unwrap().0.prompt());
    assert_eq!(json["prompt_token_ids"], prompt);
    assert_eq!(json["choices"][0]["token_ids"], generated);
    chat["stream"] = true.into();
    let chunks = post_stream(fake.address, CHAT, &chat).chunks();
    assert_eq!(chunks[0]["prompt_token_ids"], prompt);
    assert_eq!(json!(chunks[1..].iter().flat_map(ids).collect::<Vec<_>>()), generated);
}

#[test]
fn a_stop_string_ends_the_text_across_tokens_and_frees_the_sequence() {
    let mut tokens = letters("one##two");
    tokens.extend([EOS]);
    let fake = Fake::new(Script::Hang(tokens), |_| {});
    let body = json!({"prompt": "x", "stop": ["nope", "e##t"], "max_tokens": 100});
    let whole = choice(&fake, &body);
    assert_eq!((&whole["text"], &whole["finish_reason"]), (&json!("on"), &json!("stop")));
    fake.wait_cancelled(1);
    let stream = json!({"prompt": "x", "stop": "e##t", "max_tokens": 100, "stream": true});
    let chunks = post_stream(fake.address, COMPLETIONS, &stream).chunks();
    let text = |chunk: &Value| chunk["choices"][0]["text"].as_str().unwrap().to_owned();
    assert_eq!(chunks.iter().map(text).collect::<String>(), "on");
    fake.wait_cancelled(2);
}

#[test]
fn text_that_only_might_have_been_a_stop_string_is_shown_at_the_end() {
    let fake = Fake::say("ab");
    let whole = choice(&fake, &json!({"prompt": "x", "stop": "bcd"}));
    assert_eq!((&whole["text"], &whole["finish_reason"]), (&json!("ab"), &json!("stop")));
    // The limit falls on the token that completes the stop string.
    let whole = choice(&fake, &json!({"prompt": "x", "stop": "ab", "max_tokens": 2}));
    assert_eq!((&whole["text"], &whole["finish_reason"]), (&json!(""), &json!("stop")));
    let whole = choice(&fake, &json!({"prompt": "x", "max_tokens": 1}));
    assert_eq!((&whole["text"], &whole["finish_reason"]), (&json!("a"), &json!("length")));
}

#[test]
fn a_character_of_several_tokens_is_streamed_whole() {
    // é is the bytes C3 A9: each stands as a token, and neither is text alone.
    let byte = |b: u32| 7 + 94 + if b < 0xAD { b - 0xA1 } else { b - 0xA1 - 1 };
    let tokens = vec![letter('a'), byte(0xC3), byte(0xA9), EOS];
    let fake = Fake::new(Script::Say(tokens, FinishReason::Stop), |_| {});
    let chunks =
        post_stream(fake.address, COMPLETIONS, &json!({"prompt": "x", "stream": true})).chunks();
    let texts: Vec<&str> =
        chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["a", "é", ""]);
}

#[test]
fn parameters_reach_the_engine_and_null_is_as_good_as_nothing() {
    let fake = Fake::say("x");
    let body = json!({"prompt": "x", "max_tokens": 7, "temperature": 0.5, "top_p": 0.25,
        "top_k": 3, "min_p": 0.125, "seed": -2, "logprobs": 4, "ignore_eos": true});
    assert_eq!(post(fake.address, COMPLETIONS, &body).status, 200);
    let seen = fake.seen.lock().unwrap().pop().unwrap().0;
    let terms = seen.terms();
    let sampling = &terms.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.5, 0.25, 0.125));
    assert_eq!((sampling.top_k, sampling.seed), (3, u64::MAX - 1));
    assert_eq!((terms.tokens_max, terms.logprobs, &terms.stop_tokens[..]), (7, Some(4), &[][..]));
    let body = json!({"prompt": "x", "max_tokens": null, "temperature": null, "top_p": null,
        "top_k": -1, "min_p": null, "seed": null, "logprobs": null, "ignore_eos": null,
        "stop": null, "stream": null, "stream_options": null, "n": null, "tools": null,
        "echo": null, "user": null, "something_else": null});
    assert_eq!(post(fake.address, COMPLETIONS, &body).status, 200);
    let seen = fake.seen.lock().unwrap().pop().unwrap().0;
    let terms = seen.terms();
    let sampling = &terms.sampling;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (1.0, 1.0, 0));
    assert_eq!((terms.tokens_max, terms.logprobs, &terms.stop_tokens[..]), (16, None, &[EOS][..]));
    assert_eq!(post(fake.address, COMPLETIONS, &json!({"prompt": ["x", "x"]})).status, 200);
    let seen = fake.seen.lock().unwrap();
    assert_ne!(
        seen[0].0.terms().sampling.seed,
        seen[1].0.terms().sampling.seed,
        "fresh seeds differ"
    );
}

#[test]
fn a_chat_is_rendered_by_the_template_and_takes_what_is_left_of_the_context() {
    let fake = Fake::say("x");
    let parts = json!([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]);
    let body = json!({"messages": [{"role": "developer", "content": "s"},
        {"role": "user", "content": parts}], "max_tokens": 5, "max_completion_tokens": null});
    assert_eq!(post(fake.address, CHAT, &body).status, 200);
    let same = json!({"messages": [{"role": "system", "content": "s"},
        {"role": "user", "content": "a\nb"}]});
    assert_eq!(post(fake.address, CHAT, &same).status, 200);
    let text = "<|system|>\ns<|end|>\n<|user|>\na\nb<|end|>\n<|assistant|>\n";
    let raw = json!({"prompt": text, "max_tokens": 1});
    assert_eq!(post(fake.address, COMPLETIONS, &raw).status, 200);
    let seen = fake.seen.lock().unwrap();
    assert_eq!(seen[0].0.prompt(), seen[1].0.prompt());
    // The template writes the begin-of-sequence token, and the tokenizer does not add another.
    assert_eq!(seen[0].0.prompt(), seen[2].0.prompt());
    assert_eq!(seen[0].0.terms().tokens_max, 5);
    assert_eq!(seen[1].0.terms().tokens_max as usize, 512 - seen[1].0.prompt().len());
}

#[test]
fn models_are_listed_base_first_with_digests_for_roots() {
    let fake = Fake::say("x");
    let json = get(fake.address, "/v1/models").json();
    let data = json["data"].as_array().unwrap();
    let ids: Vec<_> = data.iter().map(|card| card["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [BASE, "sql", "org/chat"]);
    assert_eq!((&data[0]["root"], &data[0]["parent"]), (&json!(BASE), &Value::Null));
    assert_eq!(data[0]["max_model_len"], 512);
    assert_eq!((&data[1]["root"], &data[1]["parent"]), (&json!("01".repeat(32)), &json!(BASE)));
    assert_eq!(data[1]["permission"][0]["object"], "model_permission");
    for path in ["/v1/models/org/chat", "/v1/models/org%2Fchat"] {
        assert_eq!(get(fake.address, path).json()["id"], "org/chat");
    }
    let answer = get(fake.address, "/v1/models/none");
    assert_eq!((answer.status, answer.error().1.as_str()), (404, "model_not_found"));
}

#[test]
fn a_merged_adapter_is_the_only_model() {
    let fake = Fake::new(Script::Echo(1), |app| app.model.merged = Some("sql".to_owned()));
    let json = get(fake.address, "/v1/models").json();
    assert_eq!(json["data"].as_array().unwrap().len(), 1);
    assert_eq!(json["data"][0]["id"], "sql");
    for model in [json!("sql"), json!("org/base:sql"), Value::Null] {
        let body = json!({"model": model, "prompt": "x"});
        assert_eq!(post(fake.address, COMPLETIONS, &body).status, 200);
        // The weights are the adapter: no row of it is left to apply.
        assert_eq!(fake.seen.lock().unwrap().pop().unwrap().1, None);
    }
    for model in ["org/base", "org/chat", "nobody"] {
        let answer = post(fake.address, COMPLETIONS, &json!({"model": model, "prompt": "x"}));
        assert_eq!(answer.status, 400);
        assert_eq!(answer.error(), (Some("model".to_owned()), "merged_mode".to_owned()));
        assert!(answer.message().contains("'sql'"), "{}", answer.message());
    }
    let load = json!({"lora_name": "a", "lora_path": "b"});
    assert_eq!(post(fake.address, "/v1/load_lora_adapter", &load).error().1, "merged_mode");
}

#[test]
fn every_answer_has_a_request_id_and_a_short_plain_one_comes_back() {
    let fake = Fake::say("x");
    let id = |extra: &str, path: &str| {
        let answer = send(fake.address, "GET", path, extra, b"");
        answer.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("X-Request-Id: abc-123\r\n", "/health"), "abc-123");
    assert_ne!(id("", "/none"), id("", "/none"));
    for bad in ["a b".to_owned(), "é".to_owned(), "x".repeat(129)] {
        assert_eq!(id(&format!("x-request-id: {bad}\r\n"), "/health").len(), 32, "{bad}");
    }
}
