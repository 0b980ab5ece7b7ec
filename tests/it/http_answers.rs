//! What an answer of the generation routes holds.

use serde_json::{Value, json};

use tessera::engine::FinishReason;
use tessera::ids::TokenId;

use crate::client::{post, post_stream};
use crate::fake::{EOS, Fake, Script, letter, letters, logprob};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

fn ok(fake: &Fake, path: &str, body: &Value) -> Value {
    let answer = post(fake.address, path, body);
    assert_eq!(answer.status, 200, "{body}: {}", answer.text());
    answer.json()
}

#[test]
fn more_tokens_than_the_context_has_left_are_cut_to_what_is_left() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    for (asked, granted) in [(12, 12), (13, 12), (512, 12)] {
        ok(&fake, COMPLETIONS, &json!({"prompt": vec![5; 500], "max_tokens": asked}));
        assert_eq!(fake.seen.lock().unwrap().pop().unwrap().0.terms().tokens_max, granted);
    }
    // Sixteen is what a request gets that does not say.
    ok(&fake, COMPLETIONS, &json!({"prompt": vec![5; 511]}));
    assert_eq!(fake.seen.lock().unwrap().pop().unwrap().0.terms().tokens_max, 1);
    let message = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (COMPLETIONS, "max_tokens", json!({"prompt": "x"})),
        (CHAT, "max_tokens", json!({"messages": message})),
        (CHAT, "max_completion_tokens", json!({"messages": message})),
    ];
    for (path, field, mut body) in cases {
        body[field] = 512.into();
        ok(&fake, path, &body);
        body[field] = 513.into();
        let answer = post(fake.address, path, &body);
        let expected = (Some(field.to_owned()), "invalid_value".to_owned());
        assert_eq!((answer.status, answer.error()), (400, expected));
        let text = format!("{field} must be at most 512, this model's context length, got 513");
        assert_eq!(answer.message(), text);
    }
}

/// An f32 as the shortest text that is read as the same f32.
fn number(value: f32) -> Value {
    value.to_string().parse().unwrap()
}

/// The begin-of-sequence token as logprobs name it.
const BOS_NAME: &str = "<s>";

#[test]
fn echo_puts_the_prompt_before_the_text_and_its_logprobs_before_the_tokens() {
    let fake = Fake::say("cd");
    let body = json!({"prompt": "xy", "echo": true});
    assert_eq!(ok(&fake, COMPLETIONS, &body)["choices"][0]["text"], "xycd");
    let body = json!({"prompt": "xy", "echo": true, "logprobs": 2});
    let choice = ok(&fake, COMPLETIONS, &body)["choices"][0].take();
    assert_eq!(choice["text"], "xycd");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!([BOS_NAME, "x", "y", "c", "d", "</s>"]));
    // The special token is no part of the text.
    assert_eq!(logprobs["text_offset"], json!([0, 0, 1, 2, 3, 4]));
    let [first, second, third] = [0, 1, 2].map(|i| number(logprob(i)));
    let scores = [&Value::Null, &second, &third, &first, &second, &third];
    assert_eq!(logprobs["token_logprobs"], json!(scores));
    let top = &logprobs["top_logprobs"];
    assert_eq!(top[0], Value::Null);
    // The likeliest is another than the prompt's.
    let one_more = number(logprob(1) + 1.0);
    assert_eq!(top[1], json!({"y": one_more, "x": second}));
    assert_eq!(top[3], json!({"c": first, "d": number(logprob(0) - 1.0)}));
    // The prompt's own tokens are among its alternatives even where none are asked for.
    let body = json!({"prompt": "xy", "echo": true, "logprobs": 0});
    let top = &ok(&fake, COMPLETIONS, &body)["choices"][0]["logprobs"]["top_logprobs"];
    assert_eq!((&top[1], &top[3]), (&json!({"x": second}), &json!({"c": first})));
}

