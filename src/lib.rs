//! Tessera: one frozen base model in memory, a different adapter for every request, one batch.

pub mod cli;
pub mod config;
pub mod http;

pub mod engine;

pub mod adapter;
pub mod model;
pub mod scheduler;
pub mod text;

pub mod backend;

pub mod delta;
pub mod request;
pub mod site;

pub mod dtype;
pub mod ids;
