//! How the text of one served name becomes tokens, how it is drawn and where it ends: the base's
//! files, and those that an adapter brings along for its own name.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use serde_json::Value;

use super::defaults::SamplingDefaults;
use super::error::TextError;
use super::files::{
    ADDED_TOKENS, CHAT_TEMPLATE, GENERATION_CONFIG, SPECIAL_TOKENS_MAP, TOKENIZER,
    TOKENIZER_CONFIG, TextFiles, json, object,
};
use super::special;
use super::stop_tokens::stop_token_ids;
use super::template::ChatTemplate;
use super::thought_syntax::ThoughtSyntax;
use super::tokenizer::Tokenizer;
use crate::ids::{Digest, TokenId};

/// All that turns one name's text into tokens and back.
pub struct ServedText {
    /// Text to tokens and back.
    pub tokenizer: Arc<Tokenizer>,
    /// Messages to text; without one, chat requests are answered 400.
    pub template: Option<Arc<ChatTemplate>>,
    /// Tokens that end a sequence unless the request says `ignore_eos`.
    pub eos_tokens: Vec<TokenId>,
    /// What a request leaves out.
    pub defaults: SamplingDefaults,
    /// The special tokens that have a name: `bos_token`, `eos_token` and so on.
    pub named_tokens: BTreeMap<String, String>,
}

/// How files are read.
#[derive(Clone, Copy, Debug)]
pub struct TextSettings {
    /// Bounds the texts that are taken.
    pub context_tokens_max: u32,
    /// Rows of the model's embedding: tokens beyond them cannot be served.
    pub vocabulary_tokens: u32,
    /// Whether `generation_config.json` gives sampling defaults.
    pub takes_defaults: bool,
}

impl ServedText {
    /// Of a model's files.
    ///
    /// # Errors
    /// [`TextError`] naming the file.
    pub fn new(files: &TextFiles, settings: &TextSettings) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::from_files(files, settings.context_tokens_max)?;
        Self::with_tokenizer(files, Arc::new(tokenizer), settings)
    }

    fn with_tokenizer(
        files: &TextFiles,
        tokenizer: Arc<Tokenizer>,
        settings: &TextSettings,
    ) -> Result<Self, TextError> {
        let template = ChatTemplate::from_files(files, settings.context_tokens_max)?;
        let eos_tokens = stop_token_ids(files, &tokenizer)?;
        let defaults = match settings.takes_defaults {
            true => SamplingDefaults::of(files)?,
            false => SamplingDefaults::default(),
        };
        let template = template.map(Arc::new);
        let named_tokens = special::named(files)?;
        Ok(Self { tokenizer, template, eos_tokens, defaults, named_tokens })
    }

    /// How answers in chats mark what is thought: as the template does, or as tokens are there for.
    pub fn thought_syntax(&self) -> Option<ThoughtSyntax> {
        let template = self.template.as_ref()?;
        template.thought_syntax().or_else(|| ThoughtSyntax::of_vocabulary(&self.tokenizer))
    }
}

/// What an adapter's directory says of its own text.
pub struct OwnText {
    /// `None`: all is as for the base.
    pub text: Option<Arc<ServedText>>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Makes of the text files of adapters of one base what is served.
pub struct AdapterTexts {
    base_files: TextFiles,
    /// What they say.
    pub base: Arc<ServedText>,
    settings: TextSettings,
    uses_own: bool,
    /// The base's and those of adapters that are served, each once: a vocabulary takes megabytes.
    tokenizers: Mutex<Vec<(Digest, Weak<Tokenizer>)>>,
}

impl AdapterTexts {
    /// `uses_own`: whether an adapter's own files are used for its name.
    pub fn new(
        base_files: TextFiles,
        base: ServedText,
        settings: TextSettings,
        uses_own: bool,
    ) -> Self {
        let tokenizers = Mutex::new(Vec::new());
        Self { base_files, base: Arc::new(base), settings, uses_own, tokenizers }
    }

