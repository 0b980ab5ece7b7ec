//! What each token adds to a text, as bytes, worked out once when the tokenizer is loaded.
//!
//! The decoders of language models' tokenizers act on each token by itself, but for the first
//! token of a text and for bytes that make up one character together. So a table of bytes and a
//! rule for the start replace the library's decoder, which can only decode a whole text again.

use serde_json::Value;
use tokenizers::Tokenizer;

use crate::ids::TokenId;

/// Ids index a table, so one absurd id must not make a table of gigabytes. The largest
/// vocabularies have 256k tokens.
const TOKEN_IDS_MAX: u32 = 1 << 22;

/// The bytes of every token.
pub(super) struct Vocabulary {
    /// All tokens' bytes end to end, in their form inside a text.
    bytes: Vec<u8>,
    /// Token `id` is `bytes[ends[id]..ends[id + 1]]`.
    ends: Vec<u32>,
    special: Vec<bool>,
    decoder: Decoder,
    /// The vocabulary's own spelling; empty if the start of a text is written like the rest.
    tokens: Vec<Option<String>>,
}

impl Vocabulary {
    /// # Errors
    /// A description of an id too large or a decoder not known.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, String> {
        let decoder = match tokenizer.get_decoder() {
            None => Decoder { steps: vec![Step::SpaceBefore], strip: None },
            Some(decoder) => {
                let json = serde_json::to_value(decoder).map_err(|error| error.to_string())?;
                Decoder::new(&json)?
            }
        };
        let added = tokenizer.get_added_tokens_decoder();
        let ids = tokenizer.get_vocab(true).into_values().chain(added.keys().copied());
        let count = ids.max().map_or(0, |id| u64::from(id) + 1);
        if count > u64::from(TOKEN_IDS_MAX) {
            return Err(format!("token ids must be below {TOKEN_IDS_MAX}, got {}", count - 1));
        }
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        let (mut special, mut tokens) = (Vec::new(), Vec::new());
        for id in 0..count as TokenId {
            let token = tokenizer.id_to_token(id);
            if let Some(token) = &token {
                bytes.extend(decoder.bytes(token, false));
            }
            let end = u32::try_from(bytes.len()).map_err(|_| "its tokens are too long")?;
            ends.push(end);
            let is_special = |t: &String| tokenizer.get_added_vocabulary().is_special_token(t);
            special.push(token.as_ref().is_some_and(is_special));
            tokens.push(token);
        }
        if !decoder.start_differs() {
            tokens = Vec::new();
        }
        Ok(Self { bytes, ends, special, decoder, tokens })
    }

    pub fn vocabulary_tokens(&self) -> u32 {
        self.special.len() as u32
    }

    pub fn is_special(&self, id: TokenId) -> bool {
        self.special.get(id as usize) == Some(&true)
    }

    /// What a token adds inside a text; nothing for an id that is no token.
    pub fn bytes(&self, id: TokenId) -> &[u8] {
        let id = id as usize;
        match (self.ends.get(id), self.ends.get(id + 1)) {
            (Some(&start), Some(&end)) => &self.bytes[start as usize..end as usize],
            _ => &[],
        }
    }

    /// What a token adds as the first of a text; `None` if that is [`Vocabulary::bytes`] for every
    /// token, and for an id that is no token.
    pub fn start_bytes(&self, id: TokenId) -> Option<Vec<u8>> {
        let token = self.tokens.get(id as usize)?.as_ref()?;
        Some(self.decoder.bytes(token, true))
    }

    /// A character that a text does not begin with, and how many of it are dropped.
    pub fn strip(&self) -> Option<(char, usize)> {
        self.decoder.strip
    }
}

/// A `decoder` of tokenizer.json in the form that works token by token.
#[derive(Debug)]
struct Decoder {
    steps: Vec<Step>,
    strip: Option<(char, usize)>,
}

/// What is done to each token, in order.
#[derive(Debug)]
enum Step {
    Replace {
        from: String,
        to: String,
    },
    /// `<0xE2>` is the byte E2.
    ByteFallback,
    /// Each character stands for a byte.
    ByteLevel,
    /// The replacement stands for a space, but for nothing in a text's first token.
    Metaspace {
        replacement: char,
        keep_first: bool,
    },
    /// No decoder: tokens are words.
    SpaceBefore,
}

