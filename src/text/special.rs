//! The special and added tokens of a directory, of all its files, as transformers 5 merges them
//! (`PreTrainedTokenizerBase._from_pretrained` and `TokenizersBackend.__init__`).

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::added::{Place, Token};
use super::class::Class;
use super::error::TextError;
use super::fields::{self, is_something};
use super::files::{
    ADDED_TOKENS, CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER, TOKENIZER_CONFIG, TextFiles, json, object,
};

/// Named tokens that every tokenizer may have, in the order in which new ones get ids.
const STANDARD: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const EXTRA: &str = "extra_special_tokens";
/// How transformers 4 spelled it.
const ADDITIONAL: &str = "additional_special_tokens";
/// Named tokens beside the standard ones, once more, as transformers 5 saves them.
const SPECIFIC: &str = "model_specific_special_tokens";

/// What the files say together.
pub(super) struct Special {
    pub class: Class,
    /// Tokens by the id that a file declares.
    pub declared: BTreeMap<u64, Token>,
    /// `bos_token`, `eos_token` and so on, then names that only this model has.
    pub named: Vec<(String, Token)>,
    pub extra: Vec<Token>,
    /// What is read and not used.
    pub notes: Vec<String>,
}

/// The named special tokens as a chat template sees them: `bos_token`, `eos_token` and so on.
///
/// # Errors
/// [`TextError::FileBroken`] for a file that is no JSON or a token that is none.
pub(super) fn named(files: &TextFiles) -> Result<BTreeMap<String, String>, TextError> {
    let special = Special::of(files)?;
    Ok(special.named.into_iter().map(|(name, token)| (name, token.content)).collect())
}

/// The added tokens of `tokenizer.json`, by the id that it declares.
///
/// # Errors
/// [`TextError::FileBroken`] for a file that is no JSON or a token that is none.
pub(super) fn of_tokenizer(files: &TextFiles) -> Result<BTreeMap<u64, Token>, TextError> {
    let part = Part::of(files)?;
    let place = Place { file: TOKENIZER, field: "added_tokens" };
    let token = |value: &Value| {
        let id = value.get("id").and_then(Value::as_u64);
        let id = id.ok_or_else(|| place.wrong(format!("a token needs its id, got {value}")))?;
        Ok((id, Token::of(place, value)?))
    };
    part.added_tokens.iter().map(token).collect()
}

/// What of `tokenizer.json` is read here.
#[derive(Default, Deserialize)]
struct Part {
    #[serde(default)]
    added_tokens: Vec<Value>,
    padding: Option<Padding>,
}

#[derive(Deserialize)]
struct Padding {
    pad_token: Option<String>,
}

impl Part {
    fn of(files: &TextFiles) -> Result<Self, TextError> {
        let Some(file) = files.tokenizer.as_deref() else { return Ok(Self::default()) };
        let broken = |error: serde_json::Error| TextError::broken(TOKENIZER, error.to_string());
        crate::json::from_slice(file).map_err(broken)
    }
}

impl Special {
    /// # Errors
    /// [`TextError::FileBroken`] for a file that is no JSON, a token that is none, or a field
    /// that is known and not supported.
    pub fn of(files: &TextFiles) -> Result<Self, TextError> {
        let model = json(CONFIG, files.config.as_deref())?;
        let config = object(TOKENIZER_CONFIG, files.tokenizer_config.as_deref())?;
        let notes = fields::check(&config)?;
        let mut names = Names::of(&config)?;
        let declares = config.contains_key("added_tokens_decoder");
        let declared = declared(&config)?;
        let config = Value::Object(config);
        let class = Class::of(&model, &config, files.tokenizer.as_deref())?;
        let mut special = Self { class, declared, named: Vec::new(), extra: Vec::new(), notes };
        special.notes.append(&mut names.notes);
        if declares {
            special.note_unused(files, &names)?;
        } else {
            names.add_map(object(SPECIAL_TOKENS_MAP, files.special_tokens_map.as_deref())?)?;
            special.notes.append(&mut names.notes);
            special.declared = legacy(files, &names)?;
            special.declared.extend(of_tokenizer(files)?);
        }
        if class.takes_padding_token() {
            // Otherwise padding is not read, but for the name of its token.
            let padding = Part::of(files)?.padding.and_then(|padding| padding.pad_token);
            let token = padding.map(|content| Token::special(&content));
            names.standard.entry("pad_token").or_insert(token);
        }
        let is_null = |name: &str| config.get(name).is_some_and(Value::is_null);
        let own = class.own_names().iter().filter(|(name, _)| !is_null(name));
        special.named =
            own.map(|(name, token)| (name.to_string(), Token::special(token))).collect();
        names.finish(&mut special);
        Ok(special)
    }

