//! Forms of answers that a thought may come before.

use serde_json::{Value, json};
use tessera::ids::TokenId;
use tessera::request::Guide;
use tessera::text::Tokenizer;

use super::{BRACKETS, CLOSE, FREE, OPEN, OPENS, Server, VOCABULARY};
use crate::Rng;
use crate::fake::{EOS, letter};

/// The guide of a request, and the tokenizer.
fn guide(template: &str, fields: &Value) -> (Box<dyn Guide>, Server) {
    let server = Server::new(template, "x", true);
    server.ask(fields);
    let request = server.fake.seen.lock().unwrap().pop().unwrap().0;
    (request.terms().guide.clone().unwrap(), server)
}

fn allowed(guide: &mut Box<dyn Guide>) -> Vec<TokenId> {
    let mask = guide.mask().unwrap();
    (0..VOCABULARY + 40).filter(|&id| mask.allows(id)).collect()
}

/// The characters that may come next.
fn letters(guide: &mut Box<dyn Guide>) -> String {
    let letter = |c: &char| allowed_letter(guide.mask().unwrap(), *c);
    ('!'..='~').filter(letter).collect()
}

fn allowed_letter(mask: tessera::request::TokenMask, c: char) -> bool {
    mask.allows(letter(c))
}

fn accept(guide: &mut Box<dyn Guide>, tokens: &[TokenId]) {
    for &token in tokens {
        assert!(guide.mask().unwrap().allows(token), "{token}");
        assert!(!guide.accept(token).unwrap(), "{token}");
    }
}

fn spell(tokenizer: &Tokenizer, text: &str) -> Vec<TokenId> {
    let byte = |byte: u8| (7..512).find(|&id| tokenizer.token_bytes(id) == [byte]).unwrap();
    text.bytes().map(byte).collect()
}

fn number() -> Value {
    json!({"guided_regex": "[0-9]{2}"})
}

#[test]
fn a_form_begins_where_the_thought_ends() {
    let weather = json!([{"type": "function", "function": {"name": "f"}}]);
    let schema = json!({"type": "json_schema",
        "json_schema": {"name": "a", "schema": {"type": "integer"}}});
    let cases = [
        (number(), "0123456789"),
        (json!({"response_format": schema}), "-0123456789"),
        (json!({"tools": weather, "tool_choice": "required"}), "<{"),
        (
            json!({"tools": weather,
                "tool_choice": {"type": "function", "function": {"name": "f"}}}),
            "<{",
        ),
    ];
    for (fields, first) in cases {
        for (template, begin) in [(OPENS, None), (FREE, Some(OPEN))] {
            let (mut guide, server) = guide(template, &fields);
            accept(&mut guide, begin.as_slice());
            // Any token but the end.
            let free = allowed(&mut guide);
            let all: Vec<TokenId> = (0..VOCABULARY).filter(|&id| id != EOS).collect();
            assert_eq!(free, all, "{fields}");
            for way in [vec![CLOSE], spell(&server.tokenizer, "</think>")] {
                let mut guide = guide.fork();
                accept(&mut guide, &spell(&server.tokenizer, "hm </think </"));
                accept(&mut guide, &way);
                let follows = letters(&mut guide);
                assert!(!follows.is_empty() && follows.chars().all(|c| first.contains(c)));
                assert!(!allowed(&mut guide).contains(&EOS));
            }
        }
    }
}

#[test]
fn an_answer_without_a_thought_has_its_form_from_its_first_token() {
    let (guide, server) = guide(FREE, &number());
    let mut start = guide.fork();
    assert_eq!(letters(&mut start), "0123456789<");
    assert!(allowed(&mut start).contains(&OPEN) && !allowed(&mut start).contains(&CLOSE));
    accept(&mut start, &[letter('4')]);
    assert_eq!(letters(&mut start), "0123456789");
    assert!(!allowed(&mut start).contains(&OPEN));
    assert!(start.accept(letter('2')).unwrap());
    // A mark that is spelled.
    let mut spelled = guide.fork();
    accept(&mut spelled, &[letter('<')]);
    assert_eq!(letters(&mut spelled), "t");
    accept(&mut spelled, &spell(&server.tokenizer, "think>so</think>"));
    assert_eq!(letters(&mut spelled), "0123456789");
    // What begins both a mark and the form.
    let (both, _) = self::guide(FREE, &json!({"guided_regex": "<t[a-z]"}));
    let mut form = both.fork();
    accept(&mut form, &[letter('<')]);
    assert_eq!(letters(&mut form), "t");
    accept(&mut form, &[letter('t')]);
    assert_eq!(letters(&mut form), ('a'..='z').collect::<String>());
    assert!(form.accept(letter('h')).unwrap());
    let mut longer = self::guide(FREE, &json!({"guided_regex": "<th[x-z]"})).0;
    accept(&mut longer, &spell(&server.tokenizer, "<th"));
    assert_eq!(letters(&mut longer), "ixyz");
    accept(&mut longer, &spell(&server.tokenizer, "ink>a</think>"));
    assert_eq!(letters(&mut longer), "<");
}

