//! Routes beside generation, and the ways in which clients spell all of them.

use std::fs;
use std::sync::Arc;

use serde_json::{Value, json};
use tessera::adapter::{NewName, Source};
use tessera::http::App;
use tessera::text::{ChatTemplate, ServedText, Tokenizer};

use crate::client::{get, post, send};
use crate::fake::{BASE, BOS, Fake, Script, adapter, letter};
use crate::process::Server;
use crate::serve::{golden, text};

#[test]
fn every_route_takes_a_slash_at_its_end_and_some_do_without_v1() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let prompt = json!({"prompt": "x"});
    let messages = json!({"messages": [{"role": "user", "content": "x"}]});
    let posted = [
        ("/v1/completions", &prompt),
        ("/completions", &prompt),
        ("/v1/chat/completions", &messages),
        ("/chat/completions", &messages),
        ("/v1/responses", &json!({"input": "x"})),
        ("/responses", &json!({"input": "x"})),
        ("/tokenize", &prompt),
        ("/detokenize", &json!({"tokens": []})),
        ("/v1/embeddings", &json!({"input": "x"})),
        ("/embeddings", &json!({"input": "x"})),
        ("/v1/loglikelihood", &json!({"requests": [{"prompt": "x", "continuation": "y"}]})),
    ];
    for (path, body) in posted {
        for path in [path.to_owned(), format!("{path}/")] {
            let answer = post(fake.address, &path, body);
            assert_eq!(answer.status, 200, "{path}: {}", answer.text());
            assert_eq!(send(fake.address, "OPTIONS", &path, "", b"").status, 204, "{path}");
            let answer = get(fake.address, &path);
            assert_eq!((answer.status, answer.header("allow")), (405, Some("POST, OPTIONS")));
        }
    }
    let paths = [
        "/v1/models",
        "/models",
        "/v1/models/sql",
        "/models/sql",
        "/models/org/chat",
        "/health",
        "/ready",
        "/live",
        "/ping",
        "/version",
        "/metrics",
        "/load",
        "/tokenizer_info",
        "/openapi.json",
        "/docs",
        "/",
        "/v1",
        "/v1/batch",
        "/v1/adapters",
        "/v1/adapters/org/chat",
    ];
    for path in paths {
        for path in [path.to_owned(), format!("{path}/")] {
            assert_eq!(get(fake.address, &path).status, 200, "{path}");
            let head = send(fake.address, "HEAD", &path, "", b"");
            assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        }
    }
    assert_eq!(get(fake.address, "/models/").json()["object"], "list");
    for path in ["/v2/models", "/model", "/page", "/page/", "/page/nothing.js", "/v1/batch/1"] {
        let answer = get(fake.address, path);
        assert_eq!((answer.status, answer.error().1.as_str()), (404, "route_not_found"), "{path}");
        let is_first_try = ["/", "//", "/v1", "/v1/"].contains(&path);
        assert_eq!(answer.message().contains("GET /docs"), is_first_try, "{path}");
        assert!(answer.message().contains(&format!("'{path}'")), "{}", answer.message());
    }
    assert_eq!(post(fake.address, "/ping", &json!({})).status, 200);
}

#[test]
fn the_servers_load_is_its_sequences_in_flight() {
    let fake = Fake::new(Script::Hang(vec![]), |_| {});
    assert_eq!(get(fake.address, "/load").json(), json!({"server_load": 0}));
    let body = json!({"prompt": ["a", "b"]}).to_string();
    let message = crate::client::message("POST", "/v1/completions", "", body.as_bytes());
    let held = crate::client::connect(fake.address, &message);
    fake.wait_seen(2);
    assert_eq!(get(fake.address, "/load").json(), json!({"server_load": 2}));
    drop(held);
    fake.wait_cancelled(2);
}

