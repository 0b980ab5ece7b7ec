//! The CPU: the oracle every other device is checked against.
