//! Random bits of the operating system: ids that nobody can guess, and seeds.

/// 32 hexadecimal digits that never come twice and that nobody can guess.
pub(super) fn new_id() -> String {
    format!("{:016x}{:016x}", seed(), seed())
}

/// A seed for a sequence whose request has none.
pub(super) fn seed() -> u64 {
    // Every hash map of the process takes its keys from the same source, and panics without it.
    getrandom::u64().expect("the operating system gives random bits")
}
