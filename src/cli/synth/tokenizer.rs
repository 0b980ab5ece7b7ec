//! A byte-level BPE tokenizer of exactly the size asked for.

use serde_json::{Map, Value, json};

/// Special tokens, from id 0.
pub const SPECIALS: [&str; 7] =
    ["<s>", "</s>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"];
/// The special tokens and the 256 bytes.
pub const VOCABULARY_MIN: usize = SPECIALS.len() + 256;

/// The template in `tokenizer_config.json`.
pub const CHAT_TEMPLATE: &str = "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n\
     {{ m['content'] | trim }}<|end|>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>\n\
     {% endif %}";

/// `tokenizer.json` with `vocabulary` tokens: the special ones, the bytes, then merges of letters
/// (`th`, `the`, …), with a space before the first or not, until it is full.
pub fn tokenizer(vocabulary: usize) -> Value {
    let mut vocab = Map::new();
    let add = |vocab: &mut Map<String, Value>, token: String| {
        let id = vocab.len();
        vocab.insert(token, id.into());
    };
    for special in SPECIALS {
        add(&mut vocab, special.to_owned());
    }
    for byte in 0..=255 {
        add(&mut vocab, byte_char(byte).to_string());
    }
    let mut merges = Vec::new();
    let space = byte_char(b' ').to_string();
    let mut shorter: Vec<String> = ('a'..='z').map(String::from).chain([space]).collect();
    while vocab.len() < vocabulary {
        let mut longer = Vec::new();
        for (left, letter) in shorter.iter().flat_map(|l| ('a'..='z').map(move |c| (l, c))) {
            if vocab.len() == vocabulary {
                break;
            }
            let token = format!("{left}{letter}");
            merges.push(Value::String(format!("{left} {letter}")));
            add(&mut vocab, token.clone());
            longer.push(token);
        }
        shorter = longer;
    }
    let special = |(id, content): (usize, &&str)| {
        json!({
            "id": id, "content": content, "special": true, "normalized": false,
            "single_word": false, "lstrip": false, "rstrip": false,
        })
    };
    let byte_level = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
    });
    let bos = json!({ "SpecialToken": { "id": SPECIALS[0], "type_id": 0 } });
    let sequence = |id: &str, kind: u32| json!({ "Sequence": { "id": id, "type_id": kind } });
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": SPECIALS.iter().enumerate().map(special).collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": byte_level,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [bos, sequence("A", 0)],
            "pair": [bos, sequence("A", 0), sequence("B", 1)],
            "special_tokens": {
                SPECIALS[0]: { "id": SPECIALS[0], "ids": [0], "tokens": [SPECIALS[0]] },
            },
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": merges,
        },
    })
}

/// GPT-2's alphabet: a byte that prints stands for itself, the others are moved above 255.
fn byte_char(byte: u8) -> char {
    let prints = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    if prints(byte) {
        return char::from(byte);
    }
    let moved = (0..byte).filter(|&b| !prints(b)).count() as u32;
    char::from_u32(256 + moved).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::str::FromStr;

    #[test]
    fn it_has_the_size_asked_for_and_gives_text_back() {
        for size in [VOCABULARY_MIN, VOCABULARY_MIN + 1, 4096, 32_000] {
            let json = tokenizer(size).to_string();
            let tokenizer = tokenizers::Tokenizer::from_str(&json).unwrap();
            assert_eq!(tokenizer.get_vocab_size(true), size);
            let text = "The quick brown fox — naïve 東京 \u{1F98A}\n\t{}<>";
            let encoded = tokenizer.encode(text, true).unwrap();
            assert_eq!(encoded.get_ids()[0], 0);
            assert_eq!(tokenizer.decode(encoded.get_ids(), true).unwrap(), text);
        }
    }

    #[test]
    fn merges_shorten_text() {
        let tokenizer = tokenizers::Tokenizer::from_str(&tokenizer(32_000).to_string()).unwrap();
        let encoded = tokenizer.encode("the the", false).unwrap();
        assert!(encoded.get_ids().len() <= 4, "7 bytes: {:?}", encoded.get_tokens());
    }
}
