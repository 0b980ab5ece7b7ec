//! Chat templates against jinja2, and files and chats made to break the server.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tessera::text::{CallSyntax, Chat, ChatTemplate, Message, TextError, TextFiles, Tokenizer};

const CONTEXT_TOKENS_MAX: u32 = 512;

fn data(name: &str) -> PathBuf {
    crate::root().join("tests/data/text").join(name)
}

fn json_of(name: &str) -> Value {
    serde_json::from_slice(&fs::read(data(name)).unwrap()).unwrap()
}

fn template(source: &str) -> ChatTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens: BTreeMap<_, _> = tokens.map(|(k, v)| (k.to_owned(), v.to_owned())).into();
    ChatTemplate::new(source, tokens, CONTEXT_TOKENS_MAX).unwrap()
}

fn message(role: &str, content: &str) -> Message {
    json!({"role": role, "content": content}).as_object().unwrap().clone()
}

fn chat(messages: &[Message], add_generation_prompt: bool) -> Chat {
    Chat { messages: messages.to_vec(), add_generation_prompt, ..Chat::default() }
}

fn render(source: &str, content: &str) -> Result<String, TextError> {
    template(source).render(&chat(&[message("user", content)], true))
}

#[test]
fn templates_render_as_jinja2_renders_them() {
    for case in json_of("templates.json").as_array().unwrap() {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap().to_owned();
        let messages = case["messages"].as_array().unwrap().iter();
        let messages: Vec<Message> = messages.map(|m| m.as_object().unwrap().clone()).collect();
        let prompt = case["add_generation_prompt"].as_bool().unwrap();
        let rendered = template(&text(case, "source")).render(&chat(&messages, prompt));
        let expected = match case.get("raises") {
            Some(raised) => {
                Err(TextError::TemplateRefused { message: raised.as_str().unwrap().to_owned() })
            }
            None => Ok(text(case, "expected")),
        };
        assert_eq!(rendered, expected, "{} of {messages:?}", case["name"]);
    }
}

/// What transformers 5.23 makes of the same file and chat.
#[test]
fn the_demo_takes_tools_their_calls_and_results() {
    let source = fs::read_to_string(crate::root().join("demo/model/chat_template.jinja")).unwrap();
    let called = json!({"name": "f", "arguments": {"a": 1}});
    let turns = json!([
        {"role": "user", "content": " hi "},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "c", "type": "function", "function": called}]},
        {"role": "tool", "tool_call_id": "c", "content": "2"},
    ]);
    let turns = turns.as_array().unwrap().iter().map(|turn| turn.as_object().unwrap().clone());
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}});
    let tool = json!({"type": "function", "function": {"name": "f", "parameters": schema}});
    let mut chat = chat(&turns.collect::<Vec<_>>(), true);
    chat.tools = Some(vec![tool]);
    let demo = template(&source);
    assert_eq!(demo.call_syntax(), CallSyntax::Tagged);
    demo.shape(&mut chat).unwrap();
    let expected = concat!(
        "<s><|system|>\nYou may call functions:\n",
        r#"{"name": "f", "parameters": "#,
        r#"{"type": "object", "properties": {"a": {"type": "integer"}}}}"#,
        "\nA call: <tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call><|end|>\n",
        "<|user|>\nhi<|end|>\n<|assistant|>\n",
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call><|end|>\n",
        "<|tool|>\n2<|end|>\n<|assistant|>\n",
    );
    assert_eq!(demo.render(&chat).unwrap(), expected);
}

