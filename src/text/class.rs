//! Which of transformers' tokenizer classes a directory gets, and what the class makes of
//! `tokenizer.json`.
//!
//! transformers 5 takes the whole file for its general class only. Other classes keep the
//! vocabulary, the merges and the post-processor of it, and put their own normalizer,
//! pre-tokenizer and decoder around them (`AutoTokenizer.from_pretrained` and `__init__` of each
//! class in `models/*/tokenization_*.py`), which can give other ids than the file says.

use serde_json::{Map, Value, json};

use super::added::Token;
use super::error::TextError;
use super::files::{TOKENIZER, TOKENIZER_CONFIG};

/// How Qwen2's class splits a text.
const QWEN2_SPLIT: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
);

/// Classes that also make their own tokenizer, in a way that is not rebuilt here. Any other name
/// is that of the general class, or one that transformers does not know and takes for it.
const NOT_REBUILT: &str = "Albert Bart Barthez Bartpho Bert BertGeneration BertJapanese Bertweet \
    BigBird BioGpt Blenderbot BlenderbotSmall ByT5 CLIP CTRL Camembert Canine Clvp CodeGen \
    Cohere Cpm CpmAnt DPRContextEncoder DPRQuestionEncoder DPRReader Deberta DebertaV2 \
    Dia DistilBert Electra Esm Esmc FSMT FastSpeech2Conformer Flaubert Funnel GPTNeoXJapanese \
    GPTSw3 Gemma Herbert LED Lasr LayoutLM LayoutLMv2 LayoutLMv3 LayoutXLM Luke Lxmert M2M100 \
    MBart MBart50 MLuke MPNet MT5 Marian MarkupLM Mgpstr MobileBert Mvp MyT5 Nllb Nougat \
    OpenAIGPT PLBart Pegasus Perceiver Phobert Pop2Piano ProphetNet Qwen3_5 Rag Reformer RemBert \
    RoCBert RoFormer Roberta SeamlessM4T Siglip Siglip2 Speech2Text SpeechT5 Splinter \
    SqueezeBert T5 Tapas Tipsv2 Udop VideoPrism Vits Wav2Vec2CTC Wav2Vec2PhonemeCTC Whisper XGLM \
    XLM XLMRoberta XLNet";

/// The field that has transformers replace the pre-tokenizer of tokenizer.json.
pub(super) const REPAIRED: &str = "fix_mistral_regex";

/// The classes that are served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Class {
    /// tokenizer.json as it stands.
    General,
    Llama,
    CodeLlama,
    Qwen2,
    Gpt2,
    GptNeoX,
}

impl Class {
    /// `model` is config.json, `config` tokenizer_config.json.
    pub fn of(model: &Value, config: &Value, tokenizer: Option<&[u8]>) -> Result<Self, TextError> {
        let wrong = |problem: String| TextError::broken(TOKENIZER_CONFIG, problem);
        let code = config.get("auto_map").filter(|map| !map.is_null());
        if code.is_some_and(|map| map.is_array() || map.get("AutoTokenizer").is_some()) {
            let problem = "auto_map names code of the repository as the tokenizer, which is not \
                           run; remove AutoTokenizer from it to use tokenizer.json as it stands";
            return Err(wrong(problem.into()));
        }
        let named = |place: &Value| -> Result<Option<String>, TextError> {
            match place.get("tokenizer_class") {
                None | Some(Value::Null) => Ok(None),
                Some(Value::String(name)) if name.is_empty() => Ok(None),
                Some(Value::String(name)) => {
                    Ok(Some(name.strip_suffix("Fast").unwrap_or(name).into()))
                }
                Some(other) => Err(wrong(format!("tokenizer_class must be a name, got {other}"))),
            }
        };
        let name = match named(config)? {
            None => named(model)?,
            name => name,
        };
        let name = name.as_deref();
        let family = model.get("model_type").and_then(Value::as_str);
        match (family, name) {
            // The names in Qwen2's and Mistral's files are known to be wrong.
            (Some("qwen2"), _) | (Some("qwen3"), None) => Ok(Self::Qwen2),
            (Some("mistral"), _) => Ok(Self::General),
            (_, Some("LlamaTokenizer")) if tokenizer.is_none_or(is_byte_level) => Ok(Self::General),
            (_, Some("LlamaTokenizer")) => Ok(Self::Llama),
            (_, Some("CodeLlamaTokenizer")) => Ok(Self::CodeLlama),
            (_, Some("Qwen2Tokenizer")) => Ok(Self::Qwen2),
            (_, Some("GPT2Tokenizer")) => Ok(Self::Gpt2),
            (_, Some("GPTNeoXTokenizer")) => Ok(Self::GptNeoX),
            (_, Some(name)) if is_not_rebuilt(name) => Err(wrong(format!(
                "tokenizer_class {name:?} makes its own tokenizer of the vocabulary, which is \
                 not supported; set it to \"PreTrainedTokenizerFast\" to use tokenizer.json as \
                 it stands"
            ))),
            _ => Ok(Self::General),
        }
    }