#[test]
fn tokens_are_those_of_a_request_with_the_same_text_or_chat() {
    let fake = Fake::new(Script::Echo(1), |_| {});
    let sent = [
        json!({"prompt": "ab c"}),
        json!({"prompt": "ab c", "add_special_tokens": false}),
        json!({"messages": [{"role": "user", "content": "ab"}]}),
        json!({"messages": [{"role": "user", "content": "ab"}], "add_special_tokens": true}),
        json!({"messages": [{"role": "user", "content": "ab"}], "add_generation_prompt": false}),
    ];
    for mut body in sent {
        let told = post(fake.address, "/tokenize", &body).json();
        let is_chat = body["messages"].is_array();
        let path = if is_chat { "/v1/chat/completions" } else { "/v1/completions" };
        body["max_tokens"] = 1.into();
        assert_eq!(post(fake.address, path, &body).status, 200);
        let seen = fake.seen.lock().unwrap().pop().unwrap().0.prompt().to_vec();
        let expected = json!({"count": seen.len(), "max_model_len": 512, "tokens": seen,
            "token_strs": null});
        assert_eq!(told, expected, "{body}");
    }
    let strs = json!({"prompt": "a é", "return_token_strs": true});
    let told = post(fake.address, "/tokenize", &strs).json();
    // As the vocabulary spells them, which is what transformers' convert_ids_to_tokens gives.
    assert_eq!(told["token_strs"], json!(["<s>", "a", "Ġ", "Ã", "©"]));
    let empty = post(fake.address, "/tokenize", &json!({"prompt": ""})).json();
    assert_eq!(empty["tokens"], json!([BOS]));
}

#[test]
fn detokenizing_gives_the_text_with_its_special_tokens() {
    let fake = Fake::say("x");
    let text = |tokens: Value| {
        let answer = post(fake.address, "/detokenize", &json!({"tokens": tokens}));
        answer.json()["prompt"].as_str().unwrap().to_owned()
    };
    assert_eq!(text(json!([BOS, letter('a'), letter('b')])), "<s>ab");
    assert_eq!(text(json!([])), "");
    assert_eq!(text(json!([0.0])), "<s>");
    let told = post(fake.address, "/tokenize", &json!({"prompt": "日本 é!"})).json();
    assert_eq!(text(told["tokens"].clone()), "<s>日本 é!");
}

#[test]
fn what_cannot_be_tokenized_is_refused_with_its_field() {
    let fake = Fake::say("x");
    let messages = json!([{"role": "user", "content": "x"}]);
    let many = vec![5; (1 << 16) + 1];
    let cases = [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!({"prompt": null, "messages": null}), "prompt"),
        ("/tokenize", json!({"prompt": ["a"]}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "messages": messages}), "prompt"),
        ("/tokenize", json!({"prompt": "a".repeat(70_000)}), "prompt"),
        ("/tokenize", json!({"prompt": "a", "function_call": 5}), "function_call"),
        ("/tokenize", json!({"prompt": "a", "functions": [{"name": "f"}]}), "functions"),
        ("/tokenize", json!({"prompt": "a", "documents": [{"text": "b"}]}), "documents"),
        ("/tokenize", json!({"messages": []}), "messages"),
        ("/tokenize", json!({"messages": messages, "chat_template": "x"}), "chat_template"),
        ("/tokenize", json!({"prompt": "a", "model": 5}), "model"),
        ("/tokenize", json!({"prompt": "a", "return_token_strs": "yes"}), "return_token_strs"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": "a"}), "tokens"),
        ("/detokenize", json!({"tokens": [512]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [1.5]}), "tokens"),
        ("/detokenize", json!({"tokens": [[1]]}), "tokens"),
        ("/detokenize", json!({"tokens": [4294967296_u64]}), "tokens"),
        ("/detokenize", json!({"tokens": many}), "tokens"),
    ];
    for (path, body, field) in cases {
        let answer = post(fake.address, path, &body);
        let (status, param) = (answer.status, answer.error().0);
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{path} {}", answer.message());
    }
    for path in ["/tokenize", "/detokenize"] {
        let body = json!({"model": "nobody", "prompt": "a", "tokens": []});
        let answer = post(fake.address, path, &body);
        assert_eq!((answer.status, answer.error().1.as_str()), (404, "model_not_found"));
    }
    assert_eq!(get(fake.address, "/tokenizer_info?model=nobody").status, 404);
}