#[test]
fn a_template_is_found_where_transformers_finds_it() {
    let some = |json: Value| Some(json.to_string().into_bytes());
    let hi = chat(&[message("user", " hi ")], true);
    let rendered = |files: &TextFiles| {
        let template = ChatTemplate::from_files(files, CONTEXT_TOKENS_MAX);
        template.map(|template| template.map(|template| template.render(&hi).unwrap()))
    };
    let read = TextFiles::read(&data("byte_level")).unwrap();
    let expected = "<s><|user|>\nhi<|end|>\n<|assistant|>\n";
    assert_eq!(rendered(&read).unwrap().unwrap(), expected);
    let tokenizer = Tokenizer::from_files(&read, CONTEXT_TOKENS_MAX).unwrap();
    let ids = tokenizer.encode(expected, false).unwrap();
    assert_eq!((ids[0], ids[1], tokenizer.decode(&ids, false).as_str()), (0, 4, expected));

    let mut files = TextFiles::default();
    assert_eq!(rendered(&files), Ok(None));
    let bos = json!({"content": "[B]", "special": true});
    files.tokenizer_config = some(json!({
        "bos_token": bos, "pad_token": null, "add_bos_token": true,
        "chat_template": [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}{{ pad_token }}{{ add_bos_token }}"},
        ],
    }));
    assert_eq!(rendered(&files).unwrap().unwrap(), "[B]");
    files.chat_template = Some(b"{{ bos_token }}file".to_vec());
    assert_eq!(rendered(&files).unwrap().unwrap(), "[B]file");
    files.chat_template = Some(b"{% if %}".to_vec());
    let error = rendered(&files).unwrap_err();
    assert!(matches!(error, TextError::FileBroken { file: "chat_template.jinja", .. }), "{error}");
    files.chat_template = Some(vec![0xFF]);
    assert!(rendered(&files).is_err());
    files.chat_template = None;
    files.tokenizer_config = some(json!({"chat_template": [{"name": "x", "template": ""}]}));
    assert!(rendered(&files).is_err());
}

#[test]
fn what_a_template_raises_reaches_the_client() {
    let raised = [
        "{{ raise_exception('no ' + messages[0].content) }}",
        "{% macro m(x) %}{{ raise_exception('no ' + x) }}{% endmacro %}{{ m('you') }}",
        "{% set x %}{{ raise_exception('no you') }}{% endset %}",
    ];
    for source in raised {
        let error = render(source, "you").unwrap_err();
        assert_eq!(error, TextError::TemplateRefused { message: "no you".into() });
        assert!(error.is_client_fault());
    }
    let error = render("{{ messages[0].content.nothing() }}", "x").unwrap_err();
    assert!(matches!(error, TextError::TemplateFailed { .. }) && error.is_client_fault());
}

#[test]
fn the_date_is_todays() {
    let date = render("{{ strftime_now('%Y-%m-%d') }}", "").unwrap();
    assert!(date.len() == 10 && date.as_str() > "2024", "{date}");
    assert!(render("{{ strftime_now('%Q') }}", "").is_err());
}

#[test]
fn a_template_bomb_stops() {
    let bombs = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(99) %}{% set ns.x = ns.x \
         + ns.x %}{% endfor %}",
        "{{ 'a' * 999999999999 }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}\
         {% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}\
         {% endfor %}{{ ns.x }}",
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(99999) %}{{ messages | tojson(indent=999999) }}{% endfor %}",
        "{% for i in range(9999) %}{% set x = messages[0].content.replace('', messages[0].content) \
         %}{% endfor %}",
        "{% for i in range(9999) %}{{ messages[0].content }}{% endfor %}",
        "{{ '%999999999d' % 1 }}",
        "{{ '%.999999999f' % 1.0 }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ 'a'.ljust(999999999999) }}",
        "{{ '{:>999999999999}'.format(1) }}",
        "{{ '{:{}}'.format(1, 999999999999) }}",
        "{{ '{:.999999999f}'.format(1.5) }}",
        "{{ 'a\nb' | indent(999999999999) }}",
        "{{ [1] | batch(999999999999, 'x') | list }}",
        "{{ [1] | slice(999999999999) | list }}",
        "{{ [1] * 999999999999 }}",
        "{{ 'a' | center(999999999999) }}",
        "{{ range(10**9) | list | length }}",
        "{% for i in range(99999) %}{% for c in messages[0].content %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = '%s' % messages[0].content %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = messages[0].content.split('') %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = messages[0].content.rsplit(' ') %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = messages | string | length %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = messages[0].content.strip('b ') %}{% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}\
         {% endfor %}{{ ns.x | length }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}\
         {% endfor %}{{ ns.x | upper }}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [1] %}\
         {% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}\
         {% endfor %}x",
        "{% set ns = namespace(x=1) %}{% set ns.x = [ns] %}{{ ns.x | upper }}",
        "{% set a = namespace(x=1) %}{% set b = namespace(y=a) %}{% set a.x = b %}{{ a == b }}",
        "{% for i in range(99999) %}{% set x = messages[0].content | title %}{% endfor %}",
        "{% set ns = namespace(x='a'|safe) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}\
         {% endfor %}",
        "{% set ns = namespace(x=[1]) %}{% for i in range(150) %}{% set ns.x = [ns.x] %}\
         {% endfor %}{{ ns.x }}",
    ];
    let doubled = format!("{{% set x = [1] %}}{}", "{% set x = [x, x] %}".repeat(40));
    let printed = ["upper", "title", "trim", "string", "tojson", "join"];
    let doubled = printed.map(|filter| format!("{doubled}{{{{ x | {filter} }}}}"));
    let bombs = bombs.into_iter().map(str::to_owned).chain(doubled);
    for source in bombs {
        println!("{source}");
        let start = Instant::now();
        let error = render(&source, &"ab ".repeat(10_000)).unwrap_err();
        assert!(error.is_client_fault(), "{source}: {error}");
        assert!(start.elapsed() < Duration::from_secs(30), "{source}: {:?}", start.elapsed());
    }
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let error = render(endless, "").unwrap_err();
    assert!(matches!(error, TextError::TemplateFuel { .. }), "{error}");
}

