//! A server whose model says one text, with a tokenizer and a template of the test's own.

use std::sync::Arc;

use serde_json::{Value, json};
use tessera::engine::FinishReason;
use tessera::http::App;
use tessera::ids::TokenId;
use tessera::text::{ChatTemplate, SamplingDefaults, ServedText, TextFiles, Tokenizer};

use crate::fake::{EOS, Fake, Script};

const CONTEXT_TOKENS_MAX: u32 = 4096;
/// Tokens of the byte-level tokenizer.
const TOKENS: usize = 512;

/// A byte-level tokenizer in which these marks are tokens, special ones or not, from 512 on.
pub fn tokenizer(marks: &[(&str, bool)]) -> Arc<Tokenizer> {
    let dir = crate::root().join("tests/data/text/byte_level");
    let mut files = TextFiles::read(&dir).unwrap();
    let mut json: Value = serde_json::from_slice(files.tokenizer.as_ref().unwrap()).unwrap();
    for (i, (mark, is_special)) in marks.iter().enumerate() {
        let added = json!({"id": TOKENS + i, "content": mark, "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": is_special});
        json["added_tokens"].as_array_mut().unwrap().push(added);
    }
    files.tokenizer = Some(json.to_string().into_bytes());
    Arc::new(Tokenizer::from_files(&files, CONTEXT_TOKENS_MAX).unwrap())
}

/// A server whose model says one text.
pub struct Spoken {
    pub fake: Fake,
    pub template: Arc<ChatTemplate>,
    /// Those of the text, with the one that ends it.
    pub tokens: Vec<TokenId>,
}

impl Spoken {
    /// `by_bytes`: one token a byte, also where a mark is a token.
    pub fn new(
        tokenizer: &Arc<Tokenizer>,
        template: &str,
        text: &str,
        by_bytes: bool,
        change: impl FnOnce(&mut App),
    ) -> Self {
        let template = ChatTemplate::new(template, [].into(), CONTEXT_TOKENS_MAX).unwrap();
        let template = Arc::new(template);
        let byte = |byte: u8| {
            let of_byte = |&id: &TokenId| tokenizer.token_bytes(id) == [byte];
            (7..TOKENS as TokenId).find(of_byte).unwrap()
        };
        let mut tokens: Vec<TokenId> = match by_bytes {
            true => text.bytes().map(byte).collect(),
            false => tokenizer.encode(text, false).unwrap(),
        };
        tokens.push(EOS);
        let served = ServedText {
            tokenizer: tokenizer.clone(),
            template: Some(template.clone()),
            eos_tokens: vec![EOS],
            defaults: SamplingDefaults::default(),
            named_tokens: [].into(),
        };
        let fake = Fake::new(Script::Say(tokens.clone(), FinishReason::Stop), |app| {
            app.model.text = Arc::new(served);
            app.model.limits.context_tokens_max = CONTEXT_TOKENS_MAX;
            change(app);
        });
        Self { fake, template, tokens }
    }
}
