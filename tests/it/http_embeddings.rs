//! `/v1/embeddings`: forms, limits, and vectors equal to transformers'.

use std::fs;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use tessera::ids::Digest;
use tessera::request::Pooling;

use crate::client::{connect, get, message, post};
use crate::fake::{BASE, BOS, Fake, Script, letter};
use crate::process::Server;
use crate::serve::text;

const PATH: &str = "/v1/embeddings";
/// The project's bound: f32 sums in another order are about 1e-6 apart.
const TOLERANCE: f64 = 1e-4;

fn floats(vector: &Value) -> Vec<f64> {
    vector.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn vectors(answer: &Value) -> Vec<Vec<f64>> {
    answer["data"].as_array().unwrap().iter().map(|one| floats(&one["embedding"])).collect()
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|x| x * x).sum::<f64>().sqrt();
    vector.iter().map(|x| x / length).collect()
}

fn assert_near(got: &[f64], expected: &[f64], place: &str) {
    assert_eq!(got.len(), expected.len(), "{place}");
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() < TOLERANCE, "{place}: {got} {expected}");
    }
}

/// What transformers and peft gave: `tests/golden/vectors.py`.
pub fn expected(model: &str) -> Value {
    let path = crate::root().join("tests/golden").join(model).join("expected/vectors.json");
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A golden model with the adapters that [`expected`] names.
pub fn serve(model: &str, expected: &Value) -> Server {
    let dir = crate::root().join("tests/golden").join(model);
    let mut args = vec![text(&dir)];
    for name in expected.as_object().unwrap().keys().filter(|name| *name != "base") {
        let adapter = dir.join("adapters").join(name);
        args.extend(["--adapter".to_owned(), format!("{name}={}", text(&adapter))]);
    }
    Server::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The name that requests have for a case.
pub fn named<'a>(model: &'a str, case: &'a str) -> &'a str {
    if case == "base" { model } else { case }
}

#[test]
fn vectors_are_transformers_last_hidden_states_with_and_without_adapters() {
    for model in ["llama", "qwen2"] {
        let expected = expected(model);
        let server = serve(model, &expected);
        for (case, of_case) in expected.as_object().unwrap() {
            let all = of_case["vectors"].as_array().unwrap();
            let input: Vec<_> = all.iter().map(|one| one["text"].clone()).collect();
            let ask = |more: Value| {
                let mut body = json!({"model": named(model, case), "input": input});
                body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
                let (status, answer) = server.post(PATH, &body);
                assert_eq!(status, 200, "{answer}");
                let tokens: u64 = all.iter().map(|one| one["tokens"].as_u64().unwrap()).sum();
                assert_eq!(answer["usage"]["prompt_tokens"], tokens);
                assert_eq!(answer["usage"]["total_tokens"], tokens);
                vectors(&answer)
            };
            let (last, mean) = (ask(json!({})), ask(json!({"pooling": "mean"})));
            let raw = ask(json!({"normalize": false}));
            let cut = ask(json!({"dimensions": 10, "pooling": "last"}));
            for (i, one) in all.iter().enumerate() {
                let place = format!("{model} {case} {i}");
                let of_last = floats(&one["last"]);
                assert_near(&raw[i], &of_last, &place);
                assert_near(&last[i], &unit(&of_last), &place);
                assert_near(&mean[i], &unit(&floats(&one["mean"])), &place);
                assert_near(&cut[i], &unit(&of_last[..10]), &place);
            }
        }
    }
}

#[test]
fn every_form_of_input_reaches_the_engine_in_order() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let (a, b) = (letter('x'), letter('q'));
    let cases = [
        (json!("xq"), vec![b]),
        (json!(["x", "q", "x"]), vec![a, b, a]),
        (json!([a, b]), vec![b]),
        (json!([[a, b], [a]]), vec![b, a]),
    ];
    for (input, last) in cases {
        let body = json!({"input": input, "normalize": false, "user": "u"});
        let answer = post(fake.address, PATH, &body).json();
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!(BASE)));
        let expected: Vec<Value> = last
            .iter()
            .enumerate()
            .map(|(index, &x)| {
                let x = f64::from(x);
                json!({"object": "embedding", "index": index, "embedding": [x, 0.0, 0.0, x]})
            })
            .collect();
        assert_eq!(answer["data"], json!(expected));
    }
    fake.seen.lock().unwrap().clear();
    let body = json!({"model": "sql", "input": "x", "pooling": "mean", "encoding_format": "float"});
    let answer = post(fake.address, PATH, &body).json();
    assert_eq!(
        answer["usage"],
        json!({"prompt_tokens": 2, "completion_tokens": 0,
        "total_tokens": 2, "prompt_tokens_details": {"cached_tokens": 2}})
    );
    let (request, digest) = fake.seen.lock().unwrap().pop().unwrap();
    assert_eq!((request.prompt(), digest), (&[BOS, a][..], Some(Digest([1; 32]))));
    assert_eq!(request.terms().pooling, Some(Pooling::Mean));
    let metrics = get(fake.address, "/metrics");
    let counted = "tessera:adapter_prompt_tokens_total{model_name=\"org/base\",engine=\"0\",\
        adapter=\"sql\"} 2\n";
    assert!(metrics.text().contains(counted), "{}", metrics.text());
}

