//! The fields that speak of single tokens, from a request's JSON to what the engine is asked.

use serde_json::{Value, json};
use tessera::request::{SamplingParams, TokenMask, TokenRules};

use crate::client::{post, post_stream, send};
use crate::fake::{EOS, Fake};

const COMPLETIONS: &str = "/v1/completions";
const CHAT: &str = "/v1/chat/completions";

/// What the engine is asked for a request with these fields, on both routes.
fn asked(fake: &Fake, more: &Value) -> SamplingParams {
    let mut of_routes = [COMPLETIONS, CHAT].map(|path| {
        let mut body = match path {
            COMPLETIONS => json!({"prompt": "x"}),
            _ => json!({"messages": [{"role": "user", "content": "x"}]}),
        };
        body["seed"] = 1.into();
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = post(fake.address, path, &body);
        assert_eq!(answer.status, 200, "{body}: {}", answer.text());
        let request = fake.seen.lock().unwrap().pop().unwrap().0;
        request.terms().sampling.clone()
    });
    assert_eq!(of_routes[0], of_routes[1]);
    std::mem::replace(&mut of_routes[0], SamplingParams::greedy())
}

#[test]
fn the_fields_reach_the_engine_and_values_that_ask_for_nothing_are_none() {
    let fake = Fake::say("x");
    let plain = asked(&fake, &json!({}));
    assert_eq!(*plain.rules, TokenRules::default());
    let nothing = [
        json!({"presence_penalty": 0, "frequency_penalty": 0.0, "min_tokens": 0}),
        json!({"logit_bias": {}, "bad_words": []}),
        json!({"logit_bias": [], "bad_words": ""}),
        json!({"presence_penalty": null, "frequency_penalty": null, "min_tokens": null,
            "logit_bias": null, "bad_words": null, "allowed_token_ids": null}),
    ];
    for more in nothing {
        assert_eq!(asked(&fake, &more), plain, "{more}");
    }
    let more = json!({"presence_penalty": -2, "frequency_penalty": 2.0, "min_tokens": 3,
        "logit_bias": {"511": -100, "0": 100, "7": 0.5}, "bad_words": ["or", "ab c"],
        "allowed_token_ids": [511, 3, 3], "stop_token_ids": [9], "stop": ["<|end|>", "y"]});
    let sampling = asked(&fake, &more);
    let TokenRules { bias, bad_words, allowed, min_tokens, mut held_back } =
        (*sampling.rules).clone();
    assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (-2.0, 2.0));
    assert_eq!(bias, [(0, 100.0), (7, 0.5), (511, -100.0)]);
    // As transformers' tokenizer of these files has it: "or", " or", "ab c".
    assert_eq!(bad_words, [vec![266], vec![297], vec![369, 274]]);
    let mut both = TokenMask::none(512);
    [3, 511].into_iter().for_each(|token| both.allow(token));
    assert_eq!((allowed, min_tokens), (Some(both), 3));
    held_back.sort_unstable();
    held_back.dedup();
    let end = held_back.iter().filter(|&&token| token != EOS && token != 9).count();
    assert!(held_back.contains(&EOS) && held_back.contains(&9) && end == 1, "{held_back:?}");
    // An end that is to be ignored is not drawn early either.
    let more = json!({"ignore_eos": true, "min_tokens": 2});
    assert_eq!(asked(&fake, &more).rules.held_back, [EOS]);
}

#[test]
fn a_bad_word_is_spelled_as_at_the_start_of_a_text_and_within_one() {
    let fake = Fake::say("x");
    // `sampling_params.py` of vLLM over transformers' tokenizer of the same files.
    let cases: [(&str, &[&[u32]]); 8] = [
        (" the", &[&[332, 75]]),
        ("or", &[&[266], &[297]]),
        ("\u{1c} \u{a0}or", &[&[266], &[297]]),
        ("a", &[&[71], &[265]]),
        ("on", &[&[268], &[376]]),
        ("th", &[&[332], &[267]]),
        ("to", &[&[90, 85]]),
        (" or ", &[&[266, 227], &[297, 227]]),
    ];
    for (word, sequences) in cases {
        let rules = asked(&fake, &json!({"bad_words": [word]})).rules;
        assert_eq!(rules.bad_words, sequences, "{word:?}");
    }
    assert_eq!(asked(&fake, &json!({"bad_words": "or"})).rules.bad_words, [[266], [297]]);
}