/// Gives the adapter `own` a tokenizer and a template that the base has not.
fn add_own(app: &mut App) {
    let dir = crate::root().join("tests/data/text/metaspace.json");
    let tokenizer = Tokenizer::from_bytes(&fs::read(dir).unwrap(), 512).unwrap();
    let template = ChatTemplate::new("{{ messages[0]['content'] }}", [].into(), 512).unwrap();
    let base = &app.model.text;
    let own = ServedText {
        tokenizer: Arc::new(tokenizer),
        template: Some(Arc::new(template)),
        eos_tokens: base.eos_tokens.clone(),
        defaults: base.defaults.clone(),
        named_tokens: [("eos_token".to_owned(), "<end>".to_owned())].into(),
    };
    let (source, text) = (Source::BuiltIn, Some(Arc::new(own)));
    let new = NewName { name: "own", source, text, created: 1, replace: false };
    let adapter = Arc::into_inner(adapter(9)).unwrap();
    app.catalog.load(new, adapter.digest, || Ok(adapter)).unwrap();
}

#[test]
fn an_adapters_own_tokenizer_and_template_answer_for_its_name() {
    let fake = Fake::new(Script::Echo(1), add_own);
    let tokens = |body: Value| post(fake.address, "/tokenize", &body).json()["tokens"].clone();
    for name in ["own", "org/base:own"] {
        let own = tokens(json!({"model": name, "prompt": "a", "add_special_tokens": false}));
        assert_ne!(own, json!([letter('a')]));
        let chat = json!({"model": name, "messages": [{"role": "user", "content": "a"}]});
        assert_eq!(tokens(chat), own);
        let back = json!({"model": name, "tokens": own});
        assert_eq!(post(fake.address, "/detokenize", &back).json()["prompt"], "a");
    }
    let info = get(fake.address, "/tokenizer_info?model=own").json();
    assert_eq!(info["eos_token"], "<end>");
    assert_eq!(info["chat_template"], "{{ messages[0]['content'] }}");
    let same = get(fake.address, "/tokenizer_info?x=1&model=org%2Fbase%3Aown").json();
    assert_eq!(same["chat_template"], info["chat_template"]);
    let base = get(fake.address, "/tokenizer_info").json();
    assert_eq!((&base["model"], &base["pad_token"]), (&json!(BASE), &Value::Null));
    assert_eq!(base["model_max_length"], 512);
}

#[test]
fn tokens_and_their_names_are_transformers_own() {
    let server = Server::start(&[&text(&golden())]);
    let path = golden().join("expected/base.json");
    let expected: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    for prompt in expected["prompts"].as_array().unwrap() {
        let body = json!({"prompt": prompt["text"]});
        let (status, told) = server.post("/tokenize", &body);
        assert_eq!((status, &told["tokens"]), (200, &prompt["ids"]), "{body}");
        let back = json!({"tokens": prompt["greedy"]});
        assert_eq!(server.post("/detokenize", &back).1["prompt"], prompt["greedy_text"]);
    }
    let info: Value = serde_json::from_str(&server.get("/tokenizer_info").1).unwrap();
    let template = fs::read_to_string(golden().join("chat_template.jinja")).unwrap();
    assert_eq!(info["chat_template"], template);
    let named = ["bos_token", "eos_token", "pad_token", "unk_token"].map(|name| info[name].clone());
    assert_eq!(named, [json!("<s>"), json!("</s>"), json!("<pad>"), Value::Null]);
}
