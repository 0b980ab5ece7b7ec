//! What is fed with inputs, and what must hold of each.

mod adapter;
mod form;
mod head;
mod keys;
mod model;
mod request;
mod template;
mod tokenizer;

/// Takes the parts of an input. What became of it, in the words of the error if it was refused, or
/// what must not be.
pub type Run = Box<dyn FnMut(&[&[u8]]) -> Result<String, String>>;

/// Something that reads what others wrote.
pub struct Target {
    pub name: &'static str,
    /// Good inputs, to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// What it knows by name.
    pub words: &'static [&'static str],
    pub start: fn() -> Run,
    /// Inputs of a run in `cargo test`: about half a second in a build for debugging.
    pub slice: u64,
    /// Memory that one input may take beside itself.
    pub heap_bytes_max: usize,
}

/// All of them.
pub static TARGETS: &[Target] = &[
    adapter::CONFIG,
    adapter::TENSORS,
    adapter::FOLDER,
    model::MODEL,
    template::TEMPLATE,
    tokenizer::TOKENIZER,
    request::REQUEST,
    head::HEAD,
    form::FORM,
    keys::KEYS,
];

/// Two results of the same input.
fn same<T: PartialEq>(one: &T, other: &T, what: &str) -> Result<(), String> {
    if one == other { Ok(()) } else { Err(format!("{what} differs from time to time")) }
}

/// A part that is text, the bytes that are no UTF-8 replaced; empty where it is missing.
fn text(parts: &[&[u8]], at: usize) -> String {
    String::from_utf8_lossy(parts.get(at).copied().unwrap_or_default()).into_owned()
}
