//! Messages stay messages, whatever is named in them.

use std::borrow::Cow;

/// Of a message: a name in a file may have megabytes. Of a longer one the middle is left out.
const MESSAGE_CHARS_MAX: usize = 2_000;
/// What is kept of its end, where it says what to do.
const END_CHARS: usize = 400;

/// A message of at most `MESSAGE_CHARS_MAX` characters, but for the mark in its middle.
pub fn shortened(message: &str) -> Cow<'_, str> {
    // No text has more characters than bytes.
    if message.len() <= MESSAGE_CHARS_MAX {
        return Cow::Borrowed(message);
    }
    let count = message.chars().count();
    if count <= MESSAGE_CHARS_MAX {
        return Cow::Borrowed(message);
    }
    let at = |n: usize| message.char_indices().nth(n).map_or(message.len(), |(at, _)| at);
    let (start, end) = (at(MESSAGE_CHARS_MAX - END_CHARS), at(count - END_CHARS));
    Cow::Owned(format!("{} … {}", &message[..start], &message[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_keeps_its_beginning_and_its_end() {
        let most = "ü".repeat(MESSAGE_CHARS_MAX);
        assert_eq!(shortened(&most), most);
        let cut = shortened(&format!("no {most}; leave it out")).into_owned();
        assert_eq!(cut.chars().count(), MESSAGE_CHARS_MAX + 3);
        assert!(cut.starts_with("no ü") && cut.ends_with("; leave it out"), "{cut}");
    }
}
