//! A tokenizer's files and a text. The same text has the same tokens again, and no token of it is
//! beyond the vocabulary.

use std::fs;

use serde_json::{Value, json};
use tessera::text::{TextFiles, Tokenizer, stop_token_ids};

use super::{Target, same, text};
use crate::mutate::joined;
use crate::root;

const CONTEXT_TOKENS_MAX: u32 = 512;
/// Entries of a vocabulary that a good input keeps: with fewer bytes more of it is mutated.
const VOCABULARY_KEPT: usize = 300;
const TEXT: &str = " The fox's 12 cafés:\n\t日本 <s>x</s> 😀";

/// A file with the first entries of its vocabulary and no merges of others.
fn shorter(mut file: Value) -> Value {
    let model = &mut file["model"];
    if let Some(vocabulary) = model["vocab"].as_object_mut() {
        vocabulary.retain(|_, id| id.as_u64().is_some_and(|id| id < VOCABULARY_KEPT as u64));
    }
    let vocabulary = model["vocab"].as_object().cloned();
    if let (Some(vocabulary), Some(merges)) = (vocabulary, model["merges"].as_array_mut()) {
        let parts = |merge: &Value| match merge {
            Value::String(text) => text.split(' ').map(str::to_owned).collect::<Vec<_>>(),
            Value::Array(pair) => {
                pair.iter().filter_map(|t| t.as_str().map(str::to_owned)).collect()
            }
            _ => Vec::new(),
        };
        merges.retain(|merge| {
            let all = parts(merge);
            all.iter().chain([&all.concat()]).all(|token| vocabulary.contains_key(token))
        });
    }
    file
}

fn seeds() -> Vec<Vec<u8>> {
    let read = |file: &str| fs::read(root().join(file)).expect("a tokenizer");
    let parsed = |file: &str| serde_json::from_slice::<Value>(&read(file)).expect("JSON");
    let config = read("tests/data/text/byte_level/tokenizer_config.json");
    let byte_level = shorter(parsed("tests/data/text/byte_level/tokenizer.json"));
    let metaspace = shorter(parsed("tests/data/text/metaspace.json"));
    let mut seeds = Vec::new();
    for mut file in [byte_level, metaspace] {
        seeds.push(joined(&[&config[..], TEXT.as_bytes(), file.to_string().as_bytes()]));
        file["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "NFKC"},
            {"type": "Prepend", "prepend": "_"},
            {"type": "Replace", "pattern": {"Regex": "\\s+"}, "content": " "}]});
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\d"}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
                "use_regex": true}]});
        seeds.push(joined(&[b"{}", TEXT.as_bytes(), file.to_string().as_bytes()]));
    }
    seeds
}

fn check(files: &TextFiles, words: &str) -> Result<String, String> {
    let tokenizer = match Tokenizer::from_files(files, CONTEXT_TOKENS_MAX) {
        Ok(tokenizer) => tokenizer,
        Err(error) => return Ok(error.to_string()),
    };
    let again = Tokenizer::from_files(files, CONTEXT_TOKENS_MAX).map_err(|e| e.to_string())?;
    same(&again.digest(), &tokenizer.digest(), "a tokenizer")?;
    let ends = match stop_token_ids(files, &tokenizer) {
        Ok(ends) => ends.len(),
        Err(error) => return Ok(error.to_string()),
    };
    let ids = match tokenizer.encode(words, true) {
        Ok(ids) => ids,
        Err(error) => return Ok(error.to_string()),
    };
    same(&again.encode(words, true), &Ok(ids.clone()), "a text's tokens")?;
    if let Some(id) = ids.iter().find(|&&id| id >= tokenizer.vocabulary_tokens()) {
        return Err(format!("token {id} of {}", tokenizer.vocabulary_tokens()));
    }
    let bytes: usize = ids.iter().map(|&id| tokenizer.token_bytes(id).len()).sum();
    let decoded = tokenizer.decode(&ids, false);
    // Bytes that are no UTF-8 become three each.
    if decoded.len() > 3 * bytes + 16 {
        return Err(format!("{bytes} bytes of tokens become {}", decoded.len()));
    }
    let (notes, is_alike) = (tokenizer.notes().join("; "), decoded == words);
    Ok(format!("a text that {ends} tokens end, decoded alike: {is_alike}; {notes}"))
}

/// `tokenizer_config.json`, a text, and `tokenizer.json`.
pub const TOKENIZER: Target = Target {
    name: "tokenizer",
    seeds,
    words: &[
        "version",
        "truncation",
        "padding",
        "added_tokens",
        "id",
        "content",
        "single_word",
        "lstrip",
        "rstrip",
        "normalized",
        "special",
        "normalizer",
        "pre_tokenizer",
        "decoder",
        "post_processor",
        "model",
        "type",
        "BPE",
        "WordPiece",
        "WordLevel",
        "Unigram",
        "vocab",
        "merges",
        "unk_token",
        "unk_id",
        "dropout",
        "byte_fallback",
        "fuse_unk",
        "ignore_merges",
        "continuing_subword_prefix",
        "end_of_word_suffix",
        "max_input_chars_per_word",
        "Sequence",
        "normalizers",
        "pretokenizers",
        "decoders",
        "processors",
        "NFC",
        "NFKD",
        "Lowercase",
        "Strip",
        "StripAccents",
        "Nmt",
        "Precompiled",
        "precompiled_charsmap",
        "Replace",
        "Prepend",
        "prepend",
        "pattern",
        "Regex",
        "String",
        "ByteLevel",
        "Metaspace",
        "replacement",
        "prepend_scheme",
        "always",
        "first",
        "never",
        "split",
        "Split",
        "behavior",
        "Isolated",
        "Removed",
        "MergedWithPrevious",
        "Contiguous",
        "invert",
        "Digits",
        "individual_digits",
        "Punctuation",
        "Whitespace",
        "BertPreTokenizer",
        "UnicodeScripts",
        "CharDelimiterSplit",
        "Fuse",
        "ByteFallback",
        "CTC",
        "BPEDecoder",
        "TemplateProcessing",
        "single",
        "pair",
        "special_tokens",
        "SpecialToken",
        "type_id",
        "ids",
        "tokens",
        "RobertaProcessing",
        "add_prefix_space",
        "trim_offsets",
        "use_regex",
        "(a+)+$",
        "\\s+",
        ".",
        "^",
        "(?=",
        "Ġ",
        "▁",
        "<s>",
        "</s>",
        "<unk>",
        "<0x0A>",
        "add_bos_token",
        "add_eos_token",
        "eos_token",
        "bos_token",
        "tokenizer_class",
        "added_tokens_decoder",
        "clean_up_tokenization_spaces",
        "model_max_length",
        "legacy",
        "split_special_tokens",
        "extra_special_tokens",
    ],
    start: || {
        Box::new(|parts| {
            let part = |at: usize| parts.get(at).map(|bytes| bytes.to_vec());
            let files =
                TextFiles { tokenizer_config: part(0), tokenizer: part(2), ..TextFiles::default() };
            check(&files, &text(parts, 1))
        })
    },
    slice: 60,
    heap_bytes_max: 128 << 20,
};
