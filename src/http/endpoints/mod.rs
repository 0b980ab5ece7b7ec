//! The routes, one file each, with what the spellings of a chat share.

pub(super) mod adapter_cards;
pub(super) mod adapters;
pub(super) mod anthropic;
pub(super) mod anthropic_request;
pub(super) mod anthropic_tools;
pub(super) mod anthropic_turns;
pub(super) mod batch;
pub(super) mod chat;
pub(super) mod completions;
pub(super) mod conversation;
pub(super) mod embeddings;
pub(super) mod index;
pub(super) mod loglikelihood;
pub(super) mod rephrase;
pub(super) mod responses;
pub(super) mod responses_items;
pub(super) mod responses_request;
pub(super) mod responses_tools;
pub(super) mod tokens;
pub(super) mod usage;
