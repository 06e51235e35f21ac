//! Artifacts: what is kept beside WAL and base backups. Dumps of databases, folders, prefixes of buckets, what commands print.
//!
//! Each is one stream of bytes in pieces, and a record, `artifact.json`, that is written last: without it there is none. What a record says is enough to
//! prove the stream.

pub mod retention;

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::blake3::Blake3Sum;
use crate::identity::SystemIdentifier;
use crate::sha256::Sha256Sum;

/// Plain bytes of every piece but the last. What is stored at a time is in memory, in each of its forms.
pub const PIECE: u64 = 32 << 20;
/// What dumps' names begin with; no name of the configuration has a dot.
const DUMP: &str = "dump.";
/// What follows where a database's name cannot be a part of a key: its bytes as hexadecimal digits.
const HEX: &str = "hex.";

/// An artifact's name: `[[cluster.NAME.artifact]] name`, or that of a database's dump.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct ArtifactName(String);

/// The text cannot name an artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} cannot name an artifact: use 1 to 63 of a-z, 0-9, '-' and '_', beginning with a letter or digit")]
pub struct ArtifactNameError {
    text: String,
}

impl ArtifactName {
    /// The name of a database's dump. Databases may be called anything, and no two share a name here.
    pub fn of_dump(database: &str) -> Self {
        match is_plain(database) {
            true => Self(format!("{DUMP}{database}")),
            false => Self(format!("{DUMP}{HEX}{}", hex::encode(database))),
        }
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is that of a dump.
    pub fn is_dump(&self) -> bool {
        self.0.starts_with(DUMP)
    }
}

fn is_plain(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_';
    let begins_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    begins_well && text.len() <= 63 && text.bytes().all(allowed)
}

impl FromStr for ArtifactName {
    type Err = ArtifactNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ArtifactNameError { text: text.chars().take(80).collect() };
        let Some(database) = text.strip_prefix(DUMP) else {
            return is_plain(text).then(|| Self(text.to_owned())).ok_or_else(wrong);
        };
        let named = match database.strip_prefix(HEX) {
            Some(digits) => String::from_utf8(hex::decode(digits).map_err(|_| wrong())?).map_err(|_| wrong())?,
            None => database.to_owned(),
        };
        Some(Self::of_dump(&named)).filter(|name| name.0 == text && !named.is_empty()).ok_or_else(wrong)
    }
}

impl fmt::Display for ArtifactName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ArtifactName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One of an artifact's name: when it began (UTC) and chance, `20261121T034712Z-5f0c12ab`. The time is for people.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct ArtifactId(String);

/// The text is no ID of an artifact.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an artifact's ID: expected the form 20261121T034712Z-5f0c12ab")]
pub struct ArtifactIdError {
    text: String,
}

impl ArtifactId {
    /// One that began then; `chance` tells those of one second apart.
    pub fn new(began: DateTime<Utc>, chance: u32) -> Self {
        Self(format!("{}-{chance:08x}", began.format("%Y%m%dT%H%M%SZ")))
    }

    /// The ID as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// When it began, by its host's clock; `None` where the digits are no time.
    pub fn began(&self) -> Option<DateTime<Utc>> {
        let time = chrono::NaiveDateTime::parse_from_str(self.0.get(..16)?, "%Y%m%dT%H%M%SZ").ok()?;
        Some(time.and_utc())
    }
}

impl FromStr for ArtifactId {
    type Err = ArtifactIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = text.as_bytes();
        let digits = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_digit);
        let hex = |range: std::ops::Range<usize>| bytes[range].iter().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(b));
        let valid =
            bytes.len() == 25 && digits(0..8) && bytes[8] == b'T' && digits(9..15) && bytes[15] == b'Z' && bytes[16] == b'-' && hex(17..25);
        valid.then(|| Self(text.to_owned())).ok_or_else(|| ArtifactIdError { text: text.chars().take(80).collect() })
    }
}

impl fmt::Display for ArtifactId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for ArtifactId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Where an artifact lies.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct ArtifactPlace {
    /// Its name.
    pub name: ArtifactName,
    /// Which of that name.
    pub id: ArtifactId,
}

impl fmt::Display for ArtifactPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.id)
    }
}

/// What its stream is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// What a command printed, or a file's bytes.
    Bytes,
    /// A tar file.
    Tar,
    /// pg_dump's custom format.
    PgDump,
    /// A tar file of pg_dump's directory format.
    PgDumpDirectory,
}

