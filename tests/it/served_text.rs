//! Text files beside an adapter, `generation_config.json`, and where an answer ends: through the
//! real binary, against what transformers drew.

use std::fs;
use std::path::Path;
use std::thread;

use serde_json::{Value, json};

use crate::process::{Server, tessera};
use crate::serve::{adapter, golden, text};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Greedy ids of an adapter's first golden prompt, and the prompt.
fn expected(name: &str) -> (Value, Vec<u64>) {
    let path = golden().join(format!("expected/{name}.json"));
    let json: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let prompt = &json["prompts"][0];
    let ids = prompt["greedy"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
    (prompt["ids"].clone(), ids.collect())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
        }
    }
}

fn write(dir: &Path, name: &str, json: &Value) {
    fs::write(dir.join(name), json.to_string()).unwrap();
}

/// How the tokenizer spells a token.
fn spelled(id: u64) -> String {
    let json: Value =
        serde_json::from_slice(&fs::read(golden().join("tokenizer.json")).unwrap()).unwrap();
    let vocabulary = json["model"]["vocab"].as_object().unwrap();
    vocabulary.iter().find(|(_, known)| known.as_u64() == Some(id)).unwrap().0.clone()
}

/// Tokens and finish of a greedy answer.
fn greedy(server: &Server, model: &str, prompt: &Value, more: &Value) -> (Vec<u64>, String) {
    let mut body = json!({"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 24,
        "return_token_ids": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (status, reply) = server.post(COMPLETIONS, &body);
    assert_eq!(status, 200, "{reply}");
    let choice = &reply["choices"][0];
    let ids = choice["token_ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap());
    (ids.collect(), choice["finish_reason"].as_str().unwrap().to_owned())
}

#[test]
fn an_adapter_ends_where_its_own_files_say_and_the_base_where_the_bases_do() {
    let scratch = tempfile::tempdir().unwrap();
    let (own, generation) = (scratch.path().join("own"), scratch.path().join("generation"));
    let (prompt, drawn) = expected("lora_qv");
    copy(Path::new(&adapter("lora_qv")), &own);
    copy(Path::new(&adapter("lora_qv")), &generation);
    let template = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    let end = spelled(drawn[5]);
    write(&own, "tokenizer_config.json", &json!({"eos_token": end, "chat_template": template}));
    write(&generation, "generation_config.json", &json!({"eos_token_id": [drawn[3], 1]}));
    let flags = [
        format!("own={}", text(&own)),
        format!("generation={}", text(&generation)),
        format!("plain={}", adapter("lora_qv")),
    ];
    let model = text(&golden());
    let args = [&model, "--adapter", &flags[0], "--adapter", &flags[1], "--adapter", &flags[2]];
    let server = Server::start(&args);
    let notes: Vec<_> = server.report.iter().filter(|line| line.contains("note:")).collect();
    assert!(notes.iter().any(|n| n.starts_with("adapter own: ") && n.contains("template")));
    assert!(notes.iter().any(|n| n.contains("tokenizer_config.json")), "{notes:?}");
    assert!(notes.iter().all(|n| !n.starts_with("adapter plain")), "{notes:?}");
    // All in one batch, several times.
    thread::scope(|scope| {
        for (name, count) in [("own", 6), ("generation", 4), ("plain", 24)] {
            let (server, prompt, drawn) = (&server, &prompt, &drawn);
            for _ in 0..3 {
                scope.spawn(move || {
                    let (ids, finish) = greedy(server, name, prompt, &json!({}));
                    let expected = if count < 24 { "stop" } else { "length" };
                    assert_eq!((&ids[..], finish.as_str()), (&drawn[..count], expected), "{name}");
                });
            }
        }
        let (server, (prompt, drawn)) = (&server, expected("base"));
        scope.spawn(move || {
            assert_eq!(greedy(server, "llama", &prompt, &json!({})).0, drawn);
        });
    });
    let ids = |name: &str| {
        let message = json!([{"role": "user", "content": "hi"}]);
        let body = json!({"model": name, "messages": message, "max_tokens": 1,
            "return_token_ids": true});
        let (status, reply) = server.post(CHAT, &body);
        assert_eq!(status, 200, "{reply}");
        reply["prompt_token_ids"].clone()
    };
    assert_ne!(ids("own"), ids("llama"));
    assert_eq!(ids("plain"), ids("llama"));
    assert_eq!(ids("generation"), ids("llama"), "only the end is its own");
}

#[test]
fn inspect_says_of_the_files_beside_an_adapter_what_a_start_says() {
    let scratch = tempfile::tempdir().unwrap();
    copy(Path::new(&adapter("lora_qv")), scratch.path());
    write(scratch.path(), "generation_config.json", &json!({"eos_token_id": 5, "top_k": 3}));
    fs::write(scratch.path().join("chat_template.jinja"), "{{ messages }}").unwrap();
    fs::write(scratch.path().join("optimizer.pt"), "").unwrap();
    let (model, dir) = (text(&golden()), text(scratch.path()));
    let server = Server::start(&[&model, "--adapter", &format!("a={dir}")]);
    let note = |line: &String| line.strip_prefix("adapter a: note: ").map(str::to_owned);
    let said: Vec<String> = server.report.iter().filter_map(note).collect();
    for part in ["optimizer.pt", "chat template", "top_k", "answers end at"] {
        assert!(said.iter().any(|line| line.contains(part)), "{part}: {said:#?}");
    }
    let output = tessera(&["inspect", &dir, "--model", &model, "--json"]).output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["notes"], json!(said));
    let output = tessera(&["inspect", &dir, "--model", &model]).output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(said.iter().all(|line| table.contains(line)), "{table}");
}

#[test]
fn the_bases_files_stand_for_an_adapters_where_the_operator_says_so() {
    let scratch = tempfile::tempdir().unwrap();
    let (prompt, drawn) = expected("lora_qv");
    copy(Path::new(&adapter("lora_qv")), scratch.path());
    write(scratch.path(), "tokenizer_config.json", &json!({"eos_token": spelled(drawn[5])}));
    let flag = format!("a={}", text(scratch.path()));
    let model = text(&golden());
    let server = Server::start(&[&model, "--adapter", &flag, "--adapter-template", "base"]);
    let note = "adapter a: note: not used, as --adapter-template base says: tokenizer_config.json";
    assert!(server.report.iter().any(|line| line == note), "{:#?}", server.report);
    assert_eq!(greedy(&server, "a", &prompt, &json!({})).0, drawn);
}

#[test]
fn an_adapter_whose_tokens_the_model_has_no_rows_for_is_refused_by_name() {
    let scratch = tempfile::tempdir().unwrap();
    copy(Path::new(&adapter("lora_qv")), scratch.path());
    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(golden().join("tokenizer.json")).unwrap()).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.push(json!({"id": 512, "content": "<|new|>", "special": true, "lstrip": false,
        "rstrip": false, "normalized": false, "single_word": false}));
    write(scratch.path(), "tokenizer.json", &tokenizer);
    let flag = format!("a={}", text(scratch.path()));
    let started = tessera(&["serve", &text(&golden()), "--port", "0", "--adapter", &flag]).output();
    let output = started.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("<|new|>") && error.contains("512"));
}

