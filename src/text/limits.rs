//! How long a text may be.

/// A text of more bytes a token than this is refused before it is tokenized.
const TEXT_BYTES_PER_TOKEN_MAX: usize = 16;
/// Texts of this size are always tried: they tokenize in milliseconds.
const TEXT_BYTES_FLOOR: usize = 64 * 1024;

/// The longest text worth tokenizing for a model of this context, in bytes. A longer one is
/// answered [`TooLong`](super::error::TextError::TooLong) at once: tokenizing it would take seconds
/// to find out the same.
pub fn text_bytes_max(context_tokens_max: u32) -> usize {
    (context_tokens_max as usize).saturating_mul(TEXT_BYTES_PER_TOKEN_MAX).max(TEXT_BYTES_FLOOR)
}