#[test]
fn what_lm_eval_asks_has_one_drawn_entry_for_each_prompt_whatever_is_drawn() {
    let fake = Fake::new(Script::Say(vec![EOS], FinishReason::Stop), |_| {});
    let prompts = [letters("abc"), letters("de")];
    let body = json!({"prompt": prompts, "echo": true, "logprobs": 1, "max_tokens": 1,
        "temperature": 0, "seed": 1234});
    let answer = ok(&fake, COMPLETIONS, &body);
    for (choice, prompt) in answer["choices"].as_array().unwrap().iter().zip(prompts) {
        let logprobs = &choice["logprobs"];
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(logprobs[list].as_array().unwrap().len(), prompt.len() + 1, "{list}");
        }
        assert_eq!(logprobs["tokens"][prompt.len()], "</s>");
        assert_eq!(logprobs["token_logprobs"][0], Value::Null);
    }
    let usage = &answer["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(5), &json!(2)));
}

#[test]
fn nothing_but_the_prompt_may_be_asked_for() {
    let fake = Fake::say("cd");
    let body = json!({"prompt": "xy", "echo": true, "max_tokens": 0});
    let answer = ok(&fake, COMPLETIONS, &body);
    let choice = &answer["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("xy"), &json!("length")));
    assert_eq!(answer["usage"]["completion_tokens"], 0);
    let body = json!({"prompt": ["xy", "x"], "echo": true, "max_tokens": 0, "logprobs": 1,
        "stream": true});
    let chunks = post_stream(fake.address, COMPLETIONS, &body).chunks();
    assert_eq!(chunks.len(), 2);
    for chunk in chunks {
        let choice = &chunk["choices"][0];
        let text = if choice["index"] == 0 { "xy" } else { "x" };
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("length")));
        let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
        assert_eq!(tokens.len(), text.len() + 1);
    }
    for body in [
        json!({"prompt": "x", "max_tokens": 0}),
        json!({"prompt": "x", "max_tokens": 0,
        "echo": false}),
    ] {
        assert_eq!(post(fake.address, COMPLETIONS, &body).error().0.unwrap(), "max_tokens");
    }
}

#[test]
fn a_streamed_echo_adds_up_to_the_whole_one() {
    let fake = Fake::say("cd");
    let mut body = json!({"prompt": ["xy", "x"], "echo": true, "logprobs": 1});
    let whole = ok(&fake, COMPLETIONS, &body);
    body["stream"] = true.into();
    let chunks = post_stream(fake.address, COMPLETIONS, &body).chunks();
    for (index, prompt) in ["xy", "x"].into_iter().enumerate() {
        let of_index = |chunk: &&Value| chunk["choices"][0]["index"] == index;
        let mine: Vec<&Value> = chunks.iter().filter(of_index).collect();
        let texts = mine.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap());
        let texts: Vec<&str> = texts.collect();
        assert_eq!(texts, [&format!("{prompt}c"), "d", ""]);
        for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            let part =
                |chunk: &&Value| chunk["choices"][0]["logprobs"][list].as_array().unwrap().clone();
            let all: Vec<Value> = mine.iter().flat_map(part).collect();
            assert_eq!(json!(all), whole["choices"][index]["logprobs"][list], "{list}");
        }
    }
    // Tokens are echoed as their text, and a character that goes on is written once and whole.
    let body = json!({"prompt": [[0, letter('a'), byte(0xC3)]], "echo": true});
    let fake = Fake::new(Script::Say(vec![byte(0xA9), EOS], FinishReason::Stop), |_| {});
    assert_eq!(ok(&fake, COMPLETIONS, &body)["choices"][0]["text"], "aé");
}

/// The token of a byte that is no text by itself.
fn byte(byte: u32) -> TokenId {
    7 + 94 + if byte < 0xAD { byte - 0xA1 } else { byte - 0xA1 - 1 }
}

