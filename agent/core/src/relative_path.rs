//! Paths below a data directory, as a manifest names them.
//!
//! A manifest is input: whoever can write to the repository can write one. A [`RelativePath`] cannot leave the directory it is
//! joined to by its text; that no link is followed on the way is for the code that writes files.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A path without `.`, `..`, empty parts or a root: `base/5/1234`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct RelativePath(String);

/// Why a path was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelativePathError {
    /// Nothing was given.
    #[error("a path in a backup is empty")]
    Empty,
    /// PostgreSQL itself keeps paths below 1024 bytes.
    #[error("a path in a backup has {bytes} bytes: at most {} are possible", RelativePath::MAX_BYTES)]
    TooLong {
        /// Its length.
        bytes: usize,
    },
    /// The path begins at the root.
    #[error("{path:?} is absolute: a backup holds only paths below the data directory")]
    Absolute {
        /// The path.
        path: String,
    },
    /// A part is empty, `.` or `..`.
    #[error("{path:?} has the part {part:?}: it could name a file outside the data directory, or one file twice")]
    Part {
        /// The path.
        path: String,
        /// The part.
        part: String,
    },
    /// No file system can name it.
    #[error("{path:?} contains a NUL byte")]
    Nul {
        /// The path.
        path: String,
    },
    /// A manifest is JSON and holds only UTF-8.
    #[error(
        "{lossy:?} is not UTF-8: PostgreSQL allows such a file name, a Walkeep backup cannot hold it; rename the file or move it out of the data directory"
    )]
    NotUtf8 {
        /// The path with the offending bytes replaced.
        lossy: String,
    },
}

impl RelativePath {
    /// The longest path.
    pub const MAX_BYTES: usize = 1023;

    /// Reads a path.
    pub fn parse(text: &str) -> Result<Self, RelativePathError> {
        if text.is_empty() {
            return Err(RelativePathError::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(RelativePathError::TooLong { bytes: text.len() });
        }
        if text.starts_with('/') {
            return Err(RelativePathError::Absolute { path: text.to_owned() });
        }
        if text.contains('\0') {
            return Err(RelativePathError::Nul { path: text.to_owned() });
        }
        match text.split('/').find(|part| matches!(*part, "" | "." | "..")) {
            Some(part) => Err(RelativePathError::Part { path: text.to_owned(), part: part.to_owned() }),
            None => Ok(Self(text.to_owned())),
        }
    }

    /// Reads a path as a file system or a tar header gives it.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, RelativePathError> {
        match std::str::from_utf8(bytes) {
            Ok(text) => Self::parse(text),
            Err(_) => Err(RelativePathError::NotUtf8 { lossy: String::from_utf8_lossy(bytes).chars().take(200).collect() }),
        }
    }

    /// The path as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tablespace a path below `pg_tblspc/` belongs to, and the rest of the path: `None` for the tablespace's own folder.
    pub fn tablespace(&self) -> Option<(u32, Option<&str>)> {
        let rest = self.0.strip_prefix("pg_tblspc/")?;
        let (oid, below) = rest.split_once('/').map_or((rest, None), |(oid, below)| (oid, Some(below)));
        let plain = !oid.starts_with('0') && oid.bytes().all(|b| b.is_ascii_digit());
        Some((plain.then(|| oid.parse().ok()).flatten()?, below))
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for RelativePath {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_could_leave_the_directory() {
        for text in ["", "/", "/etc/passwd", "..", "../x", "a/../b", "a/..", ".", "./a", "a/./b", "a//b", "a/", "a\0b", &"a/".repeat(600)] {
            assert!(RelativePath::parse(text).is_err(), "{text:?}");
            let json = serde_json::to_string(text).expect("a string");
            assert!(serde_json::from_str::<RelativePath>(&json).is_err(), "{text:?}");
        }
        assert!(matches!(RelativePath::from_bytes(b"base/\xff"), Err(RelativePathError::NotUtf8 { .. })));
    }

    #[test]
    fn dots_and_blanks_in_names_are_plain_names() {
        for text in ["PG_VERSION", "base/5/1234_fsm", "...", "a/..b", "a/.hidden", " ", "-rf", "a\nb", "a\\b"] {
            assert_eq!(RelativePath::parse(text).map(|path| path.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn knows_tablespaces() {
        let of = |text| RelativePath::parse(text).expect("a path").tablespace().map(|(oid, rest)| (oid, rest.map(str::to_owned)));
        assert_eq!(of("pg_tblspc/16400/PG_15/5/1"), Some((16400, Some("PG_15/5/1".into()))));
        assert_eq!(of("pg_tblspc/16400"), Some((16400, None)));
        for other in ["pg_tblspc", "pg_tblspc/x", "pg_tblspc/016400", "pg_tblspc/4294967296", "base/16400"] {
            assert_eq!(of(other), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn never_leaves_the_directory(text in "[./a\\x00]{0,12}") {
            if let Ok(path) = RelativePath::parse(&text) {
                let joined = std::path::Path::new("/data").join(path.as_str());
                let plain = joined.components().all(|part| !matches!(part, std::path::Component::ParentDir));
                prop_assert!(plain && joined.starts_with("/data") && joined != std::path::Path::new("/data"));
            }
        }
    }
}