#[test]
fn stop_ids_and_stop_strings_that_are_special_tokens_end_a_text() {
    let server = Server::start(&[&text(&golden())]);
    let (prompt, drawn) = expected("base");
    let (ids, finish) = greedy(&server, "llama", &prompt, &json!({"stop_token_ids": [drawn[4]]}));
    assert_eq!((&ids[..], finish.as_str()), (&drawn[..5], "stop"));
    let more = json!({"stop_token_ids": [drawn[4]], "ignore_eos": true});
    assert_eq!(greedy(&server, "llama", &prompt, &more).0, drawn[..5], "also without an end");
    for (ids, word) in [(json!([512]), "512"), (json!(vec![5; 257]), "256"), (json!([-1]), "-1")] {
        let body = json!({"prompt": "a", "stop_token_ids": ids});
        let (status, reply) = server.post(COMPLETIONS, &body);
        assert_eq!((status, &reply["error"]["param"]), (400, &json!("stop_token_ids")));
        assert!(reply["error"]["message"].as_str().unwrap().contains(word), "{reply}");
    }

    // A model whose first greedy tokens hold a special one, which is no part of the text.
    let scratch = tempfile::tempdir().unwrap();
    copy(&golden(), scratch.path());
    let mut tokenizer: Value =
        serde_json::from_slice(&fs::read(golden().join("tokenizer.json")).unwrap()).unwrap();
    let stop = spelled(drawn[6]);
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    added.push(json!({"id": drawn[6], "content": stop, "special": true, "lstrip": false,
        "rstrip": false, "normalized": false, "single_word": false}));
    write(scratch.path(), "tokenizer.json", &tokenizer);
    let server = Server::start(&[&text(scratch.path()), "--served-model-name", "llama"]);
    let (ids, finish) = greedy(&server, "llama", &prompt, &json!({"stop": [stop]}));
    assert_eq!((&ids[..], finish.as_str()), (&drawn[..7], "stop"));
}

