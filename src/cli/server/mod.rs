//! A server that runs, as commands speak to it: where it is, whether to believe its certificate,
//! and requests.

mod address;
mod client;
mod trust;

pub use address::Address;
pub use client::{Client, Refused};
pub use trust::{client_config, server_name};
