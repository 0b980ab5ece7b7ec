//! Texts taken apart.

use tessera::text::{Opening, Split, ThoughtReader, ThoughtSyntax};

use crate::Rng;

/// Marks, what the prompt says, a text, the thought in it, and the rest.
type Case = (ThoughtSyntax, Opening, &'static str, &'static str, &'static str);

const CASES: &[Case] = &[
    (
        ThoughtSyntax::Tagged,
        Opening::Free,
        "<think>\nOne.\n\nTwo.\n</think>\n\nA.",
        "One.\n\nTwo.",
        "A.",
    ),
    (
        ThoughtSyntax::Tagged,
        Opening::Free,
        " \n<think>é</think>A </think> <think>",
        "é",
        "A </think> <think>",
    ),
    (ThoughtSyntax::Tagged, Opening::Free, "A <think>b</think>", "", "A <think>b</think>"),
    (ThoughtSyntax::Tagged, Opening::Free, "<thinking>", "", "<thinking>"),
    (ThoughtSyntax::Tagged, Opening::Free, "\n A", "", "\n A"),
    (ThoughtSyntax::Tagged, Opening::Free, "<think>\n\n</think>\n\nA", "", "A"),
    (
        ThoughtSyntax::Tagged,
        Opening::Free,
        "<think>no end </thi nor </</think",
        "no end </thi nor </</think",
        "",
    ),
    (ThoughtSyntax::Tagged, Opening::Open, "a < b </think> c", "a < b", "c"),
    (ThoughtSyntax::Tagged, Opening::Open, "\n<think>a</</think>b", "a</", "b"),
    (ThoughtSyntax::Tagged, Opening::Open, "</think>a", "", "a"),
    (ThoughtSyntax::Tagged, Opening::Open, "a", "a", ""),
    (ThoughtSyntax::Tagged, Opening::Closed, "\n<think>a</think>b", "", "\n<think>a</think>b"),
    (ThoughtSyntax::Bracketed, Opening::Free, "[THINK]a [/THIN b[/THINK]c", "a [/THIN b", "c"),
    (ThoughtSyntax::Bracketed, Opening::Free, "[TOOL_CALLS]", "", "[TOOL_CALLS]"),
    (
        ThoughtSyntax::Seeded,
        Opening::Free,
        "<seed:think>a</think></seed:think>\nb",
        "a</think>",
        "b",
    ),
    (
        ThoughtSyntax::Told,
        Opening::Free,
        "Here is my thought process: Here is my Here is my response: b: Here",
        "Here is my",
        "b: Here",
    ),
    (
        ThoughtSyntax::Told,
        Opening::Free,
        "Here's my thought process:\na\n\nHere's my response:\nb",
        "a",
        "b",
    ),
    (ThoughtSyntax::Told, Opening::Free, "Here is my answer: 5", "", "Here is my answer: 5"),
];

fn take<'a>(
    syntax: ThoughtSyntax,
    opening: Opening,
    pieces: impl Iterator<Item = &'a str>,
    is_cut: bool,
) -> Split {
    let mut reader = ThoughtReader::new(syntax, opening);
    let mut taken = Split::default();
    for piece in pieces {
        let Split { thought, text } = reader.push(piece);
        assert!(thought.is_empty() || taken.text.is_empty(), "a thought comes first");
        taken.thought += &thought;
        taken.text += &text;
    }
    let Split { thought, text } = reader.finish(is_cut);
    taken.thought += &thought;
    taken.text += &text;
    taken
}

#[test]
fn thoughts_of_every_syntax_are_found_and_what_is_none_stays_text() {
    for &(syntax, opening, text, thought, rest) in CASES {
        let split = Split { thought: thought.to_owned(), text: rest.to_owned() };
        assert_eq!(take(syntax, opening, [text].into_iter(), false), split, "{text}");
    }
}

#[test]
fn wherever_a_text_is_cut_the_same_thought_is_found() {
    let mut rng = Rng(11);
    let openings = [Opening::Free, Opening::Open, Opening::Closed];
    for round in 0..4_000 {
        let (syntax, own, ..) = CASES[rng.below(CASES.len())];
        // Parts of two texts, so that all kinds of broken ones are met.
        let mut text = String::new();
        for _ in 0..1 + round % 2 {
            let chars: Vec<char> = CASES[rng.below(CASES.len())].2.chars().collect();
            let start = if rng.below(2) == 0 { 0 } else { rng.below(chars.len()) };
            text.extend(&chars[start..]);
        }
        let opening = if rng.below(2) == 0 { own } else { openings[rng.below(3)] };
        let is_cut = rng.below(2) == 0;
        let whole = take(syntax, opening, [text.as_str()].into_iter(), is_cut);
        let mut pieces = Vec::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let end = rest.char_indices().nth(1 + rng.below(5)).map_or(rest.len(), |(end, _)| end);
            pieces.push(&rest[..end]);
            rest = &rest[end..];
        }
        assert_eq!(take(syntax, opening, pieces.into_iter(), is_cut), whole, "{syntax:?} {text}");
    }
}

#[test]
fn of_a_text_that_is_cut_no_mark_is_shown() {
    for &(syntax, opening, text, thought, rest) in CASES {
        for end in (0..text.len()).filter(|&end| text.is_char_boundary(end)) {
            let taken = take(syntax, opening, [&text[..end]].into_iter(), true);
            // A first character, or words, may be any text's.
            let is_word = syntax == ThoughtSyntax::Told;
            let is_first = taken.text.trim_start().len() < 2;
            assert!(thought.starts_with(&taken.thought) || is_word, "{text}: {taken:?}");
            assert!(rest.starts_with(&taken.text) || is_word || is_first, "{text}: {taken:?}");
        }
    }
}