#[test]
fn base64_holds_the_same_numbers_as_little_endian_floats() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let ask = |format: &str| {
        let body = json!({"input": "ab", "encoding_format": format, "dimensions": 4});
        post(fake.address, PATH, &body).json()["data"][0]["embedding"].take()
    };
    let bytes = STANDARD.decode(ask("base64").as_str().unwrap()).unwrap();
    let chunks = bytes.chunks_exact(4).map(|chunk| f32::from_le_bytes(chunk.try_into().unwrap()));
    let half = std::f64::consts::FRAC_1_SQRT_2;
    let got: Vec<f64> = chunks.map(f64::from).collect();
    assert_near(&got, &[half, 0.0, 0.0, half], "base64");
    assert_near(&floats(&ask("float")), &got, "float");
    let cut = json!({"input": "ab", "dimensions": 1.0});
    assert_eq!(post(fake.address, PATH, &cut).json()["data"][0]["embedding"], json!([1.0]));
}

#[test]
fn what_has_no_vector_is_refused_with_its_field() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let many = vec!["a"; 2049];
    let cases = [
        (json!({}), "input"),
        (json!({"input": null}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": ""}), "input"),
        (json!({"input": ["a", ""]}), "input"),
        (json!({"input": [[]]}), "input"),
        (json!({"input": [512]}), "input"),
        (json!({"input": [1, "a"]}), "input"),
        (json!({"input": [-1]}), "input"),
        (json!({"input": {"text": "a"}}), "input"),
        (json!({"input": many}), "input"),
        (json!({"input": "a".repeat(600)}), "input"),
        (json!({"input": "a".repeat(70_000)}), "input"),
        (json!({"input": "a", "dimensions": 0}), "dimensions"),
        (json!({"input": "a", "dimensions": 5}), "dimensions"),
        (json!({"input": "a", "dimensions": -1}), "dimensions"),
        (json!({"input": "a", "dimensions": 1.5}), "dimensions"),
        (json!({"input": "a", "dimensions": 1e30}), "dimensions"),
        (json!({"input": "a", "encoding_format": "int8"}), "encoding_format"),
        (json!({"input": "a", "pooling": "cls"}), "pooling"),
        (json!({"input": "a", "normalize": 1}), "normalize"),
        (json!({"input": "a", "messages": [{}]}), "messages"),
        (json!({"input": "a", "truncate_prompt_tokens": 5}), "truncate_prompt_tokens"),
        (json!({"input": "a", "embed_dtype": "float16"}), "embed_dtype"),
        (json!({"input": "a", "lora_path": "sql"}), "lora_path"),
        (json!({"input": "a", "adapter": "sql"}), "adapter"),
        (json!({"input": "a", "max_tokens": 5}), "max_tokens"),
        (json!({"input": "a", "n": 2}), "n"),
        (json!({"input": "a", "tools": [{}]}), "tools"),
        (json!({"input": "a", "response_format": {"type": "text"}}), "response_format"),
    ];
    for (body, field) in cases {
        let answer = post(fake.address, PATH, &body);
        let (status, param) = (answer.status, answer.error().0);
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{}", answer.message());
    }
    let answer = post(fake.address, PATH, &json!({"input": "a", "model": "nobody"}));
    assert_eq!((answer.status, answer.error().1.as_str()), (404, "model_not_found"));
    let fake = Fake::new(Script::Fail(0), |_| {});
    assert_eq!(post(fake.address, PATH, &json!({"input": "a"})).error().1, "engine_failed");
}

#[test]
fn a_long_list_takes_turns_with_others_and_a_full_queue_is_429() {
    let fake = Fake::with_queue(Script::Echo(1), 3, |_| {});
    let input: Vec<_> = ('a'..='z').cycle().take(500).map(String::from).collect();
    let answer = post(fake.address, PATH, &json!({"input": input, "normalize": false})).json();
    let first: Vec<f64> = vectors(&answer).iter().map(|vector| vector[0]).collect();
    let letters = ('a'..='z').cycle().take(500).map(|c| f64::from(letter(c)));
    assert_eq!(first, letters.collect::<Vec<_>>());
    let fake = Fake::with_queue(Script::Hang(vec![]), 3, |_| {});
    let held = connect(fake.address, &message("POST", PATH, "", br#"{"input": ["a", "b"]}"#));
    fake.wait_seen(2);
    let answer = post(fake.address, PATH, &json!({"input": ["a", "b"]}));
    assert_eq!((answer.status, answer.error().1.as_str()), (429, "queue_full"));
    drop(held);
    fake.wait_cancelled(2);
}
