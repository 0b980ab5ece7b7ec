//! What a request says: its body, its fields, and what they ask of the prompt, the tokens and the
//! form of the answer.

pub(super) mod body;
pub(super) mod coding;
pub(super) mod dialects;
pub(super) mod ends;
pub(super) mod fields;
pub(super) mod forms;
pub(super) mod messages;
pub(super) mod parse;
pub(super) mod prompt;
pub(super) mod prompts;
pub(super) mod raw;
pub(super) mod schemas;
pub(super) mod shape;
pub(super) mod small;
pub(super) mod token_rules;
pub(super) mod told;
pub(super) mod unsupported;
