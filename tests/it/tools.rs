//! Tools: what a request may call, the calls found in what a model says, and the masks that make it
//! call.

mod answers;
mod anthropic;
mod masks;
mod requests;
mod responses;
mod streams;
mod tags;

use std::sync::Arc;

use serde_json::{Value, json};
use tessera::http::App;
use tessera::text::{
    CallPart, CallReader, CallSyntax, ChatTemplate, Read, ThoughtSyntax, Tokenizer,
};

use crate::Rng;
use crate::fake::Fake;
use crate::spoken::{Spoken, tokenizer};

/// Writes calls in tags.
const TAGGED: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}\
    {{ m.role }}:{{ m.content or '' }}{% for c in m.tool_calls or [] %}<tool_call>\n\
    {\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}\n\
    </tool_call>{% endfor %};{% endfor %}";
/// Writes calls in a list after a mark.
const LISTED: &str = "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}\
    {{ m.role }}:{{ m.content or '' }}{% for c in m.tool_calls or [] %}[TOOL_CALLS]\
    [{\"name\": \"{{ c.function.name }}\", \"arguments\": {{ c.function.arguments | tojson }}}]\
    {% endfor %};{% endfor %}";

/// A server whose model says one text.
struct Server {
    fake: Fake,
    tokenizer: Arc<Tokenizer>,
    template: Arc<ChatTemplate>,
    /// Tokens of the text, with the one that ends it.
    tokens: usize,
    /// Those that are special, but for that one.
    special: usize,
}

impl Server {
    fn new(template: &str, text: &str, by_bytes: bool) -> Self {
        Self::with(template, text, by_bytes, |_| {})
    }

    /// `by_bytes`: one token a byte, also where a mark is a token.
    fn with(template: &str, text: &str, by_bytes: bool, change: impl FnOnce(&mut App)) -> Self {
        let tokenizer = tokenizer(&[("[TOOL_CALLS]", true)]);
        let Spoken { fake, template, tokens } =
            Spoken::new(&tokenizer, template, text, by_bytes, change);
        let said = &tokens[..tokens.len() - 1];
        let special = said.iter().filter(|&&id| tokenizer.is_special(id)).count();
        Self { fake, tokenizer, template, tokens: tokens.len(), special }
    }
}

/// A chat with further fields.
fn body(fields: Value) -> Value {
    let mut body = json!({"messages": [{"role": "user", "content": "x"}]});
    body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    body
}

/// Two functions.
fn weather() -> Value {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"]});
    let function = |name: &str| {
        json!({"type": "function", "function": {"name": name, "description": "d",
            "parameters": schema, "strict": false}})
    };
    json!([function("f"), function("get_weather")])
}

/// A text taken apart: what is content, and calls by name and arguments.
type Taken = (String, Vec<(String, String)>);

fn names() -> Arc<[String]> {
    ["f", "get_weather", "a.b-c"].map(str::to_owned).into()
}

fn take<'a>(syntax: CallSyntax, pieces: impl Iterator<Item = &'a str>, is_cut: bool) -> Taken {
    let mut reader = CallReader::new(syntax, names(), false);
    let mut taken = Taken::default();
    let mut add = |read: Read| {
        taken.0 += &read.content;
        for part in read.calls {
            match part {
                CallPart::Begin(name) => taken.1.push((name, String::new())),
                CallPart::Arguments(more) => taken.1.last_mut().unwrap().1 += &more,
            }
        }
    };
    for piece in pieces {
        add(reader.push(piece));
    }
    add(reader.finish(is_cut));
    assert_eq!(reader.calls(), taken.1.len());
    taken
}