    /// Special tokens that the class has if the files name none.
    pub fn defaults(self) -> &'static [(&'static str, &'static str)] {
        const END: &str = "<|endoftext|>";
        match self {
            Self::General => &[],
            Self::Llama | Self::CodeLlama => {
                &[("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>")]
            }
            Self::Qwen2 => &[("eos_token", END), ("unk_token", END), ("pad_token", END)],
            Self::Gpt2 => &[("bos_token", END), ("eos_token", END), ("unk_token", END)],
            Self::GptNeoX => &[
                ("bos_token", END),
                ("eos_token", END),
                ("unk_token", END),
                ("pad_token", "<|padding|>"),
            ],
        }
    }

    /// Further names that the class has, unless a file says that there is no such token.
    pub fn own_names(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::CodeLlama => &[
                ("prefix_token", "▁<PRE>"),
                ("middle_token", "▁<MID>"),
                ("suffix_token", "▁<SUF>"),
                ("eot_token", "▁<EOT>"),
                ("fill_token", "<FILL_ME>"),
            ],
            _ => &[],
        }
    }

    /// Whether the padding of tokenizer.json names a `pad_token` that no file names.
    pub fn takes_padding_token(self) -> bool {
        matches!(self, Self::General | Self::Llama | Self::CodeLlama)
    }

    /// Whether every special token is added once more, without flags.
    pub fn adds_special_again(self) -> bool {
        self == Self::Qwen2
    }

    /// The tokenizer.json that the class stands for, without added tokens; `None` for the file's
    /// own.
    pub fn rebuild(
        self,
        file: &[u8],
        config: &Value,
        named: &[(String, Token)],
    ) -> Result<Option<Value>, TextError> {
        if self == Self::General {
            return Ok(None);
        }
        let broken = |problem: String| TextError::broken(TOKENIZER, problem);
        let mut file: Value =
            serde_json::from_slice(file).map_err(|error| broken(error.to_string()))?;
        let flag = |name: &str| match config.get(name) {
            None => Ok(None),
            Some(Value::Null) => Ok(Some(None)),
            Some(Value::Bool(flag)) => Ok(Some(Some(*flag))),
            Some(other) => Err(TextError::broken(
                TOKENIZER_CONFIG,
                format!("{name} must be true or false, got {other}"),
            )),
        };
        let prefix = flag("add_prefix_space")?.flatten();
        let legacy = flag("legacy")?;
        let content = |name: &str| {
            let mut named = named.iter().filter(|(other, _)| other == name);
            named.next().map(|(_, token)| token.content.as_str())
        };
        let model = file.get_mut("model").map(Value::take).unwrap_or_default();
        if model.get("type").is_some_and(|kind| kind != "BPE") || !model["merges"].is_array() {
            return Err(broken(format!(
                "the model must be BPE for the tokenizer_class that transformers chooses \
                 ({self:?}), got {}; set tokenizer_class to \"PreTrainedTokenizerFast\" to use \
                 tokenizer.json as it stands",
                model["type"]
            )));
        }
        let model = self.model(model, content("unk_token"));
        let processor = match self {
            // Its __init__ makes one of add_bos_token and add_eos_token, which are not read
            // where there is a tokenizer.json.
            Self::GptNeoX => Value::Null,
            Self::CodeLlama => match content("bos_token") {
                None => Value::Null,
                Some(bos) => begin(bos, &model["vocab"][bos]),
            },
            _ => file.get_mut("post_processor").map(Value::take).unwrap_or_default(),
        };
        let (normalizer, pre_tokenizer, decoder) = match self {
            Self::Llama => {
                // False if it is not said, and true if it is null.
                let always = legacy == Some(Some(true));
                metaspace(prefix.unwrap_or(true), always, prefix.unwrap_or(true))
            }
            Self::CodeLlama => metaspace(prefix.unwrap_or(true), false, true),
            Self::Qwen2 => {
                let split = json!({"type": "Split", "pattern": {"Regex": QWEN2_SPLIT},
                    "behavior": "Isolated", "invert": false});
                let bytes = byte_level(prefix.unwrap_or(false), false);
                let both = json!({"type": "Sequence", "pretokenizers": [split, bytes]});
                (json!({"type": "NFC"}), both, byte_level(true, true))
            }
            Self::GptNeoX => {
                let bytes = byte_level(prefix.unwrap_or(false), true);
                (json!({"type": "NFC"}), bytes, byte_level(true, true))
            }
            Self::Gpt2 | Self::General => {
                (Value::Null, byte_level(prefix.unwrap_or(false), true), byte_level(true, true))
            }
        };
        Ok(Some(json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
            "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": decoder,
            "post_processor": processor, "model": model,
        })))
    }

    fn model(self, mut file: Value, unk_token: Option<&str>) -> Value {
        let llama = matches!(self, Self::Llama | Self::CodeLlama);
        let unk_token = unk_token.filter(|_| self == Self::CodeLlama);
        let affix = if llama { Value::Null } else { "".into() };
        let vocabulary = match file["vocab"].take() {
            // Older files list the tokens in the order of their ids.
            Value::Array(tokens) => {
                let content = |token: Value| token.get(0).unwrap_or(&token).clone();
                let named = tokens.into_iter().map(content).enumerate();
                let entry = |(id, token): (usize, Value)| Some((token.as_str()?.into(), id.into()));
                Value::Object(named.filter_map(entry).collect::<Map<String, Value>>())
            }
            vocabulary => vocabulary,
        };
        json!({
            "type": "BPE", "dropout": null, "unk_token": unk_token, "fuse_unk": llama,
            "continuing_subword_prefix": affix, "end_of_word_suffix": affix,
            "byte_fallback": llama, "ignore_merges": false, "vocab": vocabulary,
            "merges": file["merges"].take(),
        })
    }
}

