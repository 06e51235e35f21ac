//! Keys: names of objects, checked once.

use std::fmt;
use std::str::FromStr;

/// The name of an object: 1 to 1024 bytes; components separated by `/`, each of `A-Z a-z 0-9 . _ -` and neither empty, `.` nor `..`;
/// so a key is safe as a path below a directory and needs no escaping in a URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Key(String);

/// The text cannot be a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot be an object's key")]
pub struct KeyError {
    text: String,
}

impl Key {
    /// The key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let component = |c: &str| !c.is_empty() && c != "." && c != ".." && c.bytes().all(plain);
        let valid = text.len() <= 1024 && text.split('/').all(component);
        valid.then(|| Self(text.to_owned())).ok_or_else(|| KeyError { text: text.chars().take(120).collect() })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_safe_as_paths_and_in_urls() {
        for text in ["", "/", "a/", "/a", "a//b", ".", "..", "a/../b", "a b", "a\nb", "ä", "a\\b", "a%2f", &"a".repeat(1025)] {
            assert!(text.parse::<Key>().is_err(), "{text:?}");
        }
        for text in ["a", "walkeep.json", "main/1/wal/00000001.history.zst", "a/.b/-c_d"] {
            assert!(text.parse::<Key>().is_ok(), "{text:?}");
        }
    }
}
