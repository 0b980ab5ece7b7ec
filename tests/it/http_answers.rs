//! What an answer of the generation routes holds.

use serde_json::{Value, json};

use tessera::engine::FinishReason;
use tessera::ids::TokenId;

use crate::client::{get, post, post_stream, send};
use crate::fake::{BOS, EOS, Fake, Script, letter, letters, logprob};

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

#[test]
fn samples_of_a_prompt_stand_side_by_side_with_seeds_of_their_own() {
    let fake = Fake::new(Script::Echo(2), |_| {});
    let body = json!({"prompt": ["x", "y"], "n": 3, "seed": 7, "max_tokens": 2});
    let answer = ok(&fake, COMPLETIONS, &body);
    let choices = answer["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["xx", "xx", "xx", "yy", "yy", "yy"]);
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2, 3, 4, 5]);
    let usage = json!({"prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16,
        "prompt_tokens_details": {"cached_tokens": 4}});
    assert_eq!(answer["usage"], usage);
    let seeds = || {
        let seen = std::mem::take(&mut *fake.seen.lock().unwrap());
        let mut seeds: Vec<_> =
            seen.iter().map(|(request, _)| request.terms().sampling.seed).collect();
        seeds.sort_unstable();
        seeds
    };
    let first = seeds();
    ok(&fake, COMPLETIONS, &body);
    assert_eq!(first, seeds(), "repeatable");
    assert_eq!(first.iter().filter(|&&seed| seed == 7).count(), 2, "the first of each prompt");
    let distinct: std::collections::BTreeSet<_> = first.iter().collect();
    assert_eq!(distinct.len(), 3);
    let body = json!({"messages": [{"role": "user", "content": "x"}], "n": 2, "stream": true,
        "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
    let chunks = post_stream(fake.address, CHAT, &body).chunks();
    for (index, chunk) in chunks[..2].iter().enumerate() {
        let choice = &chunk["choices"][0];
        assert_eq!(
            (&choice["index"], &choice["delta"]["role"]),
            (&json!(index), &"assistant".into())
        );
        assert_eq!(chunk["usage"]["completion_tokens"], 0, "a role is no token");
    }
    let finished = chunks.iter().filter(|c| c["choices"][0]["finish_reason"] == "length").count();
    assert_eq!(finished, 2);
    assert!(chunks[2..].iter().all(|chunk| chunk["usage"]["completion_tokens"] != 0));
}

#[test]
fn samples_have_limits_that_are_named() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let cases = [
        ("n", json!({"n": 0})),
        ("n", json!({"n": 129})),
        ("n", json!({"n": -1})),
        ("best_of", json!({"n": 2, "best_of": 1})),
        ("best_of", json!({"best_of": 0})),
        ("best_of", json!({"best_of": 21})),
        ("best_of", json!({"best_of": 2, "stream": true})),
    ];
    for (field, mut body) in cases {
        body["prompt"] = "x".into();
        let answer = post(fake.address, COMPLETIONS, &body);
        let found = (answer.status, answer.error().0);
        assert_eq!(found, (400, Some(field.to_owned())), "{body}");
    }
    for body in [json!({"prompt": "x", "n": 5}), json!({"prompt": "x", "n": 2, "best_of": 5})] {
        let choices = ok(&fake, COMPLETIONS, &body)["choices"].as_array().unwrap().len();
        assert_eq!(choices as u64, body["n"].as_u64().unwrap());
    }
}

#[test]
fn what_ended_a_text_is_named_and_shown_where_asked() {
    let mut tokens = letters("one##two");
    tokens.push(EOS);
    let fake = Fake::new(Script::Say(tokens, FinishReason::Stop), |_| {});
    let two = letter('#');
    let cases = [
        (json!({}), "one##two", json!(null)),
        (json!({"stop": ["nope", "##"]}), "one", json!("##")),
        (json!({"stop": "##", "include_stop_str_in_output": true}), "one##", json!("##")),
        (json!({"stop": "</s>"}), "one##two", json!(null)),
        (json!({"stop": "</s>", "ignore_eos": true}), "one##two", json!("</s>")),
        (
            json!({"stop": "</s>", "ignore_eos": true, "include_stop_str_in_output": true}),
            "one##two</s>",
            json!("</s>"),
        ),
        (json!({"stop_token_ids": [EOS]}), "one##two", json!(null)),
        (json!({"stop_token_ids": [EOS], "ignore_eos": true}), "one##two", json!(EOS)),
        (json!({"include_stop_str_in_output": true}), "one##two", json!(null)),
        (
            json!({"include_stop_str_in_output": true, "skip_special_tokens": false}),
            "one##two</s>",
            json!(null),
        ),
        (json!({"max_tokens": 3}), "one", json!(null)),
    ];
    for (mut body, text, reason) in cases {
        body["prompt"] = "x".into();
        let choice = ok(&fake, COMPLETIONS, &body)["choices"][0].take();
        assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(text), &reason), "{body}");
        body["stream"] = true.into();
        let chunks = post_stream(fake.address, COMPLETIONS, &body).chunks();
        let part = |chunk: &Value| chunk["choices"][0]["text"].as_str().unwrap().to_owned();
        assert_eq!(chunks.iter().map(part).collect::<String>(), text, "{body}");
        let last = &chunks.last().unwrap()["choices"][0];
        assert_eq!(last.get("stop_reason"), Some(&reason), "{body}");
        assert!(chunks[0]["choices"][0].get("stop_reason").is_none());
    }
    // A token that the engine stops at, in the middle of what it could say.
    let fake = Fake::new(Script::Say(vec![letter('a'), two], FinishReason::Stop), |_| {});
    for (included, text) in [(false, "a"), (true, "a#")] {
        let body = json!({"prompt": "x", "stop_token_ids": [two],
            "include_stop_str_in_output": included});
        let choice = ok(&fake, COMPLETIONS, &body)["choices"][0].take();
        assert_eq!((&choice["text"], &choice["stop_reason"]), (&json!(text), &json!(two)));
    }
}