#[test]
fn a_template_that_nests_as_deep_as_it_may_ends_no_server() {
    let count = 20_000;
    for (open, close) in [("not ", ""), ("1+", ""), ("1 if 1 else ", ""), ("-", "")] {
        let source = format!("{{{{ {}1{} }}}}", open.repeat(count / 4), close.repeat(count));
        // What comes of it does not matter, but that something does.
        let _ = ChatTemplate::new(&source, BTreeMap::new(), 512).map(|_| ());
    }
    let elif = format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(5_000));
    let _ = ChatTemplate::new(&elif, BTreeMap::new(), 512).map(|_| ());
    let block = "{% block a %}{{ self.a() }}{% endblock %}";
    let long = "x".repeat(200_000);
    for source in [block, &long] {
        let error = ChatTemplate::new(source, BTreeMap::new(), 512).map(|_| ()).unwrap_err();
        assert!(matches!(error, TextError::FileBroken { .. }), "{error}");
    }
}

#[test]
fn a_long_chat_is_within_the_budget_and_a_huge_one_is_refused() {
    let qwen = json_of("templates.json");
    let qwen = qwen.as_array().unwrap().iter().find(|case| case["name"] == "qwen3").unwrap();
    let source = qwen["source"].as_str().unwrap();
    let template = ChatTemplate::new(source, BTreeMap::new(), 131_072).unwrap();
    let turn = [message("user", &"word ".repeat(50)), message("assistant", "ok")];
    let turns: Vec<Message> = turn.iter().cycle().take(4000).cloned().collect();
    assert!(template.render(&chat(&turns, true)).unwrap().len() > 500_000);
    let huge = chat(&[message("user", &"a".repeat(64 << 20))], true);
    let start = Instant::now();
    let error = template.render(&huge).unwrap_err();
    assert!(matches!(error, TextError::TooLong { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// Changes of a good tokenizer.json of which most make the tokenizers library panic.
fn broken_tokenizers() -> Vec<(&'static str, Value)> {
    let good = json_of("metaspace.json");
    let with = |name, pointer: &str, value: Value| {
        let mut json = good.clone();
        *json.pointer_mut(pointer).unwrap() = value;
        (name, json)
    };
    let special = json!({"type": "TemplateProcessing", "special_tokens": {}, "pair": [],
        "single": [{"SpecialToken": {"id": "<nowhere>", "type_id": 0}}]});
    let charsmap = json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"});
    let split = |pattern: &str| {
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
            "invert": false})
    };
    let strip = json!({"type": "Strip", "content": " ", "start": 0, "stop": 9});
    let ctc = json!({"type": "CTC", "pad_token": "_", "word_delimiter_token": "|",
        "cleanup": true});
    vec![
        with("decoder strips both ends", "/decoder", strip.clone()),
        with("fused strip", "/decoder/decoders/3", strip),
        with("decoder unknown to us", "/decoder", ctc),
        with("decoder unknown to all", "/decoder", json!({"type": "Nonsense"})),
        with("special token missing", "/post_processor", special),
        with("length 0", "/pre_tokenizer", json!({"type": "FixedLength", "length": 0})),
        with("bad charsmap", "/normalizer", charsmap),
        with("merge out of vocabulary", "/model/merges/0", json!(["x", "nowhere"])),
        with("long prefix", "/model/continuing_subword_prefix", json!("longer than any token")),
        with("no regex", "/pre_tokenizer", split("(")),
        with("slow regex", "/pre_tokenizer", split("(a+)+b")),
        with("huge id", "/added_tokens/0/id", json!(u32::MAX)),
        with("huge id in the model", "/model/vocab/<unk>", json!(u32::MAX)),
        with("no vocabulary", "/model/vocab", json!({})),
        with("no model", "/model", Value::Null),
        ("an empty object", json!({})),
        ("a number", json!(1)),
    ]
}

#[test]
fn a_broken_tokenizer_is_an_error_and_never_a_panic() {
    let mut failed_late = 0;
    for (name, json) in broken_tokenizers() {
        let start = Instant::now();
        let loaded = Tokenizer::from_bytes(json.to_string().as_bytes(), CONTEXT_TOKENS_MAX);
        let tried = loaded.and_then(|t| {
            t.encode(&"a".repeat(60_000), true)?;
            t.encode("the cat", false)
        });
        match tried {
            Ok(ids) => println!("{name}: usable, {ids:?}"),
            Err(error) => {
                println!("{name}: {error}");
                failed_late += usize::from(matches!(error, TextError::TokenizerFailed { .. }));
                assert!(!error.is_client_fault(), "{name}: {error}");
            }
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{name}");
    }
    assert!(failed_late > 0, "none of them fails only on some texts");
    for bytes in [&b""[..], b"{", b"\xFF\xFE", &b"[".repeat(100_000)] {
        assert!(Tokenizer::from_bytes(bytes, CONTEXT_TOKENS_MAX).is_err());
    }
}

#[test]
fn padding_and_truncation_in_the_file_are_ignored() {
    let mut json = json_of("metaspace.json");
    json["truncation"] = json!({"direction": "Right", "max_length": 2,
        "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 1_000_000_000}, "direction": "Right",
        "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"});
    let ours = Tokenizer::from_bytes(json.to_string().as_bytes(), CONTEXT_TOKENS_MAX).unwrap();
    assert_eq!(ours.encode("the cat sat", true).unwrap(), [1, 314, 317, 320]);
}

#[test]
fn file_errors_name_the_file_and_never_a_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap().to_owned();
    let missing = TextFiles::read(dir.path()).unwrap_err();
    assert_eq!(missing, TextError::FileMissing { file: "tokenizer.json" });
    fs::create_dir(dir.path().join("tokenizer.json")).unwrap();
    let directory = TextFiles::read(dir.path()).unwrap_err();
    fs::remove_dir(dir.path().join("tokenizer.json")).unwrap();
    fs::write(dir.path().join("tokenizer.json"), "{\"model\": 1}").unwrap();
    let no_model = Tokenizer::load(dir.path(), CONTEXT_TOKENS_MAX).err().unwrap();
    // A file of 9 GB that takes no space.
    let large = fs::File::create(dir.path().join("config.json")).unwrap();
    large.set_len(9 << 30).unwrap();
    let too_large = TextFiles::read(dir.path()).unwrap_err();
    for error in [missing, directory, no_model, too_large] {
        assert!(!error.to_string().contains(&path), "{error}");
        assert!(!error.is_client_fault() && error.to_string().contains(".json"), "{error}");
    }
}