#[test]
fn a_wrong_value_is_answered_with_its_field_and_what_was_expected() {
    let fake = Fake::say("x");
    let many = |n: usize| {
        let entries: Vec<String> = (0..n).map(|i| format!("\"{i}\":1")).collect();
        format!("{{{}}}", entries.join(","))
    };
    let words = |n: usize| format!("[{}]", vec!["\"x\""; n].join(","));
    let long = format!("[\"{}\"]", "x".repeat(1025));
    let cases = [
        ("presence_penalty", "2.1", "between -2 and 2"),
        ("presence_penalty", "-2.1", "between -2 and 2"),
        ("presence_penalty", "1e39", "between -2 and 2"),
        ("frequency_penalty", "-3", "between -2 and 2"),
        ("frequency_penalty", "\"1\"", "a number"),
        ("frequency_penalty", "true", "a number"),
        ("logit_bias", "{\"512\": 1}", "below 512, got 512"),
        ("logit_bias", "{\"5\": 100.5}", "between -100 and 100, got 100.5 for token 5"),
        ("logit_bias", "{\"5\": 1e39}", "between -100 and 100"),
        ("logit_bias", "{\"5\": \"1\"}", "a number"),
        ("logit_bias", "{\"5\": null}", "a number"),
        ("logit_bias", "{\"a\": 1}", "token id, got 'a'"),
        ("logit_bias", "{\"\": 1}", "token id, got ''"),
        ("logit_bias", "{\"-1\": 1}", "token id, got '-1'"),
        ("logit_bias", "{\"+5\": 1}", "token id, got '+5'"),
        ("logit_bias", "{\"5.0\": 1}", "token id, got '5.0'"),
        ("logit_bias", "{\"4294967296\": 1}", "token id, got '4294967296'"),
        ("logit_bias", "{\"5\": 1, \"05\": 2}", "token 5 is given twice"),
        ("logit_bias", "[[5, 1]]", "an object of token ids and numbers"),
        ("logit_bias", "\"5\"", "an object of token ids and numbers"),
        ("logit_bias", &many(1025), "at most 1024"),
        ("min_tokens", "-1", "min_tokens"),
        ("min_tokens", "17", "at most the 16 tokens"),
        ("bad_words", "[\"\"]", "must not be empty"),
        ("bad_words", "[\" \\t\"]", "white space"),
        ("bad_words", "[5]", "string"),
        ("bad_words", "{}", "a list of strings"),
        ("bad_words", &words(1025), "at most 1024 words"),
        ("bad_words", &long, "at most 1024 bytes"),
        ("allowed_token_ids", "[]", "at least one token id"),
        ("allowed_token_ids", "[512]", "below 512, got 512"),
        ("allowed_token_ids", "[-1]", "allowed_token_ids"),
        ("allowed_token_ids", "5", "a list of token ids"),
        ("allowed_token_ids", "[\"5\"]", "allowed_token_ids"),
    ];
    for (field, value, said) in cases {
        let body = format!("{{\"prompt\":\"x\",\"{field}\":{value}}}");
        let answer = send(fake.address, "POST", COMPLETIONS, "", body.as_bytes());
        let shown = &body[..body.len().min(99)];
        assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some(field)), "{shown}");
        assert!(answer.message().contains(said), "{shown}: {}", answer.message());
    }
    assert_eq!(fake.seen.lock().unwrap().len(), 0, "none of these is run");
    // At each limit it runs.
    let most: Value = serde_json::from_str(&many(512)).unwrap();
    let all: Vec<u32> = (0..512).collect();
    let words: Value = serde_json::from_str(&words(1024)).unwrap();
    let most = json!({"prompt": "x", "logit_bias": most, "bad_words": words,
        "allowed_token_ids": all, "max_tokens": 5, "min_tokens": 5});
    assert_eq!(post(fake.address, COMPLETIONS, &most).status, 200);
}

#[test]
fn min_tokens_is_held_against_what_may_be_generated() {
    let fake = Fake::say("x");
    let messages = json!([{"role": "user", "content": "x"}]);
    let cases = [
        (json!({"max_tokens": 5, "min_tokens": 5}), 200),
        (json!({"max_tokens": 5, "min_tokens": 6}), 400),
        (json!({"max_completion_tokens": 5, "min_tokens": 6}), 400),
        (json!({"min_tokens": 100}), 200),
        (json!({"min_tokens": 511}), 400),
        (json!({"min_tokens": 4_294_967_295_u32}), 400),
    ];
    for (mut body, status) in cases {
        body["messages"] = messages.clone();
        let answer = post(fake.address, CHAT, &body);
        assert_eq!(answer.status, status, "{body}: {}", answer.text());
        let param = (status == 400).then(|| answer.error().0).flatten();
        assert_eq!(param.as_deref(), (status == 400).then_some("min_tokens"), "{body}");
    }
}

#[test]
fn a_stop_string_that_ends_before_min_tokens_is_text() {
    let fake = Fake::say("ababab");
    // vLLM's rule: what ends with a later token stops, wherever it began.
    let cases = [
        ("b", 0, "a"),
        ("b", 1, "a"),
        ("b", 2, "aba"),
        ("b", 3, "aba"),
        ("ba", 2, "a"),
        ("ba", 3, "aba"),
        ("abab", 4, "ab"),
        ("ababab", 6, "ababab"),
        ("x", 4, "ababab"),
    ];
    for (stop, min_tokens, text) in cases {
        for stream in [false, true] {
            let body = json!({"prompt": "x", "stop": stop, "min_tokens": min_tokens,
                "stream": stream});
            let got = match stream {
                false => post(fake.address, COMPLETIONS, &body).json()["choices"][0]["text"]
                    .as_str()
                    .unwrap()
                    .to_owned(),
                true => post_stream(fake.address, COMPLETIONS, &body)
                    .chunks()
                    .iter()
                    .map(|chunk| chunk["choices"][0]["text"].as_str().unwrap())
                    .collect(),
            };
            assert_eq!(got, text, "{body}");
        }
    }
}
