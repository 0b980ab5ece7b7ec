//! The files of a tokenizer, spelled in many ways, against what transformers makes of them. The
//! expected values are written by tools/differential/tokenizer_files.py.

use std::fs;
use std::sync::Arc;

use serde_json::{Map, Value, json};
use tessera::files::Folder;
use tessera::text::{
    AdapterTexts, Chat, ChatTemplate, OwnText, ServedText, TextError, TextFiles, TextSettings,
    Tokenizer, stop_token_ids,
};

const CONTEXT_TOKENS_MAX: u32 = 512;

fn read(file: &str) -> Value {
    let path = crate::root().join("tests/data").join(file);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Puts a value where a pointer says; `None` takes what is there away.
fn put(json: &mut Value, pointer: &str, value: Option<&Value>) {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    let parent = json.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => parent.insert(key, value.clone()),
        None => parent.remove(&key),
    };
}

/// The files of a case.
fn files(case: &Value, template: &str) -> TextFiles {
    let mut tokenizer = match case["base"].as_str().unwrap() {
        "byte_level" => read("text/byte_level/tokenizer.json"),
        _ => read("text/metaspace.json"),
    };
    for (pointer, value) in case["tokenizer"].as_object().into_iter().flatten() {
        put(&mut tokenizer, pointer, Some(value));
    }
    for pointer in case["removed"].as_array().into_iter().flatten() {
        put(&mut tokenizer, pointer.as_str().unwrap(), None);
    }
    let file = |name: &str| case["files"].get(name).map(|json| json.to_string().into_bytes());
    TextFiles {
        tokenizer: Some(tokenizer.to_string().into_bytes()),
        tokenizer_config: file("tokenizer_config"),
        special_tokens_map: file("special_tokens_map"),
        added_tokens: file("added_tokens"),
        chat_template: Some(template.as_bytes().to_vec()),
        generation_config: file("generation_config"),
        config: file("config"),
    }
}

/// What we make of the files, in the form of what transformers makes of them.
fn ours(files: &TextFiles, texts: &[Value]) -> Result<Value, TextError> {
    let tokenizer = Tokenizer::from_files(files, CONTEXT_TOKENS_MAX)?;
    let encode = |text: &Value, special| tokenizer.encode(text.as_str().unwrap(), special);
    let mut rows = Vec::new();
    for text in texts {
        let ids = encode(text, false)?;
        rows.push(json!([ids, tokenizer.decode(&ids, false), tokenizer.decode(&ids, true)]));
    }
    let added = tokenizer.added_tokens().into_iter();
    let added: Vec<Value> = added.map(|t| json!([t.id, t.content, t.is_special])).collect();
    let template = ChatTemplate::from_files(files, CONTEXT_TOKENS_MAX)?.unwrap();
    let named = template.render(&Chat::default())?;
    Ok(json!({
        "texts": rows,
        "with_special": encode(&texts[2], true)?,
        "added": added,
        "named": named,
        "ends": stop_token_ids(files, &tokenizer)?,
    }))
}

/// What transformers makes of a case, without references into the table; null if it refuses.
fn theirs(case: &Value, table: &[Value]) -> Value {
    let expected = &case["expected"];
    if expected.is_null() {
        return Value::Null;
    }
    let row = |index: &Value| table[index.as_u64().unwrap() as usize].clone();
    let texts: Vec<Value> = expected["texts"].as_array().unwrap().iter().map(row).collect();
    json!({
        "texts": texts,
        "with_special": row(&expected["with_special"]),
        "added": row(&expected["added"]),
        "named": expected["named"],
        "ends": expected["ends"],
    })
}

/// Every name and text of a JSON.
fn words(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::String(text) => found.push(text.clone()),
        Value::Array(list) => list.iter().for_each(|value| words(value, found)),
        Value::Object(map) => map.iter().for_each(|(name, value)| {
            found.push(name.clone());
            words(value, found);
        }),
        _ => {}
    }
}

