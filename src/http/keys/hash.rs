//! A key as it is kept: its hash.

use std::fmt;
use std::hint::black_box;

use ring::digest::{SHA256, digest};

/// What a key's hash begins with where it stands in place of the key.
const PREFIX: &str = "sha256:";
/// Longest key in plain. A longer one is refused at start.
const KEY_BYTES_MAX: usize = 1024;

/// SHA-256 of a key. The key itself is kept nowhere.
#[derive(Clone, Eq, Ord, PartialEq, PartialOrd)]
pub struct KeyHash([u64; 4]);

impl KeyHash {
    /// Of what a client says.
    pub(in crate::http) fn of(key: &[u8]) -> Self {
        Self::words(digest(&SHA256, key).as_ref())
    }

    fn words(bytes: &[u8]) -> Self {
        let mut words = [0; 4];
        for (i, &byte) in bytes.iter().enumerate() {
            words[i / 8] |= u64::from(byte) << (i % 8 * 8);
        }
        Self(words)
    }

    /// Of a key in plain, or of `sha256:` and 64 hexadecimal digits.
    ///
    /// # Errors
    /// What a key is like; never a part of what was given.
    pub fn read(text: &str) -> Result<Self, String> {
        match text.strip_prefix(PREFIX) {
            Some(hex) => blake3::Hash::from_hex(hex.to_ascii_lowercase())
                .map(|hash| Self::words(hash.as_bytes()))
                .map_err(|_| format!("a key after {PREFIX} must be 64 hexadecimal digits")),
            None => {
                let is_fine = (1..=KEY_BYTES_MAX).contains(&text.len())
                    && text.bytes().all(|byte| byte.is_ascii_graphic());
                let fine = is_fine.then(|| Self::of(text.as_bytes()));
                fine.ok_or_else(|| {
                    format!(
                        "a key must be 1 to {KEY_BYTES_MAX} visible ASCII characters without \
                         blanks, or {PREFIX} and its SHA-256"
                    )
                })
            }
        }
    }

    /// Whether both are of the same key, in a time that does not depend on where they differ.
    pub(in crate::http) fn is(&self, other: &Self) -> bool {
        let differ = |sum: u64, (a, b): (&u64, &u64)| black_box(sum | (a ^ b));
        self.0.iter().zip(&other.0).fold(0, differ) == 0
    }
}

impl fmt::Debug for KeyHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyHash(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::KeyHash;

    #[test]
    fn a_hash_stands_for_its_key_and_is_none_itself() {
        let abc = "sha256:BA7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let kept = KeyHash::read(abc).unwrap();
        assert!(kept.is(&KeyHash::of(b"abc")) && kept.is(&KeyHash::read("abc").unwrap()));
        assert!(!kept.is(&KeyHash::of(abc.as_bytes())));
        for wrong in ["", " ", "a b", "a\n", "clé", "sha256:", "sha256:ba78", &"x".repeat(1025)] {
            let error = KeyHash::read(wrong).unwrap_err();
            assert!(wrong.len() < 8 || !error.contains(wrong), "{error}");
        }
        let zz = format!("sha256:{}", "z".repeat(64));
        assert!(KeyHash::read(&zz).is_err());
    }
}