    /// What the files of an adapter's directory ([`TextFiles::of_adapter`]) say.
    ///
    /// # Errors
    /// [`TextError`] naming the file.
    pub fn of_adapter(&self, own: TextFiles) -> Result<OwnText, TextError> {
        let names = names(&own).join(", ");
        if names.is_empty() {
            return Ok(OwnText { text: None, notes: Vec::new() });
        }
        if !self.uses_own {
            let note = format!("not used, as --adapter-template base says: {names}");
            return Ok(OwnText { text: None, notes: vec![note] });
        }
        self.own(own, &names)
    }

    fn own(&self, own: TextFiles, names: &str) -> Result<OwnText, TextError> {
        let Self { base_files, base, settings, .. } = self;
        let mut notes = Vec::new();
        let files = over(own, base_files, &mut notes)?;
        let tokenizer = self.tokenizer(&files)?;
        if !Arc::ptr_eq(&tokenizer, &base.tokenizer) {
            notes.extend(tokenizer.notes().iter().cloned());
            notes.push("its text becomes other tokens than the base's".to_owned());
            self.check_tokens(&files, &tokenizer, &mut notes)?;
        }
        let text = ServedText::with_tokenizer(&files, tokenizer, settings)?;
        if template_source(&files)? != template_source(base_files)? {
            notes.push("it has a chat template of its own".to_owned());
        }
        if text.eos_tokens != base.eos_tokens {
            let spelled = |id: &TokenId| text.tokenizer.token_str(*id);
            let ends: Vec<String> = text.eos_tokens.iter().map(spelled).collect();
            notes.push(format!("its answers end at {ends:?}"));
        }
        if text.defaults != base.defaults {
            notes.push(format!("its own sampling defaults: {}", text.defaults.describe()));
        }
        if !notes.is_empty() {
            notes
                .push(format!("that is what its {names} say (--adapter-template base ignores it)"));
        }
        Ok(OwnText { text: Some(Arc::new(text)), notes })
    }

    /// The tokenizer of an adapter's files: one that is there already, if it is equal.
    fn tokenizer(&self, files: &TextFiles) -> Result<Arc<Tokenizer>, TextError> {
        let base = &self.base_files;
        let is_bases = files.tokenizer == base.tokenizer
            && files.tokenizer_config == base.tokenizer_config
            && files.special_tokens_map == base.special_tokens_map
            && files.added_tokens == base.added_tokens;
        if is_bases {
            return Ok(self.base.tokenizer.clone());
        }
        let tokenizer = Tokenizer::from_files(files, self.settings.context_tokens_max)?;
        let digest = tokenizer.digest();
        // A list of what can be made again is whole whatever happened while it was held.
        let mut held = self.tokenizers.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|(_, tokenizer)| tokenizer.strong_count() > 0);
        if held.is_empty() {
            held.push((self.base.tokenizer.digest(), Arc::downgrade(&self.base.tokenizer)));
        }
        let equal = held.iter().find(|(other, _)| *other == digest);
        if let Some(equal) = equal.and_then(|(_, tokenizer)| tokenizer.upgrade()) {
            return Ok(equal);
        }
        let tokenizer = Arc::new(tokenizer);
        held.push((digest, Arc::downgrade(&tokenizer)));
        Ok(tokenizer)
    }

    /// Tokens that the adapter's tokenizer adds need rows in the model's tables. One that only
    /// fills up batches of training is never in a text.
    fn check_tokens(
        &self,
        files: &TextFiles,
        tokenizer: &Tokenizer,
        notes: &mut Vec<String>,
    ) -> Result<(), TextError> {
        let rows = self.settings.vocabulary_tokens;
        let of_base = &self.base.tokenizer;
        let beyond = rows..tokenizer.vocabulary_tokens();
        let beyond = beyond.filter(|&id| tokenizer.token_str(id) != of_base.token_str(id));
        let named = special::named(files)?;
        let fills = |id: TokenId| {
            let token = tokenizer.token_str(id);
            let mut names = named.iter().filter(|(_, content)| **content == token);
            named.get("pad_token") == Some(&token) && names.all(|(name, _)| name == "pad_token")
        };
        let spelled = |id: TokenId| format!("{:?} with id {id}", tokenizer.token_str(id));
        let (padding, others): (Vec<_>, Vec<_>) = beyond.partition(|&id| fills(id));
        notes.extend(padding.into_iter().map(|id| {
            let token = spelled(id);
            format!("the base model has no row for its pad_token {token}, which is in no text")
        }));
        if others.is_empty() {
            return Ok(());
        }
        let file = match files.tokenizer == self.base_files.tokenizer {
            true => TOKENIZER_CONFIG,
            false => TOKENIZER,
        };
        let listed: Vec<String> = others.iter().take(8).copied().map(spelled).collect();
        Err(TextError::broken(
            file,
            format!(
                "of its tokens, {} have no row in the base model, which has {rows}: {}; serve the \
                 adapter on a base of that vocabulary, or with --adapter-template base if it was \
                 trained without them",
                others.len(),
                listed.join(", ")
            ),
        ))
    }
}

