//! `/v1/loglikelihood`: sums, tokens and borders equal to transformers', and what is refused.

use serde_json::{Value, json};
use tessera::text::Tokenizer;

use crate::client::{get, post};
use crate::fake::{Fake, Script, letters, logprob};
use crate::http_embeddings::{expected, named, serve};

const PATH: &str = "/v1/loglikelihood";
/// The project's bound: f32 sums in another order are about 1e-6 apart.
const TOLERANCE: f64 = 1e-4;

fn assert_near(got: &Value, expected: &Value, place: &str) {
    let (got, expected) = (got.as_array().unwrap(), expected.as_array().unwrap());
    assert_eq!(got.len(), expected.len(), "{place}");
    for (got, expected) in got.iter().zip(expected) {
        let apart = (got.as_f64().unwrap() - expected.as_f64().unwrap()).abs();
        assert!(apart < TOLERANCE, "{place}: {got} {expected}");
    }
}

#[test]
fn continuations_are_as_likely_as_in_transformers_with_and_without_adapters() {
    for model in ["llama", "qwen2"] {
        let expected = expected(model);
        let server = serve(model, &expected);
        for (case, of_case) in expected.as_object().unwrap() {
            let all = of_case["scores"].as_array().unwrap();
            let ask = |prompt: &str, continuation: &str| {
                let pair =
                    |one: &Value| json!({"prompt": one[prompt], "continuation": one[continuation]});
                let requests: Vec<_> = all.iter().map(pair).collect();
                let body = json!({"model": named(model, case), "requests": requests});
                let (status, answer) = server.post(PATH, &body);
                assert_eq!(status, 200, "{answer}");
                answer["data"].as_array().unwrap().clone()
            };
            let texts = ask("prompt", "continuation");
            let ids = ask("prompt_ids", "continuation_ids");
            let greedy = ask("prompt_ids", "greedy_ids");
            for (i, one) in all.iter().enumerate() {
                let place = format!("{model} {case} {i}");
                assert_eq!(texts[i], ids[i], "{place}");
                assert_eq!(texts[i]["token_ids"], one["continuation_ids"], "{place}");
                assert_near(&texts[i]["token_logprobs"], &one["logprobs"], &place);
                assert_eq!(texts[i]["is_greedy"], one["is_greedy"], "{place}");
                let sum: f64 =
                    one["logprobs"].as_array().unwrap().iter().filter_map(Value::as_f64).sum();
                assert_near(&json!([texts[i]["loglikelihood"]]), &json!([sum]), &place);
                let count = |name: &str| json!(one[name].as_array().unwrap().len());
                assert_eq!(texts[i]["prompt_tokens"], count("prompt_ids"), "{place}");
                assert_eq!(texts[i]["continuation_tokens"], count("continuation_ids"), "{place}");
                assert_eq!(
                    (&greedy[i]["is_greedy"], &greedy[i]["index"]),
                    (&json!(true), &json!(i))
                );
                assert_near(&greedy[i]["token_logprobs"], &one["greedy_logprobs"], &place);
            }
        }
    }
}

