//! Strings to tokens and back: tokenizer, chat template, incremental detokenizer, stop strings.
//!
//! Everything here may be slow for a hostile input of the permitted size (seconds for a megabyte
//! without spaces), so [`Tokenizer::encode`] and [`ChatTemplate::render`] belong on a blocking
//! thread. The detokenizer and the stop matcher cost the same for every token.

mod added;
mod assembly;
mod call_object;
mod call_reader;
mod call_syntax;
mod calls;
mod capped;
mod caught;
mod chat;
mod class;
mod defaults;
mod detokenizer;
mod error;
mod fields;
mod files;
mod guarded;
mod infill;
mod jinja;
mod json_scan;
mod limits;
mod merge;
mod python;
mod pythonic;
mod served;
mod special;
mod stop;
mod stop_tokens;
mod tag_call;
mod template;
mod thought_reader;
mod thought_syntax;
mod tokenizer;
mod typed;
mod vocabulary;

pub use call_object::CallPart;
pub use call_reader::{CallReader, Read};
pub use call_syntax::CallSyntax;
pub use chat::{Chat, Message};
pub use defaults::{SamplingDefaults, not_applied};
pub use detokenizer::Detokenizer;
pub use error::TextError;
pub use files::{TEXT_FILES, TextFiles};
pub(crate) use guarded::{GUARDED_SECONDS_MAX, Guard, STACK_BYTES as GUARDED_STACK_BYTES, Stopped};
pub use infill::Infill;
pub use limits::text_bytes_max;
pub use served::{AdapterTexts, OwnText, ServedText, TextSettings};
pub use stop::{StopMatcher, StopOutcome};
pub use stop_tokens::stop_token_ids;
pub use template::ChatTemplate;
pub use thought_reader::{Split, ThoughtReader};
pub use thought_syntax::{Opening, ThoughtSyntax};
pub use tokenizer::{AddedToken, Tokenizer};