#[test]
fn special_tokens_are_parts_of_the_text_where_asked() {
    // <|user|> and <|end|> in the middle of an answer.
    let tokens = vec![letter('a'), 4, letter('b'), 6, EOS];
    let fake = Fake::new(Script::Say(tokens, FinishReason::Stop), |_| {});
    for (skipped, text) in [(true, "ab"), (false, "a<|user|>b<|end|>")] {
        let body = json!({"prompt": "x", "skip_special_tokens": skipped, "logprobs": 0});
        let choice = ok(&fake, COMPLETIONS, &body)["choices"][0].take();
        assert_eq!(choice["text"], text);
        let end = text.len();
        let begins = if skipped { [0, 1, 1, 2, 2] } else { [0, 1, 9, 10, end] };
        assert_eq!(choice["logprobs"]["text_offset"], json!(begins));
        let body = json!({"messages": [{"role": "user", "content": "x"}],
            "skip_special_tokens": skipped});
        assert_eq!(ok(&fake, CHAT, &body)["choices"][0]["message"]["content"], text);
        let body = json!({"prompt": [BOS, letter('x')], "skip_special_tokens": skipped,
            "echo": true, "logprobs": 0});
        let choice = ok(&fake, COMPLETIONS, &body)["choices"][0].take();
        let begin = if skipped { "x" } else { "<s>x" };
        assert_eq!(choice["text"], format!("{begin}{text}"));
        assert_eq!(choice["logprobs"]["text_offset"][1], begin.len() - 1);
        assert_eq!(choice["logprobs"]["text_offset"][2], begin.len());
    }
}

#[test]
fn a_prompt_is_cut_to_its_end_where_asked() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let prompt = |body: &Value, path: &str| {
        let answer = ok(&fake, path, body);
        let prompt = fake.seen.lock().unwrap().pop().unwrap().0.prompt().to_vec();
        assert_eq!(answer["usage"]["prompt_tokens"], prompt.len());
        (prompt, answer)
    };
    let ids: Vec<TokenId> = (100..200).collect();
    let body = json!({"prompt": ids, "truncate_prompt_tokens": 3, "echo": true});
    assert_eq!(prompt(&body, COMPLETIONS).0, [197, 198, 199]);
    // What every text begins with stays.
    let body = json!({"prompt": "xyz", "truncate_prompt_tokens": 3, "echo": true});
    let (kept, answer) = prompt(&body, COMPLETIONS);
    assert_eq!(kept, [BOS, letter('y'), letter('z')]);
    assert_eq!(answer["choices"][0]["text"], "yzz");
    let body = json!({"prompt": "x", "truncate_prompt_tokens": 512});
    assert_eq!(prompt(&body, COMPLETIONS).0, [BOS, letter('x')]);
    let long: Vec<TokenId> = (0..600).map(|i| i % 500).collect();
    let body = json!({"prompt": long, "truncate_prompt_tokens": -1, "max_tokens": 12});
    assert_eq!(prompt(&body, COMPLETIONS).0, long[100..]);
    let messages = json!([{"role": "user", "content": "x".repeat(700)}]);
    let body = json!({"messages": messages, "truncate_prompt_tokens": -1});
    assert_eq!(prompt(&body, CHAT).0.len(), 511);
    for bad in [json!(0), json!(-2), json!(513), json!(1.5), json!("5")] {
        let body = json!({"prompt": "x", "truncate_prompt_tokens": bad});
        let answer = post(fake.address, COMPLETIONS, &body);
        let expected = (400, Some("truncate_prompt_tokens".to_owned()));
        assert_eq!((answer.status, answer.error().0), expected, "{body}");
    }
}