/// Text, the content in it, and the calls.
type Case = (CallSyntax, &'static str, &'static str, &'static [(&'static str, &'static str)]);

const CASES: &[Case] = &[
    (
        CallSyntax::Tagged,
        "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, {\"b\": \"}\\\"\"}]}}\n\
         </tool_call>",
        "",
        &[("f", "{\"a\": [1, {\"b\": \"}\\\"\"}]}")],
    ),
    (
        CallSyntax::Tagged,
        "Let me see. \n\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n<tool_call>\n\
         {\"arguments\": {\"x\": 1}, \"name\": \"other\"}\n</tool_call>\n",
        "Let me see.",
        &[("f", "{}"), ("other", "{\"x\": 1}")],
    ),
    (CallSyntax::Tagged, "a < b <tool_c", "a < b <tool_c", &[]),
    (CallSyntax::Tagged, "\n<tool_call>no</tool_call> ", "\n<tool_call>no</tool_call> ", &[]),
    (
        CallSyntax::Tagged,
        "<tool_call>{\"a\": 1}</tool_call>",
        "<tool_call>{\"a\": 1}</tool_call>",
        &[],
    ),
    (CallSyntax::Tagged, "<tool_call>{\"name\": \"f\"}</tool_call>", "", &[("f", "{}")]),
    // A brace too many, and no end.
    (
        CallSyntax::Tagged,
        "<tool_call>{\"name\": \"f\", \"arguments\": {}}}</tool_call>x",
        "}x",
        &[("f", "{}")],
    ),
    (
        CallSyntax::Tagged,
        "<tool_call>{\"name\": \"f\", \"arguments\": {}}<tool_call>{\"name\": \"f\", \
         \"arguments\": {\"\u{e9}\": 1}}",
        "",
        &[("f", "{}"), ("f", "{\"\u{e9}\": 1}")],
    ),
    (CallSyntax::Parameters, " {\"name\": \"f\", \"parameters\": {}}", "", &[("f", "{}")]),
    (
        CallSyntax::Parameters,
        "{\"type\": \"function\", \"name\": \"f\", \"parameters\": {\"a\": 1}}; {\"name\": \
         \"get_weather\", \"parameters\": {}}",
        "",
        &[("f", "{\"a\": 1}"), ("get_weather", "{}")],
    ),
    (
        CallSyntax::Parameters,
        "So: <|python_tag|>{\"name\": \"f\", \"parameters\": {}}",
        "So:",
        &[("f", "{}")],
    ),
    (CallSyntax::Parameters, "<|python_tag|>print(1)", "<|python_tag|>print(1)", &[]),
    // An answer that is JSON of another kind.
    (
        CallSyntax::Json,
        "{\"name\": \"Bo\", \"arguments\": {}}",
        "{\"name\": \"Bo\", \"arguments\": {}}",
        &[],
    ),
    (CallSyntax::Json, "{\"name\": \"f\"}", "{\"name\": \"f\"}", &[]),
    (
        CallSyntax::Json,
        "x {\"name\": \"f\", \"arguments\": {}}",
        "x {\"name\": \"f\", \"arguments\": {}}",
        &[],
    ),
    (
        CallSyntax::Json,
        "[{\"name\": \"f\", \"arguments\": {}}, {\"name\": \"a.b-c\", \"arguments\": \
         {\"a\": 1}}]\n",
        "",
        &[("f", "{}"), ("a.b-c", "{\"a\": 1}")],
    ),
    (
        CallSyntax::Listed,
        "Yes.[TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {}, \"id\": \"123456789\"}, \
         {\"name\": \"g\", \"arguments\": {\"a\": [1]}}]",
        "Yes.",
        &[("f", "{}"), ("g", "{\"a\": [1]}")],
    ),
    (
        CallSyntax::Named,
        "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[CALL_ID]123456789[ARGS]{}",
        "",
        &[("f", "{\"a\": 1}"), ("g", "{}")],
    ),
    (CallSyntax::Named, "[TOOL_CALLS]f{\"a\": 1}", "", &[("f", "{\"a\": 1}")]),
    (CallSyntax::Named, "[TOOL_CALLS]?", "[TOOL_CALLS]?", &[]),
    (
        CallSyntax::Pythonic,
        "[f(a=1, b='it\\'s [x)', c=[True, None, -1.5]), get_weather(d={'k': \"v\"}, )]",
        "",
        &[
            ("f", "{\"a\":1,\"b\":\"it's [x)\",\"c\":[true,null,-1.5]}"),
            ("get_weather", "{\"d\":{\"k\":\"v\"}}"),
        ],
    ),
    (CallSyntax::Pythonic, "[f()]", "", &[("f", "{}")]),
    (CallSyntax::Pythonic, "[1, 2]", "[1, 2]", &[]),
    (CallSyntax::Pythonic, "[f(a=x)]", "[f(a=x)]", &[]),
    (CallSyntax::Pythonic, "[g(a=1)]", "[g(a=1)]", &[]),
];

fn cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().chain(tags::CASES)
}

