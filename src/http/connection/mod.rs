//! What is true of a connection before its request is read: where it came from, and whether it may.

pub(super) mod cors;
pub(super) mod guard;
pub(super) mod http2;
pub(super) mod listener;
pub(super) mod tls;
