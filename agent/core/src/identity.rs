//! The numbers by which PostgreSQL tells clusters and their histories apart.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The 64-bit identifier that `initdb` gives a cluster; every long WAL page header and pg_control carry it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SystemIdentifier(u64);

impl SystemIdentifier {
    /// The identifier with this value.
    pub const fn new(value: u64) -> Self {
        Self(value)
    }

    /// The number itself.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number in a text was missing, malformed or out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {what}")]
pub struct ParseIdentityError {
    what: &'static str,
    text: String,
}

impl ParseIdentityError {
    fn new(what: &'static str, text: &str) -> Self {
        Self { what, text: text.chars().take(64).collect() }
    }
}

fn plain_decimal(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

impl FromStr for SystemIdentifier {
    type Err = ParseIdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = plain_decimal(text).then(|| text.parse().ok()).flatten();
        parsed.map(Self).ok_or_else(|| ParseIdentityError::new("system identifier", text))
    }
}

impl Serialize for SystemIdentifier {
    /// As text: JSON readers that use doubles would round the number.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SystemIdentifier {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A timeline: one uninterrupted history of WAL. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TimelineId(NonZeroU32);

impl TimelineId {
    /// The timeline every cluster begins on.
    pub const FIRST: TimelineId = TimelineId(NonZeroU32::MIN);

    /// The timeline with this number; `None` for 0.
    pub const fn new(value: u32) -> Option<Self> {
        match NonZeroU32::new(value) {
            Some(value) => Some(Self(value)),
            None => None,
        }
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0.get()
    }

    /// Eight upper-case hexadecimal digits, as in file names.
    pub fn hex(self) -> String {
        format!("{:08X}", self.0)
    }

    /// Reads the eight hexadecimal digits of a file name.
    pub fn parse_hex(text: &str) -> Option<Self> {
        parse_hex8(text).and_then(Self::new)
    }
}

/// Exactly eight upper-case hexadecimal digits, as PostgreSQL writes them in file names.
pub(crate) fn parse_hex8(text: &str) -> Option<u32> {
    let upper_hex = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    (text.len() == 8 && text.bytes().all(upper_hex)).then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for TimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TimelineId {
    type Err = ParseIdentityError;

    /// Reads the decimal number, as in `recovery_target_timeline` and history files.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parsed = plain_decimal(text).then(|| text.parse().ok()).flatten().and_then(Self::new);
        parsed.ok_or_else(|| ParseIdentityError::new("timeline", text))
    }
}

/// A server's major version, 13 to 18 being those Walkeep promises.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MajorVersion(u32);

impl MajorVersion {
    /// The major version with this number.
    pub const fn new(value: u32) -> Self {
        Self(value)
    }

    /// From `server_version_num`, such as 150018.
    pub const fn from_version_num(num: u32) -> Self {
        Self(num / 10_000)
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Whether Walkeep promises to work with this version.
    pub const fn is_supported(self) -> bool {
        self.0 >= 13 && self.0 <= 18
    }
}

impl fmt::Display for MajorVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timelines_are_never_zero() {
        assert_eq!(TimelineId::new(0), None);
        assert!("0".parse::<TimelineId>().is_err());
        assert_eq!(TimelineId::parse_hex("00000000"), None);
        assert_eq!(TimelineId::parse_hex("FFFFFFFF").map(TimelineId::get), Some(u32::MAX));
    }

    #[test]
    fn hexadecimal_is_exact() {
        assert_eq!(TimelineId::parse_hex("0000000a"), None, "PostgreSQL writes upper case");
        assert_eq!(TimelineId::parse_hex("000000A"), None);
        assert_eq!(TimelineId::parse_hex("0000000A").map(|t| t.hex()), Some("0000000A".into()));
    }

    #[test]
    fn a_system_identifier_survives_json() {
        let id = SystemIdentifier::new(u64::MAX - 1);
        let json = serde_json::to_string(&id).expect("serializes");
        assert_eq!(json, "\"18446744073709551614\"");
        assert_eq!(serde_json::from_str::<SystemIdentifier>(&json).expect("parses"), id);
    }
}
