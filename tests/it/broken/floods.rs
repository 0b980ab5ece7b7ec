//! Adapters that are small to write and would cost much to read.

use serde_json::{Map, Value, json};

use super::{Case, edit};
use crate::files::Raw;

pub fn cases() -> Vec<Case> {
    [patterns(), lists(), names()].into_iter().flatten().collect()
}

/// As many patterns as `count`, none of them a plain name.
fn ranks(count: usize) -> Value {
    let entry = |i: usize| (format!("^model.layers.{i}.(a|b)+[0-9]{{1,50}}q_proj$"), json!(8));
    Value::Object((0..count).map(entry).collect::<Map<_, _>>())
}

fn patterns() -> Vec<Case> {
    const MANY: &str = "goes beyond 128 patterns in one config";
    vec![
        edit("too many patterns of ranks", "lora_qv", &["'rank_pattern'", MANY], |d| {
            d.set("rank_pattern", ranks(10_000));
        }),
        edit("too many patterns: alphas", "lora_qv", &["'alpha_pattern'", MANY], |d| {
            d.set("alpha_pattern", ranks(129));
        }),
        // Of both together.
        edit("too many patterns: of two fields", "lora_qv", &["'alpha_pattern'", MANY], |d| {
            d.set("rank_pattern", ranks(100));
            d.set("alpha_pattern", ranks(100));
        }),
        edit("too many patterns: saved modules", "lora_qv", &["'modules_to_save'", MANY], |d| {
            d.set("modules_to_save", (0..200).map(|i| format!("m[{i}]")).collect::<Vec<_>>());
        }),
        edit("too many patterns: layers", "lora_qv", &["'layers_pattern'", MANY], |d| {
            d.set("layers_to_transform", json!([0]));
            d.set("layers_pattern", (0..200).map(|i| format!("l{i}")).collect::<Vec<_>>());
        }),
        edit(
            "too many looks ahead",
            "lora_qv",
            &["'target_modules'", "ahead, behind or back"],
            |d| {
                d.set("target_modules", r"(?=\w{1,100}x)".repeat(3000));
            },
        ),
        edit("too many looks behind", "lora_qv", &["'target_modules'", "back 200 times"], |d| {
            d.set("target_modules", format!("(a|.*q_proj){}", r"\1".repeat(200)));
        }),
    ]
}

fn lists() -> Vec<Case> {
    const MAX: &str = "at most 16384 are read";
    let names = || (0..100_000).map(|i| format!("m{i}")).collect::<Vec<_>>();
    vec![
        edit("a list without end", "lora_qv", &["'modules_to_save' has 100000", MAX], move |d| {
            d.set("modules_to_save", names());
        }),
        edit("a list without end: targets", "lora_qv", &["'target_modules' has 100000", MAX], {
            move |d| d.set("target_modules", names())
        }),
        edit("a list without end: left out", "lora_qv", &["'exclude_modules' has", MAX], {
            move |d| d.set("exclude_modules", names())
        }),
        edit("a list without end: layers", "lora_qv", &["'layers_to_transform' has", MAX], |d| {
            d.set("layers_to_transform", (0..20_000).collect::<Vec<_>>());
        }),
        edit("a list without end: ranks", "lora_qv", &["'rank_pattern' has 20000", MAX], |d| {
            let all = (0..20_000).map(|i| (format!("m{i}"), json!(1)));
            d.set("rank_pattern", Value::Object(all.collect()));
        }),
    ]
}

fn names() -> Vec<Case> {
    let long = || format!("base_model.model.{}q", "module.".repeat(20_000));
    vec![edit("a name without end", "lora_qv", &["base_model.model", "at most 1024"], move |d| {
        d.insert(&long(), Raw::f32(&[1], &[0.0]));
    })]
}
