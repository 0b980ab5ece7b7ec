//! What is made of prompts: a middle to fill, several samples, and limits on all of it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tessera::ids::TokenId;
use tessera::text::{ServedText, TextFiles, Tokenizer};

use crate::client::{Answer, connect, message, post};
use crate::fake::{BOS, CONTEXT_TOKENS_MAX, EOS, Fake, Script, letter};

const COMPLETIONS: &str = "/v1/completions";

/// A server whose tokenizer spells its special tokens from 3 on like this.
fn fake(names: &[&str]) -> Fake {
    let dir = crate::root().join("tests/data/text/byte_level");
    let mut json = fs::read_to_string(dir.join("tokenizer.json")).unwrap();
    for (old, new) in ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>"].iter().zip(names) {
        json = json.replace(old, new);
    }
    let files = TextFiles { tokenizer: Some(json.into_bytes()), ..TextFiles::default() };
    let tokenizer = Arc::new(Tokenizer::from_files(&files, CONTEXT_TOKENS_MAX).unwrap());
    Fake::new(Script::Echo(1), |app| {
        let (eos_tokens, defaults) = (vec![EOS], app.model.text.defaults.clone());
        let named_tokens = app.model.text.named_tokens.clone();
        let text = ServedText { tokenizer, template: None, eos_tokens, defaults, named_tokens };
        app.model.text = Arc::new(text);
    })
}

#[test]
fn a_suffix_stands_where_the_model_expects_it() {
    let families: [&[&str]; 5] = [
        &["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
        &["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
        &["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
        &["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
        &["▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>"],
    ];
    for names in families {
        let fake = fake(names);
        let terms = |body| {
            let answer = post(fake.address, COMPLETIONS, &body);
            assert_eq!(answer.status, 200, "{}", answer.text());
            let seen = fake.seen.lock().unwrap().pop().unwrap().0;
            (seen.prompt().to_vec(), seen.terms().stop_tokens.clone())
        };
        let (x, y) = (letter('x'), letter('y'));
        let (prompt, stops) = terms(json!({"prompt": "x", "suffix": "y"}));
        assert_eq!(prompt, [BOS, 3, x, 4, y, 5], "{names:?}");
        let ends: &[TokenId] = if names.len() == 4 { &[EOS, 6] } else { &[EOS] };
        assert_eq!(stops, ends);
        let (prompt, _) = terms(json!({"prompt": [x, x], "suffix": "y"}));
        assert_eq!(prompt, [3, x, x, 4, y, 5]);
        let (prompt, stops) = terms(json!({"prompt": "x", "suffix": ""}));
        assert_eq!((prompt, stops), (vec![BOS, x], vec![EOS]));
    }
}

#[test]
fn places_for_all_samples_are_taken_at_once_and_what_can_never_have_them_is_told_so() {
    let fake = Fake::with_queue(Script::Hang(vec![]), 5, |_| {});
    let body = json!({"prompt": "x", "n": 3}).to_string();
    let held = connect(fake.address, &message("POST", COMPLETIONS, "", body.as_bytes()));
    fake.wait_seen(3);
    let answer = post(fake.address, COMPLETIONS, &json!({"prompt": "x", "n": 3}));
    assert_eq!((answer.status, answer.error().1.as_str()), (429, "queue_full"));
    let answer = post(fake.address, COMPLETIONS, &json!({"prompt": "x", "n": 2, "best_of": 3}));
    assert_eq!(answer.status, 429);
    assert_eq!(fake.engine.in_flight(), 3);
    // No wait helps.
    let cases = [
        (json!({"prompt": ["x", "y"], "n": 3}), "n"),
        (json!({"prompt": ["x", "y"], "n": 1, "best_of": 3}), "best_of"),
        (json!({"prompt": vec!["x"; 6]}), "prompt"),
    ];
    for (body, field) in cases {
        let answer = post(fake.address, COMPLETIONS, &body);
        assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some(field)), "{body}");
        assert!(answer.message().contains("at most 5 sequences"), "{}", answer.message());
    }
    drop(held);
    fake.wait_cancelled(3);
}

#[test]
fn what_would_make_an_answer_of_gigabytes_is_refused() {
    let fake = Fake::with_queue(Script::Echo(1), 5000, |_| {});
    let prompts = vec![vec![5; 500]; 100];
    let body = json!({"prompt": prompts, "echo": true, "logprobs": 5, "n": 14});
    let answer = post(fake.address, COMPLETIONS, &body);
    assert_eq!((answer.status, answer.error().0), (400, Some("prompt".to_owned())));
    assert!(answer.message().contains("got 4200000"), "{}", answer.message());
    assert_eq!(fake.engine.in_flight(), 0);
}

#[test]
fn a_suffix_that_cannot_be_served_is_refused_by_name() {
    let cases = [
        (Fake::say("x"), json!({"prompt": "x", "suffix": "y"})),
        (
            fake(&["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]),
            json!({"prompt": "x", "suffix": "y", "echo": true}),
        ),
    ];
    for (fake, body) in cases {
        let answer = post(fake.address, COMPLETIONS, &body);
        assert_eq!((answer.status, answer.error().0), (400, Some("suffix".to_owned())));
        assert_eq!(fake.engine.in_flight(), 0);
    }
}

/// The most places that were taken at once while `ask` ran.
fn places_taken(fake: &Fake, ask: impl FnOnce() -> Answer) -> (usize, Answer) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let watch = scope.spawn(|| {
            let mut most = 0;
            while !is_over.load(Ordering::SeqCst) {
                most = most.max(fake.engine.in_flight());
                std::thread::yield_now();
            }
            most
        });
        let answer = ask();
        is_over.store(true, Ordering::SeqCst);
        (watch.join().unwrap(), answer)
    })
}

#[test]
fn prompts_that_cannot_be_served_take_nobodys_place_and_are_named() {
    let fake = Fake::new(Script::Hang(vec![]), |_| {});
    // As many tokens as the context takes, and at the end more.
    let mut texts = vec!["x".repeat(500); 100];
    texts[99] = "x".repeat(600);
    let pairs: Vec<Value> =
        texts.iter().map(|text| json!({"prompt": text, "continuation": "y"})).collect();
    let mut ids = vec![vec![5; 500]; 100];
    ids[99] = vec![512];
    let cases = [
        (COMPLETIONS, json!({"prompt": texts, "max_tokens": 1}), "prompt"),
        (COMPLETIONS, json!({"prompt": ids, "max_tokens": 1}), "prompt"),
        (COMPLETIONS, json!({"prompt": texts, "max_tokens": 1, "n": 2}), "prompt"),
        ("/v1/embeddings", json!({"input": texts}), "input"),
        ("/v1/embeddings", json!({"input": ids}), "input"),
        ("/v1/loglikelihood", json!({"requests": pairs}), "requests"),
    ];
    for (path, body, param) in cases {
        let (most, answer) = places_taken(&fake, || post(fake.address, path, &body));
        assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some(param)), "{path}");
        let named = format!("{param}[99]: ");
        assert!(answer.message().starts_with(&named), "{path}: {}", answer.message());
        assert_eq!(most, 0, "{path}");
    }
}