impl Content {
    /// How a file with it is best called.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Bytes => "bin",
            Self::Tar | Self::PgDumpDirectory => "tar",
            Self::PgDump => "dump",
        }
    }
}

/// The record of an artifact.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// The format.
    pub format: u32,
    /// Its name.
    pub name: ArtifactName,
    /// Which of that name.
    pub id: ArtifactId,
    /// Of which cluster it is.
    pub cluster: String,
    /// The same by its system identifier.
    pub system_identifier: SystemIdentifier,
    /// What it was made from: a path, a URL, a database, a command's program.
    pub source: String,
    /// What its stream is.
    pub content: Content,
    /// The database, if it is a dump.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database: Option<String>,
    /// For which moment it was due, if a schedule asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub due: Option<DateTime<Utc>>,
    /// When it began, by the host's clock.
    pub started_at: DateTime<Utc>,
    /// When all of it was stored.
    pub ended_at: DateTime<Utc>,
    /// Bytes of the stream.
    pub bytes: u64,
    /// As stored.
    pub bytes_stored: u64,
    /// How many pieces it has.
    pub pieces: u32,
    /// Files in it, where it was made of files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<u64>,
    /// What was passed over or changed while it was read: how many, the summary names them.
    #[serde(default)]
    pub notes: u64,
    /// The host it was made on.
    pub host: String,
    /// SHA-256 of the summary.
    pub summary_sha256: Sha256Sum,
}

/// What proves an artifact, and what there is to say of it. It is encrypted where data is: the hash of something small lets anybody try what it may be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ArtifactSummary {
    /// The format.
    pub format: u32,
    /// SHA-256 of the stream.
    pub sha256: Sha256Sum,
    /// BLAKE3 of the stream.
    pub blake3: Blake3Sum,
    /// What was passed over or changed while it was read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// The end of what the command said on standard error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// Walkeep, and what else made it, with their versions.
    pub programs: Vec<String>,
    /// Chance, so that the summary's own hash tells nothing of what is in it.
    pub salt: String,
}

impl ArtifactRecord {
    /// The format of records.
    pub const FORMAT: u32 = 1;

    /// Where it lies.
    pub fn place(&self) -> ArtifactPlace {
        ArtifactPlace { name: self.name.clone(), id: self.id.clone() }
    }

    /// Plain bytes of the piece `number`, counted from 1; `None` if there is none.
    pub fn bytes_of(&self, number: u32) -> Option<u64> {
        let before = u64::from(number.checked_sub(1)?) * PIECE;
        (number <= self.pieces).then(|| self.bytes.saturating_sub(before).min(PIECE))
    }

    /// Whether its numbers agree with each other.
    pub fn is_consistent(&self) -> bool {
        self.bytes.div_ceil(PIECE).max(1) == u64::from(self.pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_no_two_databases_share_one() {
        for text in ["etc", "redis-1", "a_b", "dump.shop", "dump.hex.53686f70"] {
            assert_eq!(text.parse::<ArtifactName>().map(|name| name.to_string()), Ok(text.to_owned()));
        }
        // One that could be written plainly, upper case, nothing, no UTF-8.
        for text in
            ["", "A", "a.b", "../x", "a/b", "dump.", "dump.Shop", "dump.hex.", "dump.hex.73", "dump.hex.5G", "dump.hex.FF", "dump.hex.ff"]
        {
            assert!(text.parse::<ArtifactName>().is_err(), "{text}");
        }
        let odd = ["Shop", "hex.73", "../x", "a b", "ä", "x\n", ".", &"n".repeat(64)];
        let names: std::collections::BTreeSet<_> =
            odd.iter().chain(&["shop", "s"]).map(|database| ArtifactName::of_dump(database)).collect();
        assert_eq!(names.len(), odd.len() + 2);
        for name in names {
            assert!(name.is_dump() && name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)), "{name}");
            assert_eq!(name.to_string().parse(), Ok(name));
        }
    }

    #[test]
    fn ids_are_times_and_chance() {
        let id = ArtifactId::new(DateTime::from_timestamp(1_795_232_832, 0).expect("a time"), 0xab);
        assert_eq!(id.as_str(), "20261121T034712Z-000000ab");
        assert_eq!(id.began(), DateTime::from_timestamp(1_795_232_832, 0));
        assert_eq!(id.as_str().parse(), Ok(id));
        for text in ["", "20261121T034712Z-000000AB", "20261121T034712Z-0000000ab", "20261121T034712Zx000000ab"] {
            assert!(text.parse::<ArtifactId>().is_err(), "{text}");
        }
    }
}
