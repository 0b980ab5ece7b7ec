//! From what a request asks to what is drawn for it and told of it.

pub(super) mod called;
pub(super) mod choices;
pub(super) mod endpoint;
pub(super) mod generate;
pub(super) mod items;
pub(super) mod logprobs;
pub(super) mod passes;
pub(super) mod stream;
pub(super) mod thoughts;
pub(super) mod tools;
