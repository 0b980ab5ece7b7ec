//! Tokenizers, streams of tokens and stop strings. Oracles: ids that transformers wrote, the
//! tokenizers library's own decoder, and a search of the whole text.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tessera::text::{
    Detokenizer, StopMatcher, TextError, TextFiles, Tokenizer, stop_token_ids, text_bytes_max,
};

use crate::Rng;

const CONTEXT_TOKENS_MAX: u32 = 512;
const TEXTS: &[&str] = &[
    "Hello world",
    "  the cat sat on the café",
    "日本語 and 👩‍👩‍👧 emoji ☕😀",
    "tabs\tand\n\nlines  ",
    "",
    " ",
];

fn data(name: &str) -> PathBuf {
    crate::root().join("tests/data/text").join(name)
}

fn json_of(name: &str) -> Value {
    serde_json::from_slice(&fs::read(data(name)).unwrap()).unwrap()
}

fn tokenizer(json: &Value) -> Result<Tokenizer, TextError> {
    Tokenizer::from_bytes(json.to_string().as_bytes(), CONTEXT_TOKENS_MAX)
}

/// Byte-level BPE; Llama 2's form; a Metaspace decoder; no decoder; and the library's own.
fn tokenizers() -> Vec<(&'static str, Arc<Tokenizer>, tokenizers::Tokenizer)> {
    let byte_level = json_of("byte_level/tokenizer.json");
    let llama2 = json_of("metaspace.json");
    let with = |decoder: Value| {
        let mut json = llama2.clone();
        // Ids that no token has.
        json["model"]["vocab"]["?"] = json!(400);
        json["decoder"] = decoder;
        json
    };
    let metaspace = |scheme: &str| {
        let space = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme});
        with(json!({"type": "Sequence", "decoders": [{"type": "ByteFallback"}, space]}))
    };
    let all = [
        ("byte level", byte_level),
        ("llama 2", llama2.clone()),
        ("metaspace always", metaspace("always")),
        ("metaspace never", metaspace("never")),
        ("no decoder", with(Value::Null)),
    ];
    let both = |(name, json): (_, Value)| {
        let theirs = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
        (name, Arc::new(tokenizer(&json).unwrap()), theirs)
    };
    all.into_iter().map(both).collect()
}

fn stream(detokenizer: &mut Detokenizer, ids: &[u32]) -> String {
    let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
    text += &detokenizer.finish();
    text
}

#[test]
fn text_becomes_the_tokens_that_transformers_gives() {
    let ours = Tokenizer::load(&data("byte_level"), CONTEXT_TOKENS_MAX).unwrap();
    let cases: [(&str, &[u32]); 3] = [
        ("Licensed under the terms of", &[0, 50, 306, 74, 393, 272, 459, 285]),
        (
            "Ünïcode — café ☕ and 日本語",
            &[
                0, 134, 257, 84, 134, 114, 73, 85, 342, 227, 165, 229, 249, 274, 71, 76, 134, 109,
                227, 165, 253, 250, 320, 227, 169, 252, 105, 169, 257, 112, 171, 110, 259,
            ],
        ),
        ("a", &[0, 71]),
    ];
    for (text, ids) in cases {
        assert_eq!(ours.encode(text, true).unwrap(), ids);
        assert_eq!(ours.encode(text, false).unwrap(), &ids[1..]);
        assert_eq!(ours.decode(ids, true), text);
        assert_eq!(ours.decode(ids, false), format!("<s>{text}"));
    }
    assert_eq!(ours.vocabulary_tokens(), 512);
}