/// Whether an error names a field or a token of the case.
fn is_named(error: &TextError, case: &Value) -> bool {
    let mut found = Vec::new();
    words(&case["files"], &mut found);
    words(&case["tokenizer"], &mut found);
    let parts = case["tokenizer"].as_object().into_iter().flatten();
    found.extend(parts.map(|(pointer, _)| pointer.rsplit_once('/').unwrap().1.to_owned()));
    let message = error.to_string();
    found.iter().any(|word| word.len() > 2 && message.contains(word.as_str()))
}

#[test]
fn tokenizers_are_what_transformers_makes_of_their_files_or_are_refused_by_name() {
    let file = read("differential/tokenizers.json");
    let list = |key: &str| file[key].as_array().unwrap();
    let (texts, table, cases) = (list("texts"), list("table"), list("cases"));
    let template = file["template"].as_str().unwrap();
    let (mut equal, mut refused, mut wrong) = (0, Vec::new(), Vec::new());
    for case in cases {
        let name = case["name"].as_str().unwrap();
        let theirs = theirs(case, table);
        match ours(&files(case, template), texts) {
            Ok(ours) if ours == theirs => equal += 1,
            Ok(_) if theirs.is_null() && SERVED.iter().any(|known| name.contains(known)) => {}
            Ok(ours) => wrong.push(format!("{name}: {}", difference(&ours, &theirs))),
            Err(_) if theirs.is_null() => equal += 1,
            Err(error) if is_named(&error, case) => refused.push(format!("{name}: {error}")),
            Err(error) => wrong.push(format!("{name}: nothing of it is named: {error}")),
        }
    }
    println!("{} cases, {equal} equal, {} refused:", cases.len(), refused.len());
    println!("{}", refused.join("\n"));
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(equal * 5 >= cases.len() * 4, "{equal} of {} are equal", cases.len());
}

/// What transformers 5 fails on, and has one meaning all the same.
const SERVED: &[&str] = &[
    "objects without a type",
    "an object without a type",
    "map lists extras as objects",
    "add_prefix_space null",
];

fn difference(ours: &Value, theirs: &Value) -> String {
    let Some(theirs) = theirs.as_object() else { return "transformers refuses it".to_owned() };
    let differs = |(key, value): &(&String, &Value)| ours[key.as_str()] != **value;
    let parts: Map<String, Value> = theirs
        .iter()
        .filter(differs)
        .map(|(key, value)| (key.clone(), json!([ours[key.as_str()], value])))
        .collect();
    Value::Object(parts).to_string()
}

fn tokenizer(json: &Value) -> Tokenizer {
    Tokenizer::from_bytes(json.to_string().as_bytes(), CONTEXT_TOKENS_MAX).unwrap()
}

#[test]
fn a_tokenizers_digest_tells_what_it_does_and_not_how_its_files_are_written() {
    let json = read("text/byte_level/tokenizer.json");
    let digest = tokenizer(&json).digest();
    let pretty = serde_json::to_vec_pretty(&json).unwrap();
    let pretty = Tokenizer::from_bytes(&pretty, 2 * CONTEXT_TOKENS_MAX).unwrap();
    assert_eq!(pretty.digest(), digest);
    let config = |config: Value| {
        let tokenizer = Some(json.to_string().into_bytes());
        let tokenizer_config = Some(config.to_string().into_bytes());
        let files = TextFiles { tokenizer, tokenizer_config, ..TextFiles::default() };
        Tokenizer::from_files(&files, CONTEXT_TOKENS_MAX).unwrap().digest()
    };
    let end = json!({"content": "<|end|>", "special": true, "normalized": false});
    assert_eq!(config(json!({"eos_token": "<|end|>", "something": 1})), digest);
    assert_eq!(config(json!({"added_tokens_decoder": {"6": end}})), digest);
    assert_eq!(config(json!({"split_special_tokens": false})), digest);
    let equal = [
        (
            "/padding",
            json!({"strategy": "BatchLongest", "direction": "Right", "pad_id": 2,
            "pad_to_multiple_of": null, "pad_type_id": 0, "pad_token": "<pad>"}),
        ),
        (
            "/truncation",
            json!({"max_length": 3, "strategy": "LongestFirst", "stride": 0,
            "direction": "Right"}),
        ),
    ];
    let other = [
        ("/pre_tokenizer/add_prefix_space", json!(true)),
        ("/post_processor", Value::Null),
        ("/normalizer", json!({"type": "NFC"})),
        ("/added_tokens/6/special", json!(false)),
        ("/added_tokens/6/lstrip", json!(true)),
        ("/model/vocab/<tool>", json!(512)),
    ];
    for (differs, changes) in [(false, &equal[..]), (true, &other[..])] {
        for (pointer, value) in changes {
            let mut changed = json.clone();
            match changed.pointer_mut(pointer) {
                Some(place) => *place = value.clone(),
                None => put(&mut changed, pointer, Some(value)),
            }
            assert_eq!(tokenizer(&changed).digest() != digest, differs, "{pointer}");
        }
    }
    assert_ne!(config(json!({"split_special_tokens": true})), digest);
    assert_ne!(config(json!({"extra_special_tokens": ["<tool>"]})), digest);
}

