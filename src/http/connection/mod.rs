//! What is true of a connection before its request is read: where it came from, and whether it may.

pub(super) mod cors;
mod framing;
pub(super) mod guard;
pub(super) mod http1;
pub(super) mod http2;
mod line;
pub(super) mod listener;
pub(super) mod seats;
mod socket;
pub(super) mod tls;
