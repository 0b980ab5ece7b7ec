//! How the text of one served name becomes tokens, how it is drawn and where it ends: the base's
//! files, and those that an adapter brings along for its own name.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::defaults::SamplingDefaults;
use super::error::TextError;
use super::files::{
    CHAT_TEMPLATE, CONFIG_BYTES_MAX, GENERATION_CONFIG, TOKENIZER, TOKENIZER_BYTES_MAX,
    TOKENIZER_CONFIG, TextFiles, json, read,
};
use super::stop_tokens::stop_token_ids;
use super::template::ChatTemplate;
use super::tokenizer::Tokenizer;
use crate::ids::TokenId;

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
        let tokenizer = Tokenizer::from_bytes(&files.tokenizer, settings.context_tokens_max)?;
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
        Ok(Self { tokenizer, template: template.map(Arc::new), eos_tokens, defaults })
    }
}

/// What an adapter's directory says of its own text.
pub struct OwnText {
    /// `None`: all is as for the base.
    pub text: Option<Arc<ServedText>>,
    /// What the operator should know.
    pub notes: Vec<String>,
}

/// Reads the text files of adapters of one base.
pub struct AdapterTexts {
    /// The base's files.
    pub base_files: TextFiles,
    /// What they say.
    pub base: Arc<ServedText>,
    /// How files are read.
    pub settings: TextSettings,
    /// Whether an adapter's own files are used for its name.
    pub uses_own: bool,
}

/// The text files that an adapter's directory may hold.
#[derive(Default)]
struct OwnFiles {
    tokenizer: Option<Vec<u8>>,
    tokenizer_config: Option<Vec<u8>>,
    chat_template: Option<Vec<u8>>,
    generation_config: Option<Vec<u8>>,
}

impl AdapterTexts {
    /// Reads what `dir` holds; with `within`, a file that resolves to outside of it is refused.
    ///
    /// # Errors
    /// [`TextError`] naming the file.
    pub fn read(&self, dir: &Path, within: Option<&Path>) -> Result<OwnText, TextError> {
        let own = OwnFiles {
            tokenizer: own_file(dir, TOKENIZER, TOKENIZER_BYTES_MAX, within)?,
            tokenizer_config: own_file(dir, TOKENIZER_CONFIG, CONFIG_BYTES_MAX, within)?,
            chat_template: own_file(dir, CHAT_TEMPLATE, CONFIG_BYTES_MAX, within)?,
            generation_config: own_file(dir, GENERATION_CONFIG, CONFIG_BYTES_MAX, within)?,
        };
        let names = own.names();
        if names.is_empty() {
            return Ok(OwnText { text: None, notes: Vec::new() });
        }
        let names = names.join(", ");
        if !self.uses_own {
            let note = format!("not used, as --adapter-template base says: {names}");
            return Ok(OwnText { text: None, notes: vec![note] });
        }
        self.own(own, &names)
    }

    fn own(&self, own: OwnFiles, names: &str) -> Result<OwnText, TextError> {
        let Self { base_files, base, settings, .. } = self;
        let same = |own: &Option<Vec<u8>>, of_base: Option<&Vec<u8>>| {
            own.as_ref().is_none_or(|own| Some(own) == of_base)
        };
        let has_base_tokenizer = same(&own.tokenizer, Some(&base_files.tokenizer))
            && same(&own.tokenizer_config, base_files.tokenizer_config.as_ref());
        let files = own.over(base_files)?;
        let tokenizer = match has_base_tokenizer {
            true => base.tokenizer.clone(),
            false => {
                let context = settings.context_tokens_max;
                Arc::new(Tokenizer::from_bytes(&files.tokenizer, context)?)
            }
        };
        self.check_tokens(&tokenizer)?;
        let text = ServedText::with_tokenizer(&files, tokenizer, settings)?;
        let mut notes = Vec::new();
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

    /// Tokens that the adapter's tokenizer adds need rows in the model's tables.
    fn check_tokens(&self, tokenizer: &Tokenizer) -> Result<(), TextError> {
        let rows = self.settings.vocabulary_tokens;
        let base_tokens = self.base.tokenizer.vocabulary_tokens();
        if tokenizer.vocabulary_tokens() <= rows.max(base_tokens) {
            return Ok(());
        }
        let id = tokenizer.vocabulary_tokens() - 1;
        let token = tokenizer.token_str(id);
        Err(TextError::broken(
            TOKENIZER,
            format!(
                "it has the token {token:?} with id {id}, and the base model has {rows} tokens; \
                 serve the adapter on a base of that vocabulary"
            ),
        ))
    }
}

impl OwnFiles {
    fn names(&self) -> Vec<&'static str> {
        let Self { tokenizer, tokenizer_config, chat_template, generation_config } = self;
        let all = [
            (TOKENIZER, tokenizer),
            (TOKENIZER_CONFIG, tokenizer_config),
            (CHAT_TEMPLATE, chat_template),
            (GENERATION_CONFIG, generation_config),
        ];
        all.into_iter().filter(|(_, file)| file.is_some()).map(|(name, _)| name).collect()
    }

    /// The adapter's files where it has them, the base's where it has none.
    fn over(self, base: &TextFiles) -> Result<TextFiles, TextError> {
        let Self { tokenizer, tokenizer_config, chat_template, generation_config } = self;
        let mut files = base.clone();
        let config = json(TOKENIZER_CONFIG, tokenizer_config.as_deref())?;
        let has_template = config.get("chat_template").is_some_and(|template| !template.is_null());
        if chat_template.is_some() {
            files.chat_template = chat_template;
        } else if has_template {
            files.chat_template = None;
        } else if tokenizer_config.is_some() {
            // The base's template may stand in the file that the adapter's replaces.
            files.chat_template = template_source(base)?.map(String::into_bytes);
        }
        files.tokenizer = tokenizer.unwrap_or(files.tokenizer);
        files.tokenizer_config = tokenizer_config.or(files.tokenizer_config);
        files.generation_config = generation_config.or(files.generation_config);
        Ok(files)
    }
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

/// A file of an adapter's directory, if it is there.
fn own_file(
    dir: &Path,
    file: &'static str,
    bytes_max: u64,
    within: Option<&Path>,
) -> Result<Option<Vec<u8>>, TextError> {
    let real = dir.join(file).canonicalize();
    let leaves = |root: &Path| real.as_ref().is_ok_and(|real| !real.starts_with(root));
    if within.is_some_and(leaves) {
        return Err(TextError::broken(file, "it is a link to outside the adapter root"));
    }
    read(dir, file, bytes_max)
}