#[test]
fn a_directory_with_another_form_of_tokenizer_is_told_how_to_get_ours() {
    for other in ["tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model"] {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(other), "{}").unwrap();
        let message = TextFiles::read(dir.path()).unwrap_err().to_string();
        assert!(message.contains(other) && message.contains("save_pretrained"), "{message}");
    }
}

/// A base with 520 rows, and a directory for an adapter.
fn base() -> AdapterTexts {
    let mut files = TextFiles::read(&crate::root().join("tests/data/text/byte_level")).unwrap();
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template":
        "{{ bos_token }}{{ eos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"});
    files.tokenizer_config = Some(config.to_string().into_bytes());
    files.chat_template = None;
    let settings = TextSettings {
        context_tokens_max: CONTEXT_TOKENS_MAX,
        vocabulary_tokens: 520,
        takes_defaults: true,
    };
    let served = ServedText::new(&files, &settings).unwrap();
    AdapterTexts::new(files, served, settings, true)
}

fn own(base: &AdapterTexts, files: &[(&str, Value)]) -> Result<OwnText, TextError> {
    let dir = tempfile::tempdir().unwrap();
    for (name, json) in files {
        fs::write(dir.path().join(name), serde_json::to_vec_pretty(json).unwrap()).unwrap();
    }
    base.of_adapter(TextFiles::of_adapter(&Folder::open(dir.path()).unwrap())?)
}

fn rendered(text: &ServedText) -> String {
    text.template.as_ref().unwrap().render(&Chat::default()).unwrap()
}

/// tokenizer.json with more added tokens.
fn with_tokens(contents: &[&str]) -> Value {
    let mut json = read("text/byte_level/tokenizer.json");
    for (id, content) in (512..).zip(contents) {
        let token = json!({"id": id, "content": content, "special": true, "lstrip": false,
            "rstrip": false, "single_word": false, "normalized": false});
        json["added_tokens"].as_array_mut().unwrap().push(token);
    }
    json
}

#[test]
fn adapters_with_equal_tokenizers_share_one() {
    let base = base();
    let plain = || ("tokenizer.json", with_tokens(&[]));
    let config = || ("tokenizer_config.json", json!({"eos_token": "</s>", "bos_token": "<s>"}));
    let copy = own(&base, &[plain(), config()]).unwrap();
    let text = copy.text.unwrap();
    assert!(Arc::ptr_eq(&text.tokenizer, &base.base.tokenizer), "{:?}", copy.notes);
    // It has the base's template, and what differs is not a word.
    assert_eq!((rendered(&text).as_str(), copy.notes.len()), ("<s></s>", 0), "{:?}", copy.notes);

    let more = ("tokenizer.json", with_tokens(&["<tool>"]));
    let one = own(&base, &[more, config()]).unwrap();
    let said = ("tokenizer_config.json", json!({"extra_special_tokens": ["<tool>"]}));
    let two = own(&base, &[plain(), said]).unwrap();
    let (one_text, two_text) = (one.text.unwrap(), two.text.unwrap());
    assert!(Arc::ptr_eq(&one_text.tokenizer, &two_text.tokenizer));
    assert!(!Arc::ptr_eq(&one_text.tokenizer, &base.base.tokenizer));
    assert_eq!(one_text.tokenizer.encode("<tool>", false).unwrap(), [512]);
    // The second names no token, so its template sees none.
    assert_eq!((rendered(&one_text).as_str(), rendered(&two_text).as_str()), ("<s></s>", ""));
    assert!(one.notes.iter().any(|note| note.contains("other tokens")), "{:?}", one.notes);
}

