//! What answers of the real server hold, on a golden model.

use std::fs;
use std::thread;

use serde_json::{Value, json};

use crate::process::Server;
use crate::serve::{golden, metric, text};

const COMPLETIONS: &str = "/v1/completions";

fn ok(server: &Server, body: &Value) -> Value {
    let (status, reply) = server.post(COMPLETIONS, body);
    assert_eq!(status, 200, "{body}: {reply}");
    reply
}

/// The base's first golden prompt, and the logprob that transformers' logits give each of its
/// tokens but the first, in f64.
fn scored() -> (Vec<usize>, Vec<f64>) {
    let json = fs::read(golden().join("expected/base.json")).unwrap();
    let json: Value = serde_json::from_slice(&json).unwrap();
    let ids: Vec<usize> = serde_json::from_value(json["prompts"][0]["ids"].clone()).unwrap();
    let bytes = fs::read(golden().join("expected/base.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("p0.logits").unwrap();
    let width = *logits.shape().last().unwrap();
    let number = |bytes: &[u8]| f64::from(f32::from_le_bytes(bytes.try_into().unwrap()));
    let logits: Vec<f64> = logits.data().chunks_exact(4).map(number).collect();
    let score = |(row, &next): (&[f64], &usize)| {
        let best = row.iter().copied().fold(f64::MIN, f64::max);
        row[next] - best - row.iter().map(|x| (x - best).exp()).sum::<f64>().ln()
    };
    let scores = logits.chunks_exact(width).zip(&ids[1..]).map(score).collect();
    (ids, scores)
}

#[test]
fn loglikelihoods_are_transformers_whatever_the_prefix_cache_holds() {
    let server = Server::start(&[&text(&golden())]);
    let (prompt, scores) = scored();
    // What lm-eval sends.
    let body = json!({"prompt": [prompt], "echo": true, "logprobs": 1, "max_tokens": 1,
        "temperature": 0, "seed": 1234});
    let first = ok(&server, &body)["choices"][0]["logprobs"].take();
    // A prompt that goes on where this one ends keeps its blocks in use and in the cache.
    ok(&server, &json!({"prompt": prompt, "max_tokens": 1, "temperature": 0}));
    assert_eq!(ok(&server, &body)["choices"][0]["logprobs"], first);
    let found = first["token_logprobs"].as_array().unwrap();
    assert_eq!((found.len(), &found[0]), (prompt.len() + 1, &Value::Null));
    for (found, score) in found[1..].iter().zip(&scores) {
        assert!((found.as_f64().unwrap() - score).abs() < 1e-4, "{found} and {score}");
    }
    // Greedy tokens are known by equal numbers: the drawn one is.
    let top = first["top_logprobs"].as_array().unwrap();
    let drawn = prompt.len();
    let best = top[drawn].as_object().unwrap().values().map(|l| l.as_f64().unwrap());
    assert_eq!(best.fold(f64::MIN, f64::max), found[drawn].as_f64().unwrap());
    let body = json!({"prompt": prompt, "prompt_logprobs": 2, "max_tokens": 0});
    let told = ok(&server, &body)["choices"][0]["prompt_logprobs"].take();
    for (i, &id) in prompt.iter().enumerate().skip(1) {
        let own = &told[i][id.to_string()];
        assert_eq!(own["logprob"].to_string(), found[i].to_string());
        let ranks: Vec<u64> =
            told[i].as_object().unwrap().values().map(|t| t["rank"].as_u64().unwrap()).collect();
        assert!(ranks.contains(&1) && ranks.contains(&2) && ranks.len() <= 3, "{ranks:?}");
    }
}

#[test]
fn samples_differ_are_repeatable_and_the_best_are_the_likeliest_by_token() {
    let server = Server::start(&[&text(&golden())]);
    let (prompt, _) = scored();
    let body = |extra: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 8, "seed": 5, "logprobs": 0});
        extra.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        body
    };
    let texts = |answer: &Value| {
        let choices = answer["choices"].as_array().unwrap();
        choices.iter().map(|c| c["logprobs"]["tokens"].to_string()).collect::<Vec<_>>()
    };
    let four = ok(&server, &body(json!({"n": 4})));
    assert_eq!(texts(&four), texts(&ok(&server, &body(json!({"n": 4})))));
    assert_eq!(texts(&ok(&server, &body(json!({}))))[0], texts(&four)[0], "the seed's own");
    let distinct: std::collections::BTreeSet<_> = texts(&four).into_iter().collect();
    assert_eq!(distinct.len(), 4);
    let mean = |choice: &Value| {
        let logprobs = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        logprobs.iter().map(|l| l.as_f64().unwrap()).sum::<f64>() / logprobs.len() as f64
    };
    let mut ranked: Vec<&Value> = four["choices"].as_array().unwrap().iter().collect();
    ranked.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let best = ok(&server, &body(json!({"n": 2, "best_of": 4})));
    let expected: Vec<_> =
        ranked[..2].iter().map(|c| c["logprobs"]["tokens"].to_string()).collect();
    assert_eq!(texts(&best), expected);
    assert_eq!(best["choices"][1]["index"], 1);
    assert_eq!(best["usage"]["completion_tokens"], four["usage"]["completion_tokens"]);
    assert_eq!(best["usage"]["prompt_tokens"], prompt.len());
}

#[test]
fn samples_share_the_blocks_of_their_prompt() {
    let server = Server::start(&[&text(&golden())]);
    let (prompt, _) = scored();
    let hits = || metric(&server, "vllm:prefix_cache_hits_total");
    let body = json!({"prompt": prompt, "max_tokens": 2, "n": 5});
    let usage = ok(&server, &body)["usage"].take();
    // Of 23 tokens one block of 16 is whole; four of five samples take it over.
    assert_eq!(hits(), 4 * 16);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(ok(&server, &body)["usage"]["prompt_tokens_details"]["cached_tokens"], 16);
    assert_eq!(hits(), 9 * 16);
}

#[test]
fn salts_share_nothing_and_priorities_are_served() {
    let server = Server::start(&[&text(&golden())]);
    let (prompt, _) = scored();
    let cached = |extra: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 1});
        extra.as_object().unwrap().iter().for_each(|(key, value)| body[key] = value.clone());
        let usage = ok(&server, &body)["usage"].take();
        usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!(cached(json!({})), 0);
    let shared = cached(json!({"priority": 5}));
    assert!(shared > 0);
    assert_eq!(cached(json!({"cache_salt": "a"})), 0);
    assert_eq!(cached(json!({"cache_salt": "a"})), shared);
    assert_eq!(cached(json!({"cache_salt": "b"})), 0);
    thread::scope(|scope| {
        for i in -4..4 {
            let cached = &cached;
            scope.spawn(move || cached(json!({"priority": i, "n": 3})));
        }
    });
}

#[test]
fn a_body_is_as_large_as_the_context_has_use_for_or_as_the_flag_says() {
    let status = |args: &[&str], bytes: usize| {
        let server = Server::start(&[&[text(&golden()).as_str()], args].concat());
        let body = json!({"prompt": "a", "max_tokens": 1, "user": "x".repeat(bytes)});
        (server.post("/v1/completions", &body).0, server.report.join("\n"))
    };
    let (ok, report) = status(&[], 3 << 20);
    assert!(ok == 200 && report.contains("bodies of requests: 4."), "{ok} {report}");
    assert_eq!(status(&[], 5 << 20).0, 413);
    assert_eq!(status(&["--body-bytes-max", "6MiB"], 5 << 20).0, 200);
    assert_eq!(status(&["--body-bytes-max", "1000"], 1000).0, 413);
}
