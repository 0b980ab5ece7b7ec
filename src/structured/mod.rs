//! Structured output: from a JSON schema, a regular expression, a list of choices or a grammar to
//! the tokens that may come next.
//!
//! Compiling is slow and its input hostile, so [`Forms::guide`] belongs on a blocking thread; it
//! works under a guard and within [`limits`]. What comes out is a [`crate::request::Guide`], which
//! the engine asks for a mask before each draw.

mod calls;
mod compiled;
mod form;
mod forms;
mod gbnf;
pub mod limits;
mod matching;
mod ranges;
mod schema;
mod thinking;
mod vocabulary;

pub use calls::{CallsForm, Function};
pub use form::Form;
pub use forms::{FormError, Forms};
pub use thinking::{Thinking, ThoughtRules};