#[test]
fn a_prompt_that_has_ended_the_thought_asks_for_the_form_at_once() {
    let mut fields = number();
    fields["chat_template_kwargs"] = json!({"enable_thinking": false});
    assert_eq!(letters(&mut guide(FREE, &fields).0), "0123456789");
}

#[test]
fn marks_that_are_special_tokens_begin_and_end_a_thought() {
    let (mut guide, _) = guide(BRACKETS, &number());
    let first = allowed(&mut guide);
    assert!(first.contains(&514) && !first.contains(&515));
    accept(&mut guide, &[514, letter('x'), 515]);
    assert_eq!(letters(&mut guide), "0123456789");
}

#[test]
fn whatever_is_drawn_after_a_thought_is_of_the_form() {
    let fields = json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a",
        "schema": {"type": "object", "properties": {"a": {"type": "boolean"}},
            "required": ["a"], "additionalProperties": false}}}});
    let (guide, server) = guide(OPENS, &fields);
    let mut rng = Rng(5);
    for _ in 0..8 {
        let mut guide = guide.fork();
        let mut tokens: Vec<TokenId> = Vec::new();
        for _ in 0..rng.below(40) {
            let free = allowed(&mut guide);
            let token = free[rng.below(free.len())];
            if token == CLOSE {
                continue;
            }
            guide.accept(token).unwrap();
        }
        guide.mask().unwrap();
        guide.accept(CLOSE).unwrap();
        loop {
            let next = allowed(&mut guide);
            // Rather ones that close something than blanks.
            let close = next.iter().find(|&&t| t == EOS || server.tokenizer.token_str(t) == "}");
            let token = *close.unwrap_or(&next[rng.below(next.len())]);
            if token == EOS {
                break;
            }
            tokens.push(token);
            if guide.accept(token).unwrap() {
                break;
            }
        }
        let text = server.tokenizer.decode(&tokens, true);
        let json: Value = serde_json::from_str(&text).unwrap();
        assert!(json["a"].is_boolean(), "{text}");
    }
}

#[test]
fn blanks_after_a_thought_are_the_forms() {
    let server = Server::new(OPENS, "a </think> 5", true);
    let message = |fields: &Value| server.whole(fields)["message"].take();
    assert_eq!(message(&json!({"guided_regex": " [0-9]"}))["content"], " 5");
    assert_eq!(message(&json!({}))["content"], "5");
}

#[test]
fn a_thought_that_has_spent_its_budget_is_ended() {
    for form in [json!({}), number()] {
        let mut fields = form.clone();
        fields["thinking_token_budget"] = 3.into();
        for (template, begin) in [(OPENS, letter('a')), (FREE, OPEN)] {
            let (mut guide, _) = guide(template, &fields);
            accept(&mut guide, &[begin, letter('b'), letter('c')]);
            assert_eq!(allowed(&mut guide), [CLOSE], "{fields}");
            accept(&mut guide, &[CLOSE]);
            let is_free = allowed(&mut guide).len() == VOCABULARY as usize;
            assert_eq!(is_free, form == json!({}), "{fields}");
        }
    }
    let fields = json!({"thinking_token_budget": 0});
    assert_eq!(allowed(&mut guide(OPENS, &fields).0), [CLOSE]);
    // One that ends by itself, or never begins, is not touched.
    let mut guide = guide(FREE, &json!({"thinking_token_budget": 2})).0;
    let mut ended = guide.fork();
    accept(&mut ended, &[OPEN, CLOSE, letter('a')]);
    accept(&mut guide, &[letter('a'), letter('b'), letter('c')]);
    for mut guide in [guide, ended] {
        assert_eq!(allowed(&mut guide).len(), VOCABULARY as usize);
    }
    let fake = crate::fake::Fake::say("x");
    let body = super::body(&json!({"thinking_token_budget": 5}));
    let answer = crate::client::post(fake.address, super::CHAT, &body);
    assert_eq!((answer.status, answer.error().0.as_deref()), (400, Some("thinking_token_budget")));
}