#[test]
fn prompt_logprobs_have_vllms_form_on_both_routes() {
    let fake = Fake::say("c");
    let (a, b) = (letter('a').to_string(), letter('b').to_string());
    let body = json!({"prompt": "a", "prompt_logprobs": 1, "logprobs": 3});
    let answer = ok(&fake, COMPLETIONS, &body);
    let own = json!({"logprob": number(logprob(1)), "rank": 2, "decoded_token": "a"});
    let likelier = json!({"logprob": number(logprob(1) + 1.0), "rank": 1, "decoded_token": "b"});
    let expected = json!([null, {a.clone(): own, b: likelier}]);
    assert_eq!(answer["choices"][0]["prompt_logprobs"], expected);
    let body = json!({"prompt": "a", "prompt_logprobs": 0, "max_tokens": 0});
    let answer = ok(&fake, COMPLETIONS, &body);
    assert_eq!(answer["choices"][0]["prompt_logprobs"], json!([null, {a: own}]));
    let message = json!([{"role": "user", "content": "x"}]);
    let answer = ok(&fake, CHAT, &json!({"messages": message, "prompt_logprobs": 0}));
    let prompt = fake.seen.lock().unwrap().last().unwrap().0.prompt().to_vec();
    let told = answer["prompt_logprobs"].as_array().unwrap();
    assert_eq!((told.len(), &told[0]), (prompt.len(), &Value::Null));
    assert!(told[1][prompt[1].to_string()]["rank"] == 2);
    // Not asked for, they are null in a whole answer and absent in a stream.
    let answer = ok(&fake, CHAT, &json!({"messages": message}));
    assert!(answer["prompt_logprobs"].is_null() && answer.get("prompt_logprobs").is_some());
    let cases = [
        json!({"prompt_logprobs": 1, "stream": true}),
        json!({"prompt_logprobs": 21}),
        json!({"prompt_logprobs": -1}),
    ];
    for mut body in cases {
        body["prompt"] = "x".into();
        let answer = post(fake.address, COMPLETIONS, &body);
        let expected = (400, Some("prompt_logprobs".to_owned()));
        assert_eq!((answer.status, answer.error().0), expected, "{body}");
    }
}

#[test]
fn alternatives_that_are_parts_of_characters_are_told_apart() {
    // The fake's alternatives are the next ids: two bytes that begin characters.
    let fake = Fake::new(Script::Say(vec![byte(0xC3), EOS], FinishReason::Stop), |_| {});
    let choice = &ok(&fake, COMPLETIONS, &json!({"prompt": "x", "logprobs": 2}))["choices"][0];
    assert_eq!(choice["logprobs"]["tokens"][0], "bytes:\\xc3");
    let names: Vec<_> = choice["logprobs"]["top_logprobs"][0].as_object().unwrap().keys().collect();
    assert_eq!(names, ["bytes:\\xc3", "bytes:\\xc4"]);
    // Ids without a token have no text at all; each still has its entry.
    let unused = 600;
    let fake = Fake::new(Script::Say(vec![unused, EOS], FinishReason::Stop), |_| {});
    let choice = &ok(&fake, COMPLETIONS, &json!({"prompt": "x", "logprobs": 3}))["choices"][0];
    let names: Vec<_> = choice["logprobs"]["top_logprobs"][0].as_object().unwrap().keys().collect();
    assert_eq!(names, ["", "token_id:601", "token_id:602"]);
    let body = json!({"prompt": "x", "logprobs": 1, "return_tokens_as_token_ids": true});
    let choice = &ok(&fake, COMPLETIONS, &body)["choices"][0];
    assert_eq!(choice["logprobs"]["tokens"], json!(["token_id:600", "token_id:1"]));
    let body = json!({"messages": [{"role": "user", "content": "x"}], "logprobs": true,
        "top_logprobs": 1, "return_tokens_as_token_ids": true});
    let choice = &ok(&fake, CHAT, &body)["choices"][0];
    let first = &choice["logprobs"]["content"][0];
    assert_eq!((&first["token"], &first["bytes"]), (&json!("token_id:600"), &json!([])));
    assert_eq!(first["top_logprobs"][0]["token"], "token_id:600");
}