#[test]
fn what_an_adapter_has_no_file_for_is_the_bases() {
    let base = base();
    let tool = json!({"content": "<tool>", "special": true});
    let config = json!({"eos_token": "<|end|>", "added_tokens_decoder": {"512": tool}});
    let said = own(&base, &[("tokenizer_config.json", config)]).unwrap();
    let text = said.text.unwrap();
    assert_eq!(text.tokenizer.encode("a<tool>", false).unwrap().last(), Some(&512));
    assert_eq!((rendered(&text).as_str(), &text.eos_tokens[..]), ("<s><|end|>", &[1, 6][..]));
    assert!(said.notes.iter().any(|note| note.contains("put over")), "{:?}", said.notes);

    let map = ("special_tokens_map.json", json!({"eos_token": "<|end|>"}));
    let mapped = own(&base, std::slice::from_ref(&map)).unwrap().text.unwrap();
    assert_eq!((rendered(&mapped).as_str(), &mapped.eos_tokens[..]), ("<s><|end|>", &[1, 6][..]));
    let whole = own(&base, &[("tokenizer.json", with_tokens(&[])), map]).unwrap().text.unwrap();
    assert_eq!((rendered(&whole).as_str(), &whole.eos_tokens[..]), ("<|end|>", &[1, 6][..]));

    let added = ("added_tokens.json", json!({"<tool>": 512}));
    let added = own(&base, &[added]).unwrap().text.unwrap();
    assert_eq!(added.tokenizer.encode("<tool>", false).unwrap(), [512]);
    let alone = own(&base, &[("tokenizer.json", with_tokens(&["<tool>"]))]).unwrap().text.unwrap();
    assert_eq!(alone.tokenizer.encode("<tool>", false).unwrap(), [512]);
    assert_eq!(rendered(&alone), "<s></s>");
}

#[test]
fn tokens_of_an_adapter_that_the_base_has_no_rows_for_are_refused_by_name() {
    let base = base();
    let names: Vec<String> = (0..10).map(|n| format!("<tool{n}>")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let config = |config: Value| ("tokenizer_config.json", config);
    // 512 to 519 have rows.
    assert!(own(&base, &[("tokenizer.json", with_tokens(&names[..8])), config(json!({}))]).is_ok());
    let file = ("tokenizer.json", with_tokens(&names));
    let error = own(&base, &[file, config(json!({}))]).err().unwrap().to_string();
    for part in ["tokenizer.json", "520", "\"<tool8>\" with id 520", "\"<tool9>\"", "base"] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let error = own(&base, &[config(json!({"extra_special_tokens": names}))]).err().unwrap();
    let error = error.to_string();
    assert!(error.contains("tokenizer_config.json") && error.contains("<tool8>"), "{error}");

    // What only fills up batches of training is in no text.
    let padded = || {
        let contents: Vec<&str> = names[..8].iter().copied().chain(["[PAD]"]).collect();
        ("tokenizer.json", with_tokens(&contents))
    };
    let served = own(&base, &[padded(), config(json!({"pad_token": "[PAD]"}))]).unwrap();
    assert!(served.notes.iter().any(|note| note.contains("[PAD]")), "{:?}", served.notes);
    let both = json!({"pad_token": "[PAD]", "eos_token": "[PAD]"});
    let error = own(&base, &[padded(), config(both)]).err().unwrap().to_string();
    assert!(error.contains("\"[PAD]\" with id 520"), "{error}");
}
