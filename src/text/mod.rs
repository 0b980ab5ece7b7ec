//! Strings to tokens and back: tokenizer, chat template, incremental detokenizer, stop strings.
//!
//! Everything here may be slow for a hostile input of the permitted size (seconds for a megabyte
//! without spaces), so [`Tokenizer::encode`] and [`ChatTemplate::render`] belong on a blocking
//! thread. The detokenizer and the stop matcher cost the same for every token.

mod detokenizer;
mod files;
mod pieces;
mod python;
mod stop;
mod template;
mod tokenizer;

pub use detokenizer::Detokenizer;
pub use files::{TextFiles, stop_token_ids};
pub use stop::{StopMatcher, StopOutcome};
pub use template::{ChatTemplate, Message};
pub use tokenizer::Tokenizer;

/// A text of more bytes a token than this is refused before it is tokenized.
const TEXT_BYTES_PER_TOKEN_MAX: usize = 16;
/// Texts of this size are always tried: they tokenize in milliseconds.
const TEXT_BYTES_FLOOR: usize = 64 * 1024;

/// The longest text worth tokenizing for a model of this context, in bytes. A longer one is
/// answered [`TextError::TooLong`] at once: tokenizing it would take seconds to find out the same.
pub fn text_bytes_max(context_tokens_max: u32) -> usize {
    (context_tokens_max as usize).saturating_mul(TEXT_BYTES_PER_TOKEN_MAX).max(TEXT_BYTES_FLOOR)
}

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
    /// The chat template failed on these messages (e.g. it uses a field that they lack).
    #[error("the model's chat template failed on the messages: {message}")]
    TemplateFailed {
        /// What the template engine said.
        message: String,
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
        use TextError::{TemplateFailed, TemplateFuel, TemplateRefused, TooLong};
        matches!(
            self,
            TooLong { .. } | TemplateRefused { .. } | TemplateFuel { .. } | TemplateFailed { .. }
        )
    }
}