    /// The files that transformers does not read beside `added_tokens_decoder`.
    fn note_unused(&mut self, files: &TextFiles, names: &Names) -> Result<(), TextError> {
        let map = object(SPECIAL_TOKENS_MAP, files.special_tokens_map.as_deref())?;
        for (name, value) in &map {
            let Ok(token) = Token::of(Place { file: SPECIAL_TOKENS_MAP, field: name }, value)
            else {
                continue;
            };
            let used = names.token(name);
            if used.is_none_or(|used| used.content != token.content) {
                let used = used.map_or("nothing", |used| used.content.as_str());
                self.notes.push(format!(
                    "{SPECIAL_TOKENS_MAP}: {name} {:?} is not used, since {TOKENIZER_CONFIG} has \
                     added_tokens_decoder; it says {used:?}",
                    token.content
                ));
            }
        }
        for content in object(ADDED_TOKENS, files.added_tokens.as_deref())?.keys() {
            if !self.declared.values().any(|token| &token.content == content) {
                self.notes.push(format!(
                    "{ADDED_TOKENS}: {content:?} is not used, since {TOKENIZER_CONFIG} has \
                     added_tokens_decoder"
                ));
            }
        }
        Ok(())
    }
}

/// The names and lists of special tokens while they are merged.
#[derive(Default)]
struct Names {
    standard: BTreeMap<&'static str, Option<Token>>,
    /// Names of this model only, of objects and of the map; then those of strings and of `EXTRA`.
    specific: [Vec<(String, Token)>; 2],
    extra: Option<Vec<Token>>,
    notes: Vec<String>,
}

impl Names {
    /// What tokenizer_config.json says.
    fn of(config: &Map<String, Value>) -> Result<Self, TextError> {
        let mut names = Self::default();
        for (name, value) in config.iter().filter(|(name, _)| name.ends_with("_token")) {
            let place = Place { file: TOKENIZER_CONFIG, field: name };
            let is_typed = value.get("__type").is_some();
            if let Some(name) = STANDARD.iter().find(|other| *other == name) {
                let token = (!value.is_null()).then(|| Token::of(place, value)).transpose()?;
                names.standard.insert(name, token);
            } else if value.is_string() || is_typed {
                let list = &mut names.specific[usize::from(!is_typed)];
                put(list, name, Token::of(place, value)?);
            } else if value.is_object() {
                names.notes.push(format!(
                    "{TOKENIZER_CONFIG}: {name} is not used, since it is no string and has no \
                     \"__type\""
                ));
            }
        }
        let extra = config.get(EXTRA).filter(|value| is_something(value));
        let additional = config.get(ADDITIONAL).filter(|value| is_something(value));
        match (extra, additional) {
            (Some(Value::Object(_)), Some(_)) => names.add_lists(config, &[EXTRA, ADDITIONAL])?,
            (None, Some(_)) => names.add_lists(config, &[ADDITIONAL])?,
            (Some(extra), Some(additional)) if extra != additional => {
                names.notes.push(format!(
                    "{TOKENIZER_CONFIG}: {ADDITIONAL} {additional} is not used beside {EXTRA} \
                     {extra}"
                ));
                names.add_lists(config, &[EXTRA])?;
            }
            _ => names.add_lists(config, &[EXTRA])?,
        }
        if names.specific[1].is_empty()
            && let Some(Value::Object(specific)) = config.get(SPECIFIC)
        {
            let place = Place { file: TOKENIZER_CONFIG, field: SPECIFIC };
            names.add_specific(place, specific)?;
        }
        Ok(names)
    }

    /// Lists of tokens of tokenizer_config.json.
    fn add_lists(&mut self, config: &Map<String, Value>, fields: &[&str]) -> Result<(), TextError> {
        for field in fields {
            if let Some(value) = config.get(*field) {
                self.add_extra(Place { file: TOKENIZER_CONFIG, field }, value)?;
            }
        }
        Ok(())
    }

    fn add_extra(&mut self, place: Place<'_>, value: &Value) -> Result<(), TextError> {
        match value {
            Value::Null => self.extra = Some(self.extra.take().unwrap_or_default()),
            Value::Object(named) => self.add_specific(place, named)?,
            Value::Array(tokens) => {
                let list = self.extra.get_or_insert_default();
                for token in tokens {
                    let mut token = Token::of(place, token)?;
                    if place.file == SPECIAL_TOKENS_MAP {
                        token = token.made_special();
                    }
                    if !list.contains(&token) {
                        list.push(token);
                    }
                }
            }
            other => {
                let expected = "must be a list of tokens or an object of named ones, got";
                return Err(place.wrong(format!("{expected} {other}")));
            }
        }
        Ok(())
    }