/// A byte-level tokenizer whose merges reach over borders, with special tokens on both sides.
fn tokenizer(trims: bool) -> Tokenizer {
    let vocabulary = ["<s>", "</s>", "a", "b", "c", "Ġ", "Ċ", "ab", "bc", "Ġb", "ĊĠ", "Ã", "©"];
    let vocabulary: serde_json::Map<String, Value> =
        vocabulary.iter().enumerate().map(|(id, token)| ((*token).into(), id.into())).collect();
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "special": true, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false})
    };
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": trims,
        "use_regex": false});
    let of = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let template = json!({"type": "TemplateProcessing", "pair": [],
        "single": [of("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, of("</s>")],
        "special_tokens": {
            "<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]},
            "</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}}});
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [special(0, "<s>"), special(1, "</s>")], "pre_tokenizer": byte_level,
        "post_processor": {"type": "Sequence", "processors": [byte_level, template]},
        "decoder": byte_level, "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false,
            "byte_fallback": false, "ignore_merges": false, "vocab": vocabulary,
            "merges": [["b", "c"], ["a", "b"], ["Ġ", "b"], ["Ċ", "Ġ"]]}});
    Tokenizer::from_bytes(json.to_string().as_bytes(), 512).unwrap()
}

#[test]
fn a_continuation_begins_with_the_first_token_that_holds_a_byte_of_it() {
    // The prompt, the continuation, their tokens together, and the prompt's number of them.
    let cases: [(&str, &str, &[u32], usize); 9] = [
        ("ab", "a", &[0, 7, 2], 2),
        // The word is not split where the prompt ends, and "a" is no part of the continuation.
        ("ab", "c", &[0, 2, 8], 2),
        ("a", "b", &[0, 7], 1),
        ("a ", "b", &[0, 2, 9], 2),
        ("a", " b", &[0, 2, 9], 2),
        // A space at a token's end is a byte of it, though the library's offsets leave it out.
        ("a\n", " a", &[0, 2, 10, 2], 2),
        ("a\n ", "a", &[0, 2, 10, 2], 3),
        ("", "a", &[0, 2], 1),
        ("a", "é", &[0, 2, 11, 12], 2),
    ];
    for trims in [true, false] {
        let tokenizer = tokenizer(trims);
        for (prompt, continuation, tokens, border) in cases {
            let both = format!("{prompt}{continuation}");
            let whole = tokenizer.encode(&both, true).unwrap();
            assert_eq!(whole, [tokens, &[1]].concat(), "the case is another: {both:?}");
            let got = tokenizer.encode_with_border(&both, prompt.len(), true).unwrap();
            assert_eq!(got, (tokens.to_vec(), border), "{trims} {prompt:?} {continuation:?}");
            let plain = tokenizer.encode_with_border(&both, prompt.len(), false).unwrap();
            assert_eq!(plain, (tokens[1..].to_vec(), border - 1), "{trims} {both:?}");
        }
        assert_eq!(tokenizer.encode_with_border("ab", 2, true).unwrap(), (vec![0, 7], 2));
        assert_eq!(tokenizer.encode_with_border("", 0, false).unwrap(), (vec![], 0));
    }
}

fn pair(prompt: Value, continuation: Value) -> Value {
    json!({"prompt": prompt, "continuation": continuation})
}

#[test]
fn scores_are_cut_at_the_border_and_counted() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    // Letters that no token holds together.
    let [a, b, c] = letters("xqz")[..] else { panic!("three letters") };
    let requests = json!([pair(json!([a, b]), json!([c])), pair(json!("x"), json!("qz"))]);
    let body = json!({"requests": requests, "model": "sql"});
    let answer = post(fake.address, PATH, &body).json();
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("sql")));
    // As it is read from an answer.
    let shown = |place| logprob(place).to_string().parse::<f64>().unwrap();
    let told = |place| f64::from(logprob(place));
    let expected = json!([
        {"object": "loglikelihood", "index": 0, "loglikelihood": told(2), "is_greedy": false,
            "token_ids": [c], "token_logprobs": [shown(2)], "prompt_tokens": 2,
            "continuation_tokens": 1},
        {"object": "loglikelihood", "index": 1, "is_greedy": false,
            "loglikelihood": told(2) + told(3),
            "token_ids": [b, c], "token_logprobs": [shown(2), shown(3)], "prompt_tokens": 2,
            "continuation_tokens": 2},
    ]);
    assert_eq!(answer["data"], expected);
    assert_eq!(answer["usage"]["prompt_tokens"], 7);
    let again = json!({"requests": [pair(json!([a]), json!([a]))]});
    assert_eq!(post(fake.address, PATH, &again).json()["data"][0]["is_greedy"], true);
    let terms = fake.seen.lock().unwrap()[0].0.terms().clone();
    assert_eq!((terms.prompt_logprobs, terms.tokens_max), (Some(0), 0));
    let many: Vec<_> = (0..300).map(|_| pair(json!([a]), json!([b]))).collect();
    let answer = post(fake.address, PATH, &json!({"requests": many})).json();
    assert_eq!(answer["data"].as_array().unwrap().len(), 300);
}

#[test]
fn what_has_no_loglikelihood_is_refused_with_its_place() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let good = json!({"prompt": "a", "continuation": "b"});
    let many = vec![good.clone(); 2049];
    let cases = [
        (json!({}), "must be provided"),
        (json!({"requests": []}), "at least one"),
        (json!({"requests": good}), "a list of objects"),
        (json!({"requests": [null]}), "an object with prompt and continuation"),
        (json!({"requests": many}), "at most 2048"),
        (json!({"requests": [{"prompt": "a"}]}), "continuation"),
        (json!({"requests": [{"continuation": "a"}]}), "prompt"),
        (json!({"requests": [{"prompt": "a", "continuation": "b", "model": "sql"}]}), "model"),
        (json!({"requests": [good, {"prompt": "a", "continuation": ""}]}), "requests[1]"),
        (json!({"requests": [{"prompt": "a", "continuation": []}]}), "both"),
        (json!({"requests": [{"prompt": [5], "continuation": []}]}), "requests[0]"),
        (json!({"requests": [{"prompt": [5], "continuation": "a"}]}), "both"),
        (json!({"requests": [{"prompt": [], "continuation": [5]}]}), "before it"),
        (json!({"requests": [{"prompt": [5], "continuation": [512]}]}), "below 512"),
        (json!({"requests": [{"prompt": "a".repeat(600), "continuation": "b"}]}), "512 tokens"),
        (json!({"requests": [{"prompt": "a", "continuation": ["b", "c"]}]}), "at most 1"),
    ];
    for (body, says) in cases {
        let answer = post(fake.address, PATH, &body);
        let (status, param) = (answer.status, answer.error().0);
        assert_eq!((status, param.as_deref()), (400, Some("requests")), "{}", answer.message());
        assert!(answer.message().contains(says), "{says}: {}", answer.message());
    }
    let plain = json!({"requests": [{"prompt": "", "continuation": "a"}],
        "add_special_tokens": false});
    assert!(post(fake.address, PATH, &plain).message().contains("before it"));
    for (body, field) in [
        (json!({"prompt": "a", "requests": [good]}), "prompt"),
        (json!({"requests": [good], "lora_path": "sql"}), "lora_path"),
    ] {
        assert_eq!(post(fake.address, PATH, &body).error().0.as_deref(), Some(field));
    }
    let nobody = json!({"requests": [good], "model": "nobody"});
    assert_eq!(post(fake.address, PATH, &nobody).status, 404);
}

#[test]
fn routes_that_only_others_have_say_what_there_is() {
    let fake = Fake::say("x");
    for path in ["/v1/score", "/score", "/v1/rerank", "/rerank", "/v2/rerank", "/score/"] {
        for answer in [post(fake.address, path, &json!({})), get(fake.address, path)] {
            assert_eq!((answer.status, answer.error().1.as_str()), (404, "route_not_found"));
            assert!(answer.message().contains("/v1/embeddings"), "{}", answer.message());
        }
    }
}