#[test]
fn generation_config_gives_what_a_request_leaves_out() {
    let scratch = tempfile::tempdir().unwrap();
    let (prompt, drawn) = expected("base");
    copy(&golden(), scratch.path());
    let config = json!({"eos_token_id": 1, "top_k": 1.0, "temperature": 0.7, "max_new_tokens": 9,
        "num_beams": 4, "do_sample": true, "temprature": 2});
    write(scratch.path(), "generation_config.json", &config);
    let model = text(scratch.path());
    let named = [&model, "--served-model-name", "llama"];
    let server = Server::start(&named);
    let says = |word: &str| server.report.iter().any(|line| line.contains(word));
    assert!(
        says("temperature 0.7, top_k 1, max_new_tokens 9") && says("num_beams 4, temprature 2")
    );
    let draw = |server: &Server, more: Value| {
        let mut body = json!({"prompt": prompt, "max_tokens": 24, "return_token_ids": true});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let (status, reply) = server.post(COMPLETIONS, &body);
        assert_eq!(status, 200, "{reply}");
        let ids = reply["choices"][0]["token_ids"].as_array().unwrap().clone();
        ids.iter().map(|id| id.as_u64().unwrap()).collect::<Vec<_>>()
    };
    // One token is left to draw from: the likeliest; and the file caps the length.
    assert_eq!(draw(&server, json!({})), drawn[..9]);
    assert_ne!(draw(&server, json!({"top_k": -1, "temperature": 2, "seed": 5})), drawn[..9]);
    assert_eq!(draw(&server, json!({"top_p": 0, "top_k": 0})), drawn[..9], "one is kept");
    let vllm = Server::start(&[&named[..], &["--generation-config", "vllm"]].concat());
    assert!(!vllm.report.iter().any(|line| line.contains("sampling defaults")));
    assert_eq!(draw(&vllm, json!({"temperature": 0})), drawn);
    let golden = text(&golden());
    let other = Server::start(&[&golden, "--generation-config", &model]);
    assert_eq!(draw(&other, json!({})), drawn[..9]);

    // Older models have them in config.json, which counts where there is no file of their own.
    let config = std::fs::read(scratch.path().join("config.json")).unwrap();
    let mut older: Value = serde_json::from_slice(&config).unwrap();
    older["top_k"] = json!(1);
    older["num_beams"] = json!(2);
    older["max_new_tokens"] = json!(7);
    write(scratch.path(), "config.json", &older);
    let beside = Server::start(&named);
    assert_eq!(draw(&beside, json!({})), drawn[..9], "generation_config.json says 9");
    std::fs::remove_file(scratch.path().join("generation_config.json")).unwrap();
    let alone = Server::start(&named);
    assert_eq!(draw(&alone, json!({})), drawn[..7]);
    assert!(alone.report.iter().any(|line| line.contains("num_beams 2")), "{:?}", alone.report);

    for (config, word) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"top_p": 1.5}), "top_p"),
        (json!({"max_new_tokens": 0}), "max_new_tokens"),
        (json!({"top_k": 1.5}), "top_k"),
        (json!({"repetition_penalty": 0}), "repetition_penalty"),
    ] {
        write(scratch.path(), "generation_config.json", &config);
        let output = tessera(&["serve", &model, "--port", "0"]).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && error.contains(word), "{config}: {error}");
    }
}