#[test]
fn what_costs_little_to_find_out_is_found_out_first() {
    let fake = Fake::new(Script::Hang(vec![]), |_| {});
    // The first has too many tokens, which only its tokens tell, the last too many bytes.
    let texts = ["x".repeat(600), "x".repeat(70_000)];
    let pairs: Vec<Value> =
        texts.iter().map(|text| json!({"prompt": text, "continuation": "y"})).collect();
    for (path, body) in [
        (COMPLETIONS, json!({"prompt": texts})),
        ("/v1/embeddings", json!({"input": texts})),
        ("/v1/loglikelihood", json!({"requests": pairs})),
    ] {
        let answer = post(fake.address, path, &body);
        assert_eq!((answer.status, answer.error().1.as_str()), (400, "context_length_exceeded"));
        assert!(answer.message().contains("bytes cannot fit"), "{path}: {}", answer.message());
    }
    // A full queue is told before a text is tokenized, and after what can never be served.
    let fake = Fake::with_queue(Script::Hang(vec![]), 1, |_| {});
    let held = connect(fake.address, &message("POST", COMPLETIONS, "", br#"{"prompt": "x"}"#));
    fake.wait_seen(1);
    let status = |prompt: &str| post(fake.address, COMPLETIONS, &json!({"prompt": prompt})).status;
    assert_eq!([status("x"), status(&texts[0]), status(&texts[1])], [429, 429, 400]);
    drop(held);
    fake.wait_cancelled(1);
}