    fn add_specific(
        &mut self,
        place: Place<'_>,
        named: &Map<String, Value>,
    ) -> Result<(), TextError> {
        for (name, value) in named {
            put(&mut self.specific[1], name, Token::of(place, value)?);
        }
        Ok(())
    }

    /// `special_tokens_map.json`, which wins over tokenizer_config.json where it is read.
    fn add_map(&mut self, map: Map<String, Value>) -> Result<(), TextError> {
        for (name, value) in &map {
            let place = Place { file: SPECIAL_TOKENS_MAP, field: name };
            let special = |value| Token::of(place, value).map(Token::made_special);
            if let Some(name) = STANDARD.iter().find(|other| *other == name) {
                let token = (!value.is_null()).then(|| special(value)).transpose()?;
                self.standard.insert(name, token);
            } else if name == EXTRA {
                self.add_extra(place, value)?;
            } else if name == ADDITIONAL {
                // Not read where tokenizer_config.json has a list of its own.
                match &self.extra {
                    None => self.add_extra(place, value)?,
                    Some(_) => self.notes.push(format!(
                        "{SPECIAL_TOKENS_MAP}: {ADDITIONAL} is not used beside {EXTRA}"
                    )),
                }
            } else if name.ends_with("_token") && (value.is_string() || value.is_object()) {
                put(&mut self.specific[0], name, special(value)?);
            } else {
                self.notes.push(format!("{SPECIAL_TOKENS_MAP}: {name} is not used"));
            }
        }
        Ok(())
    }

    fn token(&self, name: &str) -> Option<&Token> {
        let specific = || self.specific.iter().flatten().find(|(other, _)| other == name);
        match self.standard.get(name) {
            Some(token) => token.as_ref(),
            None => specific().map(|(_, token)| token),
        }
    }

    fn finish(mut self, special: &mut Special) {
        let own = std::mem::take(&mut special.named);
        let listed: Vec<Token> = own.iter().map(|(_, token)| token.clone()).collect();
        for (name, content) in special.class.defaults() {
            self.standard.entry(name).or_insert_with(|| Some(Token::special(content)));
        }
        for name in STANDARD {
            if let Some(Some(token)) = self.standard.remove(name) {
                // The flags of a named token stand where the token is declared.
                let declared = special.declared.values().rfind(|d| d.content == token.content);
                let token = declared.cloned().unwrap_or(token);
                special.named.push((name.to_owned(), token));
            }
        }
        for (name, token) in own.into_iter().chain(self.specific.into_iter().flatten()) {
            put(&mut special.named, &name, token);
        }
        special.extra = self.extra.unwrap_or(listed);
    }
}

/// As a dict of Python takes an entry: an equal name keeps its place.
fn put(list: &mut Vec<(String, Token)>, name: &str, token: Token) {
    match list.iter_mut().find(|(other, _)| other == name) {
        Some(entry) => entry.1 = token,
        None => list.push((name.to_owned(), token)),
    }
}

/// `added_tokens_decoder` of tokenizer_config.json.
fn declared(config: &Map<String, Value>) -> Result<BTreeMap<u64, Token>, TextError> {
    let place = Place { file: TOKENIZER_CONFIG, field: "added_tokens_decoder" };
    let Some(value) = config.get(place.field) else { return Ok(BTreeMap::new()) };
    let wrong = |value: &Value| place.wrong(format!("must be an object of tokens, got {value}"));
    let token = |(id, value): (&String, &Value)| {
        let number = id.trim().parse().ok();
        let number = number.ok_or_else(|| place.wrong(format!("{id:?} is no token id")))?;
        if !value.is_object() {
            return Err(wrong(value));
        }
        Ok((number, Token::of(place, value)?))
    };
    value.as_object().ok_or_else(|| wrong(value))?.iter().map(token).collect()
}

/// `added_tokens.json`: ids by content. A token is special if it is named or listed as such.
fn legacy(files: &TextFiles, names: &Names) -> Result<BTreeMap<u64, Token>, TextError> {
    let place = Place { file: ADDED_TOKENS, field: "token id" };
    let is_special = |content: &String| {
        let mut named = names.standard.values().flatten();
        let listed = names.extra.iter().flatten().any(|token| &token.content == content);
        named.any(|token| &token.content == content) || listed
    };
    let token = |(content, id): (&String, &Value)| {
        let wrong = || place.wrong(format!("that of {content:?} must be a number, got {id}"));
        let special = is_special(content);
        let token = Token::new(content, special, Some(!special));
        Ok((id.as_u64().ok_or_else(wrong)?, token))
    };
    object(place.file, files.added_tokens.as_deref())?.iter().map(token).collect()
}
