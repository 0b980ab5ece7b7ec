//! Flags to a command; no logic.

fn main() {}
