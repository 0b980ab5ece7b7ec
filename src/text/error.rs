//! What can go wrong between strings and tokens.

/// Why text could not become tokens. No text of an error holds a path.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TextError {
    /// The client's text cannot fit the context.
    #[error(
        "the text must be at most {text_bytes_max} bytes (text_bytes_max) to fit the model's \
         context; shorten it"
    )]
    TooLong {
        /// The limit it passed.
        text_bytes_max: usize,
    },
    /// The chat template called `raise_exception`: these messages are not a chat it takes.
    #[error("the model's chat template refused the messages: {message}")]
    TemplateRefused {
        /// What the template said.
        message: String,
    },
    /// The chat template does not end within its budget of work for these messages.
    #[error(
        "the model's chat template did not finish within {template_fuel_max} steps for these \
         messages; send fewer or shorter messages"
    )]
    TemplateFuel {
        /// The budget it used up.
        template_fuel_max: u64,
    },
    /// The chat template does work without end that no step of its budget stands for.
    #[error(
        "the model's chat template did not finish within {template_seconds_max} seconds; send \
         fewer or shorter messages, or have the template mended"
    )]
    TemplateLate {
        /// How long it was waited for.
        template_seconds_max: u64,
    },
    /// The chat template failed on these messages (e.g. it uses a field that they lack).
    #[error("the model's chat template failed on the messages: {message}")]
    TemplateFailed {
        /// What the template engine said.
        message: String,
    },
    /// The chat template would drop a part of the chat in silence.
    #[error(
        "the model's chat template writes no {what}, so the model would not see them; leave them \
         out or take a model whose template does"
    )]
    NotWritten {
        /// What it does not write.
        what: &'static str,
    },
    /// The last message cannot be continued.
    #[error("the last message cannot be continued: {why}")]
    NotContinued {
        /// What is in the way.
        why: &'static str,
    },
    /// The tokenizer of this model fails on this text.
    #[error("the model's tokenizer failed on the text: {message}")]
    TokenizerFailed {
        /// What the tokenizer said.
        message: String,
    },
    /// A file that the model directory must hold is not there.
    #[error("the model directory holds no {file}")]
    FileMissing {
        /// Its name within the model directory.
        file: &'static str,
    },
    /// The model's tokenizer is there in another form only.
    #[error(
        "the model directory holds no tokenizer.json, only {found}; make one: \
         AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) with transformers"
    )]
    OtherTokenizer {
        /// The file with that form.
        found: &'static str,
    },
    /// A file of the model directory that cannot be used.
    #[error("{file} cannot be used: {problem}")]
    FileBroken {
        /// Its name within the model directory.
        file: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl TextError {
    /// Whether another request could succeed, so that the answer is a 400. Otherwise the model's
    /// files are at fault.
    pub fn is_client_fault(&self) -> bool {
        match self {
            Self::TooLong { .. }
            | Self::TemplateRefused { .. }
            | Self::TemplateFuel { .. }
            | Self::TemplateLate { .. }
            | Self::TemplateFailed { .. }
            | Self::NotWritten { .. }
            | Self::NotContinued { .. } => true,
            Self::TokenizerFailed { .. }
            | Self::FileMissing { .. }
            | Self::OtherTokenizer { .. }
            | Self::FileBroken { .. } => false,
        }
    }

    /// A file that cannot be used, and why.
    pub(super) fn broken(file: &'static str, problem: impl Into<String>) -> Self {
        Self::FileBroken { file, problem: problem.into() }
    }
}
