//! One tokenizer of all its files.

use std::collections::BTreeMap;

use serde_json::Value;
use tokenizers::{AddedToken, Model, ModelWrapper, Tokenizer};

use super::added::Token;
use super::caught::caught;
use super::class::Class;
use super::error::TextError;
use super::fields;
use super::files::{ADDED_TOKENS, TOKENIZER, TOKENIZER_CONFIG, TextFiles, json};
use super::special::{self, Special};

/// A tokenizer, and what its files say that is not used.
pub(super) struct Merged {
    pub tokenizer: Tokenizer,
    pub notes: Vec<String>,
}

/// What `AutoTokenizer.from_pretrained` of transformers 5.23 makes of the files. Truncation and
/// padding are left out, as its callers do.
///
/// # Errors
/// [`TextError::FileMissing`] without tokenizer.json; [`TextError::FileBroken`] for what the
/// tokenizers library cannot read, what is known and not supported, and a token whose id would not
/// be the one that a file declares.
pub(super) fn merge(files: &TextFiles) -> Result<Merged, TextError> {
    let missing = TextError::FileMissing { file: TOKENIZER };
    let file = files.tokenizer.as_deref().ok_or(missing)?;
    let config = json(TOKENIZER_CONFIG, files.tokenizer_config.as_deref())?;
    let special = Special::of(files)?;
    let rebuilt = special.class.rebuild(file, &config, &special.named)?;
    let made = caught(|| {
        let mut tokenizer = match rebuilt {
            Some(json) => serde_json::from_value(json)?,
            None => Tokenizer::from_bytes(file)?,
        };
        tokenizer.with_truncation(None)?;
        tokenizer.with_padding(None);
        Ok(tokenizer)
    });
    let broken = |problem: String| TextError::broken(TOKENIZER, problem);
    let mut tokenizer = made.map_err(broken)?;
    let is_bpe = matches!(tokenizer.get_model(), ModelWrapper::BPE(_));
    fields::check_clean_up(&config, is_bpe)?;
    let file_tokens = special::of_tokenizer(files)?;
    let before = Ids::of(&tokenizer, &special.declared);
    let add = to_add(&tokenizer, &special);
    caught(|| tokenizer.add_tokens(add)).map_err(broken)?;
    if special.class.adds_special_again() {
        let named = special.named.iter().map(|(_, token)| token);
        let all = named.chain(&special.extra).map(|t| AddedToken::from(&*t.content, true));
        caught(|| tokenizer.add_tokens(all.collect::<Vec<_>>())).map_err(broken)?;
    }
    match config.get("split_special_tokens") {
        None | Some(Value::Null) => {}
        Some(Value::Bool(split)) => tokenizer.set_encode_special_tokens(*split),
        Some(other) => {
            let problem = format!("split_special_tokens must be true or false, got {other}");
            return Err(TextError::broken(TOKENIZER_CONFIG, problem));
        }
    }
    let mut notes = special.notes;
    let declares = config.get("added_tokens_decoder").is_some();
    let of_config = if declares { TOKENIZER_CONFIG } else { ADDED_TOKENS };
    for (&id, token) in &special.declared {
        let file = if file_tokens.get(&id) == Some(token) { TOKENIZER } else { of_config };
        notes.extend(before.check(&tokenizer, file, id, &token.content)?);
    }
    for (&id, token) in &file_tokens {
        if special.class == Class::General {
            notes.extend(before.check(&tokenizer, TOKENIZER, id, &token.content)?);
        } else if tokenizer.token_to_id(&token.content).is_none() {
            notes.push(format!(
                "{TOKENIZER}: the added token {:?} is not used, since {TOKENIZER_CONFIG} lists \
                 others in added_tokens_decoder",
                token.content
            ));
        }
    }
    notes.dedup();
    Ok(Merged { tokenizer, notes })
}

/// The tokens that a tokenizer lacks, or may have with other flags, in the order in which they get
/// ids.
fn to_add(tokenizer: &Tokenizer, special: &Special) -> Vec<AddedToken> {
    let present = tokenizer.get_added_tokens_decoder();
    let mut add: Vec<AddedToken> = special.declared.values().map(Token::added).collect();
    let mut contents: Vec<String> = present.values().map(|token| token.content.clone()).collect();
    contents.extend(add.iter().map(|token| token.content.clone()));
    let named = || special.named.iter().map(|(_, token)| token);
    for token in named().chain(&special.extra) {
        let added = token.added();
        if !contents.contains(&added.content) && !add.contains(&added) {
            add.push(added);
        }
    }
    for token in &mut add {
        // A name makes a token special.
        token.special |= named().any(|named| named.content == token.content);
    }
    add
}

/// What ids the tokens of a file had before others were added.
struct Ids(BTreeMap<String, u32>);

impl Ids {
    fn of(tokenizer: &Tokenizer, declared: &BTreeMap<u64, Token>) -> Self {
        let id =
            |token: &Token| Some((token.content.clone(), tokenizer.token_to_id(&token.content)?));
        Self(declared.values().filter_map(id).collect())
    }

    /// A token keeps the id that it has in tokenizer.json, whatever another file says. One that
    /// gets an id now must get the one that the model was trained with.
    fn check(
        &self,
        tokenizer: &Tokenizer,
        file: &'static str,
        id: u64,
        content: &str,
    ) -> Result<Option<String>, TextError> {
        let has = tokenizer.token_to_id(content);
        if content.is_empty() || has.map(u64::from) == Some(id) {
            return Ok(None);
        }
        let model = tokenizer.get_model().token_to_id(content);
        let had = if file == TOKENIZER { model } else { self.0.get(content).copied() };
        match (had, has) {
            (Some(had), Some(has)) if had == has => Ok(Some(format!(
                "{file}: the id {id} of {content:?} is not used, since it is {has} in the \
                 vocabulary of {TOKENIZER}"
            ))),
            _ => Err(TextError::broken(
                file,
                format!(
                    "the added token {content:?} has the id {id}, but the next free one is {}; \
                     ids of added tokens must follow the vocabulary without a hole",
                    has.map_or("unknown".into(), |has| has.to_string())
                ),
            )),
        }
    }
}