#[test]
fn a_byte_fallback_tokenizer_writes_unknown_characters_as_bytes() {
    let ours = tokenizer(&json_of("metaspace.json")).unwrap();
    let ids = ours.encode("the cat sat 😀", true).unwrap();
    // <s> ▁the ▁cat ▁sat ▁ <0xF0> <0x9F> <0x98> <0x80>, and byte b is token 3 + b.
    assert_eq!(ids, [1, 314, 317, 320, 259, 243, 162, 155, 131]);
    assert_eq!(ours.decode(&ids, true), "the cat sat 😀");
    assert_eq!((ours.token_str(317), ours.token_bytes(243)), (" cat".into(), &b"\xF0"[..]));
    assert_eq!((ours.token_str(243), ours.token_str(1)), ("\u{FFFD}".into(), "<s>".into()));
    assert_eq!((ours.is_special(1), ours.is_special(317)), (true, false));
    assert_eq!((ours.token_bytes(u32::MAX), ours.is_special(u32::MAX)), (&b""[..], false));
}

#[test]
fn decoding_agrees_with_the_library_wherever_the_bytes_are_text() {
    let mut rng = Rng(1);
    for (name, ours, theirs) in tokenizers() {
        for text in TEXTS {
            for special in [false, true] {
                let ids = ours.encode(text, special).unwrap();
                assert_eq!(ids, theirs.encode(*text, special).unwrap().get_ids(), "{name}");
                let expected = theirs.decode(&ids, true).unwrap();
                assert_eq!(ours.decode(&ids, true), expected, "{name}: {text}");
            }
        }
        for _ in 0..3000 {
            // Ids beyond the vocabulary too: models have padded embeddings.
            let count = ours.vocabulary_tokens() as usize + 8;
            let ids: Vec<u32> = (0..rng.below(12)).map(|_| rng.below(count) as u32).collect();
            for skip in [false, true] {
                let expected = theirs.decode(&ids, skip).unwrap();
                let decoded = ours.decode(&ids, skip);
                // With byte fallback the library gives up a whole run of bytes for a bad one.
                if name == "byte level" || !expected.contains('\u{FFFD}') {
                    assert_eq!(decoded, expected, "{name}: {ids:?}");
                } else {
                    assert!(decoded.contains('\u{FFFD}'), "{name}: {ids:?}");
                }
            }
        }
    }
}

#[test]
fn a_stream_of_any_tokens_adds_up_to_their_text() {
    let mut rng = Rng(2);
    for (name, ours, _) in tokenizers() {
        for _ in 0..3000 {
            let count = ours.vocabulary_tokens() as usize + 8;
            let ids: Vec<u32> = (0..rng.below(40)).map(|_| rng.below(count) as u32).collect();
            let streamed = stream(&mut Detokenizer::new(ours.clone()), &ids);
            assert_eq!(streamed, ours.decode(&ids, true), "{name}: {ids:?}");
            let (prompt, rest) = ids.split_at(rng.below(ids.len() + 1));
            // What follows a prompt is what the whole has more than the prompt, unless a
            // character is cut in two there.
            let mut after = Detokenizer::after_prompt(ours.clone(), prompt);
            let (before, whole) = (ours.decode(prompt, true), ours.decode(&ids, true));
            if let Some(expected) = whole.strip_prefix(&before)
                && !before.ends_with('\u{FFFD}')
            {
                assert_eq!(stream(&mut after, rest), expected, "{name}: {prompt:?} {rest:?}");
            }
        }
    }
}

#[test]
fn a_character_of_several_tokens_appears_when_it_is_whole() {
    let text = "a😀é日";
    // Without a decoder tokens are words, and no character has several.
    for (name, ours, _) in tokenizers().into_iter().filter(|(name, ..)| *name != "no decoder") {
        let ids = ours.encode(text, false).unwrap();
        let mut detokenizer = Detokenizer::new(ours.clone());
        let mut streamed = String::new();
        for &id in &ids {
            let piece = detokenizer.push(id);
            assert!(!piece.contains('\u{FFFD}'), "{name}: {piece:?}");
            streamed += &piece;
            assert!(text.starts_with(streamed.trim_start()), "{name}");
        }
        assert_eq!(detokenizer.finish(), "", "{name}");
        // Cut inside the emoji, the start is never shown and the end of the stream says so.
        let emoji = ids.iter().position(|&id| ours.token_bytes(id).first() == Some(&0xF0));
        let mut cut = Detokenizer::new(ours.clone());
        let shown: String = ids[..=emoji.unwrap()].iter().map(|&id| cut.push(id)).collect();
        assert_eq!((shown.trim_start(), cut.finish().as_str()), ("a", "\u{FFFD}"), "{name}");
        // Begun in the prompt, it is written whole.
        let (prompt, rest) = ids.split_at(emoji.unwrap() + 2);
        let after = stream(&mut Detokenizer::after_prompt(ours.clone(), prompt), rest);
        assert!(after.starts_with('😀'), "{name}: {after}");
    }
}