#[test]
fn a_repetition_penalty_is_that_of_transformers() {
    let server = Server::start(&[&text(&golden())]);
    let (prompt, plain) = expected("base");
    let more = json!({"repetition_penalty": 1.0});
    assert_eq!(greedy(&server, "llama", &prompt, &more).0, plain);
    let more = json!({"repetition_penalty": 1.8});
    assert_eq!(greedy(&server, "llama", &prompt, &more).0, PENALISED);
    for bad in [json!(0), json!(-1), json!(1000), json!("x")] {
        let body = json!({"prompt": "a", "repetition_penalty": bad});
        let (status, reply) = server.post(COMPLETIONS, &body);
        assert_eq!((status, &reply["error"]["param"]), (400, &json!("repetition_penalty")));
    }
}

#[test]
fn penalties_biases_and_bans_are_those_of_vllm() {
    let server = Server::start(&[&text(&golden())]);
    let (prompt, _) = expected("base");
    let bad_words = json!(["twle", "ation", "or"]);
    let more = json!({"repetition_penalty": 1.3, "frequency_penalty": 0.4,
        "presence_penalty": 0.3, "logit_bias": {"221": -100, "35": 2, "96": -3.5},
        "bad_words": bad_words, "min_tokens": 12, "stop_token_ids": [493, 35]});
    let got = greedy(&server, "llama", &prompt, &more);
    assert_eq!(got, (ALL_TOGETHER.to_vec(), "stop".to_owned()));
    let more = json!({"frequency_penalty": 1.5, "presence_penalty": 0.75, "bad_words": bad_words});
    assert_eq!(greedy(&server, "llama", &prompt, &more).0, OPENAIS);
    let allowed: Vec<u32> = (60..90).collect();
    let more = json!({"allowed_token_ids": allowed, "max_tokens": 6});
    assert_eq!(greedy(&server, "llama", &prompt, &more).0, [68, 62, 85, 63, 62, 62]);
    let stops = json!([430, 334]);
    let more = json!({"stop_token_ids": stops});
    assert_eq!(greedy(&server, "llama", &prompt, &more).0, [397, 221, 430]);
    let more = json!({"stop_token_ids": stops, "min_tokens": 8});
    assert_eq!(greedy(&server, "llama", &prompt, &more).0, HELD_BACK);
    // Nothing is left to draw: the request's fault, not the server's.
    let body = json!({"prompt": prompt, "allowed_token_ids": [430], "bad_words": ["tw"]});
    let (status, reply) = server.post(COMPLETIONS, &body);
    let code = &reply["error"]["code"];
    assert_eq!((status, code), (400, &json!("no_token_left")), "{reply}");
    assert_eq!(greedy(&server, "llama", &prompt, &json!({})).0.len(), 24, "it runs on");
}

/// What the logits of transformers 5.23 give under vLLM's formula: sets, bad words and stop tokens
/// to −∞, biases added, repetition penalty, `- frequency · count - presence · (count > 0)`, the
/// largest. The words are 430 329, 334, and 266 or 297; the least distance of the best two logits
/// is 0.01.
const ALL_TOGETHER: [u64; 14] = [397, 25, 446, 484, 375, 47, 452, 409, 430, 389, 235, 509, 191, 35];
/// The same with OpenAI's penalties and words alone.
const OPENAIS: [u64; 24] = [
    397, 221, 430, 445, 47, 452, 409, 421, 420, 455, 3, 375, 13, 316, 504, 428, 446, 484, 291, 396,
    235, 509, 191, 463,
];
/// The same where 430 and 334 end the answer, after eight tokens at least.
const HELD_BACK: [u64; 20] = [
    397, 221, 236, 500, 389, 235, 509, 28, 235, 509, 191, 384, 493, 150, 402, 257, 75, 135, 409,
    430,
];

/// What transformers 5.23 gives with `generate(repetition_penalty=1.8, do_sample=False)`.
const PENALISED: [u64; 24] = [
    397, 221, 430, 329, 214, 466, 334, 76, 400, 226, 67, 147, 205, 220, 459, 181, 233, 460, 35,
    445, 20, 405, 389, 190,
];
