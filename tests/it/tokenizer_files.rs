//! The files of a tokenizer, spelled in many ways, against what transformers makes of them. The
//! expected values are written by tools/differential/tokenizer_files.py.

use std::fs;

use serde_json::{Map, Value, json};
use tessera::text::{Chat, ChatTemplate, TextError, TextFiles, Tokenizer, stop_token_ids};

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