/// Which of the files are there.
fn names(files: &TextFiles) -> Vec<&'static str> {
    let all = [
        (TOKENIZER, &files.tokenizer),
        (TOKENIZER_CONFIG, &files.tokenizer_config),
        (SPECIAL_TOKENS_MAP, &files.special_tokens_map),
        (ADDED_TOKENS, &files.added_tokens),
        (CHAT_TEMPLATE, &files.chat_template),
        (GENERATION_CONFIG, &files.generation_config),
    ];
    all.into_iter().filter(|(_, file)| file.is_some()).map(|(name, _)| name).collect()
}

/// The adapter's files where it has them, the base's where it has none.
///
/// With a `tokenizer.json` and a file that names its special tokens a directory is a tokenizer of
/// its own, as transformers reads it. With less transformers could not read it: it means the
/// base's tokenizer and what the adapter's files say otherwise.
fn over(own: TextFiles, base: &TextFiles, notes: &mut Vec<String>) -> Result<TextFiles, TextError> {
    let mut files = base.clone();
    let mut own_config = own.tokenizer_config;
    let is_whole =
        own.tokenizer.is_some() && (own_config.is_some() || own.special_tokens_map.is_some());
    let mut config = object(TOKENIZER_CONFIG, own_config.as_deref())?;
    let mut base_config = object(TOKENIZER_CONFIG, base.tokenizer_config.as_deref())?;
    let has_template = config.get("chat_template").is_some_and(|template| !template.is_null());
    if own.chat_template.is_some() {
        files.chat_template = own.chat_template;
    } else if has_template {
        files.chat_template = None;
    } else if let Some(template) = base_config.get("chat_template") {
        config.insert("chat_template".to_owned(), template.clone());
        if is_whole {
            own_config = Some(Value::Object(config.clone()).to_string().into_bytes());
        }
    }
    files.generation_config = own.generation_config.or(files.generation_config);
    files.tokenizer = own.tokenizer.or(files.tokenizer);
    if is_whole {
        files.tokenizer_config = own_config;
        files.special_tokens_map = own.special_tokens_map;
        files.added_tokens = own.added_tokens;
        return Ok(files);
    }
    if own_config.is_some() && own_config != base.tokenizer_config {
        notes.push(format!(
            "it has no {TOKENIZER}; the fields of its {TOKENIZER_CONFIG} are put over those of the \
             base's"
        ));
        base_config.extend(config);
        files.tokenizer_config = Some(Value::Object(base_config).to_string().into_bytes());
    }
    files.special_tokens_map = own.special_tokens_map.or(files.special_tokens_map);
    files.added_tokens = own.added_tokens.or(files.added_tokens);
    Ok(files)
}

/// The default template's text.
fn template_source(files: &TextFiles) -> Result<Option<String>, TextError> {
    if let Some(bytes) = &files.chat_template {
        return Ok(Some(String::from_utf8_lossy(bytes).into_owned()));
    }
    let config = json(TOKENIZER_CONFIG, files.tokenizer_config.as_deref())?;
    let default = |template: &Value| match template {
        Value::Array(all) => {
            let named = |entry: &&Value| entry.get("name").is_some_and(|name| name == "default");
            Some(all.iter().find(named)?.get("template")?.as_str()?.to_owned())
        }
        one => one.as_str().map(str::to_owned),
    };
    Ok(config.get("chat_template").and_then(default))
}