fn owned(content: &str, calls: &[(&str, &str)]) -> Taken {
    let call = |&(name, arguments): &(&str, &str)| (name.to_owned(), arguments.to_owned());
    (content.to_owned(), calls.iter().map(call).collect())
}

#[test]
fn calls_of_every_syntax_are_found_and_what_is_none_stays_content() {
    for (syntax, text, content, calls) in cases() {
        let taken = take(*syntax, std::iter::once(*text), false);
        assert_eq!(taken, owned(content, calls), "{syntax:?}: {text}");
    }
}

#[test]
fn wherever_a_text_is_cut_the_same_calls_are_found() {
    let mut rng = Rng(7);
    let syntaxes = CallSyntax::NAMES.map(|(_, syntax)| syntax);
    let texts: Vec<&str> = cases().map(|case| case.1).collect();
    for round in 0..4_000 {
        // Parts of two texts, so that all kinds of broken ones are met.
        let mut text: Vec<char> = Vec::new();
        for _ in 0..1 + round % 2 {
            let chars: Vec<char> = texts[rng.below(texts.len())].chars().collect();
            let start = if rng.below(2) == 0 { 0 } else { rng.below(chars.len()) };
            let end = if rng.below(2) == 0 {
                chars.len()
            } else {
                start + rng.below(chars.len() - start)
            };
            text.extend(&chars[start..end]);
        }
        let text: String = text.into_iter().collect();
        let (syntax, is_cut) = (syntaxes[rng.below(syntaxes.len())], rng.below(2) == 0);
        let whole = take(syntax, std::iter::once(text.as_str()), is_cut);
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let count = 1 + rng.below(5);
            let end = rest.char_indices().nth(count).map_or(rest.len(), |(end, _)| end);
            pieces.push(&rest[..end]);
            rest = &rest[end..];
        }
        assert_eq!(take(syntax, pieces.into_iter(), is_cut), whole, "{syntax:?} {text}");
    }
}

#[test]
fn of_a_call_that_is_cut_nothing_is_content() {
    for (syntax, text, content, calls) in cases().filter(|case| !case.3.is_empty()) {
        if syntax == &CallSyntax::Pythonic || content.starts_with('}') {
            continue;
        }
        let marks = syntax.shown();
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            let taken = take(*syntax, std::iter::once(&text[..end]), true);
            // A first character may be any text's; without a mark it may be an answer's JSON.
            let begun = taken.0.trim_start_matches(content).trim();
            let is_bare = marks.is_empty() || text.trim_start().starts_with('{');
            let is_held = is_bare && taken.1.is_empty();
            assert!(
                begun.len() <= 1 || content.starts_with(&taken.0) || is_held,
                "{text}: {taken:?}"
            );
            assert!(taken.1.len() <= calls.len());
            for ((name, arguments), (told, of)) in taken.1.iter().zip(*calls) {
                assert!(name == told && of.starts_with(arguments), "{text}: {taken:?}");
            }
        }
    }
}

#[test]
fn a_call_streams_its_arguments_as_they_come() {
    let mut reader = CallReader::new(CallSyntax::Tagged, names(), true);
    let arguments = |text: &str| vec![CallPart::Arguments(text.to_owned())];
    assert_eq!(reader.push("<tool_call>\n{\"name\": \"f\", "), Read::default());
    let begun = vec![CallPart::Begin("f".to_owned()), CallPart::Arguments("{".to_owned())];
    assert_eq!(reader.push("\"arguments\": {").calls, begun);
    assert_eq!(reader.push("\"a\"").calls, arguments("\"a\""));
    assert_eq!(reader.push(": 1}").calls, arguments(": 1}"));
    assert!(!reader.is_done());
    assert_eq!(reader.push("} and more"), Read::default());
    assert!(reader.is_done());
}

#[test]
fn help_names_every_parser() {
    let output = crate::process::tessera(&["serve", "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    let words: Vec<&str> = help.split([' ', ',', '.', '\n']).collect();
    let calls = CallSyntax::NAMES.iter().map(|(name, _)| name);
    let thoughts = ThoughtSyntax::NAMES.iter().map(|(name, ..)| name);
    for name in calls.chain(thoughts) {
        assert!(words.contains(name), "{name}: {help}");
    }
}