fn byte_level(add_prefix_space: bool, use_regex: bool) -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": true,
        "use_regex": use_regex})
}

/// A post-processor that puts a token before a text.
fn begin(token: &str, id: &Value) -> Value {
    let special = json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = json!({"Sequence": {"id": "A", "type_id": 0}});
    let second = json!({"Sequence": {"id": "B", "type_id": 1}});
    json!({"type": "TemplateProcessing", "single": [special, text], "pair": [text, second],
        "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}}})
}

/// A space stands before a text or, if it does `always`, before each piece of it; `strips`: the
/// first space of decoded text goes.
fn metaspace(prefix: bool, always: bool, strips: bool) -> (Value, Value, Value) {
    let scheme = match (prefix, always) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let pre_tokenizer = json!({"type": "Metaspace", "replacement": "▁",
        "prepend_scheme": scheme, "split": false});
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if strips {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    (Value::Null, pre_tokenizer, json!({"type": "Sequence", "decoders": decoders}))
}

/// Whether transformers takes a file for byte-level BPE, whatever class its config names.
fn is_byte_level(file: &[u8]) -> bool {
    std::str::from_utf8(file).is_ok_and(|text| text.contains("\"ByteLevel\""))
}

fn is_not_rebuilt(name: &str) -> bool {
    let known = name.strip_suffix("Tokenizer");
    known.is_some_and(|known| NOT_REBUILT.split_whitespace().any(|other| other == known))
}