#[test]
fn the_first_word_keeps_its_space_only_after_a_prompt() {
    let ours = Arc::new(tokenizer(&json_of("metaspace.json")).unwrap());
    // <s> ▁the | ▁cat ▁sat
    let (prompt, rest) = ([1, 314], [317, 320]);
    assert_eq!(stream(&mut Detokenizer::new(ours.clone()), &rest), "cat sat");
    assert_eq!(stream(&mut Detokenizer::after_prompt(ours.clone(), &prompt), &rest), " cat sat");
    assert_eq!(stream(&mut Detokenizer::after_prompt(ours, &[1]), &rest), "cat sat");
}

#[test]
fn a_long_stream_costs_the_same_for_every_token() {
    for (name, ours, _) in tokenizers().into_iter().filter(|(name, ..)| *name != "no decoder") {
        // Bytes that never become a character, which is what made others decode all again.
        let bad = (0..ours.vocabulary_tokens()).find(|&id| ours.token_bytes(id) == [0x80]);
        let mut detokenizer = Detokenizer::new(ours.clone());
        let start = Instant::now();
        for _ in 0..200_000 {
            assert_eq!(detokenizer.push(bad.unwrap()), "\u{FFFD}", "{name}");
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{name}");
    }
}

/// The rule by definition: at each byte's end, the longest stop string that ends there.
fn naive_stop(text: &str, stops: &[String]) -> (String, Option<usize>) {
    for end in 0..=text.len() {
        let ends = |s: &String| !s.is_empty() && text.as_bytes()[..end].ends_with(s.as_bytes());
        let longest = stops.iter().filter(|s| ends(s)).map(String::len).max();
        if let Some(longest) = longest {
            let index = stops.iter().position(|s| s.len() == longest && ends(s));
            return (text[..end - longest].to_owned(), index);
        }
    }
    (text.to_owned(), None)
}

#[test]
fn stop_strings_are_found_wherever_the_text_is_cut() {
    let letters = ["a", "b", "ab", "é", "è", "😀", "aa", "\n"];
    let mut rng = Rng(3);
    let words = |words_max: usize, letters_max: usize, rng: &mut Rng| -> Vec<String> {
        let word = |rng: &mut Rng| {
            (0..rng.below(letters_max)).map(|_| letters[rng.below(letters.len())]).collect()
        };
        (0..rng.below(words_max)).map(|_| word(rng)).collect()
    };
    let mut found = 0;
    for _ in 0..20_000 {
        let stops = words(4, 5, &mut rng);
        let pieces = words(10, 4, &mut rng);
        let text = pieces.concat();
        let (expected, index) = naive_stop(&text, &stops);
        let mut matcher = StopMatcher::new(stops.clone());
        let (mut emitted, mut seen, mut stopped) = (String::new(), String::new(), None);
        for piece in &pieces {
            let outcome = matcher.push(piece);
            emitted += &outcome.emit;
            seen += piece;
            assert!(stopped.is_none() || outcome == Default::default());
            stopped = stopped.or(outcome.stopped);
            if stopped.is_none() {
                // Held back: exactly the longest end that begins a stop string.
                let held = seen.strip_prefix(&emitted).unwrap();
                let begins = |end: &str| stops.iter().any(|s| s.starts_with(end));
                let longest = seen.char_indices().map(|(i, _)| &seen[i..]).find(|e| begins(e));
                assert_eq!(held, longest.unwrap_or(""), "{stops:?} {seen:?}");
            }
        }
        emitted += &matcher.finish();
        assert_eq!((emitted, stopped), (expected, index), "{stops:?} {pieces:?}");
        found += usize::from(stopped.is_some());
    }
    assert!(found > 3000, "only {found} of the cases stop");
}

#[test]
fn a_repetitive_stop_string_is_matched_in_linear_time() {
    let mut matcher = StopMatcher::new(vec!["a".repeat(10_000) + "b"]);
    let start = Instant::now();
    for _ in 0..100_000 {
        matcher.push("aaaa");
    }
    assert_eq!(matcher.push("b").stopped, Some(0));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_huge_text_is_refused_before_it_is_tokenized() {
    let ours = Tokenizer::load(&data("byte_level"), CONTEXT_TOKENS_MAX).unwrap();
    let text_bytes_max = text_bytes_max(CONTEXT_TOKENS_MAX);
    assert_eq!(text_bytes_max, 64 * 1024);
    assert_eq!(tessera::text::text_bytes_max(131_072), 2 << 20);
    let huge = "a".repeat(64 << 20);
    let start = Instant::now();
    let error = ours.encode(&huge, true).unwrap_err();
    assert!(start.elapsed() < Duration::from_millis(50));
    assert_eq!(error, TextError::TooLong { text_bytes_max });
    assert!(error.is_client_fault() && error.to_string().contains("65536 bytes"), "{error}");
    assert!(ours.encode(&huge[..text_bytes_max], true).is_ok());
}

#[test]
fn stop_tokens_are_those_of_the_configs_and_the_tokenizers_own() {
    let ours = Tokenizer::load(&data("byte_level"), CONTEXT_TOKENS_MAX).unwrap();
    let some = |json: Value| Some(json.to_string().into_bytes());
    let ids = |files: &TextFiles| stop_token_ids(files, &ours);
    let read = TextFiles::read(&data("byte_level")).unwrap();
    assert_eq!(ids(&read).unwrap(), [1]);
    let mut files = TextFiles {
        generation_config: some(json!({"eos_token_id": [5, 1, 5]})),
        config: some(json!({"eos_token_id": 2})),
        tokenizer_config: some(json!({"eos_token": {"content": "<|end|>"}})),
        ..Default::default()
    };
    assert_eq!(ids(&files).unwrap(), [5, 1, 6]);
    files.generation_config = some(json!({"eos_token_id": null}));
    assert_eq!(ids(&files).unwrap(), [2, 6]);
    files.config = None;
    assert_eq!(ids(&files).unwrap(), [6]);
    files.generation_config = some(json!({"eos_token_id": 6}));
    assert_eq!(ids(&files).unwrap(), [6]);
    files.tokenizer_config = some(json!({"eos_token": null}));
    assert_eq!(ids(&files).unwrap(), [6]);
    // special_tokens_map.json is read where tokenizer_config.json declares no tokens.
    files.special_tokens_map = some(json!({"eos_token": "</s>"}));
    assert_eq!(ids(&files).unwrap(), [6, 1]);
    files.tokenizer_config = some(json!({"eos_token": "</nowhere>"}));
    files.special_tokens_map = None;
    let error = ids(&files).unwrap_err();
    assert!(!error.is_client_fault() && error.to_string().contains("</nowhere>"), "{error}");
    assert_eq!(ids(&TextFiles::default()).unwrap(), [0u32; 0]);
    let bad = [json!(-1), json!([1, "2"]), json!(true), json!(1.5), json!({"a": 1}), json!([512])];
    for bad in bad {
        let config = some(json!({"eos_token_id": bad}));
        let error = ids(&TextFiles { config, ..Default::default() }).unwrap_err();
        assert!(matches!(error, TextError::FileBroken { file: "config.json", .. }), "{error}");
        assert!(error.to_string().contains("eos_token_id"), "{error}");
    }
    // An id beyond the tokenizer's is right where the model has an embedding for it.
    let config = some(json!({"eos_token_id": 519, "vocab_size": 520}));
    assert_eq!(ids(&TextFiles { config, ..Default::default() }).unwrap(), [519]);
}