#[test]
fn salt_and_priority_reach_the_engine() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let terms = |extra: Value| {
        let mut body = json!({"prompt": "x"});
        for (key, value) in extra.as_object().unwrap() {
            body[key] = value.clone();
        }
        ok(&fake, COMPLETIONS, &body);
        let seen = fake.seen.lock().unwrap().pop().unwrap().0;
        (seen.terms().cache_salt, seen.terms().priority)
    };
    let (none, [a, b]) = (terms(json!({})), ["a", "b"].map(|s| terms(json!({"cache_salt": s}))));
    assert_eq!(none, (None, 0));
    assert!(a.0.is_some() && a.0 != b.0);
    assert_eq!(a, terms(json!({"cache_salt": "a", "priority": 0})));
    assert_eq!(terms(json!({"cache_salt": "é".repeat(1024), "priority": -3.0})).1, -3);
    let bad = [
        ("cache_salt", json!("")),
        ("cache_salt", json!("x".repeat(1025))),
        ("cache_salt", json!(5)),
        ("priority", json!(2_147_483_648_i64)),
        ("priority", json!(0.5)),
    ];
    for (field, value) in bad {
        let answer = post(fake.address, COMPLETIONS, &json!({"prompt": "x", field: value}));
        assert_eq!((answer.status, answer.error().0), (400, Some(field.to_owned())), "{field}");
    }
}

#[test]
fn whole_numbers_are_integers_and_messages_speak_of_ranges() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let body = json!({"prompt": [[5.0, 6]], "max_tokens": 3.0, "top_k": 2.0, "seed": 7.0, "n": 1.0,
        "logprobs": 0.0, "stop_token_ids": [8.0], "truncate_prompt_tokens": -1.0,
        "temperature": 1, "top_p": 1});
    ok(&fake, COMPLETIONS, &body);
    let seen = fake.seen.lock().unwrap().pop().unwrap().0;
    assert_eq!((seen.prompt(), seen.terms().tokens_max), (&[5, 6][..], 3));
    assert_eq!((seen.terms().sampling.seed, seen.terms().sampling.top_k), (7, 2));
    assert!(seen.terms().stop_tokens.contains(&8));
    let cases = [
        ("max_tokens", "-1", "expected an integer of 0 or more, got -1"),
        ("max_tokens", "1.5", "expected an integer of 0 or more, got 1.5"),
        ("max_tokens", "1e300", "must be at most 512"),
        ("max_tokens", "4294967296", "must be at most 512"),
        ("seed", "1e17", "expected a number above 2^53 without point or exponent, got 1e17"),
        ("seed", "1e300", "expected an integer of at most 9223372036854775807, got 1e300"),
        ("max_tokens", "\"5\"", "expected an integer of 0 or more"),
        ("seed", "0.5", "expected an integer, got 0.5"),
        ("priority", "-2147483649", "expected an integer of at least -2147483648"),
        ("top_k", "[]", "expected an integer"),
        ("temperature", "\"1\"", "expected a number"),
        ("stop_token_ids", "[-5]", "expected an integer of 0 or more, got -5"),
        ("prompt", "[-5]", "expected an integer of 0 or more, got -5"),
        ("prompt", "[4294967296]", "token ids must be below 512, got 4294967295 or more"),
        ("prompt", "[[1, 0.5]]", "expected an integer of 0 or more, got 0.5"),
        ("prompt", "[1, 0.5]", "expected an integer of 0 or more, got 0.5"),
    ];
    for (field, value, expected) in cases {
        let prompt = if field == "prompt" { "" } else { "\"prompt\":\"x\"," };
        let body = format!("{{{prompt}\"{field}\":{value}}}");
        let answer = send(fake.address, "POST", COMPLETIONS, "", body.as_bytes());
        assert_eq!((answer.status, answer.error().0), (400, Some(field.to_owned())), "{body}");
        let message = answer.message();
        assert!(message.contains(expected), "{message}");
        for word in ["u32", "u64", "i32", "i64", "f32", "f64", "usize"] {
            assert!(!message.contains(word), "{message}");
        }
    }
}

#[test]
fn fields_that_nobody_knows_are_counted_or_refused_wherever_they_stand() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let body = json!({"prompt": "x", "stream": true, "stream_options": {"include_usage": true,
        "include_obfuscation": false, "brand_new": [1]}});
    assert_eq!(post_stream(fake.address, COMPLETIONS, &body).chunks().len(), 2);
    let page = get(fake.address, "/metrics");
    assert!(
        page.text()
            .contains("tessera:unknown_fields_total{model_name=\"org/base\",engine=\"0\"} 1\n")
    );
    let bad = json!({"prompt": "x", "stream": true, "stream_options": {"include_usage": 1}});
    assert_eq!(post(fake.address, COMPLETIONS, &bad).error().0.unwrap(), "stream_options");
    let strict = Fake::new(Script::Echo(1), |app| app.http.strict_fields = true);
    let cases = [
        (body, "stream_options.brand_new"),
        (json!({"prompt": "x", "brand_new": null}), "brand_new"),
    ];
    for (body, field) in cases {
        let answer = post(strict.address, COMPLETIONS, &body);
        let expected = (Some(field.to_owned()), "unknown_parameter".to_owned());
        assert_eq!((answer.status, answer.error()), (400, expected));
        assert!(answer.message().contains(field), "{}", answer.message());
    }
    let load = json!({"lora_name": "a", "lora_path": "b", "brand_new": 1});
    assert_eq!(
        post(strict.address, "/v1/load_lora_adapter", &load).error().0.unwrap(),
        "brand_new"
    );
    ok(&strict, COMPLETIONS, &json!({"prompt": "x", "user": "me", "stream_options": null}));
}