impl Decoder {
    fn new(json: &Value) -> Result<Self, String> {
        let mut decoder = Self { steps: Vec::new(), strip: None };
        decoder.add(json, &mut false)?;
        Ok(decoder)
    }

    /// `fused`: the tokens are one string by now, so what acts on a token by itself cannot follow.
    fn add(&mut self, json: &Value, fused: &mut bool) -> Result<(), String> {
        let unsupported = || format!("its decoder is not supported: {json}");
        let text = |key: &str| json.get(key).and_then(Value::as_str).ok_or_else(unsupported);
        let letter = |key: &str| -> Result<char, String> {
            let mut letters = text(key)?.chars();
            letters.next().filter(|_| letters.next().is_none()).ok_or_else(unsupported)
        };
        let count = |key: &str| json.get(key).and_then(Value::as_u64).ok_or_else(unsupported);
        match text("type")? {
            "Sequence" => {
                let decoders = json.get("decoders").and_then(Value::as_array);
                for decoder in decoders.ok_or_else(unsupported)? {
                    self.add(decoder, fused)?;
                }
            }
            "Fuse" => *fused = true,
            "Strip" if *fused && self.strip.is_none() && count("stop")? == 0 => {
                self.strip = Some((letter("content")?, count("start")? as usize));
            }
            // After bytes or a strip, or across tokens, it would act on something else.
            "Replace" if !*fused => {
                let from = json.pointer("/pattern/String").and_then(Value::as_str);
                let from = from.filter(|from| !from.is_empty()).ok_or_else(unsupported)?;
                self.steps.push(Step::Replace { from: from.into(), to: text("content")?.into() });
            }
            "ByteFallback" if !*fused => self.steps.push(Step::ByteFallback),
            "ByteLevel" if !*fused => {
                *fused = true;
                self.steps.push(Step::ByteLevel);
            }
            "Metaspace" if !*fused => {
                let replacement = letter("replacement")?;
                let keep_first = text("prepend_scheme")? == "never";
                self.steps.push(Step::Metaspace { replacement, keep_first });
            }
            _ => return Err(unsupported()),
        }
        Ok(())
    }

    fn start_differs(&self) -> bool {
        let differs =
            |s: &Step| matches!(s, Step::SpaceBefore | Step::Metaspace { keep_first: false, .. });
        self.steps.iter().any(differs)
    }

    fn bytes(&self, token: &str, first: bool) -> Vec<u8> {
        let mut text = token.to_owned();
        for step in &self.steps {
            match step {
                Step::Replace { from, to } => text = text.replace(from, to),
                Step::ByteFallback => {
                    if let Some(byte) = fallback_byte(&text) {
                        return vec![byte];
                    }
                }
                Step::ByteLevel => {
                    // An added token may hold characters that stand for no byte.
                    let bytes: Option<Vec<u8>> = text.chars().map(level_byte).collect();
                    return bytes.unwrap_or_else(|| text.into_bytes());
                }
                Step::Metaspace { replacement, keep_first } => {
                    let space = if first && !keep_first { "" } else { " " };
                    text = text.replace(*replacement, space);
                }
                Step::SpaceBefore if first => {}
                Step::SpaceBefore => text.insert(0, ' '),
            }
        }
        text.into_bytes()
    }
}

/// The byte of a `<0xE2>`.
fn fallback_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    u8::from_str_radix(digits, 16).ok().filter(|_| digits.len() == 2)
}

/// The byte that a character of a byte-level vocabulary stands for: itself if it is printable in
/// Latin-1, else the next unused from U+0100 on (GPT-2's `bytes_to_unicode`).
fn level_byte(letter: char) -> Option<u8> {
    let code = u32::from(letter);
    let byte = match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => code,
        0x100..=0x120 => code - 0x100,
        0x121..=0x142 => code - 0x121 + 0x7F,
        0x143 => 0xAD,
        _ => return None,
    };
    u8::try_from(byte).ok()
}
